"""The model that passes run on: modules of our own with the user's weights in them.

A pass needs other forwards, another attention, hooks. To change the user's model for its duration would break a forward
that the user runs meanwhile in another thread, and to change it back would undo what the user changed meanwhile. So
passes run on a view of the model, and the model itself is only read.

The model stays the user's: it may be cast, merged, patched, hooked, moved. A ``Stamp`` tells whether a view is still of
the model as it is; it is looked at when a generation starts.
"""

from __future__ import annotations

from copy import deepcopy
from functools import partial
from operator import is_
from types import CellType, FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.eval_frame import OptimizedModule

from specstream.models.architecture import compat
from specstream.models.architecture.blocks import BlockTensor
from specstream.models.architecture.code import functions_of, surroundings

SAMPLES = 64
"""Values of a weight that is held as a copy that are compared with the copy's: a merged adapter changes nearly all."""

TURNS = 8
"""Passes in which all weights are looked at: all in each would cost 2 % of a pass, and what moves one moves all."""

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs")


def view_of(model: Any) -> Any:
    """A model of other modules and the same weights. Nothing that is done to its modules is done to the model's.

    Configurations are copies too: layers read the name of their attention there. Parameters are the model's own, and
    one that a module is given later is the other's as well.
    """
    copies = {id(module): module if _is_closed(module) else object.__new__(type(module)) for module in model.modules()}
    done: dict[int, Any] = {}
    for module in model.modules():
        if copies[id(module)] is module:
            continue
        own = copies[id(module)].__dict__
        own.update({name: _translated(value, copies, done) for name, value in module.__dict__.items()})
        own["_modules"] = {
            name: None if child is None else copies[id(child)] for name, child in module._modules.items()
        }
        own["_buffers"] = compat.own_buffers(module)
        own["_compiled_call_impl"] = None  # it runs the modules that it was compiled of
        for name in _HOOKS:
            if name in own:
                own[name] = own[name].copy()
    return copies[id(model)]


def _translated(value: Any, copies: dict[int, Any], done: dict[int, Any]) -> Any:
    """What stands in a view's module where a model's has ``value``: whatever is bound to the model is bound to it."""
    if isinstance(value, MethodType) and id(value.__self__) in copies:
        return MethodType(value.__func__, copies[id(value.__self__)])
    if isinstance(value, partial):
        bound = [_translated(each, copies, done) for each in (value.func, *value.args)]
        made: Any = partial(bound[0], *bound[1:], **value.keywords)
        made.__dict__.update({name: _translated(each, copies, done) for name, each in vars(value).items()})
        return made
    if isinstance(value, FunctionType) and value.__closure__:
        return _closed_over(value, copies, done)
    if isinstance(value, nn.Module):
        return copies.get(id(value), value)
    return deepcopy(value, done) if isinstance(value, compat.PreTrainedConfig) else value


def _closed_over(function: FunctionType, copies: dict[int, Any], done: dict[int, Any]) -> Any:
    """A function that closes over what is bound to the model, as a wrapped forward does; others stay as they are."""
    if id(function) in done:
        return done[id(function)]
    if not _is_bound(function, copies, set()):
        return function
    cells = [CellType() if _is_bound(cell, copies, set()) else cell for cell in function.__closure__ or ()]
    made = FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__, tuple(cells))
    done[id(function)] = made  # before what it closes over, which may close over it
    made.__kwdefaults__ = function.__kwdefaults__
    made.__dict__.update({name: _translated(each, copies, done) for name, each in vars(function).items()})
    for cell, old in zip(cells, function.__closure__ or (), strict=True):
        if cell is not old:
            cell.cell_contents = _translated(old.cell_contents, copies, done)
    return made


def _is_bound(value: Any, copies: dict[int, Any], seen: set[int]) -> bool:
    """Whether a value is, or leads to, a module of the model."""
    if id(value) in seen:
        return False
    seen.add(id(value))
    if isinstance(value, CellType):
        try:
            parts = [value.cell_contents]
        except ValueError:  # nothing is in it yet
            return False
    elif isinstance(value, MethodType):
        parts = [value.__self__]
    elif isinstance(value, partial):
        parts = [value.func, *value.args]
    else:
        parts = list(value.__closure__ or ()) if isinstance(value, FunctionType) else []
    return id(value) in copies or any(_is_bound(part, copies, seen) for part in parts)


def _is_closed(module: Any) -> bool:
    """Whether the module holds compiled code of its own, which runs the model's modules: it can only be taken whole."""
    return isinstance(module, torch.jit.ScriptModule | OptimizedModule)


class Stamp:
    """What a model was made of when its view was made: modules, their attributes, hooks and forwards, mode, weights.

    It holds the weights that it saw, so that what reads them by their address reads no freed memory.

    Args:
        model: a transformers model.
    """

    def __init__(self, model: Any) -> None:
        self._objects, self._numbers = _look(model)
        held = [each.detach() for each in (*model.parameters(), *model.buffers())]
        # Bound methods: they are asked before every pass.
        self._ask = [each.data_ptr if _address(each) != id(each) else partial(id, each) for each in held]
        self._places, self._turn = [ask() for ask in self._ask], 0

    def holds(self) -> bool:
        """Whether the weights still lie where they lay: what shares or empties a storage moves even those held here."""
        self._turn = (self._turn + 1) % TURNS
        looked = slice(self._turn, None, TURNS)
        return [ask() for ask in self._ask[looked]] == self._places[looked]

    def fits(self, model: Any) -> bool:
        """Whether the model is still what it was. A weight that was changed in place is the weight it was."""
        objects, numbers = _look(model)
        same = len(objects) == len(self._objects) and numbers == self._numbers
        return same and all(map(is_, objects, self._objects))


def _look(model: Any) -> tuple[list[Any], list[int]]:
    """Objects to be compared by identity, and numbers; a millisecond for a thousand modules."""
    objects, numbers, waiting, seen = list[Any](), list[int](), [model], {id(model)}
    kinds, configs = set[type](), dict[int, Any]()
    while waiting:
        module = waiting.pop()
        own = module.__dict__
        if isinstance(module, torch.jit.ScriptModule):
            objects.append(module)
            continue
        kinds.add(type(module))
        objects.append(module)
        if own["_forward_hooks"] or own["_forward_pre_hooks"]:
            objects.extend(compat.hooks_of(module))
        if (config := own.get("config")) is not None:
            configs[id(config)] = config
        _look_inside(module, objects, numbers)
        children = [child for child in own["_modules"].values() if child is not None and id(child) not in seen]
        seen.update(map(id, children))
        waiting += children
    for config in configs.values():
        objects.extend(vars(config).values())
    for kind in sorted(kinds, key=id):
        objects.extend(functions_of(kind))
    objects.extend(surroundings(model))
    return objects, numbers


def _look_inside(module: Any, objects: list[Any], numbers: list[int]) -> None:
    own = module.__dict__
    if "rope_type" in own and compat.keeps_length(module):
        objects.append(own.get("forward"))  # the rest it changes by itself, in every forward of a long text
        numbers.extend(version_of(each) for name, each in own["_buffers"].items() if name.startswith("original"))
        return
    objects.extend(own.values() if compat.HOOKED not in own else [own[name] for name in own if name != compat.HOOKED])
    for weight in own["_parameters"].values():
        if weight is not None:
            objects += (weight, weight.dtype)
            numbers.append(_address(weight))
    for buffer in own["_buffers"].values():
        if buffer is not None:
            numbers += (_address(buffer), version_of(buffer))


class Copied:
    """A weight of which a copy is held, in another order or in fewer bits: has it been changed in place?

    Args:
        weight: of the model.
    """

    def __init__(self, weight: Tensor) -> None:
        self._weight, self._version = weight, version_of(weight)
        if isinstance(weight, BlockTensor):  # which nothing changes in place
            weight = weight.blocks[:0]
        flat = weight.detach().flatten()
        every = 1 if weight.is_inference() else max(1, len(flat) // SAMPLES)  # such a tensor counts no versions
        self._samples = flat[::every]
        self._before = self._samples.clone()

    @property
    def outdated(self) -> bool:
        """Whether it has. ``weight.data`` counts no versions, so a sample of the values is compared too."""
        return self._version != version_of(self._weight) or not torch.equal(self._samples, self._before)


def version_of(tensor: Tensor) -> int:
    """How many times a tensor was changed in place; 0 where nobody counts."""
    return 0 if tensor.is_inference() else tensor._version


def _address(tensor: Tensor) -> int:
    try:
        return tensor.data_ptr()
    except RuntimeError:  # a tensor of other tensors, as some quantised weights are
        return id(tensor)
