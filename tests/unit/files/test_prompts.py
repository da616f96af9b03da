"""Prompt files of strange content."""

from __future__ import annotations

import io

import pytest

from specstream.errors import UsageError
from specstream.files.prompts import answer_of, load_prompts, prompt_of, read_prompts, read_records, turns_of


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


FORMATS = {
    "prompts.txt": "One.\n\n Two. \n",
    "prompts": "One.\nTwo.\n",
    "prompts.jsonl": '{"prompt": "One."}\n{"question": "Two."}\n',
    "lines": '{"prompt": "One."}\n{"question": "Two."}\n',
    "prompts.json": '["One.", {"text": "Two."}]',
    "prompts.csv": "prompt,answer\nOne.,1\nTwo.,2\n",
    "windows.txt": "\ufeffOne.\r\nTwo.\r\n",
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_reader_reads_every_format(name, tmp_path):
    (tmp_path / name).write_text(FORMATS[name], encoding="utf-8", newline="")
    path = str(tmp_path / name)
    assert [prompt_of(record, name) for record in read_records(path)] == ["One.", "Two."]
    assert load_prompts(path) == read_prompts(path) == ["One.", "Two."]


@pytest.mark.parametrize("content", ["One.\nTwo.\n", '{"prompt": "One."}\n{"prompt": "Two."}\n'])
def test_a_dash_is_the_standard_input(content, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content.encode())))
    assert read_prompts("-") == ["One.", "Two."]


@pytest.mark.parametrize("name", ["prompts.parquet", "prompts.md"])
def test_another_ending_is_refused_by_every_reader(name, tmp_path):
    (tmp_path / name).write_text("One.")
    for read in (read_records, load_prompts, read_prompts):
        with pytest.raises(UsageError, match=r"the ending is .*; give \.txt, \.jsonl, \.json or \.csv"):
            read(str(tmp_path / name))


@pytest.mark.parametrize("key", ["turns", "messages"])
def test_everything_that_is_asked_in_a_conversation_is_found(key):
    said = ["one", "two"]
    chat = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "1"},
        {"role": "user", "content": "two"},
    ]
    assert turns_of({key: said if key == "turns" else chat}, "here") == said
