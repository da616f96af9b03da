"""A model of a GGUF file: the linear layers and the embedding read its own blocks, or numbers made of them."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from specstream.environment import free_memory
from specstream.errors import ModelNotFoundError, UnsupportedModelError, UsageError
from specstream.models.architecture.blocks import BlockTensor
from specstream.models.architecture.compat import config_of_gguf, model_without_weights, scale_rotations
from specstream.models.hub import repairs
from specstream.models.hub.gguf_header import PLAIN_KINDS, Header, StoredTensor, read_header

ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma2", "gemma3", "phi3")
"""By the name in the file; Mistral's is llama."""

_FROM_ONE = ("gemma2", "gemma3")  # their norms multiply by 1 + weight, and the file holds the sum
_ROTATIONS = "rope_freqs.weight"
_SHORT, _LONG = "rope_factors_short.weight", "rope_factors_long.weight"
_SCALED = {
    "factor": "factor",
    "original_context_length": "original_max_position_embeddings",
    "attn_factor": "attention_factor",
    "yarn_beta_fast": "beta_fast",
    "yarn_beta_slow": "beta_slow",
}
"""Fields that say how rotations are scaled, and what transformers calls them."""
_END_FIELDS = tuple(f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot", "eom"))
_ENDS = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>", "<|end_of_text|>")
"""Control tokens that end an answer, whatever the file's one field says: Qwen2.5, Llama 3 and Phi 3 have several."""
_UINT32 = int(gguf.GGUFValueType.UINT32)
_CONTROL = 3  # among a file's token types


def read_config(path: Path) -> Any:
    """The configuration of a file, as transformers has it; the attention is the usual one.

    Raises:
        ModelNotFoundError: the file cannot be read.
        UnsupportedModelError: it is of an architecture, or rotates in a way, that is not read.
    """
    return _config(read_header(path))


def load_gguf(
    path: Path,
    dtype: torch.dtype,
    check: Callable[[Any], None] = lambda tokenizer: None,
    stop_tokens: Sequence[str] = (),
    *,
    in_blocks: bool = True,
) -> tuple[Any, Any]:
    """The model and the tokenizer of a file, on the CPU. Weights that are not in blocks are cast.

    Args:
        path: of the file, which must not change while the model is used.
        dtype: of activations, norms and biases.
        check: is shown the tokenizer before the weights are read, and may refuse it.
        stop_tokens: that end a text; empty for those that the file names.
        in_blocks: leave weights in the file's blocks, mapped from it. False makes numbers of them, which can be moved
            to another device.

    Raises:
        ModelNotFoundError: it is damaged, or tensors of it are missing, of another shape, or not read.
        UnsupportedModelError: see ``read_config``.
        UsageError: it is larger than the memory that is free.
    """
    header = read_header(path)
    config = _config(header)
    size = sum(each.stat().st_size for each in header.paths)
    if not in_blocks:
        size = sum(math.prod(each.shape) * dtype.itemsize for each in header.tensors.values())
    if size > (free := free_memory()):
        form = "" if in_blocks else f" in {str(dtype).removeprefix('torch.')}"
        raise UsageError(
            f"{str(path)!r} takes {size / 1e9:.1f} GB{form} and {free / 1e9:.1f} GB are free; give a smaller file"
        )
    tokenizer = _tokenizer(header)
    check(tokenizer)
    model = model_without_weights(config, dtype)
    _fill(model, header, dtype, in_blocks)
    repairs.bound_length(tokenizer, model)
    if ends := stop_tokens or _ends(header):
        repairs.name_stop_tokens(tokenizer, model, ends)
    repairs.tie_embeddings(model)
    return model.eval(), tokenizer


def read_tokenizer(path: Path) -> Any:
    """The tokenizer of a file; the errors are those of ``load_gguf``."""
    return _tokenizer(read_header(path))


def _tokenizer(header: Header) -> Any:
    path = header.path
    tokenizer = PreTrainedTokenizerFast.from_pretrained(path.parent, gguf_file=path.name, trust_remote_code=False)
    if header.fields.get("tokenizer.ggml.model") == "gpt2":
        repairs.decode_bytes(tokenizer)
        if header.fields.get("tokenizer.ggml.pre") == "smollm":
            repairs.split_digits(tokenizer)
    return tokenizer


def _config(header: Header) -> Any:
    path, architecture = str(header.path), header.architecture
    if architecture not in ARCHITECTURES:
        raise UnsupportedModelError(
            f"{path!r} is of the architecture {architecture!r}, which is not read from GGUF files; give one of "
            f"{', '.join(ARCHITECTURES)}, or the model's folder"
        )
    if experts := header.own("expert_count"):
        raise UnsupportedModelError(
            f"{path!r} is a mixture of {experts} experts, which is not read from GGUF files; give the model's folder"
        )
    if "tokenizer.ggml.tokens" not in header.fields:
        raise ModelNotFoundError(f"{path!r} has no tokenizer; give a whole file, such as llama.cpp makes")
    scaling = _scaling(header)
    with tempfile.TemporaryDirectory() as scratch:
        _write_fields(header, Path(scratch) / "fields.gguf")
        config = config_of_gguf(Path(scratch) / "fields.gguf")
    config.tie_word_embeddings = "output.weight" not in header.tensors
    if hasattr(config, "head_dim"):  # which transformers reads for some architectures only
        heads = int(header.own("attention.head_count"))
        config.head_dim = int(header.own("attention.key_length") or config.hidden_size // heads)
    if scaling:
        scale_rotations(config, scaling)
    config._name_or_path = path
    return config


def _scaling(header: Header) -> dict[str, Any]:
    """How rotations are scaled, as transformers has it; empty if they are not. Llama 3's way is in ``_fill``."""
    path, heads = str(header.path), int(header.own("attention.head_count") or 1)
    dim = int(header.own("attention.key_length") or int(header.own("embedding_length") or 0) // heads)
    turned = int(header.own("rope.dimension_count") or dim)
    if turned != dim and header.architecture != "phi3":
        raise UnsupportedModelError(
            f"{path!r} rotates {turned} of {dim} dimensions, which is not read from GGUF files of the architecture "
            f"{header.architecture!r}; give the model's folder"
        )
    found: dict[str, Any] = {} if turned == dim else {"partial_rotary_factor": turned / dim}
    kind = "longrope" if _LONG in header.tensors else header.own("rope.scaling.type") or "none"
    if kind == "none":
        return found
    known = {theirs: header.own(f"rope.scaling.{ours}") for ours, theirs in _SCALED.items()}
    found |= {"rope_type": kind, **{name: value for name, value in known.items() if value is not None}}
    if kind == "longrope" and _SHORT in header.tensors:
        for name, tensor in (("short_factor", _SHORT), ("long_factor", _LONG)):
            found[name] = _floats(_mapped(header), header.tensors[tensor]).tolist()
    needed = {"linear": {"factor"}, "yarn": {"factor", "original_max_position_embeddings"}}
    needed["longrope"] = {"short_factor", "original_max_position_embeddings"}
    if kind not in needed or not needed[kind] <= set(found):
        raise UnsupportedModelError(
            f"{path!r} scales its rotations ({kind!r}) in a way that is not read from GGUF files; "
            "give the model's folder"
        )
    if kind == "yarn" and "attention_factor" in found:  # the file's stands before what follows from the factor
        found["attention_factor"] *= 1 + 0.1 * math.log(found["factor"])
    return found


def _mapped(header: Header) -> list[Tensor]:
    """The bytes of each part."""
    return [torch.from_numpy(np.memmap(path, mode="c", dtype=np.uint8)) for path in header.paths]


def _write_fields(header: Header, path: Path) -> None:
    """A file of the same fields without the vocabulary, which takes transformers seconds."""
    writer = gguf.GGUFWriter(path, header.architecture)
    fields = {f"{header.architecture}.vocab_size": len(header.fields.get("tokenizer.ggml.tokens", ()))}
    for key, value in {**fields, **header.fields}.items():
        if key != "general.architecture" and not isinstance(value, list):
            writer.add_key_value(key, value, gguf.GGUFValueType(header.types.get(key, _UINT32)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def _ends(header: Header) -> list[str]:
    """The tokens that end a text, that of the file's own field first."""
    tokens, kinds = (header.fields.get(f"tokenizer.ggml.{name}", ()) for name in ("tokens", "token_type"))
    named = [tokens[header.fields[key]] for key in _END_FIELDS if header.fields.get(key, len(tokens)) < len(tokens)]
    control = {token for token, kind in zip(tokens, kinds, strict=False) if kind == _CONTROL}
    return list(dict.fromkeys([*named, *(token for token in _ENDS if token in control)]))


def _fill(model: Any, header: Header, dtype: torch.dtype, in_blocks: bool) -> None:
    """Put the file's tensors where a model without weights has none."""
    mapped = _mapped(header)
    left = {name: tensor for name, tensor in header.tensors.items() if name not in (_SHORT, _LONG)}
    for name, weight, stored in _places(model, header):
        if stored.shape != tuple(weight.shape):
            raise ModelNotFoundError(
                f"{str(header.path)!r} has {stored.name} of shape {list(stored.shape)} where {name} is "
                f"{list(weight.shape)}; copy or download it again"
            )
        left.pop(stored.name, None)
        parent, _, leaf = name.rpartition(".")
        value = _value(mapped, stored, header, dtype)
        if isinstance(value, BlockTensor) and not in_blocks:
            value = value.dequantized().to(dtype)
        setattr(model.get_submodule(parent), leaf, nn.Parameter(value, requires_grad=False))
    if (rotations := left.pop(_ROTATIONS, None)) is not None:
        _rotate_as_stored(model, _floats(mapped, rotations))
    if left:
        raise UnsupportedModelError(
            f"{str(header.path)!r} has {next(iter(left))}, for which {type(model).__name__} has no place; "
            "give the model's folder"
        )
    if model.config.tie_word_embeddings:
        model.get_output_embeddings().weight = model.get_input_embeddings().weight


def _places(model: Any, header: Header) -> Iterator[tuple[str, Tensor, StoredTensor]]:
    """Each parameter's name, what stands there, and the file's tensor for it."""
    architecture = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == header.architecture)
    names = gguf.get_tensor_name_map(architecture, model.config.num_hidden_layers)
    tied = model.config.tie_word_embeddings
    for name, weight in list(model.named_parameters()):
        if tied and name == "lm_head.weight":
            continue
        stem, _, leaf = name.rpartition(".")
        stored = f"{names.get_name(stem)}.{leaf}"
        if stored not in header.tensors:
            raise ModelNotFoundError(
                f"{str(header.path)!r} lacks {stored}, {name} of the model; give a whole file, such as llama.cpp makes"
            )
        yield name, weight, header.tensors[stored]


def _value(mapped: Sequence[Tensor], stored: StoredTensor, header: Header, dtype: torch.dtype) -> Tensor:
    """A tensor as a parameter: blocks of whole rows in the model's order, or numbers."""
    order = _order(header, stored)
    if stored.kind not in PLAIN_KINDS:
        blocks = _bytes(mapped, stored).view(stored.shape[0], -1)
        return BlockTensor(blocks if order is None else blocks[order], stored.kind, dtype)
    numbers = _floats(mapped, stored)
    if header.architecture in _FROM_ONE and stored.name.endswith("norm.weight"):
        numbers = numbers - 1
    return (numbers if order is None else numbers[order]).to(dtype, copy=True)


def _bytes(mapped: Sequence[Tensor], stored: StoredTensor) -> Tensor:
    return mapped[stored.part][stored.start : stored.start + stored.nbytes]


def _floats(mapped: Sequence[Tensor], stored: StoredTensor) -> Tensor:
    """Numbers of the file, float32 where they are not of 16 bits."""
    kinds = dict(zip(PLAIN_KINDS, (torch.float32, torch.float16, torch.bfloat16), strict=True))
    return _bytes(mapped, stored).view(kinds[stored.kind]).view(stored.shape)


def _order(header: Header, stored: StoredTensor) -> Tensor | None:
    """Which row stands where: Llama's files have both halves of a head's rotations in turn, transformers in a row."""
    heads = {"attn_q": "attention.head_count", "attn_k": "attention.head_count_kv"}
    key = heads.get(stored.name.split(".")[-2])
    if header.architecture != "llama" or key is None:
        return None
    count = int(header.own(key) or header.own("attention.head_count"))
    rows = torch.arange(stored.shape[0]).view(count, -1, 2)
    return rows.transpose(1, 2).reshape(-1)


def _rotate_as_stored(model: Any, factors: Tensor) -> None:
    """Divide the frequencies of rotations: how a file of Llama 3 says what transformers' configurations compute."""
    with torch.no_grad():
        for module in model.modules():
            for name in ("inv_freq", "original_inv_freq"):
                if isinstance(frequencies := getattr(module, name, None), Tensor):
                    frequencies.div_(factors)
