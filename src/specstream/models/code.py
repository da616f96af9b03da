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

from specstream.models import compat

_HOMES = tuple(f"{Path(str(package.__file__)).parent}{sep}" for package in (torch, transformers))


def functions_of(kind: type) -> list[Any]:
    """The forward of a class of modules, what it wraps, and the functions that it calls by a name of its file.

    Some libraries patch the forward, some a function beside it: the same list as long as neither happened.
    """
    found, forward = list[Any](), getattr(kind, "forward", None)
    while forward is not None:
        found.append(forward)
        if isinstance(forward, FunctionType):
            named = map(forward.__globals__.get, forward.__code__.co_names)
            found += [each for each in named if isinstance(each, FunctionType)]
        forward = getattr(forward, "__wrapped__", None)
    return found


def is_original(module: Any) -> bool:
    """Whether the module runs the forward that transformers or torch wrote for its class, and nobody watches it."""
    if "forward" in module.__dict__ or hasattr(module, "_hf_hook") or compat.hooks_of(module):
        return False
    return is_original_class(type(module))


def is_original_class(kind: type) -> bool:
    """Whether a class of modules has the forward that transformers or torch wrote for it."""
    return all(map(_is_at_home, functions_of(kind)))


def code_of(model: Any) -> str:
    """A hash of the code that the model's forward runs: of its modules' classes, replaced forwards and hooks."""
    digest = hashlib.sha256()
    for module in model.modules():
        own = [module.__dict__.get("forward"), *compat.hooks_of(module)]
        digest.update("".join([_name(type(module)), *map(_hash, own)]).encode())
    for kind in sorted({type(module) for module in model.modules()}, key=_name):
        digest.update("".join([_name(kind), *map(_hash, functions_of(kind))]).encode())
    return digest.hexdigest()[:16]


def _is_at_home(function: Any) -> bool:
    code = getattr(function, "__code__", None)
    return code is None or code.co_filename.startswith(_HOMES)


def _name(kind: Any) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _hash(function: Any) -> str:
    """Of what a callable runs, through partials and bound methods; the class' name where that cannot be looked into."""
    while isinstance(function, partial | MethodType):
        function = function.func if isinstance(function, partial) else function.__func__
    code = getattr(function, "__code__", None)
    return _name(type(function)) if code is None else hashlib.sha256(b"".join(_bytes(code))).hexdigest()


def _bytes(code: CodeType) -> Iterator[bytes]:
    """What a function does, without where it stands: a file that was moved is the same code."""
    yield code.co_code
    yield repr(code.co_names).encode()
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _bytes(constant)
        else:
            yield repr(constant).encode() if isinstance(constant, frozenset) else marshal.dumps(constant)
