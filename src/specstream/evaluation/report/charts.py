"""Charts of a run as SVG: told apart without colour too, by markers and order, and readable in print."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from specstream.engine.contestants import PLAIN
from specstream.environment import require
from specstream.evaluation.report.words import FEW, arm_name

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's, without the yellow, which paper swallows; black is plain decoding's."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", "-.", ":")

WIDTH = 7.6
"""Inches: of a page between its margins."""

JUDGED = 10
"""Drafts that have to have been judged at a depth for its acceptance to be drawn."""

Arms = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Chart:
    """One chart.

    Attributes:
        name: of its file.
        title: what it shows.
        caption: how to read it.
        svg: an ``<svg>`` element.
    """

    name: str
    title: str
    caption: str
    svg: str


def draw(arms: Arms) -> list[Chart]:
    """Every chart that the arms of a run give something to draw for.

    Args:
        arms: of a summary.

    Raises:
        MissingPackageError: matplotlib is not installed.
    """
    require("matplotlib", "report", "the report")
    import matplotlib

    matplotlib.use("Agg")
    steady = [each for each in arms if each["value"] is None and each["arm_value"] is None and _speedup(each)]
    methods = [each for each in steady if each["arm"] != PLAIN]
    plain = next((each for each in steady if each["arm"] == PLAIN), None)
    varied = [each for each in arms if each["arm"] != PLAIN and _value(each) is not None and _speedup(each)]
    style: Any = {
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "grid.color": "#dddddd",
        "legend.frameon": False,
    }
    looks = _Looks([*methods, *varied])
    found = []
    with matplotlib.rc_context(style):
        if methods:
            found.append(_speedups(methods, looks))
            found.append(_theory(methods, looks))
            drafting = [each for each in methods if _depths(each)]
            found.extend([_acceptance(drafting, looks)] if drafting else [])
            found.extend(_latencies([*([plain] if plain else []), *methods], looks))
        if varied:
            found.append(_ablations(varied, looks))
    return found


class _Looks:
    """One colour, marker and dash for each arm, the same in all charts."""

    def __init__(self, arms: Arms) -> None:
        self._order = list(dict.fromkeys(each["arm"] for each in arms))

    def of(self, arm: Mapping[str, Any]) -> dict[str, Any]:
        if arm["arm"] == PLAIN:
            return {"color": "black", "marker": "|"}
        at = self._order.index(arm["arm"])
        return {"color": COLOURS[at % len(COLOURS)], "marker": MARKERS[at % len(MARKERS)]}

    def dashed(self, arm: Mapping[str, Any]) -> dict[str, Any]:
        at = self._order.index(arm["arm"])
        return {**self.of(arm), "linestyle": DASHES[at // len(COLOURS) % len(DASHES)]}


def _speedups(arms: Arms, looks: _Looks) -> Chart:
    """A panel for all prompts and for each category, a row for each arm."""
    kinds = list(dict.fromkeys(kind for each in arms for kind in each["categories"]))
    panels = ["all prompts", *(kinds if len(kinds) > 1 else [])]
    columns = min(4, len(panels))
    lines = math.ceil(len(panels) / columns)
    figure, axes = _panels(lines, columns, WIDTH, lines * (0.85 + 0.22 * len(arms)), sharex=True, sharey=True)
    for axis, panel in zip(axes, panels, strict=False):
        for row, arm in enumerate(arms):
            own = arm["all"] if panel == panels[0] else arm["categories"].get(panel, {})
            if own.get("speedup"):
                _dot(axis, own, row, looks.of(arm))
        axis.axvline(1, color="black", linewidth=0.8)
        axis.set_title(panel, fontsize=9)
        _a_row_each(axis, arms)
    axes[0].set_xlim(0, _furthest(arms))
    for axis in axes[max(0, len(panels) - columns) : len(panels)]:  # also where no panel stands below
        axis.tick_params(labelbottom=True)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    figure.supxlabel("times plain decoding", fontsize=9)
    return _chart(
        figure,
        "speedup",
        "Speedup by method and category",
        "Decoding speed over plain decoding of the same model, runtime, process and prompts; the bar is the 95 % "
        "interval over prompts. The line at 1 is plain decoding. A bar that leaves its panel goes on; of fewer than "
        f"{FEW} prompts there is none.",
    )


def _furthest(arms: Arms) -> float:
    """How far panels reach: the interval of a few prompts may be as wide as it likes, and then leaves its panel."""
    values: list[float] = [
        own["speedup"]["value"] for each in arms for own in each["categories"].values() if own.get("speedup")
    ]
    furthest: float = max([1.0, *values, *(1.15 * each["all"]["speedup"]["value"] for each in arms)])
    return 1.1 * furthest


def _theory(arms: Arms, looks: _Looks) -> Chart:
    figure, (axis,) = _panels(1, 1, WIDTH, 1.0 + 0.3 * len(arms))
    for row, arm in enumerate(arms):
        own, look = arm["all"], looks.of(arm)
        ends = [own["speedup"]["value"], own["theory"], own["mean_accepted_length"]]
        axis.plot([min(ends), max(ends)], [row, row], color="#bbbbbb", linewidth=1, zorder=1)
        shown = {"color": look["color"], "s": 40}
        axis.scatter(ends[0], row, marker="o", zorder=3, **shown)
        axis.scatter(ends[1], row, marker="D", facecolors="white", zorder=2, **shown)
        axis.scatter(ends[2], row, marker="|", zorder=2, **{**shown, "s": 90})
    for marker, filled, label in (
        ("o", True, "measured"),
        ("D", False, "by acceptance and measured costs"),
        ("|", True, "tokens per pass: if drafts and wide passes were free"),
    ):
        axis.scatter([], [], marker=marker, color="black", facecolors="black" if filled else "white", label=label)
    axis.axvline(1, color="black", linewidth=0.8)
    axis.set_xlabel("times plain decoding")
    _a_row_each(axis, arms)
    _legend(figure, axis, 3)
    return _chart(
        figure,
        "theory",
        "Speedup against theory",
        "What was measured, what the measured acceptance at each depth and the median costs of passes and drafts would "
        "give, and the bound if a pass cost the same whatever its width and drafts cost nothing.",
    )


def _acceptance(arms: Arms, looks: _Looks) -> Chart:
    figure, axes = _panels(1, 2, WIDTH, 3.1)
    for arm in arms:
        depths = _depths(arm)
        for axis, key in zip(axes, ("acceptance", "reach"), strict=True):
            shown = [arm["all"][key][depth - 1] for depth in depths]
            axis.plot(depths, shown, label=_labels(arms)[list(arms).index(arm)], markersize=5, **looks.dashed(arm))
    titles = ("accepted, of those judged there", "share of passes that accepted so many")
    deepest = max(max(_depths(arm)) for arm in arms)
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("position of the drafted token")
        axis.set_xticks(range(1, deepest + 1, 1 if deepest <= 10 else 2))
        axis.set_ylim(-0.02, 1.02)
        axis.grid(axis="y")
    _legend(figure, axes[0], 4)
    return _chart(
        figure,
        "acceptance",
        "Acceptance per position",
        "Left: of the drafts that verification judged at a position, those it accepted; a draft is judged where "
        f"the one before it was accepted. Positions with fewer than {JUDGED} judged drafts are not drawn. Right: of "
        "all passes, those without a draft included.",
    )


def _latencies(arms: Arms, looks: _Looks) -> list[Chart]:
    arms = [each for each in arms if each["all"]["arrival_seconds"]]
    if not arms:
        return []
    figure, axes = _panels(1, 2, WIDTH, 1.1 + 0.27 * len(arms), sharey=True)
    kinds = (("inter_token_seconds", "per token"), ("arrival_seconds", "between pieces of text"))
    for axis, (key, title) in zip(axes, kinds, strict=True):
        for row, arm in enumerate(arms):
            own, colour = arm["all"][key], looks.of(arm)["color"]
            values = [1000 * own[name] for name in ("p50", "p90", "p99")]
            axis.plot([values[0], values[-1]], [row, row], color=colour, linewidth=1.5, zorder=1)
            axis.scatter(values[0], row, marker="o", color=colour, s=36, zorder=3)
            axis.scatter(values[1], row, marker="D", color=colour, facecolors="white", s=28, zorder=2)
            axis.scatter(values[2], row, marker="|", color=colour, s=70, zorder=2)
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("milliseconds")
        axis.set_xlim(left=0)
        axis.locator_params(axis="x", nbins=5)
        _a_row_each(axis, arms)
    for marker, face, label in (("o", "black", "median"), ("D", "white", "p90"), ("|", "black", "p99")):
        axes[0].scatter([], [], marker=marker, color="black", facecolors=face, label=label)
    _legend(figure, axes[0], 3)
    return [
        _chart(
            figure,
            "latency",
            "Latency distribution",
            "Left: the seconds of a pass over the tokens that came with it. Right: how long a reader waits for the "
            "next piece of text, whose tokens come together. The first pass is not counted.",
        )
    ]


def _ablations(arms: Arms, looks: _Looks) -> Chart:
    names = list(dict.fromkeys(each["experiment"] for each in arms))
    columns = min(2, len(names))
    lines = math.ceil(len(names) / columns)
    figure, axes = _panels(lines, columns, WIDTH if columns > 1 else WIDTH * 0.6, 2.7 * lines)
    for axis, name in zip(axes, names, strict=False):
        own = [each for each in arms if each["experiment"] == name]
        values = list(dict.fromkeys(_value(each) for each in own))
        numeric = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
        place: Callable[[Any], float] = (lambda value: value) if numeric else values.index
        for arm in dict.fromkeys(each["arm"] for each in own):
            points = [each for each in own if each["arm"] == arm]
            _line(
                axis, [(place(_value(each)), each["all"]["speedup"]) for each in points], arm, looks.dashed(points[0])
            )
        axis.set_xticks([place(value) for value in values], [str(value) for value in values])
        axis.axhline(1, color="black", linewidth=0.8)
        axis.set_title(name, fontsize=9)
        axis.set_xlabel(own[0]["vary"])
        axis.set_ylabel("times plain decoding")
        axis.set_ylim(bottom=0)
        axis.grid(axis="y")
        axis.legend(fontsize=8)
    for axis in axes[len(names) :]:
        axis.set_visible(False)
    return _chart(
        figure,
        "ablations",
        "Ablations",
        "Speedup over plain decoding of the same work, with its 95 % interval over prompts, by the value that was "
        "varied.",
    )


def _line(axis: Any, points: Sequence[tuple[float, Mapping[str, Any]]], label: str, look: Mapping[str, Any]) -> None:
    values = [estimate["value"] for _, estimate in points]
    spread = [_reach(estimate) for _, estimate in points]
    errors = [[low for low, _ in spread], [high for _, high in spread]]
    axis.errorbar([at for at, _ in points], values, yerr=errors, capsize=3, markersize=5, label=label, **look)


def _dot(axis: Any, own: Mapping[str, Any], row: int, look: Mapping[str, Any]) -> None:
    low, high = (0.0, 0.0) if own["prompts"] < FEW else _reach(own["speedup"])
    value, bar = own["speedup"]["value"], [[low], [high]]
    axis.errorbar(value, row, xerr=bar, capsize=2.5, markersize=5, linestyle="none", **look)


def _reach(estimate: Mapping[str, Any]) -> tuple[float, float]:
    """From the value to both ends of the interval; nothing where that is unknown."""
    if estimate["low"] is None or estimate["high"] is None:
        return 0.0, 0.0
    return max(0.0, estimate["value"] - estimate["low"]), max(0.0, estimate["high"] - estimate["value"])


def _panels(lines: int, columns: int, width: float, height: float, **shared: bool) -> tuple[Any, list[Any]]:
    from matplotlib import pyplot

    options: dict[str, Any] = {"figsize": (width, height), "squeeze": False, "layout": "constrained", **shared}
    figure, axes = pyplot.subplots(lines, columns, **options)
    return figure, list(axes.flat)


def _a_row_each(axis: Any, arms: Arms) -> None:
    axis.grid(axis="x")
    axis.set_yticks(range(len(arms)), _labels(arms))
    axis.set_ylim(len(arms) - 0.4, -0.6)


def _legend(figure: Any, axis: Any, columns: int) -> None:
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(columns, len(labels)), fontsize=8)


def _chart(figure: Any, name: str, title: str, caption: str) -> Chart:
    import matplotlib
    from matplotlib import pyplot

    file = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):  # or two charts on a page would share names
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    pyplot.close(figure)
    text = file.getvalue()
    return Chart(name=name, title=title, caption=caption, svg=text[text.index("<svg") :])


def _labels(arms: Arms) -> list[str]:
    """Names of arms, with the experiment where one name stands in two."""
    names = [arm_name(each) for each in arms]
    return [
        f"{name} [{each['experiment']}]" if names.count(name) > 1 else name
        for name, each in zip(names, arms, strict=True)
    ]


def _depths(arm: Mapping[str, Any]) -> list[int]:
    """Positions at which enough drafts were judged."""
    return [depth for depth, count in enumerate(arm["all"]["judged"], 1) if count >= JUDGED]


def _value(arm: Mapping[str, Any]) -> Any:
    return arm["arm_value"] if arm["arm_value"] is not None else arm["value"]


def _speedup(arm: Mapping[str, Any]) -> Any:
    return arm["all"].get("speedup")
