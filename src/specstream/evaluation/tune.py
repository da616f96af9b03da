"""The fastest lossless setting for a model, a machine and some prompts; the answer may be not to speculate.

First plain decoding under every runtime, then every way to draft under the fastest of them, each by successive
halving. A setting whose output is not plain decoding's, where both claim its bits, is out, whatever its speed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, cast

from specstream.config import EngineConfig, GenerationConfig, engine_config
from specstream.engine.build import SharedDrafts, build_parts
from specstream.engine.choices import SELF
from specstream.engine.contestants import PLAIN
from specstream.engine.generation import Generation, Parts
from specstream.engine.inventory import prepare
from specstream.errors import SpecStreamError, reason_of
from specstream.evaluation.successive_halving import Found, runs_of, search
from specstream.heads.shipped import shipped_for
from specstream.models.runtime.capabilities import RuntimeName
from specstream.models.target.hf import HuggingFaceTarget

RUNTIMES: dict[str, tuple[RuntimeName, ...]] = {"cpu": ("native", "packed", "eager"), "cuda": ("graphs", "eager")}
"""What is tried on a device; for others, what ``auto`` says."""

DEPTHS = (2, 4, 8)
"""Tokens drafted every round, whether they pay or not, beside what the controller decides."""


class DifferentOutputError(SpecStreamError):
    """A setting that claims plain decoding's bits and does not have them."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A setting.

    Attributes:
        name: for people.
        settings: of ``EngineConfig``, where they differ from its defaults.
        draft: the draft model, if there is one.
    """

    name: str
    settings: Mapping[str, Any]
    draft: str | None = None


@dataclass(kw_only=True)
class Tuned:
    """What was found.

    Attributes:
        runtime: under which plain decoding is fastest.
        runtimes: how that was found; None where there was no choice.
        candidate: the fastest setting; None if none could run.
        found: how that was found.
        left_out: settings that were not tried, and why.
    """

    runtime: str
    runtimes: Found | None
    candidate: Candidate | None
    found: Found
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def settings(self) -> dict[str, Any]:
        """Of the engine: the fastest, or plain decoding where it does not pay."""
        if self.candidate is None or not self.found.pays:
            return {"drafter": "none", "runtime": self.runtime}
        own = {} if self.candidate.draft is None else {"draft_model": self.candidate.draft}
        return {**own, **self.candidate.settings, "runtime": self.runtime}

    @property
    def verdict(self) -> str:
        """One sentence."""
        if self.candidate is None or self.found.ratio is None:
            return "do not speculate: there was no setting that could be tried"
        ratio = self.found.ratio
        figures = f"{ratio.value:.2f} times plain decoding (95 %: {ratio.low:.2f} to {ratio.high:.2f})"
        if self.found.pays:
            return f"speculate: {self.candidate.name} is {figures}"
        return f"do not speculate: the best of {self._tried} settings, {self.candidate.name}, is {figures}"

    @property
    def _tried(self) -> int:
        first = self.found.stages[0]
        return len(first.ratios) + len(first.out)

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold."""
        return {
            "verdict": self.verdict,
            "pays": self.found.pays,
            "settings": self.settings,
            "runtimes": None if self.runtimes is None else asdict(self.runtimes),
            "candidates": asdict(self.found),
            "left_out": self.left_out,
        }


def candidates(model: Any, draft: str | None, heads: str | None) -> list[Candidate]:
    """Every setting that is worth a try with what is there.

    Args:
        model: the target.
        draft: the name of a draft model, if one was given.
        heads: a folder of heads, if one was given.
    """
    own = list(_without_model(model, heads))
    cpu = model.device.type == "cpu"
    quantizations = ("int8", "int4", "none") if cpu else ("none",)
    if draft is not None:
        own.extend(_with_draft(draft, quantizations))
    if cpu:
        own.extend(
            Candidate(name=f"the model in {bits} drafts", settings={"drafter": "draft_model"}, draft=f"{SELF}{bits}")
            for bits in ("int8", "int4")
        )
    return own


def _without_model(model: Any, heads: str | None) -> Iterator[Candidate]:
    yield Candidate(name="lookup", settings={"drafter": "lookup"})
    yield Candidate(name="lookup, trees of 3", settings={"drafter": "lookup", "branches": 3})
    yield Candidate(name="lookahead", settings={"drafter": "lookahead"})
    for depth in DEPTHS:
        settings: dict[str, Any] = {"drafter": "lookup", "adaptive": False, "max_speculation_depth": depth}
        yield Candidate(name=f"lookup, always {depth}", settings=settings)
    if heads is not None:
        yield Candidate(name="heads", settings={"drafter": "auto", "heads": heads})
        yield Candidate(name="heads with lookup", settings={"drafter": "mixed", "heads": heads})
    elif shipped_for(model, "streams") is not None:
        yield Candidate(name="streams", settings={"drafter": "streams"})
        yield Candidate(name="streams with lookup", settings={"drafter": "auto"})


def _with_draft(draft: str, quantizations: Sequence[str]) -> Iterator[Candidate]:
    for bits in quantizations:
        settings: dict[str, Any] = {"drafter": "draft_model", "draft_quantization": bits}
        yield Candidate(name=f"draft in {bits}" if bits != "none" else "draft", settings=settings, draft=draft)
    best: dict[str, Any] = {"drafter": "draft_model", "draft_quantization": quantizations[0]}
    for depth in DEPTHS:
        settings = {**best, "adaptive": False, "max_speculation_depth": depth}
        yield Candidate(name=f"draft, always {depth}", settings=settings, draft=draft)
    yield Candidate(name="draft, trees of 2", settings={**best, "branches": 2}, draft=draft)
    yield Candidate(name="draft with lookup", settings={**best, "drafter": "mixed"}, draft=draft)


class Bench:
    """Runs settings of one model on the same prompts, and sees to it that their outputs are plain decoding's.

    Args:
        prompts: token ids of each.
        config: how much is generated.
    """

    def __init__(self, prompts: Sequence[Sequence[int]], config: GenerationConfig) -> None:
        self._prompts, self._config = prompts, config
        self._parts: dict[str, Parts] = {}
        self._plain: dict[int, tuple[list[int], str]] = {}

    def add(self, name: str, parts: Parts) -> None:
        """A setting; it generates once, uncounted. Plain decoding comes first."""
        prepare(parts, 1)
        self._parts[name] = parts
        for prompt in range(len(self._prompts)) if not self._plain else [0]:
            self.measure(name, prompt)

    def measure(self, name: str, prompt: int) -> tuple[int, float]:
        """Tokens of a generation, and the seconds of its decoding.

        Raises:
            DifferentOutputError: of other tokens than plain decoding's, which both should have to the bit.
        """
        generation = Generation(self._parts[name], [self._prompts[prompt]], self._config).run()
        (row,) = generation.rows
        plain, exact = self._plain.setdefault(prompt, (row.emitted, row.exact))
        if exact == row.exact == "bits" and row.emitted != plain:
            raise DifferentOutputError(f"{name} wrote other tokens than plain decoding for prompt {prompt}")
        return row.stats.new_tokens, generation.timings.decode


def tune(
    engine: Any,
    prompts: Sequence[Sequence[int]],
    config: GenerationConfig,
    *,
    draft: str | None = None,
    heads: str | None = None,
    repeats: int = 2,
    on_run: Callable[[int, int, str], None] | None = None,
) -> Tuned:
    """Find the fastest lossless setting.

    Args:
        engine: of the model, with the drafter ``none`` and the runtime ``auto``.
        prompts: token ids of each.
        config: how much is generated from them, greedily.
        draft: the name of a draft model to try.
        heads: a folder of heads to try.
        repeats: of the last stage.
        on_run: called with the runs that are done, those there are in all, and what comes next.

    Raises:
        UsageError: a draft or heads that do not go with the model, before anything is tried.
    """
    left_out: dict[str, str] = {}
    settings = candidates(engine.model, draft, heads)
    given = {each.settings.get("heads") or (draft if each.draft == draft else None): each for each in settings}
    for each in (each for what, each in given.items() if what is not None):
        _build(each, engine.target, engine.tokenizer, SharedDrafts(engine.target, engine.tokenizer))
    runs = runs_of(len(_other_runtimes(engine)), len(prompts)), runs_of(len(settings), len(prompts), repeats=repeats)
    count = _Count(sum(runs) + len(settings), on_run)
    target, runtimes = _fastest_runtime(engine, prompts, config, left_out, count)
    count.done = runs[0]
    bench = Bench(prompts, config)
    count.note("plain decoding: warming up")
    bench.add(PLAIN, build_parts(target, engine.tokenizer, None, EngineConfig(drafter="none")))
    tried: dict[str, Candidate] = {}
    drafts = SharedDrafts(target, engine.tokenizer)
    for each in settings:
        count(f"{each.name} (loading)")
        try:
            bench.add(each.name, _build(each, target, engine.tokenizer, drafts))
        except Exception as error:  # one setting is not worth the others
            left_out[each.name] = reason_of(error)[:300]
        else:
            tried[each.name] = each
    found = search(PLAIN, list(tried), len(prompts), bench.measure, repeats=repeats, on_run=count)
    best = None if found.best is None else tried[found.best]
    return Tuned(runtime=target.runtime.kind, runtimes=runtimes, candidate=best, found=found, left_out=left_out)


class _Count:
    """Tells how many runs are done; called before each of them."""

    def __init__(self, total: int, tell: Callable[[int, int, str], None] | None) -> None:
        self._total, self._tell, self.done = total, tell, 0

    def __call__(self, name: str) -> None:
        self.note(name)
        self.done += 1

    def note(self, text: str) -> None:
        """Tell what is being done without counting it as a run."""
        if self._tell is not None:
            self._tell(self.done, self._total, text)


def _other_runtimes(engine: Any) -> list[RuntimeName]:
    """Those that the engine's model might run under besides the one it has."""
    return [name for name in RUNTIMES.get(engine.model.device.type, ()) if name != engine.target.runtime.kind]


def _fastest_runtime(
    engine: Any,
    prompts: Sequence[Sequence[int]],
    config: GenerationConfig,
    left_out: dict[str, str],
    on_run: _Count,
) -> tuple[HuggingFaceTarget, Found | None]:
    """The target under the runtime that decodes plainly the fastest; the one of ``auto`` if none is surely faster."""
    own = cast(HuggingFaceTarget, engine.target)
    others = _other_runtimes(engine)
    targets: dict[str, HuggingFaceTarget] = {}
    on_run.note(f"runtime {own.runtime.kind}: warming up")
    benches = {own.runtime.kind: _plain_bench(own, engine.tokenizer, prompts, config)}
    for name in others:
        on_run.note(f"runtime {name}: warming up")
        try:
            targets[name] = HuggingFaceTarget(engine.model, runtime=name)
            benches[name] = _plain_bench(targets[name], engine.tokenizer, prompts, config)
        except SpecStreamError as error:
            left_out[f"runtime {name}"] = str(error)
    names = [name for name in others if name in benches]
    if not names:
        return own, None
    found = search(
        own.runtime.kind, names, len(prompts), lambda name, at: benches[name].measure(PLAIN, at), on_run=on_run
    )
    if found.best is None or not found.pays:
        return own, found
    return targets[found.best], found


def _plain_bench(
    target: HuggingFaceTarget, tokenizer: Any, prompts: Sequence[Sequence[int]], config: GenerationConfig
) -> Bench:
    """Of one runtime: each has bits of its own."""
    bench = Bench(prompts, config)
    bench.add(PLAIN, build_parts(target, tokenizer, None, EngineConfig(drafter="none")))
    return bench


def _build(each: Candidate, target: HuggingFaceTarget, tokenizer: Any, drafts: SharedDrafts) -> Parts:
    """What a setting generates with; a draft of one quantisation is loaded once."""
    config = engine_config({**each.settings, "runtime": target.runtime.kind})  # type: ignore[typeddict-item]
    if each.draft is None:
        return build_parts(target, tokenizer, None, config)
    return build_parts(target, tokenizer, drafts.get(each.draft, config), config)
