"""Where the time of a round goes: an instrument around the ports of the loop, and nothing in the loop itself.

The target, the drafter, their sessions and the controller are lent to the loop behind stand-ins that note when each of
their methods begins and ends. Verification and the choice of tokens are functions, which are replaced for as long as
the instrument is on. What no note covers is Python between the parts. Without the instrument there is no trace of it.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

import torch

from specstream.config import GenerationConfig
from specstream.core import decode as loop
from specstream.core import verify as rules
from specstream.engine.contestants import by_turn, in_turn
from specstream.engine.generation import Generation, Parts

PARTS = ("draft", "target pass", "verify", "sample", "cache", "controller", "other")
"""Parts of a round. ``sample`` is what makes tokens of logits; ``other`` is Python between the parts."""

DRAFT, TARGET, VERIFY, SAMPLE, CACHE, CONTROLLER, OTHER = PARTS
PREFILL = "prefill"
"""What comes before the first round; no part of one."""


@dataclass(frozen=True)
class Span:
    """Something that took time.

    Attributes:
        name: of the method or function.
        part: of the round that it belongs to.
        start: on the host's clock, in seconds.
        end: likewise.
        own: seconds of it that belong to no span inside it.
        details: for the trace.
    """

    name: str
    part: str
    start: float
    end: float
    own: float
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Pass:
    """A round of the loop.

    Attributes:
        start: on the host's clock, in seconds.
        end: likewise.
        tokens: that it emitted.
        width: nodes of the target's pass, padding included.
        parts: seconds of each part.
    """

    start: float
    end: float
    tokens: int
    width: int
    parts: Mapping[str, float]

    @property
    def seconds(self) -> float:
        return self.end - self.start


class Instrument:
    """Notes what the parts of the loop take.

    Args:
        device: where passes run; on an accelerator every note waits for it, which costs what running ahead would save.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self.spans: list[Span] = []
        self._inside: list[float] = []  # of each span that is open, the seconds of spans inside it
        self._wait = device is not None and device.type == "cuda"
        self._device = device

    def call(self, name: str, part: str, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """Call a function and note what it took."""
        self._inside.append(0.0)
        start = time.perf_counter()
        result = None
        try:
            result = function(*arguments, **named)
            return result
        finally:
            if self._wait:
                torch.cuda.synchronize(self._device)
            end = time.perf_counter()
            inside = self._inside.pop()
            if self._inside:
                self._inside[-1] += end - start
            details = (
                {"rows": result.shape[0], "width": result.shape[1]} if name == "score" and result is not None else {}
            )
            self.spans.append(Span(name, part, start, end, end - start - inside, details))

    def around(self, something: Any, parts: Mapping[str, str], begun: Callable[[Any], Any] | None = None) -> Any:
        """A stand-in for an object.

        Args:
            something: the object.
            parts: its methods that are noted, and the part of the round that they are.
            begun: what becomes of their results.
        """
        methods = {name: self._noted(name, part, getattr(something, name), begun) for name, part in parts.items()}
        return StandIn(something, **methods)

    def target(self, target: Any) -> Any:
        """A stand-in for a target."""
        noted = {
            "score": TARGET,
            "descend": TARGET,
            "branch": DRAFT,
            **dict.fromkeys(("commit", "rollback", "keep"), CACHE),
        }

        def begun(made: Any) -> Any:
            session = self.around(made, noted)
            session.hidden_states = session
            return session

        return self.around(target, {"begin": PREFILL}, begun)

    def drafter(self, drafter: Any) -> Any:
        """A stand-in for a drafter."""
        session = dict.fromkeys(("offers", "propose", "observe", "keep"), DRAFT)
        return self.around(drafter, {"begin": PREFILL}, lambda made: self.around(made, session))

    def parts(self, parts: Parts) -> Parts:
        """What an engine generates with, behind stand-ins."""
        speculation = parts.speculation
        if speculation.controller is not None:
            noted = dict.fromkeys(("pauses", "choose", "cut", "observe"), CONTROLLER)
            speculation = replace(speculation, controller=self.around(speculation.controller, noted))
        return replace(
            parts, target=self.target(parts.target), drafter=self.drafter(parts.drafter), speculation=speculation
        )

    @contextmanager
    def on(self) -> Iterator[None]:
        """Inside, the loop's functions are noted too: in this process and not only in this thread."""
        functions = {(loop, "verify_each"): VERIFY} | {
            (rules, name): SAMPLE for name in ("choose", "probabilities", "draw", "judge_chains")
        }
        kept = {(module, name): getattr(module, name) for module, name in functions}
        try:
            for (module, name), part in functions.items():
                setattr(module, name, self._noted(name, part, kept[module, name]))
            yield
        finally:
            for (module, name), function in kept.items():
                setattr(module, name, function)

    def _noted(
        self, name: str, part: str, function: Callable[..., Any], wrap: Callable[[Any], Any] | None = None
    ) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            result = self.call(name, part, function, *arguments, **named)
            return result if wrap is None else wrap(result)

        return call


class StandIn:
    """An object some of whose methods are others; for everything else it is the object."""

    def __init__(self, something: Any, **methods: Callable[..., Any]) -> None:
        self._something = something
        # As attributes of the object: __getattr__ would be asked for each call.
        self.__dict__.update(methods)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._something, name)


@dataclass(kw_only=True)
class Profile:
    """What generations took.

    Attributes:
        name: of what drafted.
        passes: all rounds, in order.
        spans: all notes, in order of their ends.
        prefill: seconds before the first rounds.
        prompts: how many.
    """

    name: str
    passes: list[Pass] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    prefill: float = 0.0
    prompts: int = 0

    @property
    def seconds(self) -> float:
        """Of all rounds."""
        return sum(each.seconds for each in self.passes)

    @property
    def tokens(self) -> int:
        return sum(each.tokens for each in self.passes)

    def of(self, part: str) -> float:
        """Seconds of a part in all rounds."""
        return sum(each.parts.get(part, 0.0) for each in self.passes)

    @property
    def widths(self) -> dict[int, float]:
        """The median seconds of the target's part of a round, by the width of its pass."""
        found: dict[int, list[float]] = defaultdict(list)
        for each in self.passes:
            found[each.width].append(each.parts.get(TARGET, 0.0))
        return {width: median(found[width]) for width in sorted(found)}

    @property
    def usual_width(self) -> int:
        """The width on which most of the time of target passes is spent."""
        spent: dict[int, float] = defaultdict(float)
        for each in self.passes:
            spent[each.width] += each.parts.get(TARGET, 0.0)
        return max(spent, key=spent.__getitem__)

    def middle_half(self, width: int) -> tuple[float, float]:
        """Between which seconds the middle half of the passes of a width lies."""
        times = sorted(each.parts.get(TARGET, 0.0) for each in self.passes if each.width == width)
        return times[len(times) // 4], times[(3 * len(times)) // 4 if len(times) > 1 else 0]

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold; seconds."""
        total, count = self.seconds, len(self.passes)
        return {
            "drafter": self.name,
            "prompts": self.prompts,
            "rounds": count,
            "tokens": self.tokens,
            "seconds": total,
            "prefill_seconds": self.prefill,
            "tokens_per_second": self.tokens / total,
            "mean_accepted_length": self.tokens / count,
            "parts": {
                part: {"seconds": self.of(part), "share": self.of(part) / total, "per_round": self.of(part) / count}
                for part in PARTS
            },
            "widths": {
                str(width): {"rounds": sum(each.width == width for each in self.passes), "median_seconds": seconds}
                for width, seconds in self.widths.items()
            },
            "per_round": [
                {"seconds": each.seconds, "tokens": each.tokens, "width": each.width, "parts": dict(each.parts)}
                for each in self.passes
            ],
        }

    def trace(self) -> dict[str, Any]:
        """For chrome://tracing and Perfetto: microseconds, rounds in one line, what they are made of in another."""
        zero = min((span.start for span in self.spans), default=0.0)
        events: list[dict[str, Any]] = [
            {"ph": "M", "name": "process_name", "pid": 1, "args": {"name": f"specstream, {self.name}"}},
            {"ph": "M", "name": "thread_name", "pid": 1, "tid": 1, "args": {"name": "rounds"}},
            {"ph": "M", "name": "thread_name", "pid": 1, "tid": 2, "args": {"name": "parts"}},
        ]
        for number, each in enumerate(self.passes):
            details = {"tokens": each.tokens, "width": each.width}
            events.append(_event(f"round {number}", "round", 1, each.start - zero, each.end - zero, details))
        for span in sorted(self.spans, key=lambda span: (span.start, -span.end)):
            events.append(
                _event(f"{span.part}: {span.name}", span.part, 2, span.start - zero, span.end - zero, span.details)
            )
        return {"traceEvents": events, "displayTimeUnit": "ms"}


def add(
    found: Profile, parts: Parts, prompt: Sequence[int], config: GenerationConfig, device: torch.device | None = None
) -> None:
    """Generate from a prompt with the instrument on.

    Args:
        found: what it took is added here.
        parts: what to generate with.
        prompt: token ids.
        config: how.
        device: where passes run.
    """
    instrument = Instrument(device)
    generation = Generation(instrument.parts(parts), [prompt], config)
    with instrument.on():
        found.passes.extend(_rounds(generation, instrument))
    found.spans.extend(instrument.spans)
    found.prefill += generation.timings.prefill
    found.prompts += 1


def profile(
    arms: Mapping[str, Parts],
    prompts: Sequence[Sequence[int]],
    config: GenerationConfig,
    device: torch.device | None = None,
    on_prompt: Callable[[int], None] = lambda done: None,
) -> dict[str, Profile]:
    """Every arm generates from each prompt in turn; the first prompt warms up each of them and is not counted then.

    Args:
        arms: what to generate with, by name.
        prompts: token ids of each.
        config: how.
        device: where passes run.
        on_prompt: called before the first prompt and after each, with how many are done.
    """
    found = {name: Profile(name=parts.drafter.name) for name, parts in arms.items()}
    for parts in arms.values():
        Generation(parts, [prompts[0]], config).run()

    def noted(name: str) -> Callable[[Sequence[int]], None]:
        return lambda prompt: add(found[name], arms[name], prompt, config, device)

    on_prompt(0)
    for turn in by_turn(in_turn({name: noted(name) for name in arms}, prompts, warm_up=0)):
        on_prompt(turn.prompt + 1)
    return found


def cost_of_a_note() -> float:
    """Seconds that the instrument adds to a call."""
    instrument, times = Instrument(), 2000
    started = time.perf_counter()
    for _ in range(times):
        instrument.call("nothing", OTHER, bool)
    return (time.perf_counter() - started) / times


def _rounds(generation: Generation, instrument: Instrument) -> Iterator[Pass]:
    rounds = iter(generation.rounds())
    known = 0
    while True:
        start = time.perf_counter()
        emitted = next(rounds, None)
        end = time.perf_counter()
        if emitted is None:
            return
        spans, known = instrument.spans[known:], len(instrument.spans)
        # The first turn of the generator reads the prompt, too.
        start = max([start, *(span.end for span in spans if span.part == PREFILL)])
        parts: dict[str, float] = defaultdict(float)
        for span in spans:
            if span.part != PREFILL:
                parts[span.part] += span.own
        parts[OTHER] = max(0.0, end - start - sum(parts.values()))
        width = max((int(span.details["width"]) for span in spans if span.name == "score"), default=1)
        tokens = sum(len(each.tokens) for each in emitted)
        yield Pass(start=start, end=end, tokens=tokens, width=width, parts=dict(parts))


def _event(name: str, part: str, line: int, start: float, end: float, details: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": name,
        "cat": part,
        "ph": "X",
        "pid": 1,
        "tid": line,
        "ts": start * 1e6,
        "dur": (end - start) * 1e6,
        "args": dict(details),
    }
