"""What the documentation says of the code: messages, commands, cards, pictures."""

from __future__ import annotations

import ast
import re
import runpy
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from specstream.training import cards

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.glob("*.md"), *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md"))])


def text_of(node):
    """A message with … for every value in it."""
    if isinstance(node, ast.JoinedStr):
        return "".join(each.value if isinstance(each, ast.Constant) else "…" for each in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def strings_of_the_code():
    trees = (ast.parse(file.read_text(encoding="utf-8")) for file in (ROOT / "src").rglob("*.py"))
    return {text for tree in trees for node in ast.walk(tree) if (text := text_of(node))}


def test_the_messages_of_the_troubleshooting_page_are_the_codes_own():
    rows = re.findall(r"^\| (`.*?`) \| ", (DOCS / "troubleshooting.md").read_text(encoding="utf-8"), re.MULTILINE)
    messages = {message for row in rows for message in re.findall(r"`([^`]*(?:`hf auth login`)?[^`]*)`", row)} - {", "}
    assert len(messages) > 25
    assert messages - strings_of_the_code() == set()


def test_the_card_template_is_what_training_writes(monkeypatch):
    monkeypatch.setattr(cards, "licence_of", lambda model: "LICENCE")
    record = {
        "config": {
            "recipe": "RECIPE",
            "model": {"target_model": "TARGET", "draft_model": "BASE"},
            "data": {"domain": "DOMAIN", "files": ["FILES"]},
        },
        "data_sha256": "SHA256",
        "progress": {"tokens": "TOKENS", "step": "STEPS", "figures": {"FIGURE": 0.5}},
    }
    written = cards.training_card(record).replace("| 0.5 |", "| VALUE |")
    template = (DOCS / "model_card_template.md").read_text(encoding="utf-8")
    assert written.strip() in template


@pytest.mark.parametrize("picture", sorted((DOCS / "pictures").glob("*.svg")), ids=lambda path: path.stem)
def test_a_picture_is_sound_and_shown(picture):
    root = ElementTree.parse(picture).getroot()
    assert root.attrib["class"] == "picture" and "width" not in root.attrib
    assert any(f"pictures/{picture.name}" in page.read_text(encoding="utf-8") for page in PAGES)


def test_the_picture_of_the_rate_is_the_policys_own():
    drawn = runpy.run_path(str(DOCS / "pictures" / "rate.py"))
    assert (DOCS / "pictures" / "rate.svg").read_text(encoding="utf-8") == drawn["picture"]()
    for case in drawn["CASES"]:
        speeds, shares = drawn["curve"](case.rows)
        assert speeds[sum(shares)] == max(speeds), case.label


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_the_commands_and_options_that_a_page_shows_exist(page):
    import typer

    from specstream.cli import build_app

    root = typer.main.get_command(build_app())
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for words in re.findall(r"^ {4}specstream ([^\n#]*)", text, re.MULTILINE):
        words = words.partition(" -- ")[0]  # what follows is of another program
        command, parts = root, words.split()
        while parts and parts[0] in getattr(command, "commands", {}):
            command = command.commands[parts.pop(0)]
        whole = not hasattr(command, "commands") or command.invoke_without_command
        assert command is not root and whole, words
        known = {option for parameter in command.params for option in [*parameter.opts, *parameter.secondary_opts]}
        assert {part for part in parts if re.fullmatch(r"--?[a-zA-Z][\w-]*", part)} - known == set(), words
