"""Settings from YAML and keyword arguments into pydantic classes: every error names the value and the remedy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from specstream.errors import UsageError

_Kind = TypeVar("_Kind", bound=BaseModel)


def read_values(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The sections of a YAML file.

    Args:
        path: the file.
        overrides: ``section.key=value``, the value in YAML; they replace what the file says.

    Raises:
        UsageError: a file or an override that cannot be read.
    """
    import yaml

    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"config {str(path)!r} cannot be read: {error}; give a YAML file") from None
    except yaml.YAMLError as error:
        raise UsageError(f"config {str(path)!r} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UsageError(f"config {str(path)!r} holds no sections; see configs/ for examples")
    for override in overrides:
        name, equals, value = override.partition("=")
        if not equals or not name:
            raise UsageError(f"--set is {override!r}; give key=value, such as training.num_train_steps=100")
        try:
            _set(values, name, yaml.safe_load(value))
        except yaml.YAMLError:
            raise UsageError(f"--set {name} is no YAML: {value!r}; quote it") from None
    return values


def validated(kind: type[_Kind], values: Mapping[str, Any], prefix: str = "") -> _Kind:
    """An instance of a section.

    Args:
        kind: its class.
        values: its fields.
        prefix: of their names, in errors.

    Raises:
        UsageError: an unknown key, a missing one, a value outside its range.
    """
    try:
        return kind(**values)
    except ValidationError as error:
        first = error.errors()[0]
        name = prefix + ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise UsageError(
                f"unknown setting {name!r}; known are {', '.join(_known(kind, first['loc'][:-1]))}"
            ) from None
        if first["type"] == "missing":
            raise UsageError(f"{name} is missing; give it, such as recipe: streams") from None
        remedy = first["msg"].removeprefix("Input ").removeprefix("should be ")
        raise UsageError(f"{name} is {first['input']!r}; give a value that is {remedy}") from None


def _set(values: dict[str, Any], name: str, value: Any) -> None:
    *sections, key = name.split(".")
    for section in sections:
        inner = values.setdefault(section, {})
        if not isinstance(inner, dict):
            raise UsageError(f"--set {name}: {section!r} is no section; give key=value of a section")
        values = inner
    values[key] = value


def _known(kind: type[BaseModel], place: Sequence[int | str]) -> list[str]:
    """The fields of the section at a place; behind the name of a mapping's entry or the index of a list's, of those."""
    for part in place:
        if isinstance(part, str) and part in kind.model_fields:
            kind = _section(kind.model_fields[part].annotation) or kind
    return sorted(kind.model_fields)


def _section(annotation: Any) -> type[BaseModel] | None:
    """The class of a field, of a list's elements or of a mapping's values."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    inner = getattr(annotation, "__args__", ())
    return next((found for each in reversed(inner) if (found := _section(each))), None)
