"""Tokens per second of whole calls, prompts included: transformers' ``generate`` and ours, in turn."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Any

import torch

from benchmarks.gpu.models import NAMES, draft_of, generate, load, prompts_for, reference, target_of
from benchmarks.gpu.options import Options
from benchmarks.gpu.oracle import Oracle
from benchmarks.gpu.records import Records
from specstream.core.policy.controller import Controller
from specstream.core.policy.policy import Speculation
from specstream.core.ports import Drafter
from specstream.drafters.draft_model import DraftModelDrafter
from specstream.drafters.lookup import LookupDrafter
from specstream.drafters.mixed import MixedDrafter
from specstream.drafters.none import NoDrafter
from specstream.drafters.streams import StreamsDrafter
from specstream.engine.contestants import by_turn, in_turn
from specstream.heads.shipped import shipped_for
from specstream.heads.streams import Streams
from specstream.heads.streams_config import StreamsConfig
from specstream.models.target.hf import HuggingFaceTarget

PROMPT, NEW_TOKENS = 128, 64
BATCHES, ROUNDS, DEPTH, DEEPEST = (1, 8, 32), 3, 5, 16
FEW_FROM = 8
"""Rows above which only a few contestants take part: rows end one by one, and each number of rows is captured anew."""
REFERENCE = "transformers generate"


def speed(records: Records, options: Options) -> None:
    batches = (1, 2) if options.tiny else BATCHES
    turns = [*((options.captured, rows) for rows in batches), ("eager", 1)]
    for runtime, rows in sorted(turns, key=lambda turn: turn[1] > FEW_FROM):
        for name in NAMES[:1] if options.tiny else NAMES:
            _group(records, options, name, runtime, rows)


@dataclass(kw_only=True)
class _Contestant:
    """One way to generate, and what came of it.

    Attributes:
        run: ``() -> tokens of each row, and counts``.
        remark: what its figures are to be read with.
        first: seconds of the call that warms up, in which shapes are captured and certified.
    """

    run: Callable[[], tuple[list[list[int]], dict[str, Any]]]
    remark: str = ""
    first: float = 0.0
    seconds: list[float] = field(default_factory=list)
    tokens: list[list[int]] = field(default_factory=list)
    counts: dict[str, Any] = field(default_factory=dict)
    failed: str = ""

    def go(self, options: Options, records: Records, rows: int) -> None:
        """Generate once, unless it has failed; the first call warms up."""
        if self.failed or (not self.first and records.late):
            self.failed = self.failed or "out of time"
            return
        options.wait()
        started = time.perf_counter()
        try:
            self.tokens, self.counts = self.run()
        except Exception:
            self.failed = traceback.format_exc()
            if options.device == "cuda":
                torch.cuda.synchronize()  # raises if it is the device that failed
            return
        options.wait()
        seconds = time.perf_counter() - started
        if self.first:
            self.seconds.append(seconds)
        else:
            self.first = seconds


def _group(records: Records, options: Options, name: str, runtime: str, rows: int) -> None:
    """One model, runtime and batch size: everybody warms up once, then takes turns."""
    count = 12 if options.tiny else NEW_TOKENS
    contestants: dict[str, _Contestant] = {}

    def measured() -> dict[str, Any]:
        contestants.update(_contestants(name, runtime, rows, count, options))
        ways = {each: partial(one.go, options, records) for each, one in contestants.items()}
        for _ in by_turn(in_turn(ways, [rows], rounds=ROUNDS)):
            if records.late:
                break
        fields = {"model": name, "runtime": runtime, "rows": rows, "new_tokens": count, "prompt": PROMPT}
        return {**fields, "contestants": [_said(contestants, each, rows * count) for each in contestants]}

    records.measure(f"speed {name} {runtime} rows {rows}", measured)


def _said(contestants: dict[str, _Contestant], name: str, tokens: int) -> dict[str, Any]:
    own = contestants[name]
    if own.failed or not own.seconds:
        return {"name": name, "failed": own.failed or "no round was measured"}
    speeds = [tokens / seconds for seconds in own.seconds]
    found = {"name": name, "tokens_per_second": median(speeds), "low": min(speeds), "high": max(speeds)}
    for short, other in (("generate", REFERENCE), ("plain", "plain")):
        if (seconds := contestants[other].seconds) and other != name:
            ratios = [theirs / ours for theirs, ours in zip(seconds, own.seconds, strict=False)]
            equal = sum(a == b for a, b in zip(own.tokens, contestants[other].tokens, strict=True))
            found |= {f"over_{short}": median(ratios), f"equal_to_{short}": f"{equal} of {len(own.tokens)}"}
    return {**found, **own.counts, "first_s": own.first, "remark": own.remark}


def _contestants(name: str, runtime: str, rows: int, count: int, options: Options) -> dict[str, _Contestant]:
    model, prompts = load(name, options), prompts_for(name, options, rows, PROMPT)
    target, unpadded = target_of(model, runtime), target_of(model, runtime, exact=False)
    started = time.perf_counter()
    target.prepare(rows=rows, nodes=DEEPEST + 1)
    prepared = f"the self-test before took {time.perf_counter() - started:.1f} s"
    plain = [row.emitted for row in generate(target, NoDrafter(), prompts, count, _fixed())[0]]
    outputs = {tuple(prompt): tokens for prompt, tokens in zip(prompts, plain, strict=True)}
    draft = DraftModelDrafter(target_of(draft_of(model), runtime, exact=False), gamma=DEEPEST)
    oracle, sure = (Oracle(outputs, share, target.vocab_size) for share in (0.8, 1.0))
    streams, trained = _streams(model)

    def ours(drafter: Drafter, on: HuggingFaceTarget, how: Speculation, remark: str = "") -> _Contestant:
        return _Contestant(run=lambda: _run(on, drafter, prompts, count, how), remark=remark)

    found = {
        REFERENCE: _Contestant(run=lambda: (reference(model, prompts, count), {}), remark="greedy, DynamicCache"),
        "plain": ours(NoDrafter(), target, _fixed(), prepared),
        "plain, exact=rounding": ours(NoDrafter(), unpadded, _fixed(), "passes of one token"),
        "lookup": ours(LookupDrafter(), target, _adaptive()),
        "lookup, exact=rounding": ours(LookupDrafter(), unpadded, _adaptive()),
        "draft model": ours(draft, target, _adaptive(), "the target's first quarter of layers, spoiled"),
        "draft model, fixed": ours(draft, target, _fixed(), f"always {DEPTH} tokens"),
        "oracle 0.8": ours(oracle, target, _adaptive(), "plain's output with one token in five wrong"),
        "oracle 0.8, fixed": ours(oracle, target, _fixed(), f"always {DEPTH} tokens"),
        "oracle 1.0, fixed": ours(sure, target, _fixed(), f"always {DEPTH} tokens: the most there is at this depth"),
        "streams, fixed": ours(StreamsDrafter(streams), target, _fixed(), trained),
        "auto": ours(
            MixedDrafter(LookupDrafter(), StreamsDrafter(streams)), target, _adaptive(), f"lookup+streams; {trained}"
        ),
    }
    few = (REFERENCE, "plain", "plain, exact=rounding", "draft model", "oracle 0.8", "oracle 0.8, fixed")
    all_of_them = runtime != "eager" and rows <= FEW_FROM
    return {each: one for each, one in found.items() if all_of_them or each in few}


def _run(
    target: HuggingFaceTarget, drafter: Drafter, prompts: list[list[int]], count: int, how: Speculation
) -> tuple[list[list[int]], dict[str, Any]]:
    rows, timings = generate(target, drafter, prompts, count, how)
    stats: Sequence[Any] = [row.stats for row in rows]
    drafted, accepted = sum(each.drafted for each in stats), sum(each.accepted for each in stats)
    counts = {
        "drafted": drafted,
        "accepted": accepted,
        "acceptance": accepted / drafted if drafted else None,
        "passes": max(each.target_passes for each in stats),
        "decode_tokens_per_second": len(prompts) * count / timings.decode,
        "prefill_s": timings.prefill,
        "propose_s": timings.propose,
        "score_s": timings.score,
        "decode_s": timings.decode,
        "exact": "bits" if all(row.exact == "bits" for row in rows) else "rounding",
        "ran": target.runtime.name,
    }
    return [row.emitted for row in rows], counts


def _fixed() -> Speculation:
    return Speculation(max_depth=DEPTH)


def _adaptive() -> Speculation:
    """As an engine speculates, with a controller that lives as long as the contestant."""
    return Speculation(max_depth=DEEPEST, unmeasured_depth=DEPTH, controller=Controller())


def _streams(model: Any) -> tuple[Streams, str]:
    if (folder := shipped_for(model, "streams")) is not None:
        return Streams.from_pretrained(folder, model), "the shipped streams"
    torch.manual_seed(7)
    streams = Streams(model, StreamsConfig(gamma=4, layers=2, rank=8, start="linear"))
    return streams, "untrained streams: what they cost, not what they bring"
