"""`specstream doctor`: what this machine runs, how fast, and what makes it slower or less exact than it could be."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from specstream.cli import options
from specstream.cli.records import WIDTH
from specstream.errors import counted
from specstream.models.hub.catalog import DEFAULT_MODEL, on_disk

if TYPE_CHECKING:
    from specstream.evaluation.doctor import Report
    from specstream.evaluation.doctor.facts import Caches, Gpus, Passes, Processor, Version, Widths

INDENT = 11
"""Columns of a section's name."""

DRAFTED = 7
"""Drafted tokens of a pass of 8 nodes."""

SMALL = 0.05
"""Accepted tokens that a table of one decimal does not show."""

_Model = Annotated[
    str, typer.Option("--model", "-m", help="Whose batch-invariant widths and costs to show; none leaves them out.")
]
_Measure = Annotated[bool, typer.Option("--measure/--no-measure", help="Measure speed and costs, some 7 seconds.")]


def doctor(model: _Model = DEFAULT_MODEL, measure: _Measure = True, as_json: options.AsJson = False) -> None:
    """Look at versions, processor, kernels, caches and speed. Fails with 1 if there is something to mend, and says how.

    Nothing is downloaded. Kernels that are missing are compiled if there is a compiler.
    """
    from rich.console import Console

    from specstream.cli.loading import quiet
    from specstream.evaluation.doctor import examine
    from specstream.reporting import step

    doing = "examining this machine"
    # On a terminal only: elsewhere rich shows no status, and the step says so where it takes longer.
    named = model.lower() != "none"
    with Console(stderr=True).status(f"{doing}, some ten seconds" if measure else doing), step(doing):
        if named:
            on_disk(model)  # refuses what is no model
        report = examine(model if named else None, measure=measure, hush=quiet)
    if as_json:
        print(json.dumps(report.to_dict()))
    else:
        for line in _lines(report):
            print(line)
    if report.findings:
        raise typer.Exit(1)


def _lines(report: Report) -> Iterator[str]:
    """The report as it is read: sections, then what to mend."""
    if report.versions:
        yield from _section("versions", _versions(report.versions))
    if report.processor:
        yield from _section("processor", _processor(report.processor))
    if report.passes:
        yield from _section("kernels", _kernels(report.passes))
        yield from _section("passes", _passes(report.passes))
    if report.gpus:
        yield from _section("gpu", _gpus(report.gpus))
    if report.widths:
        yield from _model(report.widths)
    if report.caches:
        yield from _section("caches", _caches(report.caches))
    if report.speed and report.pass_costs:
        yield from _section("measured", _speed(report.speed))
        yield from _section("predicted", _costs(report.pass_costs))
    for note in report.notes:
        yield from _section("note", [note])
    for finding in report.findings:
        yield from _section("to mend", [str(finding)])
    count = len(report.findings)
    yield f"{counted(count, 'thing')} to mend" if count else "nothing to mend"


def _model(found: Widths) -> Iterator[str]:
    yield from _section("widths", _widths(found))
    if found.passes:
        yield from _section("costs", _measured(found))


def _section(name: str, lines: list[str]) -> Iterator[str]:
    before = " " * INDENT
    for number, line in enumerate(lines):
        first = before if number else name.ljust(INDENT)
        yield textwrap.fill(
            line,
            WIDTH,
            initial_indent=first,
            subsequent_indent=before + "  ",
            break_long_words=False,
            break_on_hyphens=False,
            replace_whitespace=False,
        )


def _versions(versions: tuple[Version, ...]) -> list[str]:
    rows = [(each.name, each.installed or "not installed", each.expected) for each in versions]
    return [f"{name:<16} {here:<14} {expected}".rstrip() for name, here, expected in rows]


def _processor(found: Processor) -> list[str]:
    held = ", ".join(f"{name}={value}" for name, value in found.libraries.items())
    limits = f", with {held}" if held else ""
    own = "" if found.level == found.own_level else f" of {found.own_level}"
    load = "" if found.load is None else f", load {found.load:.1f}"
    return [
        f"{found.model}, level {found.level}{own}{limits}",
        f"{counted(found.threads, 'thread')} on {counted(found.cores.physical, 'core')}{load}",
    ]


def _kernels(found: Passes) -> list[str]:
    if found.device != "cpu":
        return [f"not used: {found.kernels_reason}"]
    source = {
        "prebuilt": f"prebuilt, {found.kernels_reason}: {found.path}",
        "compiled": found.kernels_reason,
        "missing": f"missing: {found.kernels_reason}",
    }
    return [source[found.kernels], f"compiler: {found.compiler or 'none'}"]


def _passes(found: Passes) -> list[str]:
    return [
        f"on {found.device}, of a checkpoint in bfloat16:",
        f"dtype    {found.dtype}: {found.dtype_reason}",
        f"runtime  {found.runtime}: {found.runtime_reason}",
        f"drafts   {found.quantization}: {found.quantization_reason}",
    ]


def _gpus(found: Gpus) -> list[str]:
    built = f"torch for CUDA {found.cuda}" if found.cuda else "torch without CUDA"
    driver = f", driver {found.driver}" if found.driver else ""
    if not found.usable:
        return [f"{', '.join(found.listed) or 'none'} ({built}{driver})"]
    return [
        f"{each.name}, {each.memory / 1e9:.0f} GB, compute capability {each.capability} ({built}{driver})"
        for each in found.usable
    ]


def _widths(found: Widths) -> list[str]:
    if found.exact is None:
        return [f"{found.model}: {found.state}"]
    widths = " ".join(map(str, found.widths)) or "none"
    source = "as the self-test found before" if found.state == "kept" else "by the self-test, now"
    return [
        f"{found.model}: batch-invariant at {widths}, exact: {found.exact}, {source}",
        f"({found.runtime}, {found.dtype})",
    ]


def _measured(found: Widths) -> list[str]:
    """Two tables: passes by rows, context and nodes; drafts by drafter, rows and depth."""
    passes = {(each.rows, each.context): dict[int, float]() for each in found.passes}
    for each in found.passes:
        passes[each.rows, each.context][each.nodes] = each.seconds
    drafts = {(draft.drafter, draft.rows): dict[int, float]() for draft in found.drafts}
    for draft in found.drafts:
        drafts[draft.drafter, draft.rows][draft.depth] = draft.seconds
    return [
        "ms of a pass over so many nodes of all rows, behind so many tokens of each row, as real rounds take:",
        *_table("rows  context", {f"{rows:>4} {context:>8}": table for (rows, context), table in passes.items()}),
        *(["ms of a draft so many tokens deep:"] if drafts else []),
        *_table("drafter rows", {f"{name} {rows}": table for (name, rows), table in drafts.items()}),
    ]


def _table(corner: str, rows: Mapping[str, Mapping[int, float]]) -> list[str]:
    """Milliseconds by row and column; what was not measured is a dash."""
    if not rows:
        return []
    columns = sorted({column for table in rows.values() for column in table})
    first = max(map(len, (corner, *rows)))
    cells = {
        name: [f"{table[column] * 1000:.1f}" if column in table else "-" for column in columns]
        for name, table in rows.items()
    }
    lines = {corner: [str(column) for column in columns], **cells}
    return [name.ljust(first) + "".join(f"{cell:>8}" for cell in line) for name, line in lines.items()]


def _caches(found: Caches) -> list[str]:
    return [
        f"{each.name:<11}{each.bytes / 1e6:>8.1f} MB {each.files:>5} files  {each.path}"
        + (f"  ({each.problem})" if each.problem else "")
        for each in found.folders
    ]


def _speed(found: dict[str, Any]) -> list[str]:
    return [
        f"memory   {found['read'] / 1e9:6.1f} GB/s read ({found['read_by']})",
        f"products {found['products'] / 1e9:6.1f} G multiply-adds/s ({found['products_by']})",
        f"         {found['float32'] / 1e9:6.1f} G multiply-adds/s (torch, product of float32 matrices)",
        f"on {found['device']}, {counted(found['threads'], 'thread')}, the fastest calls of {found['seconds']:.1f} s",
    ]


def _costs(found: dict[str, Any]) -> list[str]:
    return [
        f"{found['model']}, from its {found['bytes'] / 1e6:.0f} MB of weights and the figures above; not measured:",
        f"a pass of 1 node {found['one'] * 1000:.1f} ms or more, of 8 nodes {found['eight'] * 1000:.1f} ms, "
        f"{found['ratio']:.2f} times as much",
        f"{_advice(found['break_even'])}, beside what drafting costs",
    ]


def _advice(break_even: float) -> str:
    if break_even >= DRAFTED:
        return f"{DRAFTED} drafted tokens do not pay even if all are accepted; fewer may"
    if break_even < SMALL:
        return "speculation pays wherever drafted tokens are accepted at all"
    return f"speculation pays where more than {break_even:.1f} of {DRAFTED} drafted tokens are accepted on average"
