"""Tokens per second of whole calls, prompts included: transformers' ``generate`` and ours, in turn."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from statistics import median
from typing import Any, NamedTuple

from benchmarks.gpu.models import NAMES, begin, draft_of, load, parts_of, prompts_for, reference, target_of
from benchmarks.gpu.options import Options
from benchmarks.gpu.oracle import Oracle
from benchmarks.gpu.records import Records
from specstream.config import EngineConfig, GenerationConfig
from specstream.core.policy.controller import Controller
from specstream.core.policy.policy import Speculation
from specstream.core.ports import Drafter
from specstream.drafters.draft_model import DraftModelDrafter
from specstream.drafters.none import NoDrafter
from specstream.engine.build import build_parts
from specstream.engine.contestants import in_turn
from specstream.engine.generation import Generation, Parts
from specstream.engine.inventory import prepare
from specstream.heads.folder import kind_of
from specstream.models.target.hf import HuggingFaceTarget

PROMPT, NEW_TOKENS = 128, 64
ROUNDS, DEPTH, DEEPEST = 6, 5, 16
SECONDS, EAGER_SECONDS = {1: 32.0, 8: 20.0, 32: 14.0}, 8.0
"""By rows, after which a group begins no further round; the first, which warms up, and one more are always run."""

REFERENCE = "transformers generate"
FEW = (REFERENCE, "plain", "oracle 0.8", "oracle 0.8, fixed", "auto")
"""Who takes part in the largest batch, beside heads."""

EAGER = (REFERENCE, "plain", "oracle 0.8, fixed")


def speed(records: Records, options: Options) -> None:
    """Captured passes first, and one row first: where time ends, the rest is left out."""
    batches = (1, 2) if options.tiny else tuple(SECONDS)
    for runtime, rows in [*((options.captured, rows) for rows in batches), ("eager", 1)]:
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
        started = time.monotonic()
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
            late = time.monotonic() - started > (EAGER_SECONDS if runtime == "eager" else SECONDS.get(rows, 0.0))
            if records.late or (late and entry.round > 0 and entry.last):
                break
        said = [
            {"name": each, "failed": failed.get(each, "no round was measured")}
            if each in failed or not made[each]
            else {"name": each, **_said(made, each, rows * count), "remark": one.remark}
            for each, one in contestants.items()
        ]
        fields = {"model": name, "runtime": runtime, "rows": rows, "new_tokens": count, "prompt": PROMPT}
        return {**fields, "contestants": said}

    records.measure(f"speed {name} {runtime} rows {rows}", measured)


def _said(made: dict[str, list[_Made]], name: str, tokens: int) -> dict[str, Any]:
    first, own = made[name][0], _counted(made[name])
    speeds = [tokens / each.seconds for each in own]
    found: dict[str, Any] = {"tokens_per_second": median(speeds), "low": min(speeds), "high": max(speeds)}
    for short, other in (("generate", REFERENCE), ("plain", "plain")):
        if (others := _counted(made[other])) and other != name:
            ratios = [theirs.seconds / ours.seconds for theirs, ours in zip(others, own, strict=False)]
            equal = sum(a == b for a, b in zip(own[-1].tokens, others[-1].tokens, strict=True))
            found |= {f"over_{short}": median(ratios), f"equal_to_{short}": f"{equal} of {len(own[-1].tokens)}"}
    return {**found, **own[-1].counts, "first_s": first.seconds, "rounds": len(made[name]) - 1}


def _counted(made: Sequence[_Made]) -> Sequence[_Made]:
    """Without the round that warms up, where there is another."""
    return made[1:] or made


@cache
def _target(name: str, runtime: str, options: Options, *, exact: bool = True) -> HuggingFaceTarget:
    """One for all batches: what was captured and tested for one of them serves the next."""
    return target_of(load(name, options), runtime, exact=exact)


def _contestants(name: str, runtime: str, rows: int, count: int, options: Options) -> dict[str, _Contestant]:
    model, prompts = load(name, options), prompts_for(name, options, rows, PROMPT)
    target, unpadded = _target(name, runtime, options), _target(name, runtime, options, exact=False)
    started = time.perf_counter()
    target.prepare(rows=rows, nodes=DEEPEST + 1)
    prepared = f"the self-test before took {time.perf_counter() - started:.1f} s"
    plain = [row.emitted for row in begin(target, NoDrafter(), prompts, count, _fixed()).run().rows]
    outputs = {tuple(prompt): tokens for prompt, tokens in zip(prompts, plain, strict=True)}
    oracle, sure = (Oracle(outputs, share, target.vocab_size) for share in (0.8, 1.0))

    def ours(parts: Callable[[], Parts], remark: str = "") -> _Contestant:
        made = cache(parts)  # in the round that warms up, so that what cannot be made is one contestant's failure
        return _Contestant(run=lambda: _run(made(), prompts, count), remark=remark)

    def by(drafter: Drafter, how: Speculation, remark: str = "", on: HuggingFaceTarget = target) -> _Contestant:
        return ours(lambda: parts_of(on, drafter, how), remark)

    own = options.smollm2 if name == "smollm2" else options.large
    found = {
        REFERENCE: _Contestant(run=lambda: (reference(model, prompts, count), {}), remark="greedy, DynamicCache"),
        "plain": by(NoDrafter(), _fixed(), prepared),
        "auto": ours(lambda: _as_engine(target, EngineConfig()), "lookup, with the shipped streams where they fit"),
        **_with_heads(name, options, lambda config: ours(lambda: _as_engine(target, config))),
        "oracle 0.8": by(oracle, _adaptive(), "plain's output with one token in five wrong"),
        "oracle 0.8, fixed": by(oracle, _fixed(), f"always {DEPTH} tokens"),
        "oracle 1.0, fixed": by(sure, _fixed(), f"always {DEPTH} tokens: the most there is at this depth"),
        "plain, exact=rounding": by(NoDrafter(), _fixed(), "passes of one token", unpadded),
        "auto, exact=rounding": ours(lambda: _as_engine(unpadded, EngineConfig())),
        "recycling": ours(lambda: _as_engine(target, EngineConfig(drafter="recycling"))),
    }
    if own is None:  # the first layers of real weights alone say nothing
        draft = DraftModelDrafter(target_of(draft_of(model), runtime, exact=False), gamma=DEEPEST)
        found["draft model"] = by(draft, _adaptive(), "the target's first quarter of layers, spoiled")
    few = EAGER if runtime == "eager" else FEW if rows == max(SECONDS) else tuple(found)
    return {each: one for each, one in found.items() if each in few or (few == FEW and each.startswith("heads"))}


def _with_heads(
    name: str, options: Options, contestant: Callable[[EngineConfig], _Contestant]
) -> dict[str, _Contestant]:
    """One for each folder of heads, which are of SmolLM2."""
    folders = {kind_of(folder): folder for folder in options.heads if name == "smollm2"}
    return {
        f"heads: {kind}": contestant(EngineConfig.model_validate({"drafter": kind, "heads": folder}))
        for kind, folder in folders.items()
    }


def _as_engine(target: HuggingFaceTarget, config: EngineConfig) -> Parts:
    """What an engine generates with; its controller lives as long as the contestant."""
    return replace(build_parts(target, None, None, config), eos_token_ids=frozenset())


def _run(parts: Parts, prompts: list[list[int]], count: int) -> Generated:
    prepare(parts, len(prompts))
    generation = Generation(parts, prompts, GenerationConfig(max_new_tokens=count)).run()
    rows, timings = generation.rows, generation.timings
    stats: Sequence[Any] = [row.stats for row in rows]
    drafted, accepted = sum(each.drafted for each in stats), sum(each.accepted for each in stats)
    target: Any = parts.target
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
