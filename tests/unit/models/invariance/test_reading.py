"""A text that is read in wide passes and in narrow ones: what the test of both reads, and what it finds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor

from specstream.models.cache import TreeCache
from specstream.models.invariance import reading
from specstream.models.invariance.reading import PIECES, reads_alike
from specstream.models.runtime import native
from specstream.models.runtime.fused import FusedLayers
from specstream.models.target.hf import HuggingFaceTarget
from tests.lossless.families import _GROUPED

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(not native.available(), reason="no C++ compiler on this machine"),
]

SIX = {**_GROUPED, "num_hidden_layers": 6}
LLAMA = lambda: hf.LlamaConfig(**SIX)  # noqa: E731
WINDOWS = lambda: hf.Qwen2Config(**SIX, use_sliding_window=True, sliding_window=8, max_window_layers=3)  # noqa: E731
GEMMA = lambda: hf.Gemma2Config(**SIX, head_dim=16)  # noqa: E731  # its layers run, not as one stack, on our kernels


def target(configuration: Callable[[], Any]) -> HuggingFaceTarget:
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(configuration()).eval().to(torch.bfloat16)
    return HuggingFaceTarget(model, runtime="native")


@pytest.mark.parametrize(
    ("configuration", "evidence", "layers"),
    [(LLAMA, 1, 1), (LLAMA, 3, 3), (LLAMA, 6, 6), (LLAMA, 7, 6), (WINDOWS, 1, 4), (WINDOWS, 5, 5), (GEMMA, 1, 6)],
)
def test_it_reads_layers_of_every_kind_and_enough_of_them(
    configuration: Callable[[], Any], evidence: int, layers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "ENOUGH_EVIDENCE", evidence * sum(PIECES) * SIX["hidden_size"])
    own, sessions = target(configuration), []
    begin = own.begin_unpadded
    monkeypatch.setattr(
        own, "begin_unpadded", lambda *given, **named: sessions.append(begin(*given, **named)) or sessions[-1]
    )
    assert reads_alike(own)
    assert [each.cache.lengths for each in sessions] == [[native.MOST_ROWS - 1], [sum(PIECES)]]
    assert {layer for each in sessions for layer, _ in each.cache.parts(0, 0, 1)} == set(range(layers))


def leaves_others(states: Tensor, cache: TreeCache) -> None:
    states[0, 38, 5] *= 1.01


def keeps_others(states: Tensor, cache: TreeCache) -> None:
    next(iter(cache.parts(0, 38, 39).values()))[0, 0, 0] *= 1.01


@pytest.mark.parametrize("evidence", [1, 7])
@pytest.mark.parametrize("rounds", [leaves_others, keeps_others])
def test_wide_passes_that_round_otherwise_are_found(
    rounds: Callable[[Tensor, TreeCache], None], evidence: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "ENOUGH_EVIDENCE", evidence * sum(PIECES) * SIX["hidden_size"])
    run = FusedLayers.run

    def otherwise(self: FusedLayers, hidden: Tensor, rotations: Any, cache: TreeCache, *rest: Any) -> Tensor:
        states = run(self, hidden, rotations, cache, *rest)
        if hidden.shape[1] > max(PIECES):
            rounds(states, cache)
        return states

    monkeypatch.setattr(FusedLayers, "run", otherwise)
    # Where all layers are read, what leaves the last of them changes no key and no value.
    assert reads_alike(target(LLAMA)) == (rounds is leaves_others and evidence == 7)


@pytest.mark.parametrize("context", [8, 30, 60])
def test_a_short_context_is_no_error(context: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "ENOUGH_EVIDENCE", 1)
    assert reads_alike(target(lambda: hf.LlamaConfig(**{**SIX, "max_position_embeddings": context})))
