"""From samples to ratios, tables and JSON files."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from typing import Any

import typer

from benchmarks.rounds import Measured, Sample
from specstream.errors import SpecStreamError
from specstream.files.atomic import write_whole


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Smallest, middle and largest of some numbers."""

    low: float
    middle: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(low=min(values), middle=median(values), high=max(values))

    def around(self, digits: int = 2) -> str:
        """The middle, and the ends in parentheses."""
        return f"{self.middle:.{digits}f} ({self.low:.{digits}f}-{self.high:.{digits}f})"

    def ratio(self, digits: int = 2) -> str:
        return f"{self.low:.{digits}f} {self.middle:.{digits}f} {self.high:.{digits}f}"


@dataclass(frozen=True, kw_only=True)
class Row:
    """What is said of one system.

    Attributes:
        system: its name.
        speed: new tokens per second, prompt included.
        ratio: of its speed to the reference's, in pairs of one round and one item.
        tokens: emitted in all samples.
        equal: outputs, one of each prompt, whose tokens were the reference's.
        pairs: outputs that were compared.
        peak_mib: peak of resident memory.
        drafted: tokens that were drafted and judged; None where the system does not count them.
        accepted: of those.
    """

    system: str
    speed: Spread
    ratio: Spread
    tokens: int
    equal: int
    pairs: int
    peak_mib: float
    drafted: int | None = None
    accepted: int | None = None

    @property
    def acceptance(self) -> str:
        """Accepted of drafted tokens."""
        if not self.drafted or self.accepted is None:
            return "-"
        return f"{self.accepted} of {self.drafted} ({self.accepted / self.drafted:.2f})"


def pairs(samples: Sequence[Sample], system: str, reference: str) -> list[tuple[Sample, Sample]]:
    """Samples of ``system``, each with the reference's for the same item of the same round of the same group."""
    of_reference = {_key(each): each for each in samples if each.system == reference}
    return [
        (each, of_reference[_key(each)]) for each in samples if each.system == system and _key(each) in of_reference
    ]


def _key(sample: Sample) -> tuple[int, int, str]:
    return sample.group, sample.round, sample.item


def ratios(samples: Sequence[Sample], system: str, reference: str) -> list[float]:
    """Speed over the reference's speed, pair by pair."""
    return [own.speed / other.speed for own, other in pairs(samples, system, reference)]


def rows(measured: Measured, reference: str) -> list[Row]:
    """One row for each system that was measured, in the order of its first sample's loading."""
    result = []
    for system in measured.loaded:
        matched = pairs(measured.samples, system, reference)
        if not matched:
            continue
        result.append(
            Row(
                system=system,
                speed=Spread.of([own.speed for own, _ in matched]),
                ratio=Spread.of(ratios(measured.samples, system, reference)),
                tokens=sum(own.new_tokens for own, _ in matched),
                equal=sum(map(_equal_prompts, matched)),
                pairs=sum(len(own.tokens) for own, _ in matched),
                peak_mib=max(own.peak_mib for own, _ in matched),
                drafted=_counted([own for own, _ in matched], "drafted"),
                accepted=_counted([own for own, _ in matched], "accepted"),
            )
        )
    return result


def _counted(samples: Sequence[Sample], name: str) -> int | None:
    values: list[Any] = [sample.counts.get(name) for sample in samples]
    return None if None in values else sum(values)


def _equal_prompts(pair: tuple[Sample, Sample]) -> int:
    own, other = pair
    return sum(tokens == others for tokens, others in zip(own.tokens, other.tokens, strict=True))


def table(measured: Measured, reference: str) -> str:
    """The rows as text, the systems that were left out below them."""
    cells = [
        ["system", "tokens/s median (min-max)", "ratio min median max", "tokens", "equal", "peak MiB", "accepted"],
        *[
            [
                row.system,
                row.speed.around(),
                row.ratio.ratio(),
                str(row.tokens),
                f"{row.equal} of {row.pairs}",
                f"{row.peak_mib:.0f}",
                row.acceptance,
            ]
            for row in rows(measured, reference)
        ],
    ]
    lines = [
        aligned(cells),
        f"ratio: tokens/s over {reference}'s, prompt included on both sides, in pairs of one round and one prompt; "
        f"equal: outputs with the tokens of {reference}",
    ]
    return "\n".join([*lines, *measured.skipped.values(), *(f"FAILED {each}" for each in measured.failed.values())])


def aligned(cells: Sequence[Sequence[str]]) -> str:
    """Rows of text in columns."""
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
    )


def write_json(path: str | Path, values: Mapping[str, Any]) -> None:
    """All of it or nothing."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_whole(Path(path), json.dumps(values, indent=1))


def setting(arguments: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """What a run is to be read with: when, where, with what."""
    from specstream.environment import provenance

    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": sys.argv,
        "arguments": dict(arguments),
        "provenance": provenance("cpu", dtype),
        "cores": os.cpu_count(),
        "environment": {key: value for key, value in os.environ.items() if key.startswith(("OMP_", "KMP_", "GOMP_"))},
    }


def say(text: str) -> None:
    """Progress, kept out of the figures on stdout."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def exit_codes() -> Iterator[None]:
    """Failures on purpose become one line and an exit code: 2 for a wrong call, 1 for the rest."""
    try:
        yield
    except SpecStreamError as error:
        say(f"error: {' '.join(str(error).split())}")
        raise typer.Exit(error.exit_code) from error
