"""How thoughts are told from answers, and how they are ended."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest
import torch

from specstream.errors import UsageError
from specstream.serving.reasoning import (
    ThinkingBudget,
    ThoughtReader,
    are_told,
    behind_a_thought,
    opened_by,
    thought_length,
)
from tests.tiny import tiny_tokenizer


def tagged_tokenizer() -> Any:
    """With the tags as tokens of their own that are shown, as Qwen 3 and DeepSeek-R1 have them."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<think>", "</think>"])
    return tokenizer


TOKENIZERS = {"spelled": tiny_tokenizer, "tokens": tagged_tokenizer}
CASES = [
    (True, "\nso\n\nit is\n</think>\n\ncat", "so\n\nit is", "cat"),
    (True, "</think>cat\n", "", "cat\n"),
    (True, "a </thin </ < </thinking>", "a </thin </ < </thinking>", ""),
    (True, "a\n</think", "a\n</think", ""),
    (True, "a</think>b</think>c<think>d", "a", "b</think>c<think>d"),
    (False, "<think>\na\n</think>\n\nb\n", "a", "b\n"),
    (False, " \n<think>a", "a", ""),
    (False, "<think></think>\n", "", ""),
    (False, "\n\nb <think>a</think>", "", "\n\nb <think>a</think>"),
    (False, " <thin", "", " <thin"),
    (False, "", "", ""),
]


@pytest.mark.parametrize(("opened", "text", "thought", "answer"), CASES)
def test_a_thought_is_told_from_its_answer_however_it_is_cut(
    opened: bool, text: str, thought: str, answer: str
) -> None:
    cuts = [[*range(1, len(text))], *(list(pair) for pair in combinations(range(len(text) + 1), 2))]
    for cut in cuts:
        reader = ThoughtReader(opened=opened)
        bounds = [0, *cut, len(text)]
        said = [reader.feed(text[bounds[at] : bounds[at + 1]]) for at in range(len(bounds) - 1)]
        told = "".join(each for each, _ in said)
        said.append(reader.finish())
        assert ("".join(each for each, _ in said), "".join(each for _, each in said)) == (thought, answer), cut
        assert thought.startswith(told)


def test_the_parser_is_told_by_the_template_or_by_name() -> None:
    tokenizer = tiny_tokenizer()
    assert not are_told(tokenizer, "auto")
    assert are_told(tokenizer, "think")
    tokenizer.chat_template = "{{ messages[0].content.split('</think>') }}"
    assert are_told(tokenizer, "auto")
    assert not are_told(tokenizer, "none")
    tokenizer.add_special_tokens({"additional_special_tokens": ["</think>"]})
    assert not are_told(tokenizer, "auto")
    with pytest.raises(UsageError, match="reasoning_parser is 'think'"):
        are_told(tokenizer, "think")


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_prompt_opens_a_thought_where_it_ends_with_the_tag(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]()
    texts = {"a<assistant><think>\n": True, "<think>": True, "<think>\n\n</think>\n\n": False, "<think> a": False}
    assert {text: opened_by(tokenizer, tokenizer(text)["input_ids"]) for text in texts} == texts


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_the_tokens_of_a_thought_are_those_to_the_end_tag(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]()

    def count(text: str) -> int:
        return len(tokenizer(text)["input_ids"])

    for opened, head in ((True, ""), (False, "<think>")):
        tokens = tokenizer(head + "one two")["input_ids"]
        assert thought_length(tokenizer, tokens, opened=opened) == len(tokens)
        whole = [*tokens, *tokenizer("</think>")["input_ids"], *tokenizer("cat")["input_ids"]]
        assert thought_length(tokenizer, whole, opened=opened) == count(head + "one two") + count("</think>")
    assert thought_length(tokenizer, tokenizer("one</think>")["input_ids"], opened=False) == 0


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("opened", [True, False])
@pytest.mark.parametrize("most", [0, 3])
def test_a_budget_ends_the_thought_after_its_tokens(kind: str, opened: bool, most: int) -> None:
    tokenizer = TOKENIZERS[kind]()
    prompt = tokenizer("one two")["input_ids"]
    begun = [] if opened else tokenizer("<think>")["input_ids"]
    budget = ThinkingBudget(tokenizer, most, opened=opened, prompt_length=len(prompt))
    cat = tokenizer("cat")["input_ids"][0]
    scores = torch.zeros(1, len(tokenizer))
    scores[0, cat] = 1.0
    answer: list[int] = list(begun)
    for _ in range(30):
        tokens = [*prompt, *answer]
        after = budget(torch.tensor([tokens]), scores)
        assert [int(after.argmax())] == (budget.known(tokens) or [cat])[:1]
        assert after is scores or int(after.isfinite().sum()) == 1
        answer.append(int(after.argmax()))
    closing = tokenizer("</think>")["input_ids"]
    assert answer == [*begun, *[cat] * most, *closing, *[cat] * (30 - most - len(closing))]


def test_a_budget_lets_be_what_has_ended_or_never_began_a_thought() -> None:
    tokenizer = tagged_tokenizer()
    for opened, text in ((True, "a</think> b c d"), (False, "one two three four"), (False, "one <think> two")):
        tokens = tokenizer(text)["input_ids"]
        budget = ThinkingBudget(tokenizer, 2, opened=opened, prompt_length=0)
        assert not any(budget.known(tokens[:count]) for count in range(len(tokens) + 1))


def test_a_budget_lets_a_character_be_completed_if_it_can_be() -> None:
    tokenizer = tagged_tokenizer()
    euro = tokenizer("€")["input_ids"]
    assert len(euro) == 3
    budget = ThinkingBudget(tokenizer, 2, opened=True, prompt_length=0)
    cat = tokenizer("cat")["input_ids"]
    assert [bool(budget.known([*cat, *euro][:count])) for count in range(5)] == [False] * 4 + [True]
    spoiled = [cat[0], *[euro[0]] * 9]
    assert [bool(budget.known(spoiled[:count])) for count in range(8)] == [False] * 5 + [True, False, False]


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_grammar_holds_from_behind_the_thought_on(kind: str) -> None:
    from llguidance import LLMatcher
    from llguidance.hf import from_tokenizer

    tokenizer = TOKENIZERS[kind]()
    tokens = from_tokenizer(tokenizer, eos_token=[0])

    def fits(text: str, opened: bool) -> bool:
        matcher = LLMatcher(tokens, behind_a_thought(tokenizer, 'start: "cat"', opened=opened))
        ids = tokenizer(text)["input_ids"]
        return matcher.try_consume_tokens(ids) == len(ids) and bool(matcher.is_accepting())

    assert [fits("a </th</think>\n\ncat", opened) for opened in (True, False)] == [True, False]
    assert fits("<think>\na</think>cat", opened=False)
    assert not fits("\ncat", opened=False)
    assert [fits("cat", opened) for opened in (True, False)] == [False, True]
    assert not fits("a</think>dog", opened=True)
