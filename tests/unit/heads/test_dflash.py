"""DFlash heads in both layouts: what a block drafts is what the formulas of the paper say, and mistakes are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from specstream.errors import ModelNotFoundError, UnsupportedModelError
from specstream.heads import published
from specstream.heads.dflash import DFlashHead
from specstream.heads.folder import kind_of
from specstream.heads.published import Memory, read_weights
from tests.lossless.families import build
from tests.published_heads import DIM, HEADS, KV_HEADS, write_dflash


@pytest.fixture(scope="module")
def model() -> Any:
    return build("llama")


@pytest.fixture(autouse=True)
def _as_written(monkeypatch) -> None:
    monkeypatch.setattr(published, "in_bytes", lambda model: False)


def normed(x: Tensor, weight: Tensor) -> Tensor:
    return functional.rms_norm(x, x.shape[-1:], weight, 1e-5)


def by_formula(model: Any, folder: Path, states: Tensor, root: int, *, block: int, layers: int) -> Tensor:
    """Outputs at all places of a block behind one text, without a cache: ``[block, width]``."""
    own = {name.removesuffix(".weight"): each for name, each in read_weights(folder).items()}
    length, count = len(states), len(states) + block
    context = normed(states.flatten(1) @ own["fc"].T, own["hidden_norm"])
    table = own.get("embed_tokens", model.get_input_embeddings().weight)
    x = table[torch.tensor([root, *[5] * (block - 1)])]
    angles = torch.arange(count)[:, None] * 10000.0 ** -(torch.arange(0, DIM, 2) / DIM)
    cos, sin = (torch.cat([each, each], -1)[:, None] for each in (angles.cos(), angles.sin()))

    def turned(part: Tensor, start: int) -> Tensor:
        half = torch.cat([-part[..., DIM // 2 :], part[..., : DIM // 2]], -1)
        return part * cos[start:] + half * sin[start:]

    for at in range(layers):
        layer = {name.removeprefix(f"layers.{at}."): each for name, each in own.items()}
        hidden = normed(x, layer["input_layernorm"])
        seen = torch.cat([context, hidden])
        query = (hidden @ layer["self_attn.q_proj"].T).view(block, HEADS, DIM)
        key, value = ((seen @ layer[f"self_attn.{name}_proj"].T).view(count, KV_HEADS, DIM) for name in "kv")
        query = turned(normed(query, layer["self_attn.q_norm"]), length)
        key = turned(normed(key, layer["self_attn.k_norm"]), 0)
        key, value = (each.repeat_interleave(HEADS // KV_HEADS, 1) for each in (key, value))
        weights = torch.einsum("qhd,khd->hqk", query, key).div(DIM**0.5).softmax(-1)
        x = x + torch.einsum("hqk,khd->qhd", weights, value).flatten(1) @ layer["self_attn.o_proj"].T
        hidden = normed(x, layer["post_attention_layernorm"])
        gated = functional.silu(hidden @ layer["mlp.gate_proj"].T) * (hidden @ layer["mlp.up_proj"].T)
        x = x + gated @ layer["mlp.down_proj"].T
    output = own.get("lm_head", model.get_output_embeddings().weight)
    return normed(x, own["norm"]) @ output.T


@pytest.mark.parametrize(
    ("layout", "change", "first"),
    [("speculators", {}, 1), ("speculators", {"sample_from_anchor": True}, 0), ("authors", {}, 1)],
)
@torch.no_grad()
def test_blocks_are_those_of_the_formulas_however_the_text_is_read(model, tmp_path, layout, change, first) -> None:
    folder = write_dflash(tmp_path / "head", model, layout, taps=(1, 0), change=change)
    if layout == "authors":  # who count outputs: that of layer 0 goes into layer 1
        folder = write_dflash(tmp_path / "head", model, layout, taps=(1, 1))
    assert kind_of(folder) == "dflash"
    head = DFlashHead.from_pretrained(folder, model)
    assert head.gamma == 4 - first
    texts = [torch.randn(length, 2, 64, generator=torch.Generator().manual_seed(length)) for length in (9, 6)]
    memories = [[Memory() for _ in head.layers] for _ in texts]
    for start, end in ((0, 4), (4, 5), (5, 9)):
        parts = [text[start:end] for text in texts]
        places = torch.cat([torch.arange(start, start + len(part)) for part in parts])
        head.read(memories, [len(part) for part in parts], torch.cat(parts), places)
    roots = torch.tensor([11, 12])
    for depth in (head.gamma, 1, head.gamma):  # a draft leaves no trace
        drafted = head.logits(roots, torch.tensor([9, 6]), memories, depth)
        for row, text in enumerate(texts):
            expected = by_formula(model, folder, text, int(roots[row]), block=4, layers=2)
            assert torch.allclose(drafted[row], expected[first : first + depth], atol=1e-4)
    ids = range(0, 160, 2) if layout == "speculators" else range(160)
    assert head.vocabulary.tolist() == list(ids)
    own = sum(each.numel() for each in head.parameters())
    assert own < model.num_parameters() + 64 * 160 * 2, "of the target's nothing is counted"


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"mask_token_id": None}, UnsupportedModelError, "does not say its layers, its mask token or its block size"),
        ({"speculators_model_type": "dspark"}, ModelNotFoundError, "holds 'dspark'; give a folder of streams, medusa"),
        (
            {"transformer_layer_config": {"layer_types": ["sliding_attention"]}},
            UnsupportedModelError,
            "has 'sliding_attention', which is not read; give another head",
        ),
    ],
)
def test_what_is_not_read_is_refused(model, tmp_path, change, error, message) -> None:
    with pytest.raises(error, match=message):
        DFlashHead.from_pretrained(write_dflash(tmp_path / "head", model, change=change), model)
