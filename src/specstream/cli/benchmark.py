"""`specstream benchmark`: the experiments of a configuration, measured, or gone on with."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from specstream.cli import bench_heads, bench_task, options
from specstream.cli.progress import progress
from specstream.cli.records import table_console
from specstream.errors import UsageError
from specstream.files.atomic import check_ending

app = typer.Typer(help="Measure what speculation is worth on this machine.")
app.command("heads")(bench_heads.bench_heads)
app.command("task")(bench_task.bench_task)

_Config = Annotated[options.Text, typer.Option("--config", "-c", help="A YAML file; see configs/.")]
_Experiments = Annotated[options.Text, typer.Option("--experiments", help="Only these, separated by commas.")]
_Resume = Annotated[
    bool, typer.Option("--resume/--no-resume", help="Go on with the run in the folder (default), or set it aside.")
]


@app.callback(invoke_without_command=True)
def benchmark(
    context: typer.Context,
    config: _Config = None,
    experiments: _Experiments = None,
    set_: options.Set = None,
    resume: _Resume = True,
    as_json: options.AsJson = False,
) -> None:
    """Measure what speculation is worth on this machine. The same command goes on with a run that was stopped."""
    if context.invoked_subcommand is not None:
        return
    if config is None:
        raise UsageError("there is no --config; give a YAML file (see configs/), or one of: heads, task")
    from specstream.evaluation.benchmark.config import check_target, read_config

    names = [name.strip() for name in (experiments or "").split(",") if name.strip()]
    if experiments is not None and not names:
        raise UsageError(f"--experiments is {experiments!r}; name some of the file's, or leave it out for all")
    settings, document = read_config(config, set_ or [], names)
    check_ending(settings.measure.output_dir, "measure.output_dir", "", "a folder")
    from specstream.cli.loading import quiet
    from specstream.evaluation.benchmark.experiments import make_plan
    from specstream.evaluation.benchmark.folder import RunFolder
    from specstream.evaluation.benchmark.prompts import read_prompts
    from specstream.evaluation.benchmark.run import benchmark as run

    prompts = read_prompts(settings.prompts, document)
    check_target(settings.target, document)
    with quiet():
        plan = make_plan(settings, document)
        folder = RunFolder(settings.measure.output_dir)
        if not resume:
            folder = folder.set_aside()
        with progress("generations") as tell:
            summary = run(settings, plan, prompts, folder, tell)
    if as_json:
        print(json.dumps({"output_dir": str(folder.root), **summary}))
    else:
        _print(summary, str(folder.root))


def _print(summary: dict[str, Any], folder: str) -> None:
    from rich.table import Table

    from specstream.evaluation.report.words import arm_name, equal, interval, losslessness, number

    table = Table("experiment", "arm", "tokens/s", "x plain (95 %)", "theory", "tokens/pass", "accepted", "equal")
    for arm in summary["arms"]:
        own = arm["all"]
        table.add_row(
            arm["experiment"],
            arm_name(arm),
            number(own.get("tokens_per_second"), 1),
            interval(own.get("speedup")),
            number(own.get("theory")),
            number(own.get("mean_accepted_length")),
            number(own.get("acceptance_rate")),
            equal(arm),
        )
    table_console().print(table)
    print(losslessness(summary["arms"]))
    for name, reason in summary["left_out"].items():
        print(f"left out: {name}: {reason}")
    if summary["failures"]:
        first = summary["failures"][0]
        print(f"{len(summary['failures'])} generations failed; the first: {first['arm']}: {first['error']}")
    print(f"in {folder}; as a page: specstream report {folder}")
