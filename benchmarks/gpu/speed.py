"""Tokens per second of whole calls, prompts included: transformers' ``generate`` and ours, in turn."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import torch

from benchmarks.gpu.models import NAMES, begin, draft_of, load, prompts_for, reference, target_of
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
from specstream.engine.contestants import in_turn
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


Generated = tuple[list[list[int]], dict[str, Any]]
"""Tokens of each row, and counts."""


class _Contestant(NamedTuple):
    """One way to generate, and what its figures are to be read with."""

    run: Callable[[], Generated]
    remark: str = ""


class _Made(NamedTuple):
    """One generation."""

    seconds: float
    tokens: list[list[int]]
    counts: dict[str, Any]


def _timed(run: Callable[[], Generated], options: Options, rows: int) -> _Made:
    options.wait()
    started = time.perf_counter()
    tokens, counts = run()
    options.wait()
    return _Made(time.perf_counter() - started, tokens, counts)


def _group(records: Records, options: Options, name: str, runtime: str, rows: int) -> None:
    """One model, runtime and batch size, in turn; the first round warms up, and shapes are captured and certified."""
    count = 12 if options.tiny else NEW_TOKENS

    def measured() -> dict[str, Any]:
        contestants = _contestants(name, runtime, rows, count, options)
        ways = {each: partial(_timed, one.run, options) for each, one in contestants.items()}
        made: dict[str, list[_Made]] = {each: [] for each in contestants}
        failed: dict[str, str] = {}
        for entry in in_turn(ways, [rows], rounds=ROUNDS + 1, warm_up=0, errors="leave"):
            if entry.error is None:
                made[entry.contestant].append(entry.value)
            else:
                failed[entry.contestant] = "".join(traceback.format_exception(entry.error))
                options.wait()  # raises if it is the device that failed
            if records.late:
                break
        said = [
            {"name": each, "failed": failed.get(each, "no round was measured")}
            if each in failed or len(made[each]) < 2
            else {"name": each, **_said(made, each, rows * count), "remark": one.remark}
            for each, one in contestants.items()
        ]
        fields = {"model": name, "runtime": runtime, "rows": rows, "new_tokens": count, "prompt": PROMPT}
        return {**fields, "contestants": said}

    records.measure(f"speed {name} {runtime} rows {rows}", measured)


def _said(made: dict[str, list[_Made]], name: str, tokens: int) -> dict[str, Any]:
    first, *own = made[name]
    speeds = [tokens / each.seconds for each in own]
    found: dict[str, Any] = {"tokens_per_second": median(speeds), "low": min(speeds), "high": max(speeds)}
    for short, other in (("generate", REFERENCE), ("plain", "plain")):
        if (others := made[other][1:]) and other != name:
            ratios = [theirs.seconds / ours.seconds for theirs, ours in zip(others, own, strict=False)]
            equal = sum(a == b for a, b in zip(own[-1].tokens, others[-1].tokens, strict=True))
            found |= {f"over_{short}": median(ratios), f"equal_to_{short}": f"{equal} of {len(own[-1].tokens)}"}
    return {**found, **own[-1].counts, "first_s": first.seconds}


def _contestants(name: str, runtime: str, rows: int, count: int, options: Options) -> dict[str, _Contestant]:
    model, prompts = load(name, options), prompts_for(name, options, rows, PROMPT)
    target, unpadded = target_of(model, runtime), target_of(model, runtime, exact=False)
    started = time.perf_counter()
    target.prepare(rows=rows, nodes=DEEPEST + 1)
    prepared = f"the self-test before took {time.perf_counter() - started:.1f} s"
    plain = [row.emitted for row in begin(target, NoDrafter(), prompts, count, _fixed()).run().rows]
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
    generation = begin(target, drafter, prompts, count, how).run()
    rows, timings = generation.rows, generation.timings
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
