"""Milliseconds of a pass by width, rows and runtime, beside transformers' own; and what a round costs the host."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median
from typing import Any

import torch
import transformers as hf

from benchmarks.gpu.models import NAMES, begin, draft_of, load, prompts_for, target_of
from benchmarks.gpu.options import Options
from benchmarks.gpu.oracle import Oracle
from benchmarks.gpu.records import Records
from specstream.core.device.deferred import upload
from specstream.core.policy.policy import Speculation
from specstream.core.sampling import Sampling
from specstream.core.tree import TokenTree
from specstream.core.verify import verify
from specstream.drafters.none import NoDrafter
from specstream.models.architecture.compat import with_cache

CONTEXT = 256
WIDTHS, BATCHES = (1, 2, 4, 8, 16, 32), (1, 8, 32)
FEW_WIDTHS, FEW_BATCHES = (1, 8), (1, 8)
"""Of passes that the host launches one kernel after another, whose time hardly changes with either; and of rounds."""
DRAFTED, SLOW = 5, 0.02
"""Nodes of a round; seconds from which on a call is timed five times only."""


def passes(records: Records, options: Options) -> None:
    """The captured passes of all sizes first."""
    names = ("smollm2",) if options.tiny else NAMES
    runtimes = dict.fromkeys((options.captured, "transformers", "eager", "static"))
    for runtime, name in itertools.product(runtimes, names):
        few = (1, 2) if options.tiny else FEW_BATCHES
        for rows in few if options.tiny or runtime != options.captured else BATCHES:
            label = f"passes {name} {runtime} rows {rows}"
            work = _theirs if runtime == "transformers" else _ours
            records.measure(label, partial(work, name, runtime, rows, options))
        if runtime == options.captured:
            records.measure(f"draft step {name}", partial(_draft_step, name, options))
            for rows in few:
                for share in (None, 0.8):
                    label = f"round {name} rows {rows} {'plain' if share is None else f'oracle {share}'}"
                    records.measure(label, partial(_round, name, rows, share, options))


def _timed(run: Callable[[], Any], options: Options) -> dict[str, float]:
    """Milliseconds of a call: the first, with what is captured or chosen in it; awaited each; and one behind another.

    ``device`` is between events around all of the last, so it has the host's gaps in it where the host is slower.
    """
    started = time.perf_counter()
    run()
    options.wait()
    first = time.perf_counter() - started
    started = time.perf_counter()
    run()
    options.wait()
    repeats = options.repeats if time.perf_counter() - started < SLOW else min(5, options.repeats)
    awaited = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        options.wait()
        awaited.append(time.perf_counter() - started)
    started = time.perf_counter()
    for _ in range(repeats):
        run()
    handed_over = time.perf_counter() - started
    options.wait()
    queued = time.perf_counter() - started
    per_call = 1e3 / repeats
    found = {"first": first * 1e3, "awaited": median(awaited) * 1e3, "queued": queued * per_call}
    return {name: round(value, 4) for name, value in {**found, "host": handed_over * per_call}.items()}


def _ours(name: str, runtime: str, rows: int, options: Options) -> dict[str, Any]:
    target = target_of(load(name, options), runtime, exact=False)
    prompts = prompts_for(name, options, rows, CONTEXT)
    session = target.begin_unpadded(prompts)
    found, verification = {}, {}
    for width in WIDTHS[:2] if options.tiny else WIDTHS if runtime == options.captured else FEW_WIDTHS:
        trees = [TokenTree.chain(prompt[:width]) for prompt in prompts]
        found[str(width)] = _timed(partial(session.score, trees), options)
        if runtime == options.captured:
            logits = session.score(trees)
            verification[str(width)] = _timed(partial(_verify, trees, logits), options)
    ran = target.runtime.name
    return {"model": name, "runtime": runtime, "ran": ran, "rows": rows, "widths": found, "verify": verification}


@torch.inference_mode()
def _verify(trees: list[TokenTree], logits: torch.Tensor) -> None:
    generators = [torch.Generator()] * len(trees)
    verify(trees, logits, [list(tree.tokens[:1]) for tree in trees], Sampling(), generators)


@torch.inference_mode()
def _theirs(name: str, runtime: str, rows: int, options: Options) -> dict[str, Any]:
    """Transformers' forward with its own caches."""
    model = load(name, options)
    ids = torch.tensor(prompts_for(name, options, rows, CONTEXT), device=model.device)
    found: dict[str, Any] = {}
    widths = WIDTHS[:2] if options.tiny else FEW_WIDTHS
    room = CONTEXT + (2 * options.repeats + 2) * sum(widths)
    kinds: Any = hf
    caches = {"dynamic": kinds.DynamicCache(), "static": kinds.StaticCache(model.config, max_cache_len=room)}
    for kind, cache in caches.items():
        model(input_ids=ids, use_cache=True, **with_cache(model, cache), logits_to_keep=1)
        for width in widths:
            tokens = ids[:, :width]

            def run(cache: Any = cache, tokens: torch.Tensor = tokens, kind: str = kind) -> None:
                model(input_ids=tokens, use_cache=True, **with_cache(model, cache))
                if kind == "dynamic":
                    cache.crop(-tokens.shape[1])

            found[f"{kind} {width}"] = _timed(run, options)
    return {"model": name, "runtime": runtime, "rows": rows, "widths": found, "static cache": f"{room} slots"}


def _draft_step(name: str, options: Options) -> dict[str, Any]:
    draft = draft_of(load(name, options))
    target = target_of(draft, options.captured, exact=False)
    found = {}
    for rows in (1,) if options.tiny else BATCHES:
        prompts = prompts_for(name, options, rows, CONTEXT)
        session = target.begin_unpadded(prompts)
        trees = [TokenTree.chain(prompt[:1]) for prompt in prompts]
        found[f"rows {rows}"] = _timed(partial(session.score, trees), options)
    values = [[1] * 64]
    upload_ms = _timed(partial(upload, values, draft.device), options)
    return {"model": name, "layers": draft.config.num_hidden_layers, "steps": found, "upload of 64": upload_ms}


def _round(name: str, rows: int, share: float | None, options: Options) -> dict[str, Any]:
    """A round's milliseconds by the host's clock, and those in which the device worked, by the profiler."""
    model, count = load(name, options), 16 if options.tiny else 64
    target = target_of(model, options.captured)
    target.prepare(rows=rows, nodes=DRAFTED + 1)
    prompts = prompts_for(name, options, rows, CONTEXT)
    plain = begin(target, NoDrafter(), prompts, count, Speculation(max_depth=DRAFTED)).run()
    outputs = {tuple(prompt): row.emitted for prompt, row in zip(prompts, plain.rows, strict=True)}
    drafter = NoDrafter() if share is None else Oracle(outputs, share, target.vocab_size)

    def decoding() -> tuple[float, int]:
        ours = begin(target, drafter, prompts, count, Speculation(max_depth=DRAFTED)).run()
        return ours.timings.decode, max(row.stats.target_passes for row in ours.rows)

    decoding()
    seconds, rounds = decoding()
    found = {"model": name, "rows": rows, "share": share, "rounds": rounds, "round_ms": seconds * 1e3 / rounds}
    if options.device == "cuda":
        found |= _busy(begin(target, drafter, prompts, count, Speculation(max_depth=DRAFTED)).rounds())
    return found


def _busy(going: Iterator[Any]) -> dict[str, Any]:
    """What the device did in all rounds but the first, before which the prompts are read."""
    from torch.profiler import ProfilerActivity, profile

    next(going)
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        started, rounds = time.perf_counter(), sum(1 for _ in going)
        torch.cuda.synchronize()
        seconds = time.perf_counter() - started
    kernels = sorted(profiler.key_averages(), key=lambda each: each.self_device_time_total, reverse=True)
    busy = sum(each.self_device_time_total for each in kernels) / 1e3
    longest = {each.key[:80]: [each.count, round(each.self_device_time_total / 1e3, 3)] for each in kernels[:12]}
    return {"busy_ms": busy / rounds, "profiled_ms": seconds * 1e3 / rounds, "kernels_ms": longest}
