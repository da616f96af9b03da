"""`specstream benchmark heads`: trained heads, lookup, a draft model and plain decoding on the same prompts."""

from __future__ import annotations

import json
from itertools import count
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from specstream.cli import options
from specstream.cli.loading import load_engine, quiet
from specstream.cli.progress import progress
from specstream.cli.records import check_output, table_console, write_record
from specstream.errors import UsageError

if TYPE_CHECKING:
    from specstream.engine.contestants import Run
    from specstream.engine.generation import Parts
    from specstream.evaluation.compare import Comparison, Contestant, Figures
    from specstream.evaluation.heads import Question

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
_Pruning = Annotated[
    list[float],
    typer.Option("--pruning", help="Streams once more, without drafts their early exit gives less; may be repeated."),
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
    pruning: _Pruning = [],  # noqa: B006
    max_new_tokens: options.MaxNewTokens = 128,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    runtime: options.Runtime = "auto",
    output: _Output = None,
    as_json: options.AsJson = False,
) -> None:
    """Compare drafters with plain decoding: parameters, accepted lengths, tokens per second, in turn."""
    from specstream.evaluation.heads import NEEDING, drafters_beside, read_questions, record
    from specstream.heads.folder import KINDS
    from specstream.heads.shipped import shipped_for

    given = {"streams": streams, "medusa": medusa, "draft": draft}
    _check(drafter, given)
    if pruning and drafter and "streams" not in drafter:
        raise UsageError(f"pruning is {pruning[0]} and --drafter names no streams; add --drafter streams")
    check_output(output)
    drafter = list(dict.fromkeys(drafter))
    if fixed is not None and drafter and not set(KINDS) & set(drafter):
        raise UsageError(f"--fixed is {fixed} and --drafter is {drafter[0]}; it is for streams and medusa")
    questions = read_questions(prompts, per_category)
    settings = {"device": device, "dtype": dtype, "runtime": runtime, "max_new_tokens": max_new_tokens}
    engine = load_engine(model, None, {**settings, "drafter": "none"})
    given["streams"] = given["streams"] or shipped_for(engine.model, "streams")
    names = drafter or [*(name for name, needs in NEEDING.items() if given[needs]), "lookup", "lookahead"]
    try:
        with quiet():
            contestants = drafters_beside(engine, names, given, settings, fixed=fixed, pruning=pruning)
    except UsageError as error:  # heads have an option for each kind here
        kind = next((each for each in KINDS if f"'{each}'" in str(error)), "streams")
        raise type(error)(str(error).replace("heads=", f"--{kind}")) from error
    comparison = _compare(engine, contestants, questions)
    arguments = {**settings, "model": model, **given, "drafter": names, "prompts": prompts}
    arguments |= {"per_category": per_category, "fixed": fixed, "pruning": pruning}
    found = {**record(comparison, questions), "provenance": comparison.machine, "arguments": arguments}
    if output is not None:
        write_record(output, found)
    if as_json:
        print(json.dumps(found))
    else:
        _print(comparison, questions, engine.model.num_parameters())


def _check(wanted: list[str], given: dict[str, str | None]) -> None:
    """Refuse drafters before anything is loaded for nothing; plain decoding is always there and not named."""
    from specstream.evaluation.heads import NEEDING
    from specstream.heads.folder import KINDS, kind_of
    from specstream.models.hub.catalog import check

    for name in wanted:
        options.check_drafter(name, without="router")
        if name == "none":
            raise UsageError("--drafter is 'none', which is always measured; leave it out")
        needs = NEEDING.get(name)
        if needs not in (None, "streams") and given[needs] is None:
            raise UsageError(f"--drafter is {name!r} and there is no --{needs}; give one")
    for name in KINDS:
        if (folder := given[name]) is not None:
            kind_of(folder)
    if (draft := given["draft"]) is not None and not draft.startswith("self:"):
        check(draft)


def _compare(engine: Any, contestants: list[Contestant], questions: list[Question]) -> Comparison:
    from specstream.evaluation.compare import answer_text, compare

    config, machine, answered = engine.config.generation, engine.provenance(), count(1)
    # Answers, not prompts: with all drafters a prompt may take a minute. The first one warms up and comes again.
    with progress("answers", (len(questions) + 1) * len(contestants)) as tell:

        def answer(parts: Parts, text: str) -> Run:
            run = answer_text(parts, text, config)
            tell(next(answered))
            return run

        return compare(contestants, [question.text for question in questions], answer, machine=machine)


def _print(comparison: Comparison, questions: list[Question], base: int) -> None:
    from rich.table import Column, Table

    from specstream.evaluation.heads import by_category, parameter_ratio

    console = table_console()
    columns = (
        Column("drafter", no_wrap=True),
        "extra parameters",
        "tokens/pass",
        "accepted at 1 to 4",
        "tokens/s",
        "x plain",
        "median",
    )
    table = Table(*columns, "equal")
    for each in comparison.figures():
        table.add_row(*_cells(each, base))
    console.print(table)
    print(f"drafted tokens a pass: {', '.join(f'{each.contestant} {each.nodes:.2f}' for each in comparison.figures())}")
    table = Table("tokens/pass, x plain", *(each.name.replace(" (", "\n(") for each in comparison.contestants))
    for category, prompts in by_category(questions).items():
        own = comparison.figures(prompts)
        table.add_row(category, *(f"{each.mean_accepted_length:.2f} {each.speedup.value:.2f}x" for each in own))
    console.print(table)
    print(
        "tokens/s of decoding, the prompt on neither side; x plain: over plain decoding of the same process, in turn, "
        "and its 95 % interval; median: of the prompts' own ratios; equal: outputs that are plain decoding's; "
        "fixed tree: no controller"
    )
    if (ratio := parameter_ratio(comparison.contestants)) is not None:
        print(f"Medusa has {ratio:,.1f} times as many extra parameters as streams; the paper says about 10,000")
    print(", ".join(str(comparison.machine[key]) for key in ("model", "dtype", "device", "runtime", "cpu")))


def _cells(figures: Figures, base: int) -> list[str]:
    from specstream.evaluation.benchmark.summary import plain_estimate
    from specstream.evaluation.report.words import interval

    extra = f"{figures.parameters:,} ({figures.parameters / base:.2%})" if figures.parameters else "0"
    return [
        figures.contestant,
        extra,
        f"{figures.mean_accepted_length:.2f}",
        " ".join(f"{share:.2f}" for share in figures.acceptance),
        f"{figures.tokens_per_second:.1f}",
        interval(plain_estimate(figures.speedup)).replace(" (", "\n("),
        f"{figures.median_speedup:.2f}",
        f"{figures.equal} of {figures.samples}",
    ]
