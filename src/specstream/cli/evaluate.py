"""`specstream evaluate`: the quality and the speed of speculative decoding beside plain decoding, on tasks."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from specstream.cli import options
from specstream.cli.loading import load_engine, quiet
from specstream.cli.progress import progress
from specstream.cli.records import table_console, write_record
from specstream.errors import UsageError
from specstream.files.atomic import check_ending
from specstream.files.folders import held

if TYPE_CHECKING:
    from specstream.evaluation.evaluate_config import EvaluationConfig, Loaded

_Config = Annotated[str, typer.Option("--config", "-c", help="A YAML file; see configs/eval_full.yaml.")]
_Dataset = Annotated[
    options.Texts,
    typer.Option("--dataset", help="A data set of the configuration, or a task; may be repeated. Default: all."),
]
_Data = Annotated[options.Text, typer.Option("--data", help="The file of the one data set; without: the hub's.")]
_Limit = Annotated[options.Integer, typer.Option("--limit", min=1, help="So many examples, spread over the file.")]
_Execute = Annotated[
    bool, typer.Option("--execute-code", help="Run programs that the model wrote, for pass@1: held down, see the docs.")
]
_Resume = Annotated[bool, typer.Option("--resume/--no-resume", help="Go on with a run, or set its answers aside.")]


def evaluate(
    config: _Config,
    dataset: _Dataset = None,
    data: _Data = None,
    limit: _Limit = None,
    set_: options.Set = None,
    execute_code: _Execute = False,
    resume: _Resume = True,
    as_json: options.AsJson = False,
) -> None:
    """Answer the examples of tasks with plain and with speculative decoding: quality, equality, speed. Resumable."""
    from specstream.evaluation.benchmark.config import check_target
    from specstream.evaluation.evaluate_config import check_draft, load_all, read_config
    from specstream.evaluation.execution import check_platform

    settings, document = read_config(config, set_ or [])
    _check_output(settings.measure.output_dir)
    loaded = load_all(settings, document, dataset or [], data, limit)
    if execute_code:
        check_platform()
    _check_metrics(loaded)
    check_target(settings.target, document)
    with quiet():
        check_draft(settings, document)
    records = _evaluate(settings, loaded, execute_code, resume)
    if as_json:
        print(json.dumps(records))
    else:
        _print(records)


def _check_output(folder: str) -> None:
    """Refuse for the folders of data sets one that is a model's, or another command's run."""
    check_ending(folder, "measure.output_dir", "", "a folder")
    if (what := held(folder)) is not None and "specstream evaluate" not in what:
        raise UsageError(f"measure.output_dir is {folder!r}, which holds {what}; give a new folder")


def _check_metrics(loaded: list[Loaded]) -> None:
    """A package that is missing is missed before the model has run."""
    from specstream.evaluation.quality import counted

    for each in loaded:
        task = each.task
        for metric in {*task.metrics, *(one for own in task.category_metrics.values() for one in own)} - {"pass@1"}:
            counted(metric, [""], [[""]])


def _evaluate(config: EvaluationConfig, loaded: list[Loaded], execute: bool, resume: bool) -> list[dict[str, Any]]:
    from specstream.evaluation.answers import Answers
    from specstream.evaluation.evaluate import answer_all, judge, results, run_of
    from specstream.evaluation.evaluate_config import engine_settings

    settings = {"target": config.target.model_dump(), "speculative": config.speculative}
    folders = [Path(config.measure.output_dir) / each.name for each in loaded]
    kept = [
        Answers(folder, run_of(each, settings), resume=resume) for folder, each in zip(folders, loaded, strict=True)
    ]
    draft, own = engine_settings(config)
    engine = load_engine(config.target.model, draft, own)
    records = []
    for folder, each, answers in zip(folders, loaded, kept, strict=True):
        done = sum("error" not in record for record in answers.records.values())
        with progress(each.name, len(each.examples), done) as update:
            answer_all(engine, each, answers, warmup=config.measure.warmup, on_example=update)
        programs = len(answers.records) if execute and each.task.program is not None else 0
        # No bar of programs where none is run.
        with progress(f"{each.name}: programs", programs) if programs else nullcontext(lambda done: None) as update:
            outcomes = judge(each, answers, execute=execute, on_example=update)
        record = {
            **results(each, answers, outcomes),
            "executed": execute,
            "arguments": settings,
            "provenance": engine.provenance(),
        }
        write_record(str(folder / "results.json"), record)
        records.append({**record, "output_dir": str(folder)})
    return records


def _print(records: list[dict[str, Any]]) -> None:
    from rich.table import Table

    from specstream.evaluation.report.words import with_interval

    console = table_console()
    quality = Table("data set", "metric", "examples", "plain", "speculative", "difference, in pairs")
    speed = Table(
        "data set", "answers", "equal", "exact", "tokens/pass", "plain", "speculative", "x plain", "with prompt"
    )
    for record in records:
        groups = {record["dataset"]: record["all"]} | {f"  {name}": own for name, own in record["categories"].items()}
        for name, own in groups.items():
            if own is None:
                continue
            for metric, each in own["quality"].items():
                figures = (with_interval(each[key], form) for key, form in _QUALITY)
                quality.add_row(name, metric, str(each["examples"]), *figures)
            speed.add_row(name, *_cells(own))
    if quality.row_count:
        console.print(quality)
    console.print(speed)
    for record in records:
        _print_rest(record)
    print(
        "metrics from 0 to 100 and x plain with 95 % intervals (bootstrap over examples, in pairs); tokens/s of "
        "decoding, the prompt on neither side; with prompt: on both; equal: answers whose tokens are plain decoding's"
    )
    provenance = records[-1]["provenance"]
    print(", ".join(str(provenance[key]) for key in ("model", "drafter", "dtype", "device", "runtime", "cpu")))


_QUALITY = (("plain", ".1f"), ("speculative", ".1f"), ("difference", "+.1f"))


def _print_rest(record: dict[str, Any]) -> None:
    name = record["dataset"]
    for failure in record["failures"]:
        print(f"{name} failed: {failure['where']}: {failure['error']}")
    if "pass@1" in record["task"]["metrics"] and not record["executed"]:
        print(f"{name}: no code was run, so there is no pass@1; give --execute-code to run what the model wrote")
    if record["programs"]:
        ways = sorted({" + ".join(each["isolation"]) or "nothing" for each in record["programs"]})
        print(f"{name}: programs were held by {' or '.join(ways)}")
    print(f"{name}: every answer is in {record['output_dir']}")


def _cells(own: dict[str, Any]) -> list[str]:
    from specstream.evaluation.report.words import with_interval

    return [
        str(own["answers"]),
        str(own["equal"]),
        own["exact"],
        f"{own['mean_accepted_length']:.2f}",
        f"{own['tokens_per_second']['plain']:.1f}",
        f"{own['tokens_per_second']['speculative']:.1f}",
        with_interval(own["speedup"], ".2f"),
        with_interval(own["speedup_with_prompt"], ".2f"),
    ]
