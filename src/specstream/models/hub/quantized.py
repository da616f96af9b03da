"""A checkpoint that somebody quantised, on our kernels: its integers go into the blocks that GGUF files have."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import GenerationConfig

from specstream.errors import ModelNotFoundError
from specstream.models.architecture.blocks import BlockTensor
from specstream.models.architecture.compat import is_text_model, model_without_weights
from specstream.models.hub.packed import FLOATS, Layout, Place, blocks_of, layouts
from specstream.models.hub.schemes import Scheme
from specstream.models.runtime.rounding import GROUP

_AGAIN = "copy or download it again"


class Elsewhere(Exception):
    """Why a checkpoint is left to transformers, as the second half of a sentence."""


def load_quantized(folder: Path, config: Any, scheme: Scheme, dtype: torch.dtype) -> Any:
    """The model of a folder, each quantised matrix a ``BlockTensor``, the rest cast.

    Scales become float16: see ``packed.blocks_of``. While it is loaded it takes the blocks and one matrix more.

    Args:
        folder: with the weights as safetensors.
        config: its configuration.
        scheme: of the same.
        dtype: of activations, norms, embeddings and biases.

    Raises:
        Elsewhere: our blocks cannot hold it.
        ModelNotFoundError: tensors of it are missing, of another shape, or not as its configuration says.
    """
    if not is_text_model(config):
        raise Elsewhere("it is more than a language model")
    own = copy.deepcopy(config)
    del own.quantization_config
    model = model_without_weights(own, dtype)
    with ExitStack() as files:
        stored = _Stored(folder, files)
        matrices, numbers = _assigned(model, scheme, stored)
        for name in numbers:
            _put(model, name, stored.read(name).to(dtype, copy=True))
        for matrix in matrices:
            _put(model, f"{matrix.layer}.weight", _in_blocks(matrix, stored, scheme, dtype))
    if own.tie_word_embeddings:
        model.get_output_embeddings().weight = model.get_input_embeddings().weight
    if (settings := folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_dict(json.loads(settings.read_text(encoding="utf-8")))
    return model.eval()


@dataclass(frozen=True)
class _Matrix:
    """A quantised layer: its name, how it is stored, and the tensors that are there."""

    layer: str
    layout: Layout
    parts: tuple[str, ...]


class _Stored:
    """The tensors of a folder's safetensors files by their names; the files are mapped."""

    def __init__(self, folder: Path, files: ExitStack) -> None:
        self.folder, self._of = folder, dict[str, Any]()
        for path in _files(folder):
            file = files.enter_context(safe_open(path, framework="pt"))
            self._of.update(dict.fromkeys(file.keys(), file))
        self.names = frozenset(self._of)

    def place(self, name: str) -> Place:
        """Shape and dtype, without the values."""
        found = self._of[name].get_slice(name)
        return Place(tuple(found.get_shape()), (found.get_dtype(),))

    def read(self, name: str) -> Tensor:
        found: Tensor = self._of[name].get_tensor(name)
        return found


def _files(folder: Path) -> list[Path]:
    """The one there is, as transformers has it, or those that the index names, all of which are there.

    Raises:
        Elsewhere: there is none.
    """
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.is_file():
        return [whole]
    if not index.is_file():
        raise Elsewhere("its weights are not in model.safetensors")
    return [folder / name for name in sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))]


def _assigned(model: Any, scheme: Scheme, stored: _Stored) -> tuple[list[_Matrix], list[str]]:
    """The quantised layers and the other parameters, all of which are there in the shapes that they need."""
    matrices, numbers, missing, left = list[_Matrix](), list[str](), list[str](), set(stored.names)
    for name, weight in _parameters(model):
        layer, _, leaf = name.rpartition(".")
        linear = leaf == "weight" and type(model.get_submodule(layer)) is nn.Linear
        if linear and (matrix := _stored_layout(layer, weight, scheme, stored)) is not None:
            matrices.append(matrix)
            left -= {f"{layer}.{part}" for part in matrix.parts}
        elif name in left:
            if (
                problem := _problem(layer, {leaf: Place(tuple(weight.shape), FLOATS)}, frozenset(), stored)
            ) is not None:
                raise ModelNotFoundError(problem)
            numbers.append(name)
            left.discard(name)
        else:
            missing.append(name)
    if unknown := sorted(name for name in left if not _is_needless(model, name, stored)):
        raise Elsewhere(f"it has {unknown[0]}, for which {type(model).__name__} has no linear layer")
    if missing:
        raise ModelNotFoundError(
            f"{str(stored.folder)!r} lacks {missing[0]} and {len(missing) - 1} more tensors; {_AGAIN}"
        )
    if not matrices:
        raise Elsewhere("none of its layers is quantised")
    return matrices, numbers


def _parameters(model: Any) -> Iterator[tuple[str, Tensor]]:
    """Each parameter once."""
    tied = model.config.tie_word_embeddings
    head = next((name for name, each in model.named_modules() if each is model.get_output_embeddings()), "")
    for name, weight in model.named_parameters():
        if not (tied and name == f"{head}.weight"):
            yield name, weight


def _is_needless(model: Any, name: str, stored: _Stored) -> bool:
    """Whether a tensor that no parameter takes says nothing: a tied head, rotations, a bias of zeros."""
    if name.endswith((".rotary_emb.inv_freq", ".masked_bias", ".attn.bias")):
        return True
    if name.endswith(".bias"):  # AutoGPTQ gives every layer one
        return not stored.read(name).any()
    return bool(model.config.tie_word_embeddings) and name == "lm_head.weight"


def _stored_layout(layer: str, weight: Tensor, scheme: Scheme, stored: _Stored) -> _Matrix | None:
    """How a linear layer is quantised; None where it is not.

    Raises:
        Elsewhere: its inputs are no multiple of 32, or of the groups.
        ModelNotFoundError: some of its tensors are missing, or of other shapes.
    """
    outputs, inputs = weight.shape
    groups = [inputs // size if size else 1 for size in sorted(scheme.groups) if not size or inputs % size == 0]
    problems = list[str]()
    for layout in layouts(scheme):
        for count in groups or [1]:
            places = layout.places(outputs, inputs, count)
            there = [part for part in places if f"{layer}.{part}" in stored.names]
            if there in ([], ["weight"]):
                continue
            if inputs % GROUP or not groups:
                raise Elsewhere(f"{layer} has {inputs} inputs, no multiple of {GROUP} and of its groups")
            if (problem := _problem(layer, places, layout.optional, stored)) is None:
                return _Matrix(layer, layout, tuple(there))
            problems.append(problem)
    if problems:
        raise ModelNotFoundError(problems[0])
    return None


def _problem(layer: str, places: Mapping[str, Place], optional: frozenset[str], stored: _Stored) -> str | None:
    """What is wrong with the tensors of a layer, if anything is."""
    for part, place in places.items():
        name = f"{layer}.{part}"
        if name not in stored.names:
            if part not in optional:
                return f"{str(stored.folder)!r} lacks {name}; {_AGAIN}"
        elif (found := stored.place(name)).shape != place.shape or not set(found.kinds) <= set(place.kinds):
            return (
                f"{str(stored.folder)!r} has {name} of shape {list(found.shape)} in {found.kinds[0]}, where "
                f"{list(place.shape)} in {' or '.join(place.kinds)} is needed; mend quantization_config, or {_AGAIN}"
            )
    return None


def _in_blocks(matrix: _Matrix, stored: _Stored, scheme: Scheme, dtype: torch.dtype) -> BlockTensor:
    parts = {part: stored.read(f"{matrix.layer}.{part}") for part in matrix.parts}
    try:
        kind, blocks = blocks_of(matrix.layout.read(parts), matrix.layout.bits)
    except ValueError as error:
        raise ModelNotFoundError(
            f"{matrix.layer} of {str(stored.folder)!r} cannot be read: {error}; mend quantization_config, or {_AGAIN}"
        ) from None
    return BlockTensor(blocks, kind, dtype, scheme.source)


def _put(model: Any, name: str, value: Tensor) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, nn.Parameter(value, requires_grad=False))
