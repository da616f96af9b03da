"""`specstream benchmark heads`: trained heads, lookup, a draft model and plain decoding on the same prompts."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from specstream.cli import options
from specstream.cli.loading import load_engine, quiet
from specstream.cli.progress import progress
from specstream.cli.records import check_output, table_console, write_record
from specstream.errors import UsageError

if TYPE_CHECKING:
    from specstream.evaluation.benchmark.experiments import Arm
    from specstream.evaluation.benchmark.prompts import Prompt

_Prompts = Annotated[
    str, typer.Option("--prompts", help="Spec-Bench's question.jsonl, SPEED-Bench's files, or lines like theirs.")
]
_Turns = Annotated[
    int,
    typer.Option(
        "--turns", min=1, help="The first so many turns of each, behind the model's own answers to those before."
    ),
]
_Document = Annotated[
    options.Text,
    typer.Option("--document", help="For --context: a text (.txt, or .jsonl, .json, .csv with prompts) of any length."),
]
_Context = Annotated[
    list[int],
    typer.Option("--context", min=1, help="Prompts of so many tokens, with a passage before each; may be repeated."),
]
_PerCategory = Annotated[
    options.Integer,
    typer.Option("--per-category", min=1, help="The first so many prompts of each category. Default: 20."),
]
_Streams = Annotated[options.Text, typer.Option("--streams", help="A folder of streams trained for the model.")]
_Medusa = Annotated[options.Text, typer.Option("--medusa", help="A folder of Medusa heads trained for the model.")]
_Block = Annotated[options.Text, typer.Option("--block", help="A folder of a block head trained for the model.")]
_Eagle3 = Annotated[options.Text, typer.Option("--eagle3", help="A folder of an EAGLE-3 head of the model.")]
_Dflash = Annotated[options.Text, typer.Option("--dflash", help="A folder of a DFlash head of the model.")]
_Drafters = Annotated[
    list[str], typer.Option("--drafter", help="Only these; may be repeated. Default: all that are at hand.")
]
_Fixed = Annotated[
    options.Integer,
    typer.Option("--fixed", min=1, help="Heads once more, with a tree of so many nodes in every round."),
]
_Pruning = Annotated[
    list[float],
    typer.Option("--pruning", help="Streams once more, without drafts their early exit gives less; may be repeated."),
]
_BatchSize = Annotated[
    list[int],
    typer.Option(
        "--batch-size", "-b", min=1, help="Prompts decoded at once, in the file's order; may be repeated. Default: 1."
    ),
]
_Output = Annotated[options.Text, typer.Option("--output", "-o", help="Write every sample to this JSON file.")]


def bench_heads(
    prompts: _Prompts,
    model: options.Model = "smollm2-135m",
    streams: _Streams = None,
    medusa: _Medusa = None,
    block: _Block = None,
    eagle3: _Eagle3 = None,
    dflash: _Dflash = None,
    draft: options.Draft = None,
    drafter: _Drafters = [],  # noqa: B006  # typer reads it, nobody writes it
    per_category: _PerCategory = None,
    turns: _Turns = 1,
    document: _Document = None,
    context: _Context = [],  # noqa: B006
    fixed: _Fixed = None,
    pruning: _Pruning = [],  # noqa: B006
    batch_size: _BatchSize = [],  # noqa: B006
    max_new_tokens: options.MaxNewTokens = 128,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    runtime: options.Runtime = "auto",
    output: _Output = None,
    as_json: options.AsJson = False,
) -> None:
    """Compare drafters with plain decoding: parameters, accepted lengths, tokens per second, in turn."""
    from specstream.evaluation.heads import NEEDING, PER_CATEGORY, drafters_beside, prompts_of, read_conversations
    from specstream.heads.shipped import shipped_for

    given = {"streams": streams, "medusa": medusa, "block": block, "eagle3": eagle3, "dflash": dflash, "draft": draft}
    _check(drafter, given, model)
    _check_options(drafter, fixed, pruning)
    check_output(output)
    drafter = list(dict.fromkeys(drafter))
    conversations = read_conversations(prompts, per_category, turns)
    text = _document(document, context)
    sizes = _sizes(batch_size, sum(len(each.turns) for each in conversations) * max(1, len(context)))
    settings = {"device": device, "dtype": dtype, "runtime": runtime, "max_new_tokens": max_new_tokens}
    engine = load_engine(model, None, {**settings, "drafter": "none"})
    given["streams"] = given["streams"] or shipped_for(engine.model, "streams")
    _check_heads(given, fixed, pruning)
    with quiet(), progress("prompts") as tell:
        questions = prompts_of(engine, conversations, tell, document=text, contexts=context)
    names = drafter or [*(name for name, needs in NEEDING.items() if given[needs]), "lookup", "lookahead"]
    arms = drafters_beside(names, given, settings, fixed=fixed, pruning=pruning)
    records = []
    for size in sizes:
        records.append(_measure(engine, arms, questions, size))
        if not as_json:
            _print(records[-1], len(questions) // size, engine)
    arguments = {**settings, "model": model, **given, "drafter": names, "prompts": prompts, "batch_size": batch_size}
    arguments |= {"per_category": per_category or PER_CATEGORY, "turns": turns, "fixed": fixed, "pruning": pruning}
    arguments |= {"document": document, "context": context}
    found = records[0] if len(records) == 1 else {"batches": records}
    found = {**found, "provenance": engine.provenance(), "arguments": arguments}
    if output is not None:
        write_record(output, found)
    if as_json:
        print(json.dumps(found))


def _check(wanted: list[str], given: dict[str, str | None], model: str) -> None:
    """Refuse drafters before anything is loaded for nothing; plain decoding is always there and not named."""
    from specstream.evaluation.heads import NEEDING
    from specstream.heads.folder import KINDS, check_base_name, kind_of

    for name in wanted:
        options.check_drafter(name, without="router")
        if name == "none":
            raise UsageError("--drafter is 'none', which is always measured; leave it out")
        needs = NEEDING.get(name)
        if needs not in (None, "streams") and given[needs] is None:
            raise UsageError(f"--drafter is {name!r} and there is no --{needs}; give one")
    for name in KINDS:
        if (folder := given[name]) is not None and (kind := kind_of(folder)) != name:
            raise UsageError(f"--{name} is {folder!r}, which holds {kind}; give --{kind} {folder}")
        if folder is not None:
            check_base_name(folder, model)
    options.check_draft(given["draft"], model)


def _document(path: str | None, contexts: list[int]) -> str:
    """The text that prompts are cut from; empty if they are not."""
    from specstream.evaluation.heads import read_document

    if bool(contexts) != (path is not None):
        raise UsageError("--context and --document go together: prompts of so many tokens, cut from a text; give both")
    return "" if path is None else read_document(path)


def _sizes(wanted: list[int], there: int) -> list[int]:
    """How many prompts are decoded at once, of so many."""
    sizes = list(dict.fromkeys(wanted or [1]))
    if there < (most := max(sizes)):
        raise UsageError(f"batch_size is {most} and there are {there} prompts; give more, or a smaller one")
    return sizes


def _check_options(drafter: list[str], fixed: int | None, pruning: list[float]) -> None:
    """Refuse options of heads that none of the drafters is for, and thresholds that are none."""
    from specstream.config import engine_config
    from specstream.heads.folder import KINDS

    for least in pruning:
        engine_config({"pruning": least})
    if pruning and drafter and "streams" not in drafter:
        raise UsageError(f"pruning is {pruning[0]} and --drafter names no streams; add --drafter streams")
    if fixed is not None and drafter and not set(KINDS) & set(drafter):
        raise UsageError(f"--fixed is {fixed} and --drafter is {drafter[0]}; it is for {', '.join(KINDS)}")


def _check_heads(given: dict[str, str | None], fixed: int | None, pruning: list[float]) -> None:
    """Refuse options of heads where there are none, neither given nor shipped for the model."""
    from specstream.heads.folder import KINDS

    if pruning and given["streams"] is None:
        raise UsageError(f"--pruning is {pruning[0]} and there are no streams for this model; give --streams")
    if fixed is not None and not any(given[name] for name in KINDS):
        raise UsageError(
            f"--fixed is {fixed} and there are no heads for this model; give --streams, --medusa, --block, --eagle3 or "
            "--dflash"
        )


def _measure(engine: Any, arms: list[Arm], questions: list[Prompt], size: int) -> dict[str, Any]:
    from specstream.evaluation.heads import measure_drafters
    from specstream.heads.folder import KINDS

    # Answers, not prompts: with all drafters a prompt may take a minute. The first one warms up and comes again.
    try:
        with quiet(), progress("answers") as tell:
            return measure_drafters(engine, arms, questions, size, lambda done, total, note: tell(done, total))
    except UsageError as error:  # heads have an option for each kind here
        kind = next((each for each in KINDS if f"'{each}'" in str(error)), "streams")
        raise type(error)(str(error).replace("heads=", f"--{kind}")) from error


def _print(found: dict[str, Any], groups: int, engine: Any) -> None:
    from rich.table import Column, Table

    from specstream.evaluation.report.words import number, side_cells

    console, sides = table_console(), found["all"]
    if found["batch_size"] > 1:
        left_out = f"; the last {found['left_out']} are left out" if found["left_out"] else ""
        print(f"{groups} groups of {found['batch_size']} prompts in the file's order, decoded at once{left_out}")
    rows = [side_cells(each, _extra(each["parameters"], engine.model.num_parameters())) for each in sides]
    table = Table(Column("drafter", no_wrap=True), *list(rows[0])[1:])
    for row in rows:
        table.add_row(*(text.replace(" (", "\n(") if name == "x plain" else text for name, text in row.items()))
    console.print(table)
    nodes = ", ".join(f"{each['side']} {each['nodes']:.2f}" for each in sides)
    print(f"drafted tokens a pass: {nodes}")
    ratios = ", ".join(f"{each['side']} {each['measured_over_predicted']:.2f}" for each in sides)
    print(f"measured over predicted speed: {ratios}")
    names = [each["side"] for each in sides]
    table = Table("tokens/pass, x plain", *(name.replace(" (", "\n(") for name in names))
    for category, own in found["categories"].items():
        table.add_row(category, *(f"{each['mean_accepted_length']:.2f} {each['ratio']:.2f}x" for each in own))
    for kind, unit in (("turns", "turn {}"), ("positions", "at {} tokens or fewer")):
        for at, own in found[kind].items() if len(found[kind]) > 1 else ():
            lengths = {each["side"]: each["mean_accepted_length"] for each in own}
            table.add_row(unit.format(at), *(number(lengths.get(name)) for name in names))
    if found["categories"]:
        console.print(table)
    print(
        "tokens/s of decoding, the prompt on neither side; x plain: over plain decoding of the same process, in turn, "
        "and its 95 % interval over prompts, or over groups of them; median: of their own ratios; equal: outputs that "
        "are plain decoding's; fixed tree: no controller; predicted: passes timed alone, and drafting"
    )
    if (ratio := found["parameter_ratio"]) is not None:
        print(f"Medusa has {ratio:,.1f} times as many extra parameters as streams; the paper says about 10,000")
    provenance = engine.provenance()
    print(", ".join(str(provenance[key]) for key in ("model", "dtype", "device", "runtime", "cpu")))


def _extra(parameters: int, base: int) -> str:
    return f"{parameters:,} ({parameters / base:.2%})" if parameters else "0"
