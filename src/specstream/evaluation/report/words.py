"""Figures in words, the same on the terminal, on the page and in the charts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from specstream.engine.contestants import PLAIN

UNKNOWN = "-"

FEW = 4
"""Categories of fewer prompts get a figure and no interval: it would say no more than that they are few."""


def arm_name(arm: Mapping[str, Any]) -> str:
    """An arm with the value that was varied."""
    value = arm["arm_value"] if arm["arm_value"] is not None else arm["value"]
    return str(arm["arm"]) if value is None else f"{arm['arm']} ({value})"


def number(value: float | None, digits: int = 2) -> str:
    """With so many digits behind the point."""
    return UNKNOWN if value is None else f"{value:,.{digits}f}"


def interval(estimate: Mapping[str, float | None] | None) -> str:
    """A figure and its interval."""
    if estimate is None:
        return UNKNOWN
    if estimate["low"] is None or estimate["high"] is None:
        return f"{estimate['value']:.2f} (no interval)"
    if estimate["low"] == estimate["high"]:  # plain decoding over itself
        return f"{estimate['value']:.2f}"
    return f"{estimate['value']:.2f} ({estimate['low']:.2f} to {estimate['high']:.2f})"


def with_interval(estimate: Mapping[str, float | None], form: str) -> str:
    """A figure in a format, and its interval if that is known."""
    if estimate["low"] is None:
        return f"{estimate['value']:{form}}"
    return f"{estimate['value']:{form}} ({estimate['low']:{form}} to {estimate['high']:{form}})"


def side_cells(side: Mapping[str, Any], parameters: str) -> dict[str, str]:
    """The cells of an arm in the tables of ``benchmark heads`` and ``benchmark task``, by their titles."""
    return {
        "drafter": side["side"],
        "extra parameters": parameters,
        "tokens/pass": number(side["mean_accepted_length"]),
        "accepted at 1 to 4": " ".join(map(number, side["acceptance"])),
        "tokens/s": f"{side['tokens_per_second']:.1f}",
        "x plain": interval(side["ratio_interval"]),
        "median": number(side["middle_ratio"]),
        "equal": f"{side['equal']} of {side['outputs']}",
    }


def by_category(arm: Mapping[str, Any], kind: str) -> str:
    """The speedup on prompts of one kind, with its interval where they are not too few."""
    own = arm["categories"].get(kind, {})
    estimate = own.get("speedup")
    return number(estimate["value"]) if estimate and own["prompts"] < FEW else interval(estimate)


def milliseconds(seconds: float | None, digits: int = 1) -> str:
    """Of seconds."""
    return UNKNOWN if seconds is None else f"{1000 * seconds:,.{digits}f}"


def mebibytes(count: float | None) -> str:
    """Of bytes."""
    return UNKNOWN if count is None else f"{count / 2**20:,.0f}"


def losslessness(arms: Sequence[Mapping[str, Any]]) -> str:
    """Whether greedy outputs were plain decoding's, in a sentence."""
    greedy = [each["all"] for each in arms if each["arm"] != PLAIN and each["all"].get("compared")]
    equal, compared = sum(each["equal"] for each in greedy), sum(each["compared"] for each in greedy)
    if not compared:
        return "Losslessness: no greedy output was compared with plain decoding's in this run."
    claims = " and ".join(sorted({claim for each in greedy for claim in each["exact"]}))
    line = f"Losslessness: {equal} of {compared} greedy outputs have the tokens of plain decoding (claimed: {claims})"
    others = sorted({arm_name(each) for each in arms if each["arm"] != PLAIN and _differs(each["all"])})
    return f"{line}; others by: {', '.join(others)}." if others else f"{line}."


def equal(arm: Mapping[str, Any]) -> str:
    """How many outputs were plain decoding's; nothing for plain decoding itself."""
    own = arm["all"]
    return UNKNOWN if own.get("compared") is None or arm["arm"] == PLAIN else f"{own['equal']} of {own['compared']}"


def _differs(figures: Mapping[str, Any]) -> bool:
    return bool(figures.get("compared")) and figures["equal"] != figures["compared"]
