"""`specstream bench-heads`: trained heads, lookup, a draft model and plain decoding on the same prompts."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from specstream.cli import options
from specstream.cli.loading import in_options, load_engine
from specstream.cli.progress import progress
from specstream.cli.records import check_output, table_console, write_record
from specstream.errors import UsageError

if TYPE_CHECKING:
    from specstream.evaluation.heads import Comparison, Figures, Side

NEEDING = {"streams": "streams", "medusa": "medusa", "draft_model": "draft", "mixed": "draft"}
"""Drafters and the option that says what each of them drafts with; streams that are shipped need none."""

HEADS = ("streams", "medusa")

_Prompts = Annotated[str, typer.Option("--prompts", help="Spec-Bench's question.jsonl, or lines like its own.")]
_PerCategory = Annotated[int, typer.Option("--per-category", min=1, help="The first so many prompts of each.")]
_Streams = Annotated[options.Text, typer.Option("--streams", help="A folder of streams trained for the model.")]
_Medusa = Annotated[options.Text, typer.Option("--medusa", help="A folder of Medusa heads trained for the model.")]
_Drafters = Annotated[
    list[str], typer.Option("--drafter", help="Only these; may be repeated. Default: all that are at hand.")
]
_Fixed = Annotated[
    Optional[int],  # noqa: UP045  # typer reads it on Python 3.10
    typer.Option("--fixed", min=1, help="Streams and Medusa once more, with a tree of so many nodes in every round."),
]
_Output = Annotated[options.Text, typer.Option("--output", "-o", help="Write every sample to this JSON file.")]


def bench_heads(
    prompts: _Prompts,
    model: options.Model = "smollm2-135m",
    streams: _Streams = None,
    medusa: _Medusa = None,
    draft: options.Draft = None,
    drafter: _Drafters = [],  # noqa: B006  # typer reads it, nobody writes it
    per_category: _PerCategory = 20,
    fixed: _Fixed = None,
    max_new_tokens: options.MaxNewTokens = 128,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    runtime: options.Runtime = "auto",
    output: _Output = None,
    as_json: options.AsJson = False,
) -> None:
    """Compare drafters with plain decoding: parameters, accepted lengths, tokens per second, in turn."""
    from specstream.evaluation.heads import read_questions
    from specstream.heads.shipped import shipped_for

    given = {"streams": streams, "medusa": medusa, "draft": draft}
    _check(drafter, given)
    check_output(output)
    drafter = list(dict.fromkeys(drafter))
    if fixed is not None and drafter and not set(HEADS) & set(drafter):
        raise UsageError(f"--fixed is {fixed} and --drafter is {drafter[0]}; it is for streams and medusa")
    questions = read_questions(prompts, per_category)
    settings = {"device": device, "dtype": dtype, "runtime": runtime, "max_new_tokens": max_new_tokens}
    engine = load_engine(model, None, {**settings, "drafter": "none"})
    given["streams"] = given["streams"] or shipped_for(engine.model, "streams")
    names = drafter or [*(name for name, needs in NEEDING.items() if given[needs]), "lookup", "lookahead"]
    sides = _sides(engine, names, given, settings, fixed)
    comparison = _compare(engine, sides, questions)
    arguments = {
        **settings,
        "model": model,
        **given,
        "drafter": names,
        "prompts": prompts,
        "per_category": per_category,
        "fixed": fixed,
    }
    record = {**comparison.to_dict(), "provenance": engine.provenance(), "arguments": arguments}
    if output is not None:
        write_record(output, record)
    if as_json:
        print(json.dumps(record))
    else:
        _print(comparison, record["provenance"], engine.model.num_parameters())


def _check(wanted: list[str], given: dict[str, str | None]) -> None:
    """Refuse drafters before anything is loaded for nothing; plain decoding is always there and not named."""
    for name in wanted:
        options.check_drafter(name, without="router")
        if name == "none":
            raise UsageError("--drafter is 'none', which is always measured; leave it out")
        needs = NEEDING.get(name)
        if needs not in (None, "streams") and given[needs] is None:
            raise UsageError(f"--drafter is {name!r} and there is no --{needs}; give one")
    from specstream.heads.folder import kind_of
    from specstream.models.catalog import check

    for name in HEADS:
        if (folder := given[name]) is not None:
            kind_of(folder)
    if (draft := given["draft"]) is not None and not draft.startswith("self:"):
        check(draft)


def _sides(
    engine: Any, names: list[str], given: dict[str, str | None], settings: dict[str, Any], fixed: int | None
) -> list[Side]:
    from specstream.config import engine_config
    from specstream.evaluation.heads import FIXED, PLAIN, Side
    from specstream.inventory import extra_parameters, with_fixed_tree
    from specstream.parts import build_parts

    sides = [Side(name=PLAIN, parts=engine.parts, parameters=0)]
    for name in names:
        heads = given[name] if name in HEADS else None
        draft = given["draft"] if NEEDING.get(name) == "draft" else None
        config = engine_config({**settings, "drafter": name, "heads": heads})  # type: ignore[typeddict-item]
        try:
            parts = build_parts(engine.target, engine.tokenizer, draft, config)
        except UsageError as error:
            raise type(error)(in_options(str(error), settings).replace("heads=", f"--{name}")) from error
        parameters = extra_parameters(parts.drafter, engine.target)
        sides.append(Side(name=name, parts=parts, parameters=parameters))
        if fixed is not None and name in HEADS:
            sides.append(Side(name=f"{name}{FIXED}", parts=with_fixed_tree(parts, fixed), parameters=parameters))
    return sides


def _compare(engine: Any, sides: list[Side], questions: list[Any]) -> Comparison:
    from specstream.evaluation.heads import compare

    with progress("prompts", len(questions)) as tell:
        return compare(sides, questions, engine.config.generation, on_question=tell)


def _print(comparison: Comparison, provenance: dict[str, Any], base: int) -> None:
    from rich.table import Table

    console = table_console()
    columns = ("drafter", "extra parameters", "tokens/pass", "accepted at 1 to 4", "tokens/s", "x plain", "median")
    table = Table(*columns, "equal")
    for each in comparison.figures():
        table.add_row(*_cells(each, base))
    console.print(table)
    table = Table("tokens/pass, x plain", *(side.name.replace(" (", "\n(") for side in comparison.sides))
    for category in comparison.categories:
        own = comparison.figures(category)
        table.add_row(category, *(f"{each.mean_accepted_length:.2f} {each.ratio:.2f}x" for each in own))
    console.print(table)
    print(
        "tokens/s of decoding, the prompt on neither side; x plain: over plain decoding of the same process, in turn; "
        "median: of the prompts' own ratios; equal: outputs that are plain decoding's; fixed tree: no controller"
    )
    if (ratio := comparison.parameter_ratio) is not None:
        print(f"Medusa has {ratio:,.1f} times as many extra parameters as streams; the paper says about 10,000")
    print(", ".join(str(provenance[key]) for key in ("model", "dtype", "device", "runtime", "cpu")))


def _cells(figures: Figures, base: int) -> list[str]:
    extra = f"{figures.parameters:,} ({figures.parameters / base:.2%})" if figures.parameters else "0"
    return [
        figures.side,
        extra,
        f"{figures.mean_accepted_length:.2f}",
        " ".join(f"{share:.2f}" for share in figures.acceptance),
        f"{figures.tokens_per_second:.1f}",
        f"{figures.ratio:.2f}",
        f"{figures.middle_ratio:.2f}",
        f"{figures.equal} of {figures.outputs}",
    ]
