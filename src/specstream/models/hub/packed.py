"""Matrices of quantised checkpoints: integers out of their 32-bit words, and into the blocks that our kernels read.

The first number of a word stands in its lowest bits. compressed-tensors packs along the inputs, and GPTQ too, with
inputs and outputs exchanged. AWQ packs along the outputs, eight of them in the order of ``_AWQ_ORDER``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from specstream.models.hub.schemes import Scheme
from specstream.models.runtime.rounding import GROUP, Integers

FLOATS = ("F16", "BF16", "F32")
"""Dtypes of numbers, as safetensors calls them."""

_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of eight neighbours stands in each four bits of a word, from the lowest on."""


@dataclass(frozen=True)
class Grouped:
    """A weight is ``scales * (numbers - zeros)``, each scale for ``inputs / groups`` neighbours of an output.

    Attributes:
        numbers: ``[outputs, inputs]`` uint8, from 0 to 15 or to 255.
        scales: ``[outputs, groups]``, of a floating dtype.
        zeros: ``[outputs, groups]`` uint8.
    """

    numbers: Tensor
    scales: Tensor
    zeros: Tensor


@dataclass(frozen=True)
class Place:
    """A tensor of a checkpoint as it should be.

    Attributes:
        shape: that it has.
        kinds: its dtypes, as safetensors calls them.
    """

    shape: tuple[int, ...]
    kinds: tuple[str, ...] = ("I32",)


@dataclass(frozen=True)
class Layout:
    """One way to store a matrix.

    Attributes:
        bits: of its integers.
        places: by their names behind that of the layer, the tensors for ``(outputs, inputs, groups)``.
        optional: those of them that may be missing.
        read: the tensors that are there as integers.
    """

    bits: int
    places: Callable[[int, int, int], Mapping[str, Place]]
    optional: frozenset[str]
    read: Callable[[Mapping[str, Tensor]], Grouped]


def layouts(scheme: Scheme) -> list[Layout]:
    """The ways in which a matrix of this scheme may be stored; their tensors differ in shape or in name."""
    if scheme.source == "awq":
        return [_awq()]
    if scheme.source == "gptq":
        return [_gptq(bits, scheme.zeros_added) for bits in sorted(scheme.bits)]
    packed = [_compressed(bits, of_zeros) for bits in sorted(scheme.bits) for of_zeros in (bits, 0)]
    return packed + ([_bytes()] if 8 in scheme.bits else [])


def blocks_of(found: Grouped, bits: int) -> tuple[str, Tensor]:
    """The same weights in blocks of 32.

    Scales become float16: those of bfloat16 or float32 are rounded to 11 bits, and to multiples of 6e-8 below 6e-5. Of
    four bits ``-scale * zero`` is rounded to float16 too, by at most 1/136 of a scale.

    Args:
        found: groups of whole multiples of 32; of eight bits with all zero points 128.
        bits: of the numbers, 4 or 8.

    Returns:
        The kind, ``Q4_1`` or ``Q8_0``, and ``[outputs, bytes]`` uint8.

    Raises:
        ValueError: a scale is no float16, or a zero point of eight bits is another.
    """
    outputs, inputs = found.numbers.shape
    scales = found.scales.half()
    repeats = inputs // GROUP // scales.shape[1]
    least = -(scales.float() * found.zeros).half()
    if not (scales.isfinite().all() and least.isfinite().all()):
        raise ValueError("a scale is beyond float16's 65,504")
    numbers = found.numbers.view(outputs, -1, GROUP)
    units, leasts = (_bytes_of(each.repeat_interleave(repeats, 1)[..., None]) for each in (scales, least))
    if bits == 4:
        paired = numbers[..., : GROUP // 2] | (numbers[..., GROUP // 2 :] << 4)
        return "Q4_1", torch.cat([units, leasts, paired], -1).flatten(1)
    if not (found.zeros == 128).all():
        raise ValueError("zero points of 8 bits differ from 128, though it says that they are symmetric")
    return "Q8_0", torch.cat([units, numbers ^ 128], -1).flatten(1)


def compressed(found: Integers, dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors of a matrix in the layout pack-quantized of compressed-tensors, by their names behind the layer's.

    Args:
        found: of whole groups, rounded for the dtype.
        dtype: of the scales: the model's, as vLLM and transformers cast them to that.

    Returns:
        ``weight_packed`` ``[outputs, words]`` int32, ``weight_scale`` ``[outputs, groups]``, ``weight_shape`` int64,
        and of four bits ``weight_zero_point`` ``[words, groups]`` int32.
    """
    numbers, bits = (found.numbers, 4) if found.zeros is not None else (found.numbers.view(torch.uint8) ^ 128, 8)
    parts = {"weight_packed": _packed(numbers, bits), "weight_scale": found.scales.to(dtype)}
    if found.zeros is not None:
        parts["weight_zero_point"] = _packed(found.zeros.t(), 4).t().contiguous()
    return parts | {"weight_shape": torch.tensor(numbers.shape)}


def _packed(numbers: Tensor, bits: int) -> Tensor:
    """``[n, count]`` uint8 -> ``[n, words]`` int32."""
    padded = functional.pad(numbers, (0, -numbers.shape[1] % (32 // bits)))
    paired = padded if bits == 8 else padded[:, ::2] | (padded[:, 1::2] << 4)
    return paired.contiguous().view(torch.int32)


def _bytes_of(values: Tensor) -> Tensor:
    return values.contiguous().view(torch.uint8)


def _unpacked(words: Tensor, bits: int) -> Tensor:
    """``[n, words]`` int32 -> ``[n, words * 32 / bits]`` uint8."""
    found = _bytes_of(words)
    return found if bits == 8 else torch.stack([found & 15, found >> 4], -1).flatten(-2)


def _middle(scales: Tensor, bits: int) -> Tensor:
    return torch.full(scales.shape, 1 << (bits - 1), dtype=torch.uint8)


def _awq() -> Layout:
    order = torch.tensor(_AWQ_ORDER).argsort()

    def unpacked(words: Tensor) -> Tensor:
        return _unpacked(words, 4).view(len(words), -1, len(order))[..., order].flatten(-2).t().contiguous()

    return Layout(
        4,
        lambda outputs, inputs, groups: {
            "qweight": Place((inputs, outputs // 8)),
            "scales": Place((groups, outputs), FLOATS),
            "qzeros": Place((groups, outputs // 8)),
        },
        frozenset(),
        lambda parts: Grouped(unpacked(parts["qweight"]), parts["scales"].t(), unpacked(parts["qzeros"])),
    )


def _gptq(bits: int, zeros_added: int) -> Layout:
    together = 32 // bits

    def read(parts: Mapping[str, Tensor]) -> Grouped:
        numbers, scales = _unpacked(parts["qweight"].t(), bits), parts["scales"].t()
        own = parts.get("g_idx")
        if own is not None and not torch.equal(own, torch.arange(len(own)) // (len(own) // scales.shape[1])):
            raise ValueError("g_idx is not in order, though it says that desc_act is false")
        zeros = _unpacked(parts["qzeros"], bits).t() + zeros_added
        return Grouped(numbers, scales, zeros & ((1 << bits) - 1))

    return Layout(
        bits,
        lambda outputs, inputs, groups: {
            "qweight": Place((inputs // together, outputs)),
            "scales": Place((groups, outputs), FLOATS),
            "qzeros": Place((groups, outputs // together)),
            "g_idx": Place((inputs,)),
        },
        frozenset({"g_idx"}),
        read,
    )


def _compressed(bits: int, bits_of_zeros: int) -> Layout:
    """Zero points are packed along the outputs; libraries before 2025 kept each in a byte, as 0 bits say here."""
    middle = 1 << (bits - 1)

    def words(count: int) -> int:
        return -(-count * bits // 32)

    def read(parts: Mapping[str, Tensor]) -> Grouped:
        scales, zeros = parts["weight_scale"], parts.get("weight_zero_point")
        if zeros is None:
            zeros = _middle(scales, bits)
        elif bits_of_zeros:
            zeros = _unpacked(zeros.t(), bits).t()[: len(scales)]
        else:
            zeros = (zeros + middle).view(torch.uint8)
        return Grouped(_unpacked(parts["weight_packed"], bits), scales, zeros)

    def places(outputs: int, inputs: int, groups: int) -> Mapping[str, Place]:
        zeros = Place((words(outputs), groups)) if bits_of_zeros else Place((outputs, groups), ("I8",))
        return {
            "weight_packed": Place((outputs, words(inputs))),
            "weight_scale": Place((outputs, groups), FLOATS),
            "weight_zero_point": zeros,
            "weight_shape": Place((2,), ("I32", "I64")),
        }

    return Layout(bits, places, frozenset({"weight_zero_point", "weight_shape"}), read)


def _bytes() -> Layout:
    def read(parts: Mapping[str, Tensor]) -> Grouped:
        scales, zeros = parts["weight_scale"], parts.get("weight_zero_point")
        zeros = _middle(scales, 8) if zeros is None else zeros.view(torch.uint8) ^ 128
        return Grouped(parts["weight"].view(torch.uint8) ^ 128, scales, zeros)

    return Layout(
        8,
        lambda outputs, inputs, groups: {
            "weight": Place((outputs, inputs), ("I8",)),
            "weight_scale": Place((outputs, groups), FLOATS),
            "weight_zero_point": Place((outputs, groups), ("I8",)),
        },
        frozenset({"weight_zero_point"}),
        read,
    )
