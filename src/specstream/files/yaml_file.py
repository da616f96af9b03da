"""Settings from a YAML file: what stands on which line, what replaces it, and errors that name both."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator

from specstream.errors import UsageError, listed, meant, must_be, one_line, remedy, shown
from specstream.files.atomic import path_of, why_unread


class Section(BaseModel):
    """A section of a file: unknown keys are errors, and nothing changes after it was read."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    if not TYPE_CHECKING:

        def __setattr__(self, name: str, value: Any) -> None:
            raise UsageError(f"{name} cannot be set to {shown(value)} any more; give it when the configuration is made")

        @classmethod
        def model_validate(cls, obj: Any, **_: Any) -> Section:
            """The same of a mapping: pydantic would wrap the refusal of a class that checks itself in its own text."""
            must_be(isinstance(obj, cls | Mapping), "the configuration", obj, "a mapping of fields to values")
            return obj if isinstance(obj, cls) else cls(**obj)

        @classmethod
        def model_validate_json(cls, json_data: str | bytes, **_: Any) -> Section:
            """The same of a text."""
            try:
                return cls.model_validate(json.loads(json_data))
            except json.JSONDecodeError as error:
                raise UsageError(f"the configuration is not JSON: {error}; give an object, such as {{}}") from None

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_values(cls, value: Any, field: ValidationInfo) -> Any:
        """True and False are no numbers, though pydantic takes them for 1 and 0."""
        wanted = cls.model_fields[str(field.field_name)].annotation
        held = value if isinstance(value, list | tuple) else [value]
        if any(isinstance(each, bool) for each in held) and takes_numbers(wanted):
            raise ValueError("a number")
        return value


class Configuration(Section):
    """A whole configuration, which is made in Python too: what is wrong is said in one line, and a path is a text."""

    if not TYPE_CHECKING:  # for whom the fields are the arguments

        def __init__(self, **values: Any) -> None:
            try:
                super().__init__(
                    **{name: str(each) if isinstance(each, Path) else each for name, each in values.items()}
                )
            except ValidationError as error:
                raise refusal(error, type(self), values) from None


def takes_numbers(annotation: Any) -> bool:
    """Whether a field of this type holds a number, or some."""
    return annotation in (int, float) or any(takes_numbers(each) for each in get_args(annotation))


@dataclass(frozen=True, kw_only=True)
class Document:
    """A file's values, some of them replaced.

    Attributes:
        source: the file.
        values: by the names of the sections.
        lines: where keys and members of lists stand, by their path; 0 for one that replaces the file's.
    """

    source: str
    values: dict[str, Any]
    lines: Mapping[tuple[str, ...], int] = field(default_factory=dict)

    def where(self, place: Sequence[Any]) -> str:
        """The beginning of an error about a key: the line of it, or of the nearest around it; empty for none."""
        path = tuple(map(str, place))
        for end in range(len(path), 0, -1):
            if path[:end] in self.lines:
                line = self.lines[path[:end]]
                changed = any(key[:end] == path[:end] and not at for key, at in self.lines.items())
                return "--set: " if not line else f"{self.source}:{line}{', with --set' if changed else ''}: "
        inner = [line for key, line in self.lines.items() if key[: len(path)] == path]
        return "--set: " if inner and not any(inner) else ""  # a section that --set alone has made

    def where_in(self, place: Sequence[str]) -> str:
        """As ``where``, with the section's name where no line says which it is, for an error that has the key alone."""
        where = self.where(place)
        return f"{where}in {'.'.join(place[:-1])}, " if where == "--set: " and "values" not in place else where


def read_document(path: str | Path, overrides: Sequence[str], example: str) -> Document:
    """The values of a YAML file.

    Args:
        path: the file.
        overrides: ``section.key=value``, the value in YAML; they replace what the file says.
        example: such an override, for errors.

    Raises:
        UsageError: a file that cannot be read or holds no sections, a key that is given twice, a malformed override.
    """
    import yaml

    file = path_of("config", path, "a YAML file")
    try:
        text = file.read_text(encoding="utf-8")
        node = yaml.compose(text, yaml.SafeLoader)
        values = home_expanded(yaml.safe_load(text))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"config {str(path)!r} cannot be read: {why_unread(error)}; give a YAML file") from None
    except yaml.YAMLError as error:
        raise UsageError(f"config {str(path)!r} is not YAML: {malformed(error, text)}") from None
    _check_kind(path, values)
    lines: dict[tuple[str, ...], int] = {}
    for place, line in _places(node, ()):
        if place in lines:
            raise UsageError(f"{path}:{line}: {'.'.join(place)} is given in line {lines[place]} already; drop one")
        lines[place] = line
    for override in overrides:
        name, equals, value = (part.strip() for part in override.partition("="))
        if not equals or not name:
            raise UsageError(f"--set is {override!r}; give key=value, such as {example}")
        try:
            _set(values, name, home_expanded(yaml.safe_load(value)))
        except yaml.YAMLError:
            raise UsageError(f"--set {name} is no YAML: {value!r}; quote it") from None
        place = tuple(name.split("."))
        if lines.get(place) == 0:
            raise UsageError(f"--set {name} is given twice; give it once")
        lines = {each: line for each, line in lines.items() if each[: len(place)] != place} | {place: 0}
    return Document(source=str(path), values=values, lines=lines)


_Kind = TypeVar("_Kind", bound=BaseModel)

NAME = "NAME"
"""Stands for any name in the path of a section."""

NOTHING: Mapping[str, Collection[str]] = {}


def sections_of(kind: type[BaseModel], path: str = "") -> dict[str, set[str]]:
    """The keys of every section of a file, by the section's path; that of the top is empty.

    Args:
        kind: the file's class.
        path: of that class in the file.
    """
    found = {path: set(kind.model_fields)}
    for name, field_ in kind.model_fields.items():
        inner, named = _section_in(field_.annotation)
        if inner is not None:
            found |= sections_of(inner, ".".join(part for part in (path, name, NAME if named else "") if part))
    return found


def misplaced(place: Sequence[str], sections: Mapping[str, Collection[str]], value: Any = None) -> str | None:
    """What is wrong with a key that is unknown where it stands: it belongs elsewhere in the file. None if nowhere.

    Args:
        place: the path of the key.
        sections: the keys that sections have, by their paths.
        value: of the key.
    """
    *own, key = place
    homes = [path for path, keys in sections.items() if key in keys]
    stands = f"in section {'.'.join(own)!r}" if own else "at the top of the file"
    if homes:
        inside = " or ".join(repr(home) for home in homes if home)
        belongs = [f"in section {inside}"] * bool(inside) + ["at the top of the file"] * ("" in homes)
        return f"unknown key {key!r} {stands}: it belongs {' or '.join(belongs)}"
    if isinstance(value, Mapping) and len(sections) == 1:
        return f"unknown section {key!r}: this file has no sections; give the keys at the top of the file"
    return None


def _inside(place: Sequence[str], sections: Mapping[str, Collection[str]]) -> str | None:
    """The setting of another section that an unknown key stands for, with the section."""
    for path, keys in sections.items():
        if NAME not in path and path and (like := meant(place[-1], keys)) is not None:
            return f"{path}.{like}"
    return None


def _section_in(annotation: Any) -> tuple[type[BaseModel] | None, bool]:
    """The class of a field's section, if it has one, and whether there are several of it by names of their own."""
    named = False
    while (origin := get_origin(annotation)) is not None:
        inner = [each for each in get_args(annotation) if each is not type(None)]
        annotation, named = inner[-1 if origin in (dict, Mapping) else 0], named or origin in (dict, Mapping)
    found = annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None
    return found, named


def list_of(kind: type[BaseModel], place: Sequence[str]) -> list[str] | None:
    """The keys that each section of a list needs; None for what is no list of sections.

    Args:
        kind: the file's class.
        place: the path of the list.
    """
    annotation = _annotation(kind, place)
    if get_origin(annotation) is not list or not hasattr(inner := get_args(annotation)[0], "model_fields"):
        return None
    return [name for name, field_ in inner.model_fields.items() if field_.is_required()]


def validated(
    kind: type[_Kind],
    values: Mapping[str, Any],
    prefix: str = "",
    document: Document | None = None,
    free: Mapping[str, Collection[str]] = NOTHING,
) -> _Kind:
    """An instance of a section, or of a whole file.

    Args:
        kind: its class.
        values: its fields.
        prefix: of their names, in errors.
        document: the file that they are the values of, for the line.
        free: keys of sections that the class does not describe, by the section; for errors.

    Raises:
        UsageError: an unknown key, one that stands in the wrong section, a missing one, a value outside its range.
    """
    try:
        made = kind(**values)
    except ValidationError as error:
        raise refusal(error, kind, values, prefix, document, free) from None
    except UsageError as said:  # by a Configuration, which knows no line
        if not isinstance(cause := said.__context__, ValidationError):
            raise
        raise refusal(cause, kind, values, prefix, document, free) from None
    for empty in _blank(made):
        where = document.where(empty) if document is not None else ""
        raise UsageError(f"{where}{prefix}{'.'.join(empty)} is empty; give a value, or leave it out")
    return made


def refusal(
    error: ValidationError,
    kind: type[BaseModel],
    values: Mapping[str, Any],
    prefix: str = "",
    document: Document | None = None,
    free: Mapping[str, Collection[str]] = NOTHING,
) -> UsageError:
    """What pydantic complains of first, in one line; the arguments are those of ``validated``."""
    errors = error.errors()
    # What stands in the wrong section is missing in the right one, and that comes first.
    first = next((each for each in errors if each["type"] == "extra_forbidden"), errors[0])
    place = [str(part) for part in first["loc"]]
    name = prefix + ".".join(place)
    own = first.get("ctx", {}).get("error")
    if isinstance(own, UsageError):  # of a section that checks itself
        unknown = re.match(r"unknown setting '(.*?)'", str(own))
        key = unknown[1] if unknown else str(own).partition(" ")[0]
        where = document.where([*place, key]) if document is not None else ""
        said = f"unknown setting '{name}.{str(own)[unknown.start(1) :]}" if unknown else f"{name}.{own}"
        return UsageError(where + said)
    where = document.where(place) if document is not None else ""
    if first["type"] == "extra_forbidden":
        owner = "" if where == "--set: " else owner_of(values, kind.model_fields)
        sections, given = sections_of(kind) | dict(free), first["input"]
        set_in_it = isinstance(given, dict) and where == "--set: "
        inner = [misplaced([*place, str(key)], sections) for key in given] if set_in_it else []
        complaint = next(filter(None, inner), misplaced(place, sections, given))
        if complaint and not owner and not prefix:
            return UsageError(where + complaint)
        known = listed("" if owner else place[-1], _known(kind, place[:-1]))
        if not owner and "did you mean" not in known and (inner_ := _inside(place, sections)):
            known += f"; did you mean {inner_!r}?"
        return UsageError(f"{where}unknown setting {name!r}; known are {known}{owner}")
    if first["type"] == "missing":
        return UsageError(f"{where}{name} is missing; give it{owner_of(values, kind.model_fields)}")
    if first["input"] is None:
        return UsageError(f"{where}{name} is empty; give {remedy(first['msg'])}")
    such = _example(kind, place, first["input"])
    return UsageError(f"{where}{name} is {shown(first['input'])}; give {such or remedy(first['msg'], first['input'])}")


def _example(kind: type[BaseModel], place: Sequence[str], value: Any) -> str:
    """What to give in place of a text where a section is wanted, or a list of some; empty where neither is."""
    try:
        section = _annotation(kind, place)
    except (KeyError, IndexError):  # pydantic calls members of unions by names of its own
        return ""
    is_list = get_origin(section) is list
    section = get_args(section)[0] if is_list else section
    if not isinstance(value, str) or not (isinstance(section, type) and issubclass(section, BaseModel)):
        return ""
    first, *others = (name for name, field_ in section.model_fields.items() if field_.is_required())
    text = f"{{{', '.join([f'{first}: {value}', *(f'{name}: {name.upper()}' for name in others)])}}}"
    return f"a list, such as [{text}]" if is_list else f"keys and values, such as {text}"


def _blank(section: BaseModel) -> Iterator[tuple[str, ...]]:
    """The settings that were given as an empty text where that is no default: a path would be the folder one is in."""
    for name in section.model_fields_set:
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from ((name, *inner) for inner in _blank(value))
        elif isinstance(value, str) and not value.strip() and value != type(section).model_fields[name].default:
            yield (name,)


_OWNERS = {
    "serve": ("model_name", "model_path", "max_rows", "port", "api_key"),
    "benchmark": ("experiments",),
    "evaluate": ("datasets",),
    "train": ("recipe", "training", "streams", "distillation"),
    "router collect": ("collection",),
    "router train": ("fit", "embedding"),
    "generate": ("drafter", "max_new_tokens"),
}
"""Commands, and keys that only their files have."""


def owner_of(values: Mapping[str, Any], known: Container[str]) -> str:
    """The end of an error about a file that another command reads; empty for none.

    Args:
        values: what the file holds.
        known: keys of the files that were expected.
    """
    sectioned = any(isinstance(value, dict) for value in values.values())
    for command, keys in _OWNERS.items():
        if command == "generate" and sectioned:  # its files are flat: here these keys are only in the wrong section
            continue
        if any(key in values and key not in known for key in keys):
            return f"; the file looks like one for specstream {command}"
    return ""


def _check_kind(path: str | Path, values: Any) -> None:
    """Refuse a file without keys, and the configuration of a model, of heads or of a router."""
    if isinstance(values, dict) and {"kind", "model_type", "architectures"} & set(values):
        held = values.get("kind") or values.get("model_type") or "a model"
        raise UsageError(f"config {str(path)!r} is that of {held}, not of a command; give a YAML file, as in configs/")
    if not isinstance(values, dict):
        kind = "nothing" if values is None else f"one {type(values).__name__}"
        raise UsageError(f"config {str(path)!r} holds {kind}; give keys and values, as the files in configs/ do")


def malformed(error: Any, text: str) -> str:
    """What is wrong in a text that is no YAML, where, and what that line should be.

    Args:
        error: of the YAML library.
        text: the whole of it.
    """
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    if mark is None:
        return one_line(error) + "; give a text file"
    line = (text.splitlines() or [""])[min(mark.line, len(text.splitlines()) - 1)]
    why = "it is indented by a tab; give spaces" if "\t" in line[: mark.column + 1] else f"{error.problem}; mend it"
    return f"line {mark.line + 1}, {shown(line.strip())}: {why}"


def _places(node: Any, place: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], int]]:
    """Every key and every member of a list, with its line."""
    if isinstance(node.value, str):
        return
    for number, child in enumerate(node.value):
        key, value = child if isinstance(child, tuple) else (None, child)
        inner = (*place, str(number) if key is None else str(key.value))
        yield inner, (key or value).start_mark.line + 1
        yield from _places(value, inner)


def home_expanded(value: Any) -> Any:
    """A value with the user's folder where a path in it begins with ``~/``, which no shell has seen."""
    if isinstance(value, dict):
        return {key: home_expanded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [home_expanded(each) for each in value]
    return os.path.expanduser(value) if isinstance(value, str) and value.startswith("~/") else value


def _set(values: dict[str, Any], name: str, value: Any) -> None:
    *sections, key = name.split(".")
    for at, section in enumerate(sections, 1):
        inner = values.setdefault(section, {})
        if isinstance(inner, list):
            place = ".".join(sections[:at])
            raise UsageError(f"--set {name}: {place!r} is a list; give all of it, --set '{place}=[..]'")
        if not isinstance(inner, dict):
            raise UsageError(f"--set {name}: {section!r} is no section; give key=value of a section")
        values = inner
    values[key] = value


def _known(kind: type[BaseModel], place: Sequence[str]) -> list[str]:
    """The keys of the section at a place."""
    section: type[BaseModel] = _annotation(kind, place)
    return sorted(section.model_fields)


def _annotation(kind: type[BaseModel], place: Sequence[str]) -> Any:
    """What a class says of a value at a place."""
    annotation: Any = kind
    for part in place:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            annotation = annotation.model_fields[part].annotation
        else:  # the values of a dict, the members of a list
            annotation = get_args(annotation)[-1]
        if get_origin(annotation) in (Union, UnionType):
            annotation = get_args(annotation)[0]
    return annotation
