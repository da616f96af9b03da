"""What bounds a run, in one sentence: memory bandwidth only where both sides of that were measured."""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from specstream.core.clock import settle
from specstream.evaluation.profile import CACHE, CONTROLLER, DRAFT, OTHER, PARTS, SAMPLE, TARGET, VERIFY, Profile

BUFFER = 1 << 28
"""Bytes that are read to see how fast memory is: more than caches hold."""

BOUND = 0.6
"""Share of the measured bandwidth above which a pass is said to wait for memory."""

SMALLEST = 1 << 26
"""Bytes of weights below which they may stay in caches, and nothing is said of memory."""

CAUSES = {
    DRAFT: "drafting",
    VERIFY: "verification",
    SAMPLE: "making tokens of logits",
    CACHE: "the key-value cache",
    CONTROLLER: "deciding how far to draft",
    OTHER: "Python between the parts",
}


UNEVEN = 1.5
"""How far the middle half of equal passes, or the speeds of memory, may lie apart before nothing is said of memory."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """How fast memory is read.

    Attributes:
        speeds: bytes per second of a sum over ``BUFFER`` bytes, measured before the run, between prompts, and after.
        weights: bytes that a pass of the target has to read; None where that depends on the tokens.
    """

    speeds: tuple[float, ...]
    weights: int | None

    @property
    def best(self) -> float:
        return max(self.speeds)

    @property
    def steady(self) -> bool:
        """Whether the usual speed is near the best."""
        return median(self.speeds) * UNEVEN >= self.best


def read_speed(device: torch.device) -> float:
    """Bytes per second of summing up a large buffer, the best of four times."""
    buffer = torch.ones(BUFFER // 4, dtype=torch.float32, device=device)
    best = 0.0
    for _ in range(4):
        settle(device)
        started = time.perf_counter()
        buffer.sum()
        settle(device)
        best = max(best, BUFFER / (time.perf_counter() - started))
    return best


def weights_of_a_pass(target: Any) -> int | None:
    """Bytes of weights that a pass of a target reads; None for a mixture of experts.

    Of an input embedding that is not the head's too, a pass reads a few rows only.
    """
    if target.family.routed:
        return None
    model = target.model
    embedding = model.get_input_embeddings().weight
    head = model.get_output_embeddings()
    tied = head is not None and head.weight is embedding
    whole = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    return int(whole - (0 if tied else embedding.numel() * embedding.element_size()))


def sentence(profile: Profile, memory: Memory) -> str:
    """What bounds a run."""
    shares = {part: profile.of(part) / profile.seconds for part in PARTS}
    part = max(shares, key=shares.__getitem__)
    if part != TARGET:
        each = profile.of(part) / len(profile.passes)
        return (
            f"{CAUSES[part]}: {shares[part]:.0%} of the time, {each * 1000:.2f} ms a round, and target passes "
            f"{shares[TARGET]:.0%}; a round emits {profile.tokens / len(profile.passes):.2f} tokens"
        )
    width = profile.usual_width
    seconds = profile.widths[width]
    passes = f"{shares[TARGET]:.0%} of the time is in target passes, most of it at width {width}"
    if memory.weights is None:
        return f"the target's passes: {passes}; how much of its weights a mixture of experts reads was not measured"
    if memory.weights < SMALLEST:
        size = memory.weights / 1e6
        return f"the target's passes: {passes}; its weights, {size:.1f} MB, may stay in caches, so not memory's speed"
    low, high = profile.middle_half(width)
    if high > UNEVEN * low or not memory.steady:
        uneven = f"the machine was too uneven to say what they wait for ({low * 1000:.1f} to {high * 1000:.1f} ms each)"
        return f"the target's passes: {passes}; {uneven}"
    speed = memory.weights / seconds
    reading = f"which read {speed / 1e9:.1f} of the {memory.best / 1e9:.1f} GB/s measured here"
    if speed >= BOUND * memory.best:
        return f"memory bandwidth of the target's weights: {passes}, {reading}"
    return f"arithmetic and overhead of the target's passes, not memory bandwidth: {passes}, {reading}"
