"""What generations are reported as: results, totals, and the baseline that speedups are measured against."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from statistics import mean
from typing import Any

from specstream.core.rows import Row
from specstream.errors import listed


@dataclass(frozen=True, kw_only=True)
class GenerationResult(Mapping[str, Any]):
    """What one prompt became. Read it as attributes or as a mapping.

    Attributes:
        text: the new text, without stop strings and special tokens.
        token_ids: the new tokens, the end-of-sequence token included.
        finish_reason: ``stop`` (end of sequence or a stop string) or ``length``.
        new_tokens: how many.
        seconds: wall-clock time of the call, prefill included (of the whole batch).
        prefill_seconds: the part before the first pass of the loop.
        cached_tokens: tokens of the prompt that were not read: their keys and values were there from earlier texts.
        tokens_per_second: ``new_tokens / seconds``.
        target_passes: passes of the target after the prefill.
        mean_accepted_length: tokens per pass, the target's own included; 1.0 for plain decoding.
        acceptance_rate: accepted over drafted tokens; 0.0 if nothing was drafted.
        speedup: decoding speed over that of plain decoding, prefill on neither side; see ``baseline``. None where that
            is not known, or fails without the caller's logits processors.
        baseline: what ``speedup`` is against: its ``method``, ``tokens_per_second``, and where plain decoding was
            measured for it (``measure_baseline``) of how many ``tokens``; or the ``error`` that says why there is none.
        exact: ``bits`` if every pass had plain decoding's bits, else ``rounding``.
        lossless: False under typical acceptance.
        chat: whether the prompt went through the model's chat template: a list of turns does, and on the command line a
            text too; a text in Python does not.
        drafter: its name.
        drafts: of the target's passes, how many a drafter drafted for, by its name; what is left was plain.
        left_out: why a drafter that comes with the package did not draft, if one could, and why drafts were less deep
            than ``gamma`` allows, if there are fewer streams or heads; None elsewhere.
        notes: settings that had no effect, and why: a text that ended where the context does, sampling at temperature
            0; empty where all had.
        routing: where a router chose: the ``drafter`` that it took for the batch, the ``seconds`` that the choice cost
            (part of ``seconds``, and counted in ``speedup``), and what each was ``expected`` to be worth, as its speed
            over plain decoding's. None elsewhere.
        model: the target's name.
        dtype: of the target.
        device: of the target.
        runtime: how passes ran.
        cpu_level: the instructions that this process's own kernels were chosen for.
    """

    text: str
    token_ids: list[int]
    finish_reason: str
    new_tokens: int
    seconds: float
    prefill_seconds: float
    cached_tokens: int
    tokens_per_second: float
    target_passes: int
    mean_accepted_length: float
    acceptance_rate: float
    speedup: float | None
    baseline: dict[str, Any]
    exact: str
    lossless: bool
    chat: bool
    drafter: str
    drafts: dict[str, int]
    left_out: str | None
    notes: list[str]
    routing: dict[str, Any] | None
    model: str
    dtype: str
    device: str
    runtime: str
    cpu_level: str

    def __getitem__(self, key: str) -> Any:
        if key not in self._names():
            raise KeyError(self._missing(key))
        return getattr(self, key)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(self._missing(name))

    @classmethod
    def _missing(cls, name: object) -> str:
        return f"a result has no {name!r}; it has {listed(str(name), cls._names())}"

    def __iter__(self) -> Iterator[str]:
        return iter(self._names())

    def __len__(self) -> int:
        return len(self._names())

    @classmethod
    def _names(cls) -> list[str]:
        return [each.name for each in fields(cls)]


class Metrics(dict[str, Any]):
    """Figures by name, as keys and as attributes."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(error.args[0]) from None

    def __missing__(self, name: str) -> Any:
        raise KeyError(f"there is no figure {name!r}; there are {listed(str(name), self)}")


def figures_of(sides: Mapping[str, Totals]) -> dict[str, float]:
    """The figures of one round, of each side by its name."""
    names = ("tokens_per_second", "seconds", "new_tokens")
    return {f"{side}_{name}": getattr(own, name) for side, own in sides.items() for name in names}


@dataclass
class Totals:
    """Everything an engine has generated, for ``get_metrics``."""

    requests: int = 0
    new_tokens: int = 0
    target_passes: int = 0
    drafted: int = 0
    accepted: int = 0
    rejected: int = 0
    seconds: float = 0.0
    speedups: list[float] = field(default_factory=list)

    def add(self, rows: Sequence[Row], seconds: float) -> None:
        """Count one batch that took ``seconds``, prefill included."""
        self.requests += len(rows)
        self.seconds += seconds
        for row in rows:
            self.new_tokens += row.stats.new_tokens
            self.target_passes += row.stats.target_passes
            self.drafted += row.stats.drafted
            self.accepted += row.stats.accepted
            self.rejected += row.stats.rejected

    def figures(self, *names: str) -> dict[str, Any]:
        """Some of them, by name."""
        return {name: getattr(self, name) for name in names}

    @property
    def acceptance_rate(self) -> float:
        return self.accepted / self.drafted if self.drafted else 0.0

    @property
    def mean_accepted_length(self) -> float:
        return self.new_tokens / self.target_passes if self.target_passes else 0.0

    @property
    def tokens_per_second(self) -> float:
        return self.new_tokens / self.seconds if self.seconds else 0.0

    @property
    def average_speedup(self) -> float:
        return mean(self.speedups) if self.speedups else 0.0
