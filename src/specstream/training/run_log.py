"""What a run says while it goes: lines and a bar on the terminal, JSON lines and CSV on disk, curves at the end."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from specstream.environment import require
from specstream.files.atomic import read_lines, whole, write_whole
from specstream.training.config import LoggingSection

Row = dict[str, float]
"""``step`` and figures; those of an evaluation begin with ``eval/``."""


class RunLog:
    """The log of a run; a context in which the progress bar is shown.

    Args:
        root: the run's folder, None to write nothing.
        config: where figures go besides.
        settings: the whole configuration, for the tracker.
        quiet: show nothing.
    """

    def __init__(
        self, root: Path | None, config: LoggingSection, settings: Mapping[str, Any], *, quiet: bool = False
    ) -> None:
        self._root, self._config = root, config
        self.rows: list[Row] = []
        self._held_out = ""
        self._console = Console(stderr=True, quiet=quiet)
        columns = ("step", MofNCompleteColumn(), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn(), "left")
        self._progress = Progress(
            *columns, TextColumn("{task.fields[note]}"), console=self._console, disable=not self._console.is_terminal
        )
        self._task = self._progress.add_task("", total=None, note="")
        self._tracker = self._start_tracker(settings) if config.use_wandb else None

    def __enter__(self) -> RunLog:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
        self._write_csv()
        if self._tracker is not None:
            self._tracker.finish(exit_code=0 if error is None else 1)

    def begin(self, step: int, total: int) -> None:
        """A run starts or goes on at ``step``: lines of steps beyond it, which will be done again, are dropped."""
        self._progress.reset(self._task, total=total, completed=step)
        if self._root is None:
            return
        path = self._root / "log.jsonl"
        self.rows = [row for row in read_lines(path) if step and "step" in row and row["step"] <= step]
        self._root.mkdir(parents=True, exist_ok=True)
        write_whole(path, "".join(json.dumps(row) + "\n" for row in self.rows))

    def advance(self, step: int) -> None:
        """Move the bar."""
        self._progress.update(self._task, completed=step)

    def add(self, row: Row) -> None:
        """Log figures of a step."""
        self.rows.append(row)
        if self._root is not None:
            with (self._root / "log.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        if self._tracker is not None:
            self._tracker.log({name: value for name, value in row.items() if name != "step"}, step=int(row["step"]))
        self.say(_line(row))
        for name in ("eval/acceptance", "eval/accepted_length"):
            if name in row:
                self._held_out = f", {name.removeprefix('eval/').replace('_', ' ')} {row[name]:.3f}"
        if "loss" in row:
            note = f"loss {row['loss']:.3f}, {row['tokens_per_second']:.0f} tokens/s{self._held_out}"
            self._progress.update(self._task, note=note)

    def say(self, text: str) -> None:
        """A line for people."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _write_csv(self) -> None:
        if self._root is None or not self.rows:
            return
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        with whole(self._root / "log.csv") as partial, partial.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(self.rows)

    def plot(self) -> Path | None:
        """Draw the curves into ``curves.png``; None, and a line that says so, without matplotlib."""
        if self._root is None or not self._config.plot or not self.rows:
            return None
        try:
            require("matplotlib", "train", "the plot")
        except ImportError as error:
            self.say(f"no plot: {error}")
            return None
        return draw(self.rows, self._root / "curves.png")

    def _start_tracker(self, settings: Mapping[str, Any]) -> Any:
        wandb = require("wandb", "wandb", "logging.use_wandb")
        return wandb.init(project=self._config.project, config=dict(settings))


def draw(rows: Sequence[Row], path: Path) -> Path:
    """Losses, and figures on held-out examples, against tokens seen."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(dict.fromkeys(name for row in rows for name in row))
    losses = [name for name in names if name == "loss" or name.startswith("loss/")]
    lengths = [name for name in names if name.startswith(("eval/accepted_length", "eval/live_accepted_length"))]
    others = [name for name in names if name.startswith(("eval/top1", "eval/token_accuracy", "eval/a"))]
    others = [name for name in others if name not in lengths]
    groups = [("loss", losses), ("tokens per target pass, held out", lengths), ("accuracy, held out", others)]
    groups = [(title, group) for title, group in groups if group]
    figure, axes = pyplot.subplots(1, len(groups), figsize=(6 * len(groups), 4), squeeze=False)
    for axis, (title, group) in zip(axes[0], groups, strict=True):
        for name in group:
            points = [(row["tokens"], row[name]) for row in rows if name in row]
            axis.plot(*zip(*points, strict=True), label=name.removeprefix("eval/"), marker=".")
        axis.set(title=title, xlabel="tokens seen")
        axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return path


def _line(row: Row) -> str:
    parts = (f"{name} {_number(value)}" for name, value in row.items() if name != "step")
    return f"step {row['step']:.0f}: " + ", ".join(parts)


def _number(value: float) -> str:
    return f"{value:.0f}" if value == int(value) and abs(value) >= 1 else f"{value:.4g}"
