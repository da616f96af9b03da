from __future__ import annotations

import pytest

from specstream.evaluation.benchmark.config import PromptFile, PromptsSection
from specstream.evaluation.benchmark.prompts import Prompt, make_items, read_prompts
from specstream.files.yaml_file import Document
from tests.tiny import tiny_tokenizer

NOWHERE = Document(source="", values={})


def test_the_built_in_prompts_are_three_of_each_kind():
    found = read_prompts(PromptsSection(), NOWHERE)
    kinds = [each.category for each in found]
    assert {kind: kinds.count(kind) for kind in kinds} == dict.fromkeys(
        ("chat", "code", "summary", "translation", "maths", "extraction"), 3
    )
    assert len({each.text for each in found}) == 18


def test_files_tasks_and_limits(tmp_path):
    lines = (
        '{"category": "writing", "turns": ["one"]}\n{"turns": ["two"]}\n{"category": "writing", "turns": ["three"]}\n'
    )
    (tmp_path / "q.jsonl").write_text(lines, encoding="utf-8")
    (tmp_path / "s.jsonl").write_text('{"dialogue": "A: hi", "summary": "they met"}\n', encoding="utf-8")
    files = [PromptFile(path=str(tmp_path / "q.jsonl")), PromptFile(path=str(tmp_path / "s.jsonl"), task="dialogsum")]
    found = read_prompts(PromptsSection(files=files, per_category=1), NOWHERE)
    assert [(each.category, each.text) for each in found] == [
        ("writing", "one"),
        ("q", "two"),
        ("dialogsum", "A: hi\nSummary:\n"),
    ]
    assert found[2].chat is False, "as the task says"
    (only,) = read_prompts(PromptsSection(files=files, categories=["q"]), NOWHERE)
    assert only.text == "two"


@pytest.mark.parametrize("context", [3, 40, 300])
def test_a_context_has_so_many_tokens_and_ends_in_the_prompt(context):
    tokenizer = tiny_tokenizer()
    prompts = [Prompt(category="a", text=text, chat=False) for text in ("the cat sat on the mat", "one two three four")]
    items = make_items(tokenizer, prompts, context=context)
    for item, prompt in zip(items, prompts, strict=True):
        own = tokenizer(prompt.text)["input_ids"]
        (row,) = item.rows
        assert len(row) == context
        shared = min(context, len(own))
        assert list(row[-shared:]) == own[-shared:]


def test_batches_are_filled_up():
    prompts = [Prompt(category=kind, text=text, chat=False) for kind, text in ("a1", "a2", "b3")]
    first, last = make_items(tiny_tokenizer(), prompts, batch=2)
    assert (first.category, last.category) == ("a", "mixed")
    assert last.rows[1] == first.rows[0]
    assert first.name != last.name
