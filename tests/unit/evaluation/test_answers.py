from __future__ import annotations

import json

import pytest

from specstream.errors import UsageError
from specstream.evaluation.answers import Answers

RUN = {"settings": {"model": "m", "nodes": (1, 2)}, "data": "d"}


def test_answers_are_there_again(tmp_path):
    first = Answers(tmp_path / "new" / "folder", RUN)
    first.add({"example": 0, "text": "a"})
    first.add({"example": 2, "error": "oh"})
    first.add({"example": 2, "text": "c"})
    again = Answers(tmp_path / "new" / "folder", RUN)
    assert again.records == first.records == {0: {"example": 0, "text": "a"}, 2: {"example": 2, "text": "c"}}


@pytest.mark.parametrize("rest", ['{"example": 1, "te', '{"example": 1}'])
def test_a_line_that_was_cut_is_dropped(tmp_path, rest):
    Answers(tmp_path, RUN).add({"example": 0, "text": "ä"})
    path = tmp_path / "answers.jsonl"
    path.write_text(path.read_text(encoding="utf-8") + rest, encoding="utf-8")
    again = Answers(tmp_path, RUN)
    assert list(again.records) == [0]
    again.add({"example": 1, "text": "b"})
    assert list(Answers(tmp_path, RUN).records) == [0, 1]
    assert len([json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]) == 3


def test_a_run_that_was_stopped_in_its_first_line_starts_anew(tmp_path):
    (tmp_path / "answers.jsonl").write_text('{"run": {"se', encoding="utf-8")
    Answers(tmp_path, RUN).add({"example": 0})
    assert list(Answers(tmp_path, RUN).records) == [0]


def test_answers_of_another_run_are_refused_and_can_be_set_aside(tmp_path):
    Answers(tmp_path, RUN).add({"example": 0})
    with pytest.raises(UsageError, match=r"was written with data 'd' and now it is 'e'; give --no-resume"):
        Answers(tmp_path, {**RUN, "data": "e"})
    for _ in range(2):
        assert Answers(tmp_path, {**RUN, "data": "e"}, resume=False).records == {}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["answers.1.jsonl", "answers.2.jsonl", "answers.jsonl"]


def test_a_file_of_somebody_else_is_left_alone(tmp_path):
    (tmp_path / "answers.jsonl").write_text("hello\n", encoding="utf-8")
    with pytest.raises(UsageError, match="holds no answers of ours; give another output_dir"):
        Answers(tmp_path, RUN)
    assert (tmp_path / "answers.jsonl").read_text(encoding="utf-8") == "hello\n"
