"""Prompt files of strange content."""

from __future__ import annotations

import pytest

from specstream.errors import UsageError
from specstream.prompts import answer_of, prompt_of, read_records


@pytest.mark.parametrize("instances", [5, True, {"a": 1}, [], [5], "a"])
def test_instances_that_hold_nothing_are_no_answer(instances):
    record = {"instruction": "Add.", "instances": instances}
    assert prompt_of(record, "here") == "Add." and answer_of(record) is None


@pytest.mark.parametrize(
    ("name", "content"),
    [("deep.json", "[" * 100_000), ("deep.jsonl", '{"prompt": ' + "[" * 100_000), ("wide.csv", 'a\n"' + "x" * 200_000)],
)
def test_a_file_that_its_reader_gives_up_on_is_one_line(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(UsageError, match="cannot be read"):
        read_records(tmp_path / name)
