"""What `benchmark heads` asks: the formats of its files, turns behind the model's own answers, prompts of a length."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from specstream import SpeculativeEngine
from specstream.engine.text import encode
from specstream.errors import UsageError
from specstream.evaluation.benchmark.experiments import PLAIN_ARM
from specstream.evaluation.benchmark.prompts import Prompt
from specstream.evaluation.heads import (
    SHORTEST,
    Conversation,
    _lengths,
    measure_drafters,
    prompts_of,
    read_conversations,
    read_document,
)
from tests.tiny import TEMPLATE, tiny_model, tiny_tokenizer

ABOUT = {"question_id": "a1", "category": "coding", "sub_category": "python", "source": "s", "multiturn": True}
EXAMPLES = Path(__file__).parents[3] / "examples"


def user(*texts):
    return [{"role": "user", "content": text} for text in texts]


def written(path, *records):
    path.write_text("".join(json.dumps(each) + "\n" for each in records), encoding="utf-8")
    return path


def quiet(*_):
    """Nothing is shown."""


@pytest.fixture(scope="module")
def engine():
    return SpeculativeEngine(tiny_model(context=2048), tiny_tokenizer(), drafter="none", max_new_tokens=6)


@pytest.mark.parametrize(
    "said",
    [{"turns": ["one", "two", "three"]}, {"messages": user("one", "two", "three")}],
    ids=["as published", "as prepare.py writes it"],
)
def test_both_forms_of_speed_bench_are_turns_of_a_category(tmp_path, said):
    file = written(tmp_path / "qualitative.jsonl", {**ABOUT, **said}, {**ABOUT, "category": "math", "turns": ["four"]})
    first, second = read_conversations(file, 20, turns=2)
    assert (first.category, first.turns) == ("coding", [user("one"), user("two")])
    assert (second.category, second.turns) == ("math", [user("four")])


def test_answers_and_results_of_tools_that_are_given_are_kept(tmp_path):
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    asked, result, later = *user("go"), {"role": "tool", "content": "1"}, *user("again")
    system = {"role": "system", "content": "be short"}
    file = written(
        tmp_path / "q.jsonl",
        {"category": "a", "messages": [system, asked, call, result, later], "tools": [{"name": "f"}]},
    )
    (found,) = read_conversations(file, 1, turns=2)
    assert (found.turns, found.tools) == ([[system, asked, call, result], [later]], [{"name": "f"}])


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"category": "a"}, "record 1 of .* has no 'turns'; give Spec-Bench's question.jsonl, what SPEED-Bench's"),
        ({"turns": ["b"]}, "record 1 of .* has no 'category'; give"),
        ({"category": "a", "turns": "b"}, "record 1 of .* has turns 'b'; give a list of texts"),
        ({"category": "a", "messages": ["b"]}, r"record 1 of .* has messages \['b'\]; give a list of role and content"),
        ({"category": "a", "messages": [{"role": "assistant", "content": "b"}]}, "; give .* that ends with a user's"),
        ({"category": "a", "turns": ["b", "c"]}, "turns is 3 and the longest conversation of .* has 2; give 2"),
        (
            {"category": "a", "turns": ["FULL BENCHMARK DATA SHOULD BE FETCHED FROM THE SOURCE USING SPECDEC_BENCH"]},
            "q.jsonl:1 has a placeholder of SPEED-Bench for a prompt; fetch it with the dataset's prepare.py",
        ),
    ],
)
def test_what_is_of_no_form_is_refused_in_a_line(tmp_path, record, message):
    with pytest.raises(UsageError, match=message) as error:
        read_conversations(written(tmp_path / "q.jsonl", record), 20, turns=3)
    assert "\n" not in str(error.value)


def test_each_turn_stands_behind_the_models_own_answers(tmp_path, engine):
    file = written(tmp_path / "q.jsonl", {"category": "a", "turns": ["the cat", "and the dog", "why"]})
    prompts = prompts_of(engine, read_conversations(file, 1, turns=3), quiet)
    said, expected = [], []
    for turn in user("the cat", "and the dog", "why"):
        said.append(turn)
        expected.append(encode(engine.tokenizer, said))
        said.append({"role": "assistant", "content": engine.generate(said[:])["text"]})
    assert [each.text for each in prompts] == expected
    assert [each.turn for each in prompts] == [1, 2, 3]


def test_tools_reach_the_chat_template_or_are_refused():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    asked = Conversation(category="a", turns=[user("go")], tools=[{"name": "f"}], where="record 1")
    with pytest.raises(UsageError, match="record 1 has tools and this model's chat template takes none; give another"):
        prompts_of(SpeculativeEngine(model, tokenizer, drafter="none"), [asked], quiet)
    tokenizer.chat_template = "{{ tools | tojson }}" + TEMPLATE
    (prompt,) = prompts_of(SpeculativeEngine(model, tokenizer, drafter="none"), [asked], quiet)
    assert tokenizer.decode(prompt.text).startswith('[{"name": "f"}]<user>go')


def test_prompts_of_a_length_have_passages_of_the_document(tmp_path, engine):
    words = [f"the cat {number} sat on the mat" for number in range(200)]
    document = tmp_path / "text.txt"
    document.write_text("\n".join(words), encoding="utf-8")
    asked = [Conversation(category=each, turns=[user("why")], tools=(), where=each) for each in "ab"]
    given = {"document": read_document(document), "contexts": [300, 900]}
    prompts = prompts_of(engine, asked, quiet, **given)
    assert prompts == prompts_of(engine, asked, quiet, **given)
    assert [each.category for each in prompts] == ["a", "b", "a", "b"]
    for prompt, size in zip(prompts, (300, 300, 900, 900), strict=True):
        assert size - 8 <= len(prompt.text) <= size + 8
        assert engine.tokenizer.decode(prompt.text).endswith("\n\nwhy<assistant>")
    assert prompts[0].text[:200] != prompts[1].text[:200], "each has a passage of its own"
    whole = given["document"]
    for size, text, message in (
        (1_000_000, whole, "and the model's context holds 2048; give a smaller one"),
        (1000, whole[:500], "and the document has .*; give a longer text"),
        (5, whole, "and a has .* by itself"),
    ):
        with pytest.raises(UsageError, match=f"context is {size} tokens {message}"):
            prompts_of(engine, asked, quiet, document=text, contexts=[size])


def test_tokens_a_pass_by_turn_and_by_the_tokens_before_it(engine):
    """Every pass of every contestant is counted once, where it was made."""
    prompts = [
        Prompt(category="a", text=[3 + at % 50 for at in range(size)], chat=None, turn=turn)
        for size, turn in ((SHORTEST - 3, 1), (SHORTEST - 3, 2), (2 * SHORTEST, 2))
    ]
    found = measure_drafters(engine, [PLAIN_ARM], prompts, 1, quiet)
    passes = lambda kind: {at: own[0]["passes"] for at, own in found[kind].items()}  # noqa: E731
    # Passes stand behind 509, 510, 511 and 512 tokens, then behind 513 and more; those of the last one behind 1024.
    assert passes("turns") == {1: 6, 2: 12}
    assert passes("positions") == {512: 2 * 4, 1024: 2 * 2 + 1, 2048: 5}


def test_a_pass_is_where_the_tokens_of_the_passes_before_it_end():
    """Passes that emit 3, 1 and 4 tokens behind 510 stand at 510, 513 and 514."""
    sample = {"arm": "lookup", "prompt_tokens": 510, "depths": [[(4, 3, 2, 3)], [(0, 0, 0, 1)], [(4, 4, 4, 4)]]}
    assert _lengths(SimpleNamespace(samples=[sample]), lambda _, at: 512 if at <= 512 else 1024) == {
        512: [{"side": "lookup", "mean_accepted_length": 3, "passes": 1}],
        1024: [{"side": "lookup", "mean_accepted_length": 2.5, "passes": 2}],
    }


@pytest.mark.parametrize(
    ("name", "categories"),
    [
        ("structured", {"json_schema": 20, "json_extraction": 20}),
        ("tool_calls", {"tool_call": 20, "tool_result": 20}),
        ("long_context", {"summary": 1, "list": 1, "quote": 1, "continue": 1}),
    ],
)
def test_the_sets_of_the_examples(name, categories):
    found = read_conversations(EXAMPLES / f"{name}.jsonl", 20)
    kinds = [each.category for each in found]
    assert {kind: kinds.count(kind) for kind in kinds} == categories
    assert all(bool(each.tools) == (name == "tool_calls") for each in found)
    assert len({json.dumps(each.turns) for each in found}) == len(found)
