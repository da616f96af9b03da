"""The results as a page of Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

Rows = Sequence[Mapping[str, Any]]

NOTES = """Random weights have the shape and so the work of the real ones. Their text is a walk in which each token
decides the next by a wide margin: it repeats nothing, so lookup finds nothing. Their draft is the model's first quarter
of layers with one token in five mixed up. Acceptance is measured and stands beside every figure. An oracle knows plain
decoding's output and errs at the rate in its name. Where no round was counted, a speed is that of the warm-up."""


def page(report: Mapping[str, Any]) -> str:
    """All there is so far."""
    made = report["provenance"]
    lines = ["# SpecStream on a GPU", ""]
    lines += [f"- {name}: {value}" for name, value in made.items() if value is not None]
    lines += ["", NOTES, "", "| part | ended | seconds | measured | failed | left out |", "|---|---|---|---|---|---|"]
    for name, part in report["parts"].items():
        rows = part["records"]
        failed, left = sum("error" in row for row in rows), sum("left_out" in row for row in rows)
        ended, seconds = part["ended"], part["seconds"]
        lines.append(f"| {name} | {ended} | {seconds} | {len(rows) - failed - left} | {failed} | {left} |")
        if ended not in ("done", "running"):
            log = part["log"].strip()[-300:]
            lines.append(f"| {name} | its log ends: {_text(log)} | | | | |")
    found = [row for part in report["parts"].values() for row in part["records"]]
    for title, of in _SECTIONS.items():
        if body := of(found):
            lines += ["", f"## {title}", "", *body]
    return "\n".join(lines) + "\n"


def _table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    cells = [[_text(cell) for cell in row] for row in rows]
    if not cells:
        return []
    return [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", *(f"| {' | '.join(row)} |" for row in cells)]


def _text(cell: Any) -> str:
    if isinstance(cell, float):
        return f"{cell:.0f}" if abs(cell) >= 1000 else f"{cell:.3g}"
    return "-" if cell is None else str(cell).replace("|", "/").replace("\n", " ")


def _failures(found: Rows) -> list[str]:
    return _table(("what", "why"), [(row["label"], row["error"]) for row in found if "error" in row])


def _suites(found: Rows) -> list[str]:
    suites = [row for row in found if "passed" in row]
    counts = [(row["label"], row["passed"], row["failed"], row["skipped"], row["exit"], row["took"]) for row in suites]
    failed = [(each["test"], each["message"][:200]) for row in suites for each in row["failures"]]
    heads = ("suite", "passed", "failed", "skipped", "exit", "seconds")
    return [*_table(heads, counts), "", *_table(("failed test", "message"), failed)]


def _matrix(found: Rows) -> list[str]:
    cells = [row for row in found if "equal" in row]
    groups: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for row in cells:
        groups.setdefault((row["dtype"], row["runtime"], row["drafter"]), []).append(row)
    summary = [
        (
            *key,
            sum(row["equal"] for row in rows),
            sum(row["unequal"] for row in rows),
            sum(each == "bits" for row in rows for each in row["exact"]),
            sum(row["accepted"] for row in rows),
            sum(row["drafted"] for row in rows),
            rows[0]["against"],
        )
        for key, rows in groups.items()
    ]
    heads = ("dtype", "runtime", "drafter", "equal", "unequal", "bits", "accepted", "drafted", "baseline")
    unequal = [(row["label"], row["exact"], each) for row in cells for each in row["differences"]]
    given_up = {(row["family"], row["dtype"], row["runtime"], row["ran"], str(row["warnings"])) for row in cells}
    gone = sorted(each for each in given_up if each[2] != each[3] or each[4] != "[]")
    return [
        *_table(heads, summary),
        *("", "Unequal:", "", *_table(("cell", "exact", "difference"), unequal)),
        *("", "Not captured:", "", *_table(("family", "dtype", "runtime", "ran", "warnings"), gone)),
    ]


def _bits(found: Rows) -> list[str]:
    tested = [(row["label"], row["base"], row["widths"], row["seconds"]) for row in found if "certified" in row]
    lines = _table(("self-test", "base", "widths", "seconds by rows"), tested)
    for row in (row for row in found if "table" in row):
        lines += ["", f"{row['label']}: of {row['of']} rows, those with equal bits", ""]
        lines += _table(("width", *map(str, row["columns"])), [(name, *same) for name, same in row["table"].items()])
        lines += ["", *_table(("batch", "against itself and one row"), row["beside"].items())]
    return lines


def _passes(found: Rows) -> list[str]:
    lines = _table(
        ("model", "runtime", "rows", "pass", "ms awaited", "ms queued", "ms host", "ms first"),
        [
            (row["model"], row["runtime"], row["rows"], width, *_times(times))
            for row in found
            if row["label"].startswith("passes") and "widths" in row
            for width, times in [
                *row["widths"].items(),
                *((f"verify {each}", own) for each, own in row.get("verify", {}).items()),
            ]
        ],
    )
    steps = [
        (row["model"], f"draft of {row['layers']} layers", name, *_times(times))
        for row in found
        if "steps" in row
        for name, times in [*row["steps"].items(), ("upload of 64", row["upload of 64"])]
    ]
    lines += ["", *_table(("model", "what", "rows", "ms awaited", "ms queued", "ms host", "ms first"), steps)]
    rounds = [(row["label"], row["round_ms"], row.get("busy_ms"), row.get("profiled_ms")) for row in found
              if "round_ms" in row]  # fmt: skip
    return [*lines, "", *_table(("round", "ms", "of which the device works", "ms under the profiler"), rounds)]


def _times(times: Mapping[str, float]) -> tuple[float, ...]:
    return times["awaited"], times["queued"], times["host"], times["first"]


def _speed(found: Rows) -> list[str]:
    heads = (
        "contestant",
        "tokens/s",
        "in decoding",
        "x generate",
        "x plain",
        "= generate",
        "= plain",
        "accepted",
        "passes",
        "exact",
        "rounds",
        "first s",
    )
    lines: list[str] = []
    for row in (row for row in found if "contestants" in row):
        lines += ["", f"### {row['label']}", ""]
        lines += [f"Whole calls, {row['prompt']} tokens read and {row['new_tokens']} written per row.", ""]
        said = [
            (each["name"], each.get("failed", "")[-200:] or each["tokens_per_second"], *map(each.get, _FIELDS))
            for each in row["contestants"]
        ]
        lines += _table((*heads, "remark"), said)
    return lines


_FIELDS = (
    "decode_tokens_per_second",
    *("over_generate", "over_plain", "equal_to_generate", "equal_to_plain"),
    *("acceptance", "passes", "exact", "rounds", "first_s", "remark"),
)
_SECTIONS: dict[str, Callable[[Rows], list[str]]] = {
    "What failed": _failures,
    "Tests": _suites,
    "Losslessness": _matrix,
    "Bits": _bits,
    "Passes": _passes,
    "Speed": _speed,
}
