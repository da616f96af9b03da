"""`specstream router`: measure every drafter on every prompt, fit a router to that, and see what it is worth."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from specstream.cli import options
from specstream.cli.loading import quiet
from specstream.cli.progress import progress
from specstream.cli.records import check_output, table_console, write_record
from specstream.reporting import step

if TYPE_CHECKING:
    from specstream.routing.figures import RouterTable

app = typer.Typer(help="Collect what each drafter is worth on prompts, train a router, evaluate it.")

_Config = Annotated[str, typer.Option("--config", "-c", help="A YAML file; see configs/.")]
_Limit = Annotated[
    options.Integer, typer.Option("--limit", min=1, help="Prompts at most; a later run with more goes on.")
]
_Folder = Annotated[str, typer.Option("--router", help="The folder of a trained router.")]
_Data = Annotated[list[str], typer.Option("--data", help="A collection; may be repeated.")]
_TargetModel = Annotated[options.Text, typer.Option("--model", "-m", help="The target, if its name has changed.")]
_Learn = Annotated[bool, typer.Option("--learn", help="Let it learn from each prompt before the next, as in use.")]
_Output = Annotated[options.Text, typer.Option("--output", "-o", help="Write the table to this JSON file.")]


@app.command()
def collect(config: _Config, set_: options.Set = None, limit: _Limit = None, as_json: options.AsJson = False) -> None:
    """Measure every drafter on every prompt. The same command goes on with a run that was interrupted."""
    from specstream.training.router_config import read_collect_config

    settings = read_collect_config(config, set_ or [])
    from specstream.training.router_collect import collect as run

    with quiet(), progress("prompts") as tell:
        record = run(settings, limit, tell)
    output = settings.collection.output
    if as_json:
        print(json.dumps({"output": output, **record}))
    else:
        print(
            f"{output}: {record['prompts']} prompts, {record['failed']} failed, {record['too_long']} too long, left out"
        )


@app.command()
def train(config: _Config, set_: options.Set = None, as_json: options.AsJson = False) -> None:
    """Fit a router to collections, and show what it is worth on prompts held out."""
    from specstream.training.router_config import read_router_config

    settings = read_router_config(config, set_ or [])
    from specstream.training.router_train import train_router

    with quiet(), step("fitting the router"):
        trained = train_router(settings)
    if as_json:
        print(json.dumps({"output_dir": settings.output_dir, **asdict(trained)}))
        return
    _print(trained.table)
    counts = ", ".join(f"{count} {what.replace('_', ' ')}" for what, count in trained.prompts.items())
    print(f"{settings.output_dir}: prompts: {counts}; {trained.epochs} epochs")


@app.command()
def evaluate(
    router: _Folder,
    data: _Data,
    model: _TargetModel = None,
    learn: _Learn = False,
    output: _Output = None,
    as_json: options.AsJson = False,
) -> None:
    """Show what a router is worth on collections that it was not fitted to."""
    check_output(output)
    from specstream.environment import provenance
    from specstream.files.yaml_file import validated
    from specstream.routing.model import RouterModel
    from specstream.training.router_config import TargetSection
    from specstream.training.router_train import evaluate_router

    target = validated(TargetSection, RouterModel.load(router).details.get("target", {}), "target.")
    if model is not None:
        target = target.model_copy(update={"model": model})
    with quiet(), step("asking the router about every prompt"):
        table = evaluate_router(router, data, target, learn=learn)
    arguments = {"router": router, "data": data, "model": target.model, "learn": learn}
    record = {**asdict(table), "arguments": arguments, "provenance": provenance()}
    if output is not None:
        write_record(output, record)
    if as_json:
        print(json.dumps(record))
    else:
        _print(table)


def _print(table: RouterTable) -> None:
    from rich.table import Table

    console = table_console()
    shown = Table("always", "tokens/s", "x plain", "tokens/pass", "chosen")
    for each in table.all:
        chosen = f"{table.chosen[each.name]} of {table.prompts}" if each.name in table.chosen else ""
        speed = f"{each.tokens_per_second:.1f}"
        shown.add_row(each.name, speed, f"{each.ratio:.2f}", f"{each.tokens_per_pass:.2f}", chosen)
    console.print(shown)
    shown = Table("tokens/s", *(each.name for each in table.all))
    for domain, own in table.domains.items():
        shown.add_row(domain, *(f"{each.tokens_per_second:.1f} {each.ratio:.2f}x" for each in own))
    console.print(shown)
    closed = "too little to close" if table.gap_closed is None else f"{table.gap_closed:.0%} of it closed"
    print(
        f"best single drafter: {table.best_single}; the oracle leads by {table.lead:.1%}, {closed}; regret "
        f"to the oracle {table.regret:.1%}, its choice in {table.agreement:.0%} of prompts; a choice costs "
        f"{table.routing_seconds * 1000:.2f} ms, counted"
    )
    by = "chosen by the other runs of a prompt" if table.runs > 1 else "of one run each, so its lead is partly luck"
    print(f"tokens/s of decoding, the prompt on no side, all prompts together; the oracle is {by}")
