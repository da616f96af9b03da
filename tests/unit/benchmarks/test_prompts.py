from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.prompts import CODE_EDITS, Item, batches, encoded, long_text, random_prompts
from specstream.errors import UsageError
from specstream.files.prompts import load_prompts
from tests.tiny import tiny_tokenizer


def written(path: Path, *records: Any) -> Path:
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    path.write_text("\n".join(lines) if path.suffix == ".jsonl" else f"[{','.join(lines)}]", encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("record", "prompt"),
    [
        ({"task_id": "HumanEval/0", "prompt": "def add(a, b):"}, "def add(a, b):"),
        ({"question_id": 1, "category": "coding", "turns": ["first", "second"]}, "first"),
        ({"instruction": "Sort.", "input": "3 1 2", "output": "1 2 3"}, "Sort.\n\n3 1 2"),
        ({"instruction": "Sort.", "input": ""}, "Sort."),
        ({"instruction": "Go on.", "instances": [{"input": "import json"}]}, "Go on.\n\nimport json"),
        ({"question": "How many?", "context": "CREATE TABLE t"}, "How many?\n\nCREATE TABLE t"),
        ({"question": "How many?", "answer": "4"}, "How many?"),
        ({"dialogue": "#Person1#: Hello"}, "#Person1#: Hello"),
        ({"conversations": [{"from": "human", "value": "Hi"}]}, "Hi"),
        ({"messages": [], "text": "table: t"}, "table: t"),
        ("a plain string", "a plain string"),
    ],
)
def test_a_prompt_is_found_in_a_record(tmp_path: Path, record: Any, prompt: str) -> None:
    assert load_prompts(written(tmp_path / "a.jsonl", record)) == [prompt]
    assert load_prompts(written(tmp_path / "a.json", record)) == [prompt]


def test_a_line_may_hold_a_line_separator(tmp_path: Path) -> None:
    assert load_prompts(written(tmp_path / "a.jsonl", {"prompt": "a\u2028b"}, {"prompt": "c"})) == ["a\u2028b", "c"]


def test_tables_are_read_too(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('mr,ref\n"name[A],\nfood[B]",text\n', encoding="utf-8")
    assert load_prompts(tmp_path / "a.csv") == ["name[A],\nfood[B]"]


def test_records_and_fields_can_be_chosen(tmp_path: Path) -> None:
    file = written(tmp_path / "a.jsonl", {"kind": 1, "prompt": "a", "other": "b"}, {"kind": 2, "prompt": "c"})
    assert load_prompts(file, where={"kind": "1"}) == ["a"]
    assert load_prompts(file, "other", {"kind": "1"}) == ["b"]


@pytest.mark.parametrize(
    ("name", "text", "part"),
    [
        ("a.md", "hello", "'.md'"),
        ("a.jsonl", "{", "is not JSON"),
        ("a.jsonl", "", "has no record"),
        ("a.jsonl", '{"solution": 1}', "its fields are solution"),
    ],
)
def test_a_file_without_prompts_is_refused(tmp_path: Path, name: str, text: str, part: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=part):
        load_prompts(tmp_path / name)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        load_prompts(tmp_path / "none.jsonl")


def test_prompts_go_through_the_chat_template_unless_raw() -> None:
    tokenizer = tiny_tokenizer()
    (chat,), (raw,) = encoded(tokenizer, ["the cat"]), encoded(tokenizer, ["the cat"], raw=True)
    assert tokenizer.decode(chat.prompts[0]) == "<user>the cat<assistant>"
    assert tokenizer.decode(raw.prompts[0]) == "the cat"


def test_batches_have_one_size() -> None:
    items = [Item(name=str(n), prompts=[[n]]) for n in range(5)]
    assert [batch.prompts for batch in batches(items, 2)] == [[[0], [1]], [[2], [3]]]
    with pytest.raises(UsageError, match="no batch of 6"):
        batches(items, 6)


def test_random_prompts_repeat_with_their_seed() -> None:
    first, again, other = (random_prompts(50, count=2, length=9, seed=seed) for seed in (1, 1, 2))
    assert first == again != other
    assert all(len(item.prompts[0]) == 9 and max(item.prompts[0]) < 50 for item in first)


def test_the_built_in_prompts_are_different() -> None:
    assert len(set(CODE_EDITS)) == len(CODE_EDITS)
    assert len(long_text(2000).split()) > 1500
