"""That the commands of the first pages run from a fresh checkout: their files are shipped, or made by a line above."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
ENDINGS = (".jsonl", ".json", ".yaml", ".csv", ".txt", ".py", ".sh")
OUTPUTS = ("--output", "-o", "--output-dir")


def commands(page: str) -> list[list[str]]:
    text = (ROOT / page).read_text(encoding="utf-8").replace("\\\n", " ")
    lines = re.findall(r"^ {4}(specstream [^\n]*)", text, re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines]


def is_file(word: str) -> bool:
    """Whether a word is meant for a file or a folder; one in capitals stands for some file of the reader's."""
    if " " in word or word.startswith("-"):
        return False
    return word.endswith(ENDINGS) or word.partition("/")[0] in ("runs", "data", "examples", "configs") or word.isupper()


def strings(value: Any) -> Iterator[tuple[str, str]]:
    """Every text of a configuration, with the key that it stands under."""
    for key, inner in value.items():
        for each in inner if isinstance(inner, list) else [inner]:
            if isinstance(each, dict):
                yield from strings(each)
            elif isinstance(each, str):
                yield key, each


def configuration(words: list[str]) -> dict[str, Any]:
    """What the file behind --config says, and --set over it."""
    file = ROOT / words[words.index("--config") + 1] if "--config" in words else None
    if file is None or not file.exists():  # made by a line above, or missed with the other files
        return {}
    values = yaml.safe_load(file.read_text(encoding="utf-8"))
    for word, value in pairwise(words):
        if word == "--set":
            name, _, given = value.partition("=")
            *sections, key = name.split(".")
            section = values
            for each in sections:
                section = section.setdefault(each, {})
            section[key] = yaml.safe_load(given)
    return values


def made_and_needed(words: list[str]) -> tuple[set[str], set[str]]:
    """The files that a command writes, and those that it reads."""
    values = list(strings(configuration(words)))
    made = {value for key, value in values if key in ("output_dir", "output", "states_dir")}
    made |= {value for word, value in pairwise(words) if word in OUTPUTS}
    used = {value for _, value in values} | {word for word in words if "=" not in word}
    return made, {word for word in used if is_file(word)} - made


@pytest.mark.parametrize("page", ["README.md", "docs/quickstart.md"])
def test_every_file_of_a_page_is_shipped_or_made_by_a_line_above(page):
    there, missing = set[str](), []
    for words in commands(page):
        made, needed = made_and_needed(words)
        missing += [
            (word, " ".join(words))
            for word in sorted(needed)
            if not (ROOT / word).exists() and not any(word == each or word.startswith(f"{each}/") for each in there)
        ]
        there |= made
    assert missing == []


def test_the_examples_can_be_read_by_the_commands_that_are_shown_with_them():
    from specstream.evaluation.heads import read_conversations
    from specstream.evaluation.tasks.task import read_examples, read_task
    from specstream.files.prompts import read_prompts

    prompts = read_prompts(str(ROOT / "examples" / "prompts.jsonl"))
    assert len(set(prompts)) == len(prompts) >= 24
    assert len({each.category for each in read_conversations(str(ROOT / "examples" / "prompts.jsonl"), 20)}) >= 5
    assert len(read_examples(read_task("wikisql"), str(ROOT / "examples" / "wikisql.jsonl"))) >= 8


def test_the_quick_start_says_of_every_command_which_extra_it_needs():
    import typer

    from specstream.cli import build_app

    page = (ROOT / "docs/quickstart.md").read_text(encoding="utf-8").partition("## Which extra a command needs")[2]
    rows = re.findall(r"^\| ([^|]*) \| ([^|]*) \|", page.partition("\n## ")[0], re.MULTILINE)[1:]
    named = [name for commands_, _ in rows for name in re.findall(r"`([\w-]+)", commands_)]
    commands = typer.main.get_command(build_app()).commands
    assert sorted(named) == sorted(name for name, each in commands.items() if not each.hidden)
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    extras = {name for _, said in rows for name in re.findall(r"`([\w-]+)`", said)}
    assert extras and all(re.search(rf"^{name} = \[", project, re.MULTILINE) for name in extras)


def test_the_quick_start_names_the_places_that_are_used(monkeypatch):
    from specstream.models.hub.catalog import models_root
    from specstream.models.invariance.selftest_cache import cache_folder as answers
    from specstream.models.runtime.compiled import cache_folder

    for name in ("XDG_CACHE_HOME", "SPECSTREAM_MODELS"):
        monkeypatch.delenv(name, raising=False)
    page = (ROOT / "docs/quickstart.md").read_text(encoding="utf-8")
    for place in (models_root(), cache_folder(), answers()):
        assert f"| `~/{place.relative_to(Path.home())}` |" in page
