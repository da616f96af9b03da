"""Which code a model's forward runs: classes get patched, at run time and for all models at once.

Our kernels stand in for the code of transformers and torch and for no other, and what the self-test found holds for the
code that it ran.
"""

from __future__ import annotations

import hashlib
import marshal
from collections.abc import Iterator
from functools import partial
from os import sep
from pathlib import Path
from types import CodeType, FunctionType, MethodType
from typing import Any

import torch
import transformers
from torch.nn import functional

from specstream.models.architecture import compat

_HOMES = tuple(f"{Path(str(package.__file__)).parent}{sep}" for package in (torch, transformers))

_FUNCTIONALS = ("linear", "silu", "scaled_dot_product_attention", "embedding", "softmax")
"""What kernels compute in the place of ``torch.nn.functional``."""


def functions_of(kind: type) -> list[Any]:
    """What a class of modules runs: its forward, what that wraps, and functions of its file that these call by name.

    Some libraries patch the forward, some a function beside it: the same list as long as neither happened.
    """
    found, forward = [kind.__call__], getattr(kind, "forward", None)
    while forward is not None:
        found.append(forward)
        if isinstance(forward, FunctionType):
            _follow(forward, forward.__globals__, found)
        forward = getattr(forward, "__wrapped__", None)
    return found


def _follow(function: FunctionType, own: dict[str, Any], found: list[Any]) -> None:
    """The functions that a function calls by name; of those in its own file, the ones that they call too."""
    for name in function.__code__.co_names:
        called = own.get(name)
        if isinstance(called, FunctionType) and all(called is not each for each in found):
            found.append(called)
            if called.__globals__ is own:
                _follow(called, own, found)


def surroundings(model: Any) -> list[Any]:
    """What all modules of a model run besides: the attention, functions of torch, hooks on every module there is."""
    called = [getattr(functional, name) for name in _FUNCTIONALS]
    return [compat.attention_function(model), *called, *compat.global_hooks()]


def is_original(module: Any) -> bool:
    """Whether the module runs the forward that transformers or torch wrote for its class, and nobody watches it."""
    if "forward" in module.__dict__ or hasattr(module, "_hf_hook") or compat.hooks_of(module):
        return False
    return is_original_class(type(module))


def is_original_class(kind: type) -> bool:
    """Whether a class of modules has the forward that transformers or torch wrote for it."""
    return all(map(_is_at_home, functions_of(kind)))


def is_undisturbed(model: Any) -> bool:
    """Whether nothing that all modules run has been exchanged, so that kernels may stand in for it."""
    return not compat.global_hooks() and all(map(_is_at_home, surroundings(model)))


def code_of(model: Any) -> str | None:
    """A hash of the code that the model's forward runs: of its modules' classes, replaced forwards and hooks.

    None where it cannot be told: some callables keep what they do in attributes.
    """
    kinds = sorted({type(module) for module in model.modules()}, key=_name)
    parts: list[str | None] = [_name(type(module)) for module in model.modules()]
    for module in model.modules():
        parts += map(_hash, [own for own in (module.__dict__.get("forward"), *compat.hooks_of(module)) if own])
    parts += map(_hash, [function for kind in kinds for function in functions_of(kind)])
    parts += map(_hash, surroundings(model))
    known = [part for part in parts if part is not None]
    return hashlib.sha256("\n".join(known).encode()).hexdigest()[:16] if len(known) == len(parts) else None


def _is_at_home(function: Any) -> bool:
    code = getattr(function, "__code__", None)
    return code is None or code.co_filename.startswith(_HOMES)


def _name(kind: Any) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _hash(value: Any, within: tuple[Any, ...] = ()) -> str | None:
    """Of what a callable runs and what it holds, or of a plain value; None of what cannot be looked into."""
    if isinstance(value, partial):
        return _joined([value.func, *value.args, *value.keywords.values()], within)
    if isinstance(value, MethodType):
        return _joined([value.__func__, value.__self__], within)
    if isinstance(value, torch.nn.Module | type | torch.dtype) or value is None:
        return _name(value if isinstance(value, type) else type(value))
    if isinstance(value, bool | int | float | str):
        return repr(value)
    if isinstance(value, tuple | list):
        return _joined(list(value), within)
    if not isinstance(value, FunctionType):
        return _name(value) if isinstance(value, type(len)) else None
    own = hashlib.sha256(b"".join(_bytes(value.__code__))).hexdigest()
    if _is_at_home(value):
        return own
    if any(value is each for each in within):  # functions that close over each other
        return own
    try:
        held = [cell.cell_contents for cell in value.__closure__ or ()]
    except ValueError:  # nothing is in one yet
        return None
    inside = _joined([*held, *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()], (*within, value))
    return None if inside is None else own + inside


def _joined(values: list[Any], within: tuple[Any, ...]) -> str | None:
    hashes = [_hash(value, within) for value in values]
    return None if None in hashes else "|".join(map(str, hashes))


def _bytes(code: CodeType) -> Iterator[bytes]:
    """What a function does, without where it stands: a file that was moved is the same code."""
    yield code.co_code
    yield repr(code.co_names).encode()
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _bytes(constant)
        else:
            yield repr(constant).encode() if isinstance(constant, frozenset) else marshal.dumps(constant)
