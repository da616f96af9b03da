"""What a report says, in which order: the answer first, then the charts, the tables, and what it was measured with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from specstream.engine.contestants import PLAIN
from specstream.environment import require
from specstream.errors import UsageError, counted
from specstream.evaluation.benchmark.folder import RunFolder
from specstream.evaluation.benchmark.summary import COUNTED, summarise
from specstream.evaluation.report.blocks import Block, Figure, Heading, Items, Table, Text, as_html, as_markdown
from specstream.evaluation.report.charts import draw
from specstream.evaluation.report.compare import Change, Comparison, compare
from specstream.evaluation.report.words import (
    arm_name,
    by_category,
    equal,
    interval,
    losslessness,
    mebibytes,
    milliseconds,
    number,
)
from specstream.files.atomic import write_whole

TITLE = "What speculation is worth here"

_COMPARED = (
    "Prompts are paired. A ratio is the later run's figure over the first's, with its 95 % interval; a difference is "
    "seen if a sign-flip test over prompts, corrected for the number of arms (Holm), gives p < 0.05 and the interval "
    "leaves out 1. Where both runs had the machine to themselves, look at tokens/s; else at the speedup, from which "
    "what slowed down everything alike has gone."
)


def write_report(folders: Sequence[RunFolder], output: str | Path) -> list[Path]:
    """Write ``report.html``, ``report.md`` and the charts that the latter shows.

    Args:
        folders: of the runs; the others are compared with the first.
        output: the folder for the report.

    Returns:
        The page and the Markdown file.

    Raises:
        MissingPackageError: matplotlib is not installed.
        UsageError: a run without a sample, or a folder that cannot be written to.
    """
    require("matplotlib", "report", "the report")
    for folder in folders:
        if not folder.samples:
            raise UsageError(f"the run in {str(folder.root)!r} has no sample yet; run its benchmark first")
    target = Path(output)
    blocks: list[Block] = [Heading(1, TITLE)]
    for later in folders[1:]:
        blocks += _comparison(compare(folders[0], later), str(folders[0].root), str(later.root))
    for number_, folder in enumerate(folders):
        blocks += _run(folder, "" if len(folders) == 1 else f"run{number_ + 1}-")
    blocks += [Heading(2, "How it is counted"), Table(("figure", "is"), list(COUNTED.items()), words=True)]
    try:
        (target / "charts").mkdir(parents=True, exist_ok=True)
        for block in blocks:
            if isinstance(block, Figure):
                write_whole(target / block.file, block.chart.svg)
        files = [target / "report.html", target / "report.md"]
        for file, text in zip(files, (as_html(TITLE, blocks), as_markdown(blocks)), strict=True):
            write_whole(file, text)
    except OSError as error:
        raise UsageError(f"output {str(output)!r} cannot be written to: {error.strerror}; give another") from None
    return files


def _run(folder: RunFolder, prefix: str) -> list[Block]:
    summary = summarise(folder)
    arms = summary["arms"]
    facts: dict[str, Any] = next((arm["facts"] for arm in arms if arm["facts"]), {})
    about = facts.get("provenance", summary["provenance"])
    model = folder.run["settings"]["target"]["model"]
    prompts = folder.run["prompts"]
    kinds, threads = len({each["category"] for each in prompts}), counted(about.get("threads") or 0, "thread")
    blocks: list[Block] = [
        Heading(2, f"{Path(model).name}: {folder.root}"),
        Text(verdict(arms)),
        Text(losslessness(arms)),
        Text(
            f"{counted(len(prompts), 'prompt')} in {kinds} categor{'y' if kinds == 1 else 'ies'}, on "
            f"{about.get('accelerator') or about.get('cpu')}, {threads}, {about.get('dtype')}, "
            f"runtime {about.get('runtime', 'not loaded')}; all arms of an experiment in turn on each "
            "prompt, in one process."
        ),
    ]
    if summary["left_out"] or summary["failures"]:
        blocks.append(Items(_missing(summary)))
    for chart in draw(arms):
        blocks.append(Figure(chart, f"charts/{prefix}{chart.name}.svg"))
    blocks += _tables(folder, arms)
    blocks += [Heading(3, "Provenance"), Table(("what", "value"), _provenance(about, summary), words=True)]
    return blocks


def verdict(arms: Sequence[Mapping[str, Any]]) -> str:
    """Whether speculation pays, in a sentence."""
    known = [each for each in arms if each["arm"] != PLAIN and each["all"].get("speedup")]
    steady = [each for each in known if each["value"] is None and each["arm_value"] is None] or known
    if not steady:
        return "No arm but plain decoding was measured."
    best = max(steady, key=lambda each: each["all"]["speedup"]["value"])
    speedup, name = best["all"]["speedup"], f"{arm_name(best)} ({best['experiment']})"
    figures = f"{interval(speedup)} times plain decoding's speed on {best['all']['prompts']} prompts"
    if speedup["low"] is None:
        return f"With one prompt nothing can be said; the fastest arm was {name}, {figures}."
    if speedup["low"] > 1:
        return f"Speculation pays here: the fastest arm is {name}, {figures}."
    if speedup["high"] < 1:
        return f"Speculation does not pay here: even the fastest arm, {name}, has {figures}."
    return f"Whether speculation pays here is not clear: the fastest arm, {name}, has {figures}."


def _missing(summary: Mapping[str, Any]) -> list[str]:
    found = [f"Left out: {name}: {reason}" for name, reason in summary["left_out"].items()]
    counts: dict[tuple[str, str], int] = {}
    for each in summary["failures"]:
        key = (f"{each['experiment']}, {arm_name(each)}", each["error"])
        counts[key] = counts.get(key, 0) + 1
    return [*found, *(f"Failed, {count} times: {name}: {error}" for (name, error), count in counts.items())]


def _tables(folder: RunFolder, arms: Sequence[Mapping[str, Any]]) -> list[Block]:
    blocks: list[Block] = []
    for name in dict.fromkeys(arm["experiment"] for arm in arms):
        own = [arm for arm in arms if arm["experiment"] == name]
        about = folder.run["settings"]["experiments"].get(name, {}).get("about", "")
        blocks.append(Heading(3, f"Experiment {name}"))
        if about:
            blocks.append(Text(about))
        measured = [arm for arm in own if arm["all"].get("tokens")]
        blocks.append(Table(_SPEED, [[arm_name(arm), *_speed(arm["all"]), equal(arm)] for arm in measured]))
        blocks.append(Table(_COST, [[arm_name(arm), *_cost(arm)] for arm in measured]))
        kinds = list(dict.fromkeys(kind for arm in measured for kind in arm["categories"]))
        others = [arm for arm in measured if arm["arm"] != PLAIN]
        if others and len(kinds) > 1:
            rows = [[arm_name(arm), *(by_category(arm, kind) for kind in kinds)] for arm in others]
            blocks.append(Table(("speedup by category (prompts)", *(_counted(measured, kind) for kind in kinds)), rows))
    return blocks


_SPEED = (
    "arm",
    "tokens/s",
    "speedup (95 %)",
    "with prefill (95 %)",
    "theory",
    "efficiency",
    "tokens/pass",
    "acceptance",
    "passes",
    "equal",
)


def _speed(own: Mapping[str, Any]) -> list[str]:
    return [
        number(own["tokens_per_second"], 1),
        interval(own["speedup"]),
        interval(own["total_speedup"]),
        number(own["theory"]),
        number(own["efficiency"]),
        number(own["mean_accepted_length"]),
        number(own["acceptance_rate"]),
        str(own["target_passes"]),
    ]


_COST = (
    "arm",
    "prefill tokens/s",
    "first token, ms",
    "per token, ms: p50",
    "p90",
    "p99",
    "between pieces, ms: p50",
    "p90",
    "p99",
    "peak MiB",
    "grown MiB",
    "draft weights",
    "J/token",
)


def _cost(arm: Mapping[str, Any]) -> list[str]:
    own = arm["all"]
    latencies = [own[key] or {} for key in ("inter_token_seconds", "arrival_seconds")]
    overhead = arm["memory_overhead"]
    return [
        number(own["prefill_tokens_per_second"], 0),
        milliseconds(own["first_token_seconds"], 0),
        *(milliseconds(each.get(name)) for each in latencies for name in ("p50", "p90", "p99")),
        mebibytes(own["peak_bytes"]),
        mebibytes(own["grown_bytes"]),
        "-" if overhead is None else f"{overhead:.1%}",
        number(own["joules_per_token"]),
    ]


def _counted(arms: Sequence[Mapping[str, Any]], kind: str) -> str:
    """A category and how many of its prompts were measured."""
    return f"{kind} ({max(arm['categories'].get(kind, {}).get('prompts', 0) for arm in arms)})"


def _provenance(about: Mapping[str, Any], summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    sessions = summary["sessions"]
    commands = dict.fromkeys(" ".join(each["command"]) for each in sessions)
    return [
        *((key, str(value)) for key, value in about.items()),
        ("measured", ", ".join(each["started"] for each in sessions)),
        ("commands", "; ".join(commands)),
    ]


def _comparison(comparison: Comparison, first: str, later: str) -> list[Block]:
    blocks: list[Block] = [Heading(2, f"{later} against {first}"), Text(_COMPARED)]
    if comparison.apart:
        blocks += [Text("The runs are not of the same kind:"), Items(comparison.apart)]
    if not comparison.arms:
        return [*blocks, Text("They have no arm and prompt in common.")]
    titles = ("experiment, arm", "prompts", "tokens/s", "", "speedup over plain", "")
    rows = [
        [
            f"{each.arm['experiment']}, {arm_name(each.arm)}",
            str(each.prompts),
            *_change(each.speed),
            *(["-", "-"] if each.speedup is None else _change(each.speedup)),
        ]
        for each in comparison.arms
    ]
    return [*blocks, Table(titles, rows)]


def _change(change: Change) -> list[str]:
    ratio = change.ratio
    low, high = (None if not 0 < end < float("inf") else end for end in (ratio.low, ratio.high))
    return [
        interval({"value": ratio.value, "low": low, "high": high}),
        f"{change.verdict} (p = {change.probability:.2g})",
    ]
