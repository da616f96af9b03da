"""``python -m benchmarks.figures NAME``: one figure and its goal; exit code 1 if it is missed, 2 for a wrong call."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from benchmarks import beside, cold_start, options, serving
from benchmarks.beside import Outcome, Settings
from benchmarks.goals import GOALS
from benchmarks.report import exit_codes, setting, write_json
from benchmarks.systems import parse_pythons
from specstream.cli.options import check_drafter
from specstream.engine.choices import SELF
from specstream.errors import UsageError

MET, MISSED = 0, 1
ABOUT_SMOLLM2 = ("plain-smollm2", "long-context", "deciding", "cold-start-smollm2", "server-load")


def measurements() -> dict[str, Callable[[Settings], Outcome]]:
    """What measures each figure."""
    from benchmarks import alone, deciding, linear  # they load torch, which the figures beside others do not need

    return {
        "plain-1.5b": lambda settings: beside.plain(settings, settings.target),
        "plain-smollm2": lambda settings: beside.plain(settings, settings.smollm2),
        "draft-humaneval": partial(beside.with_draft, others=beside.FASTER),
        "draft-vs-assisted": partial(beside.with_draft, others=[beside.ASSISTED]),
        "draft-vs-vllm": partial(beside.with_draft, others=beside.VLLM),
        "lookup": alone.lookup,
        "never-slower": alone.never_slower,
        "predicted": alone.predicted,
        "deciding": deciding.deciding,
        "cold-start-smollm2": lambda settings: cold_start.cold_start(settings, settings.smollm2),
        "cold-start-1.5b": lambda settings: cold_start.cold_start(settings, settings.target),
        "server-load": serving.server_load,
        "batch": beside.batch,
        "memory": beside.memory,
        "linear-read": linear.read_time,
        "linear-rows": linear.products,
        "long-context": alone.long_context,
    }


def figures(
    name: Annotated[str, typer.Argument(metavar="NAME", help=f"{', '.join(GOALS)}, or all.")],
    target: options.Target = "qwen2.5-coder-1.5b",
    draft: options.Draft = "",
    heads: Annotated[str, typer.Option("--heads", help="Heads for the target: never-slower measures them too.")] = "",
    smollm2: Annotated[str, typer.Option("--smollm2", help="SmolLM2-135M, where a figure is about it.")] = "",
    data: Annotated[str, typer.Option("--data", help="A folder with humaneval/ and summarization-t0/.")] = "",
    ours: Annotated[str, typer.Option("--ours", help="Our system, such as specstream:mixed@5+int8.")] = "",
    drafter: Annotated[list[str], typer.Option("--drafter", help="Only these; may be repeated.")] = [],  # noqa: B006
    batch_size: Annotated[
        list[int], typer.Option("--batch-size", "-b", min=1, help="Prompts decoded at once; may be repeated.")
    ] = [],  # noqa: B006
    rounds: options.Rounds = 3,
    max_new_tokens: options.MaxNewTokens = 64,
    limit: options.Limit = 4,
    dtype: options.Dtype = "bfloat16",
    python: options.Pythons = [],  # noqa: B006  # typer copies it
    alive: options.Alive = 2,
    output: Annotated[str, typer.Option("--json", help="The folder for NAME.json; empty for none.")] = (
        "build/benchmarks"
    ),
) -> None:
    """Measure one figure, or all, each in a process of its own."""
    arguments = dict(locals())
    with exit_codes():
        if name == "all":
            raise typer.Exit(run_all(sys.argv[1:]))
        if name not in GOALS:
            raise UsageError(f"there is no figure {name!r}; give one of {', '.join(GOALS)}, or all")
        for each in drafter:
            check_drafter(each, without="none")
        about_smollm2 = name in ABOUT_SMOLLM2
        settings = Settings(
            target="" if about_smollm2 or name in ("linear-read", "linear-rows") else options.model_folder(target),
            draft=draft if draft.startswith(SELF) else draft and options.model_folder(draft),
            heads=heads,
            smollm2=options.model_folder(smollm2 or "smollm2-135m") if about_smollm2 else "",
            data=data,
            ours=ours,
            rounds=rounds,
            max_new_tokens=max_new_tokens,
            limit=limit,
            dtype=dtype,
            pythons=parse_pythons(python),
            alive=alive,
            drafters=tuple(drafter),
            batch_sizes=tuple(batch_size),
        )
        outcome = measurements()[name](settings)
        raise typer.Exit(report(name, outcome, {**arguments, **asdict(settings)}, output))


def report(name: str, outcome: Outcome, arguments: dict[str, object], output: str) -> int:
    """Print and write one figure; its exit code."""
    goal = GOALS[name]
    met = goal.met(outcome.value)
    print(outcome.text)
    print(goal.verdict(outcome.value), flush=True)
    if output:
        values = {"figure": name, **asdict(goal), "value": outcome.value, "met": met, **outcome.details}
        write_json(Path(output, f"{name}.json"), {**setting(arguments, str(arguments["dtype"])), **values})
    return MET if met else MISSED


def run_all(words: Sequence[str]) -> int:
    """Every figure with the same options; the worst exit code, 2 before 1 before 0."""
    codes = {}
    for name in GOALS:
        print(f"== {name}", flush=True)
        at = list(words).index("all")
        command = [sys.executable, "-m", "benchmarks.figures", *words[:at], name, *words[at + 1 :]]
        codes[name] = subprocess.run(command, check=False).returncode
    print("== all")
    for name, code in codes.items():
        print(f"{name}: {'met' if code == MET else 'not met' if code == MISSED else f'not measured, code {code}'}")
    return max(codes.values(), key=abs)


if __name__ == "__main__":
    typer.run(figures)
