"""That the pages are read at once: short sentences, and the field's words for the field's things."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*(ROOT / "docs").glob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])
MOST_WORDS = 25  # of a sentence, on average over a page

# What was only said here, with what the field says. Names of YAML keys and output fields stand in code: not read.
OURS = {
    r"stak(?:e|es|ed)": "regret budget",
    r"(?:the|an|own|separate) account": "regret budget, or estimate",
    r"allowance": "cap of the regret budget",
    r"greetings?": "start of the regret budget",
    r"believed?|beliefs?": "estimated acceptance",
    r"trusted": "calibrated",
    r"pric(?:e|es|ed|ing)|dear(?:er)?": "cost",
    r"packs|packed pass(?:es)?|without padding": "ragged pass",
    r"arms?": "contestant",
    r"rests": "pause",
    r"worth of a row": "marginal value",
    r"spoiled": "adversarial",
    r"look-ups?": "lookup",
    r"in bytes": "int8",
    r"one ruler|same ruler": "one baseline",
    r"spends? chance|chance is spent": "random numbers",
    r"warden": "sandbox",
    r"kept verdicts?|verdicts? on disk": "self-test cache",
}


def prose(page: str) -> list[str]:
    """The paragraphs and list items of a page: no code, tables, headings or pictures; a code span is one word."""
    page = re.sub(r"^```.*?^```", "", page, flags=re.DOTALL | re.MULTILINE)
    page = re.sub(r"(?<=\n\n) {4}\S.*?(?=\n\n|\Z)", "", page + "\n\n", flags=re.DOTALL)
    lines = [line for line in page.splitlines() if not re.match(r"\s*(?:\||#|!\[|<|---)", line)]
    blocks = re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.) )", "\n".join(lines))
    texts = (re.sub(r"^\s*(?:[-*]|\d+\.) ", "", block) for block in blocks)
    texts = (re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", re.sub(r"`[^`]*`", "X", text)) for text in texts)
    return [" ".join(text.split()) for text in texts if re.search(r"\w", text)]


def sentences(page: str) -> list[str]:
    split = (re.split(r"(?<!et al\.)(?<=[.!?])[\"')*]*\s+", text) for text in prose(page))
    return [each for texts in split for each in texts if re.search(r"\w", each)]


def words(sentence: str) -> int:
    return sum(bool(re.search(r"\w", word)) for word in sentence.split())


def average(page: str) -> float:
    read = sentences(page)
    return sum(map(words, read)) / max(1, len(read))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_sentences_of_a_page_are_short(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    longest = max(sentences(text), key=words, default="")
    assert average(text) <= MOST_WORDS, f"{page.name}: {average(text):.1f} words; the longest sentence: {longest}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_has_the_words_of_the_field(page: Path) -> None:
    text = "\n".join(prose(page.read_text(encoding="utf-8")))
    found = {
        match[0]: better
        for ours, better in OURS.items()
        for match in re.finditer(rf"\b(?:{ours})\b", text, re.IGNORECASE)
    }
    assert found == {}, f"{page.name}: left what it says, right what the field says"


def test_what_is_read_is_prose() -> None:
    code = "\n\n    code here\n\n```\nmore code\n```\n\n| a | b |\n\n"
    page = f"# A title\n\nOne [two](three four). `five six` seven.{code}- Eight.\n- Nine ten\n  ten."
    assert prose(page) == ["One two. X seven.", "Eight.", "Nine ten ten."]
    assert [words(each) for each in sentences(page)] == [2, 2, 1, 3]
    assert average("One two et al. three four.\n") == 6
