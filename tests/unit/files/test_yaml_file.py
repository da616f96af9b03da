from __future__ import annotations

import pytest
from pydantic import BaseModel, ConfigDict

from specstream.errors import UsageError
from specstream.files.yaml_file import read_document, validated

TEXT = """\
name: a
parts:
  one: {size: 1}
  two:
    size: 2
    colour: red
sides:
  - {size: 3}
  - size: x
"""


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid")
    size: int = 0


class Whole(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str
    parts: dict[str, Part] = {}
    sides: list[Part] = []
    own: Part | None = None


def read(tmp_path, text=TEXT, overrides=()):
    path = tmp_path / "file.yaml"
    path.write_text(text, encoding="utf-8")
    return read_document(path, overrides, "name=b")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (TEXT, r"file.yaml:6: unknown setting 'parts.two.colour'; known are size"),
        (
            TEXT.replace("    colour: red\n", ""),
            r"file.yaml:8: sides.1.size is 'x'; give a value that is a whole number",
        ),
        ("nam: a", r"file.yaml:1: unknown setting 'nam'; known are name, own, parts, sides|name is missing; give it"),
        ("name: a\nown: {length: 1}", r"file.yaml:2: unknown setting 'own.length'; known are size"),
    ],
)
def test_an_error_names_the_line(tmp_path, text, message):
    document = read(tmp_path, text)
    with pytest.raises(UsageError, match=message):
        validated(Whole, document.values, document=document)


def test_what_replaces_the_file_is_not_blamed_on_a_line(tmp_path):
    document = read(tmp_path, "name: a\nparts: {one: {size: 1}}", ["parts.one.size=x"])
    with pytest.raises(UsageError, match=r"^--set: parts\.one.size is 'x'"):
        validated(Whole, document.values, document=document)
    assert document.where(("parts", "one")).endswith("file.yaml:2, with --set: ")
    assert document.where(("name",)).endswith("file.yaml:1: ")
    document = read(tmp_path, "parts:\n  one:\n    - a: 1", ["parts.one=[{a: 2}]"])
    assert document.where(("parts", "one", "0", "a")) == "--set: "
    assert document.where(("elsewhere",)) == ""


def test_a_key_that_is_given_twice_is_an_error(tmp_path):
    with pytest.raises(UsageError, match=r"file.yaml:3: name is given in line 1 already; drop one"):
        read(tmp_path, "name: a\nparts: {}\nname: b")
