from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "specstream"
FILES = sorted(SOURCE.rglob("*.py"))

FUNCTION_LINES = 60
README_LINES = 100
NAMES_THAT_SAY_NOTHING = {"utils", "helpers", "common"}


def _functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def test_there_is_something_to_measure() -> None:
    assert SOURCE / "errors.py" in FILES


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))
def test_functions_stay_small(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    lengths = {node.name: (node.end_lineno or node.lineno) - node.lineno + 1 for node in _functions(ast.parse(text))}
    assert {name: length for name, length in lengths.items() if length > FUNCTION_LINES} == {}


def test_the_readme_is_read_in_one_go() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= README_LINES


def test_modules_are_named_for_what_they_hold() -> None:
    stems = {file.parent.name if file.stem == "__init__" else file.stem for file in FILES}
    assert stems & NAMES_THAT_SAY_NOTHING == set()
