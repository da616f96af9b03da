"""What a configuration's ``quantization_config`` says, and whether our kernels can run it.

The layouts are those of the libraries that write them: AutoAWQ's gemm version, AutoGPTQ's and GPTQModel's, and
compressed-tensors' (``packed.py`` reads them). Everything else runs as transformers runs it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specstream.errors import UnsupportedModelError, listed
from specstream.models.architecture.blocks import called, unquantised
from specstream.models.architecture.compat import quantization_methods
from specstream.models.hub.catalog import catalog
from specstream.models.hub.gguf_header import ENDING, is_gguf
from specstream.models.runtime.rounding import GROUP

_PLAIN_FORMATS = ("int-quantized", "naive-quantized")


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """How a checkpoint's matrices are stored, as far as our kernels run them.

    Attributes:
        source: the method.
        bits: of the integers: 4, 8, or both where layers differ.
        groups: the sizes of groups; 0 for one scale an output.
        symmetric: whether all zero points are the middle of the range. Eight bits always are.
        zeros_added: what is added to a stored zero point: GPTQ's first format keeps them minus one.
    """

    source: str
    bits: frozenset[int]
    groups: frozenset[int]
    symmetric: bool = False
    zeros_added: int = 0


def stored_as(folder: str | os.PathLike[str]) -> str | None:
    """How a model in a folder or a file is quantised: ``gguf``, or its method; None where it is not.

    Nothing is loaded for it.
    """
    if is_gguf(folder):
        return "gguf"
    try:
        settings = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
        found = settings.get("quantization_config")
        return _method(found) if found else None
    except (OSError, ValueError, AttributeError, TypeError):
        return None  # to load it says what is wrong with it


def refuse_quantised(folder: str | os.PathLike[str], setting: str, value: str, use: str) -> None:
    """Refuse a quantised model where weights are needed as numbers, before anything is loaded.

    Args:
        folder: that ``resolve`` gives.
        setting: how the model is given.
        value: what was given.
        use: what cannot be done with it, such as ``of which no draft is made``.

    Raises:
        UnsupportedModelError: it is one.
    """
    if (source := stored_as(folder)) is not None:
        name = str(value).removesuffix(ENDING)
        instead = name if source == "gguf" and name in catalog() else unquantised(source)
        raise UnsupportedModelError(f"{setting} is {value!r}, {called(source)}, {use}; give {instead}")


def read_scheme(settings: Mapping[str, Any], name: str) -> Scheme | str:
    """The scheme of a ``quantization_config``, or in words why our kernels do not run it.

    Args:
        settings: as in config.json.
        name: of the model, for the error.

    Raises:
        UnsupportedModelError: transformers knows no such method.
    """
    method = _method(settings)
    read = {"awq": _awq, "gptq": _gptq, "compressed-tensors": _compressed}.get(method)
    if read is not None:
        try:
            return read(settings)
        except (TypeError, ValueError, AttributeError, KeyError) as error:
            return f"its quantization_config is not understood ({error!r})"
    if method == str(None):
        raise UnsupportedModelError(
            f"model {name!r} has no quant_method in the quantization_config of its config.json; "
            "add it, or give the model that it was made of"
        )
    if method not in (known := quantization_methods()):
        raise UnsupportedModelError(
            f"model {name!r} has quant_method {method!r} in its config.json, which is not known; give the model that "
            f"it was made of, or one in {listed(method, known)}"
        )
    return f"no kernels of ours read {method}"


def _method(settings: Mapping[str, Any]) -> str:
    """The method; what old files of bitsandbytes say stands for it."""
    old = settings.get("load_in_4bit") or settings.get("load_in_8bit")
    return str(settings.get("quant_method", "bitsandbytes" if old else None))


def _awq(settings: Mapping[str, Any]) -> Scheme | str:
    bits, group = settings.get("bits", settings.get("w_bit")), settings.get("group_size", settings.get("q_group_size"))
    version = str(settings.get("version") or settings.get("checkpoint_format") or "gemm").lower()
    if version != "gemm":
        return f"its AWQ version is {version!r}, and our kernels read gemm"
    if bits != 4:
        return f"its AWQ weights have {bits} bits, and our kernels read 4"
    return _unless_odd(Scheme(source="awq", bits=frozenset({4}), groups=frozenset({_group(group)})))


def _gptq(settings: Mapping[str, Any]) -> Scheme | str:
    bits, symmetric = settings.get("bits"), bool(settings.get("sym", True))
    layout = "marlin" if settings.get("is_marlin_format") else str(settings.get("checkpoint_format") or "gptq")
    if settings.get("desc_act"):
        return "its GPTQ groups are in the order of activations (desc_act)"
    if layout not in ("gptq", "gptq_v2"):
        return f"its GPTQ checkpoint_format is {layout!r}, and our kernels read gptq and gptq_v2"
    if bits not in (4, 8):
        return f"its GPTQ weights have {bits} bits, and our kernels read 4 and 8"
    if settings.get("dynamic"):
        return "its GPTQ settings differ by layer (dynamic)"
    groups = frozenset({_group(settings.get("group_size"))})
    added = 1 if layout == "gptq" else 0
    return _unless_odd(
        Scheme(source="gptq", bits=frozenset({bits}), groups=groups, symmetric=symmetric, zeros_added=added)
    )


def _compressed(settings: Mapping[str, Any]) -> Scheme | str:
    for key in ("kv_cache_scheme", "sparsity_config", "transform_config"):
        if settings.get(key):
            return f"it has a {key}"
    bits, groups, symmetric = set[int](), set[int](), True
    for group in settings["config_groups"].values():
        weights, layout = group["weights"], group.get("format") or settings.get("format")
        if group.get("input_activations") or group.get("output_activations"):
            return "it quantises activations too"
        if weights.get("type", "int") != "int" or weights["num_bits"] not in (4, 8):
            return (
                f"its weights are {weights.get('type', 'int')}{weights['num_bits']}, and our kernels read int4 and int8"
            )
        if layout != "pack-quantized" and not (layout in _PLAIN_FORMATS and weights["num_bits"] == 8):
            return f"its format is {layout!r}, and our kernels read pack-quantized, and of 8 bits int-quantized"
        if weights.get("actorder") in ("group", "dynamic", True):
            return "its groups are in the order of activations (actorder)"
        strategy = weights.get("strategy") or ("group" if (weights.get("group_size") or 0) > 0 else "channel")
        if strategy not in ("group", "channel"):
            return f"its scales are by {strategy}, and our kernels read those by group and by channel"
        bits.add(weights["num_bits"])
        groups.add(_group(weights.get("group_size")) if strategy == "group" else 0)
        symmetric &= bool(weights.get("symmetric", True))
    return _unless_odd(
        Scheme(source="compressed-tensors", bits=frozenset(bits), groups=frozenset(groups), symmetric=symmetric)
    )


def _group(size: Any) -> int:
    return 0 if size in (None, -1) else int(size)


def _unless_odd(scheme: Scheme) -> Scheme | str:
    """The scheme, unless our blocks cannot hold it."""
    if odd := [size for size in scheme.groups if size % GROUP]:
        return f"its groups are of {odd[0]} weights, and our kernels read multiples of {GROUP}"
    if 8 in scheme.bits and not scheme.symmetric:
        return "its 8-bit weights have zero points, and our kernels read symmetric ones"
    return scheme
