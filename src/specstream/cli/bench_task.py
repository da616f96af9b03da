"""`specstream benchmark task`: a fine-tuned model beside a shared-mode one with its streams, on examples of a task."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from specstream.cli import options
from specstream.cli.loading import load_engine
from specstream.cli.progress import progress
from specstream.cli.records import check_output, table_console, write_record
from specstream.errors import UsageError

if TYPE_CHECKING:
    from specstream.evaluation.benchmark.folder import Samples
    from specstream.evaluation.tasks.task import Task, TaskExample

_Task = Annotated[str, typer.Option("--task", help="A task's name, or its YAML file.")]
_Data = Annotated[str, typer.Option("--data", help="A file of examples that were not trained on.")]
_Shared = Annotated[
    options.Text, typer.Option("--shared", help="The folder of a shared-mode run, or its model with --heads.")
]
_Nodes = Annotated[
    options.Integers,
    typer.Option("--nodes", min=1, help="Drafted nodes of fixed trees; may be repeated. Default: 7 and 15."),
]
_Limit = Annotated[options.Integer, typer.Option("--limit", min=1, help="So many examples, spread over the file.")]
_Output = Annotated[options.Text, typer.Option("--output", "-o", help="Write every answer to this JSON file.")]


def bench_task(
    task: _Task,
    data: _Data,
    model: options.Model = "smollm2-135m",
    shared: _Shared = None,
    heads: options.HeadsFolder = None,
    nodes: _Nodes = None,
    limit: _Limit = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    runtime: options.Runtime = "auto",
    output: _Output = None,
    as_json: options.AsJson = False,
) -> None:
    """Quality of two models of one task, and how many passes and how much time streams save."""
    from specstream.evaluation.quality import counted
    from specstream.evaluation.task_bench import differences, record
    from specstream.evaluation.tasks.task import read_examples, read_task, spread

    check_output(output)
    chosen = read_task(task)
    examples = spread(read_examples(chosen, data), limit)
    for metric in chosen.metrics:  # a package that is missing is missed before the models have run
        counted(metric, [""], [[""]])
    settings = {"device": device, "dtype": dtype, "runtime": runtime}
    sizes = tuple(nodes or (7, 15))
    runs = [_run(*each, sizes, settings, chosen, examples) for each in _models(model, shared, heads)]
    apart = differences(chosen, examples, runs[1][0], runs[0][0]) if len(runs) > 1 else {}
    found = {
        "task": chosen.model_dump(),
        "examples": [each.where for each in examples],
        "runs": [record(run, chosen, examples, provenance) for run, provenance in runs],
        "difference": {metric: vars(each) for metric, each in apart.items()},
        "arguments": {**settings, "task": task, "data": data, "model": model, "shared": shared, "heads": heads}
        | {"nodes": sizes, "limit": limit},
    }
    if output is not None:
        write_record(output, found)
    if as_json:
        print(json.dumps(found))
    else:
        _print(found, chosen)


def _models(model: str, shared: str | None, heads: str | None) -> list[tuple[str, str | None]]:
    """Models and their heads; a folder that training wrote holds both, under names of their own."""
    from specstream.heads.folder import check_base_name, kind_of

    if shared is None:
        if heads is not None:
            kind_of(heads)  # refuses before a model is loaded
            check_base_name(heads, _inside(model, "model"))
        return [(_inside(model, "model"), heads)]
    if not Path(shared).is_dir():
        raise UsageError(f"shared is {shared!r}, which is no folder; give the folder best of a shared run")
    streams = heads or _inside(shared, "streams")
    if streams == shared:
        raise UsageError(f"shared is {shared!r} and holds no streams; give --heads, or the folder best of a shared run")
    if Path(shared).is_dir() and not (Path(_inside(shared, "model")) / "config.json").exists():
        raise UsageError(f"shared is {shared!r} and holds no model; give the folder best of a shared run")
    if (kind := kind_of(streams)) != "streams":
        raise UsageError(f"{streams!r} holds {kind!r}; give the streams that were trained with the model")
    return [(_inside(model, "model"), None), (_inside(shared, "model"), streams)]


def _inside(folder: str, name: str) -> str:
    inner = Path(folder) / name
    return str(inner) if (inner / "config.json").exists() else folder


def _run(
    model: str,
    heads: str | None,
    nodes: tuple[int, ...],
    settings: dict[str, Any],
    task: Task,
    examples: list[TaskExample],
) -> tuple[Samples, dict[str, Any]]:
    from specstream.evaluation.task_bench import answer_all, streams_beside

    engine = load_engine(model, None, {**settings, "drafter": "none"})
    arms = streams_beside(heads, nodes)
    count = len(examples)
    with progress(f"{model}: examples", count) as tell:
        samples = answer_all(engine, arms, task, examples, lambda done, total, note: tell(done * count // total))
    return samples, engine.provenance()


def _print(found: dict[str, Any], task: Task) -> None:
    from rich.table import Table

    from specstream.engine.contestants import PLAIN
    from specstream.evaluation.report.words import side_cells, with_interval

    console, runs = table_console(), found["runs"]
    quality = Table("model", *task.metrics)
    titles = ("drafter", "extra parameters", "tokens/pass", "tokens/s", "x plain", "median", "equal")
    speed = Table("model", *titles)
    for number, run in enumerate(runs):
        name = ("fine-tuned", "shared")[number] if len(runs) > 1 else Path(run["model"]).name
        for figures in run["figures"]:
            cells = side_cells(figures, f"{figures['parameters']:,}")
            speed.add_row(name, *map(cells.__getitem__, titles))
            if figures["side"] == PLAIN:
                quality.add_row(name, *(with_interval(each, ".1f") for each in figures["quality"].values()))
    console.print(quality)
    console.print(speed)
    for metric, each in found["difference"].items():
        console.print(f"{metric}, shared minus fine-tuned, in pairs: {with_interval(each, '+.1f')}")
    for run in runs:
        for failure in run["failures"]:
            console.print(f"failed: {failure['where']}: {failure['error']}", markup=False)
    print(
        "metrics of plain decoding's answers, 0 to 100, with 95 % intervals (bootstrap over examples); tokens/pass: "
        "call reduction; tokens/s of decoding, x plain in the same process, in turn, and its 95 % interval; "
        "median: of the examples' own ratios; equal: answers that are plain decoding's"
    )
    print(", ".join(str(runs[-1]["provenance"][key]) for key in ("dtype", "device", "runtime", "cpu")))
