"""Tiny random models in GGUF files: blocks of every kind, and tensors as llama.cpp names them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from transformers.convert_slow_tokenizer import bytes_to_unicode

from specstream.models.hub.gguf_header import KINDS

HIDDEN, INNER, HEADS, KV_HEADS, HEAD, LAYERS, CONTEXT = 64, 96, 4, 2, 16, 2, 512
SPECIAL = ["<end>", "<start>", "<stop>"]
TOKENS = [*SPECIAL, *bytes_to_unicode().values(), "ĠĠ", "ĠĠĠ"]
TEMPLATE = "{% for message in messages %}<start>{{ message['content'] }}<end>{% endfor %}"
ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma2", "gemma3", "phi3")

Shapes = dict[str, tuple[int, ...]]


def shapes_of(architecture: str, head: int, hidden: int = HIDDEN, inner: int = INNER) -> Shapes:
    """The tensors of a file and their shapes, without an output of its own."""
    queries, keys = HEADS * head, KV_HEADS * head
    shapes: Shapes = {"token_embd.weight": (len(TOKENS), hidden), "output_norm.weight": (hidden,)}
    for at in range(LAYERS):
        layer: Shapes = {"attn_norm": (hidden,), "ffn_norm": (hidden,), "attn_output": (hidden, queries)}
        layer |= {"ffn_down": (hidden, inner)}
        if architecture == "phi3":
            layer |= {"attn_qkv": (queries + 2 * keys, hidden), "ffn_up": (2 * inner, hidden)}
        else:
            layer |= {"attn_q": (queries, hidden), "attn_k": (keys, hidden), "attn_v": (keys, hidden)}
            layer |= {"ffn_gate": (inner, hidden), "ffn_up": (inner, hidden)}
        if architecture in ("gemma2", "gemma3"):
            layer |= {"post_attention_norm": (hidden,), "post_ffw_norm": (hidden,)}
        if architecture in ("qwen3", "gemma3"):
            layer |= {"attn_q_norm": (head,), "attn_k_norm": (head,)}
        shapes |= {f"blk.{at}.{name}.weight": shape for name, shape in layer.items()}
        if architecture == "qwen2":
            biases = {"attn_q": queries, "attn_k": keys, "attn_v": keys}
            shapes |= {f"blk.{at}.{name}.bias": (size,) for name, size in biases.items()}
    return shapes


def write_gguf(  # noqa: PLR0913
    path: Path,
    architecture: str = "llama",
    *,
    kind: str | Callable[[str], str] = "Q8_0",
    seed: int = 0,
    head: int = HEAD,
    hidden: int = HIDDEN,
    inner: int = INNER,
    output: bool = False,
    noise: float = 0.0,
    fields: Mapping[str, Any] | None = None,
    change: Callable[[Shapes], Shapes] = lambda shapes: shapes,
    split: int = 0,
) -> Path:
    """A model whose greedy text wanders.

    Args:
        path: of the file.
        architecture: one of ``ARCHITECTURES``.
        kind: of the matrices, or which for a tensor's name.
        seed: of the weights.
        head, hidden, inner: sizes.
        output: whether it has a language-model head of its own.
        noise: added to the weights, relative to their spread: a draft that agrees the less, the larger it is.
        fields: numbers and texts by key, beside and in place of the usual ones.
        change: what the file's tensors are, of what they should be.
        split: most tensors of a part; 0 for one file.

    Returns:
        The file, or its first part.
    """
    writer = gguf.GGUFWriter(path, architecture, split_max_tensors=split)
    own = {"block_count": LAYERS, "context_length": CONTEXT, "embedding_length": hidden, "feed_forward_length": inner}
    own |= {"attention.head_count": HEADS, "attention.head_count_kv": KV_HEADS, "attention.key_length": head}
    if architecture == "llama":
        own["rope.dimension_count"] = head
    pieces = architecture.startswith("gemma")  # whose tokenizers are of SentencePiece
    if pieces:
        own["attention.sliding_window"] = 8
    values: dict[str, Any] = {f"{architecture}.{name}": value for name, value in own.items()}
    values |= {f"{architecture}.attention.layer_norm_rms_epsilon": 1e-5, f"{architecture}.rope.freq_base": 10000.0}
    values |= {"general.name": "tiny", "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 0}
    values |= {"tokenizer.ggml.padding_token_id": 2, "tokenizer.ggml.add_bos_token": False}
    values |= {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm", "tokenizer.chat_template": TEMPLATE}
    if pieces:
        values |= {"tokenizer.ggml.model": "llama", "tokenizer.ggml.unknown_token_id": 2}
        writer.add_token_scores([-float(at) for at in range(len(TOKENS))])
    for key, value in (values | dict(fields or {})).items():
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        add[type(value)](key, value)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(TOKENS) - len(SPECIAL)))
    if not pieces:
        writer.add_token_merges(["Ġ Ġ", "ĠĠ Ġ"])  # transformers before 5.20 takes a list of one for a string
    shapes = shapes_of(architecture, head, hidden, inner)
    if output:
        shapes["output.weight"] = shapes["token_embd.weight"]
    _add_tensors(writer, change(shapes), kind if callable(kind) else lambda name: str(kind), seed, noise)
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    return next(path.parent.glob(f"{path.stem}-00001-of-*.gguf")) if split else path


def _add_tensors(writer: gguf.GGUFWriter, shapes: Shapes, kind: Callable[[str], str], seed: int, noise: float) -> None:
    chance, other = np.random.default_rng(seed), np.random.default_rng(seed + 1)
    for name, shape in shapes.items():
        values = chance.normal(size=shape) * (0.3 if len(shape) > 1 else 0.1) + (name.endswith("norm.weight"))
        values = (values + noise * 0.3 * other.normal(size=shape)).astype(np.float32)
        if len(shape) == 1:
            writer.add_tensor(name, values)
            continue
        of = gguf.GGMLQuantizationType[kind(name)]
        writer.add_tensor(name, stored(values, of.name, other), raw_dtype=of)


def stored(values: np.ndarray, kind: str, chance: np.random.Generator) -> np.ndarray:
    """A matrix as a file holds it; random blocks of the kinds that the gguf package reads and does not write."""
    of = gguf.GGMLQuantizationType[kind]
    try:
        return gguf.quants.quantize(values, of)
    except NotImplementedError:
        return random_blocks(kind, len(values), values.shape[1], chance)


def random_blocks(kind: str, rows: int, columns: int, chance: np.random.Generator) -> np.ndarray:
    """Blocks with any levels, and scales that make values of a usual size."""
    assert kind in KINDS
    values, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    blocks = chance.integers(0, 256, (rows, columns // values, size), dtype=np.uint8)
    places = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "IQ4_NL": (0,)}
    for place in places[kind]:
        scale = chance.uniform(0.0005, 0.002, blocks.shape[:2]).astype(np.float16)
        blocks[:, :, place : place + 2] = scale[..., None].view(np.uint8)
    return blocks.reshape(rows, -1)
