"""`specstream profile`: where the time of a round goes, a trace of it, and a sentence on what bounds the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from specstream.cli import options
from specstream.cli.loading import load_engine, quiet
from specstream.cli.progress import progress
from specstream.cli.records import table_console, write_record
from specstream.errors import UsageError
from specstream.files.atomic import check_ending

if TYPE_CHECKING:
    from specstream.engine.generation import Parts
    from specstream.evaluation.benchmark.config import BenchmarkConfig
    from specstream.evaluation.benchmark.experiments import Group
    from specstream.evaluation.benchmark.prompts import Prompt
    from specstream.files.yaml_file import Document

_Config = Annotated[
    options.Text,
    typer.Option("--config", "-c", help="A YAML file as for benchmark; its first experiment's arms are profiled."),
]
_Samples = Annotated[int, typer.Option("--num-samples", min=1, help="So many prompts, spread over all of them.")]
_Model = Annotated[options.Text, typer.Option("--model", "-m", help="The model, without --config.")]
_Drafter = Annotated[options.Text, typer.Option("--drafter", help="The drafter, without --config.")]
_Prompts = Annotated[
    options.Text, typer.Option("--prompts", help="A .txt, .jsonl, .json or .csv file, without --config.")
]
_Tokens = Annotated[
    options.Integer, typer.Option("--max-new-tokens", "--max-tokens", "--N", "-n", help="Never one token more.")
]
_Output = Annotated[options.Text, typer.Option("--output-dir", "-o", help="For profile.json and the traces.")]


def profile(
    config: _Config = None,
    num_samples: _Samples = 5,
    model: _Model = None,
    draft: options.Draft = None,
    drafter: _Drafter = None,
    prompts: _Prompts = None,
    max_new_tokens: _Tokens = None,
    output_dir: _Output = None,
    set_: options.Set = None,
    as_json: options.AsJson = False,
) -> None:
    """Measure where the time goes: draft, target pass, verification, sampling, cache, Python; in each round and all."""
    from specstream.evaluation.benchmark.experiments import make_plan
    from specstream.evaluation.benchmark.prompts import read_prompts

    given = {"model": model, "draft": draft, "drafter": drafter, "prompts": prompts, "max_new_tokens": max_new_tokens}
    if drafter is not None:
        options.check_drafter(drafter)
    settings, document = _settings(config, set_ or [], given)
    texts = read_prompts(settings.prompts, document)
    texts = [texts[at * len(texts) // num_samples] for at in range(min(num_samples, len(texts)))]
    with quiet():
        plan = make_plan(settings, document)
    if not plan.groups:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in plan.left_out.items())
        raise UsageError(f"{document.source} leaves nothing to profile: {reasons or 'it has no experiment'}")
    folder = _folder(output_dir or settings.measure.output_dir)
    record = _profile(settings, plan.groups[0], texts, folder)
    write_record(str(folder / "profile.json"), record)
    if as_json:
        print(json.dumps(record))
    else:
        _print(record, folder)


def _settings(config: str | None, overrides: list[str], given: dict[str, Any]) -> tuple[BenchmarkConfig, Document]:
    from specstream.evaluation.benchmark.config import BenchmarkConfig, read_config
    from specstream.files.yaml_file import Document, validated

    if config is not None:
        if extra := [name for name, value in given.items() if value is not None]:
            option = f"--{extra[0].replace('_', '-')}"
            raise UsageError(f"--config and {option} were given; give one, or --set section.key=value")
        return read_config(config, overrides)
    if overrides:
        raise UsageError(f"--set is {overrides[0]!r} and there is no --config; give both")
    arm = {
        name: given[key] for name, key in (("drafter", "drafter"), ("draft_model", "draft")) if given[key] is not None
    }
    values: dict[str, Any] = {
        "target": {"model": given["model"]} if given["model"] else {},
        "prompts": {"files": [{"path": given["prompts"]}]} if given["prompts"] else {},
        "generation": {"max_new_tokens": 64 if given["max_new_tokens"] is None else given["max_new_tokens"]},
        "measure": {"output_dir": "runs/profile"},
        "experiments": {"profile": {"arms": {given["drafter"] or "auto": arm}}},
    }
    return validated(BenchmarkConfig, values), Document(source="the command line", values=values)


def _folder(path: str) -> Path:
    check_ending(path, "--output-dir", "", "a folder")
    folder = Path(path)
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "profile.json").exists():
        raise UsageError(f"--output-dir is {path!r}, which holds something else; give a new folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--output-dir is {path!r}: {error.strerror}; give a folder that can be written to") from None
    return folder


def _profile(settings: BenchmarkConfig, group: Group, texts: list[Prompt], folder: Path) -> dict[str, Any]:
    from specstream.engine.inventory import announce_left_out, prepare
    from specstream.evaluation.benchmark.prompts import make_items
    from specstream.evaluation.benchmark.run import build_arm
    from specstream.evaluation.bottleneck import Memory, read_speed, sentence, weights_of_a_pass
    from specstream.evaluation.profile import cost_of_a_note
    from specstream.evaluation.profile import profile as measure

    target = settings.target
    own = {"drafter": "none", "max_new_tokens": group.generation.max_new_tokens}
    own |= {**target.model_dump(include={"dtype", "device", "runtime", "exact"}), **group.target}
    engine = load_engine(target.model, None, own)
    items = make_items(engine.tokenizer, texts, context=group.context)
    prompts = [item.rows[0] for item in items]
    device = engine.model.device
    arms: dict[str, Parts] = {}
    for arm in group.arms:
        with quiet():
            parts = build_arm(engine, arm)
        announce_left_out(parts, arm.name)
        prepare(parts, 1)
        arms[arm.name if arm.value is None else f"{arm.name} {arm.value}"] = parts
    speeds: list[float] = []
    with progress("prompts", len(prompts)) as update:

        def on_prompt(done: int) -> None:
            speeds.append(read_speed(device))
            update(done)

        update(0, note="the first prompt warms up each arm")
        profiles = measure(arms, prompts, group.generation, device, on_prompt)
    memory = Memory(speeds=tuple(speeds), weights=weights_of_a_pass(engine.target))
    note = cost_of_a_note()
    figures = {}
    for name, each in profiles.items():
        trace = folder / f"trace-{name.replace(' ', '-').replace('/', '-')}.json"
        write_record(str(trace), each.trace())
        figures[name] = {
            **each.to_dict(),
            "bound": sentence(each, memory),
            "trace": str(trace),
            "notes": {"count": len(each.spans), "share": len(each.spans) * note / each.seconds},
        }
    return {
        "arms": figures,
        "memory": {"bytes_per_second": memory.best, "all": speeds, "bytes_of_a_pass": memory.weights},
        "seconds_of_a_note": note,
        "arguments": settings.model_dump(mode="json"),
        "provenance": engine.provenance(),
    }


def _print(record: dict[str, Any], folder: Path) -> None:
    from rich.table import Table

    from specstream.evaluation.profile import PARTS

    arms = record["arms"]
    table = Table("ms a round, share of the time", *arms)
    for part in PARTS:
        cells = (each["parts"][part] for each in arms.values())
        table.add_row(part, *(f"{cell['per_round'] * 1000:.2f}  {cell['share']:.1%}" for cell in cells))
    whole = (f"{each['seconds'] / each['rounds'] * 1000:.2f}" for each in arms.values())
    table.add_row("round", *whole)
    table.add_row("tokens a round", *(f"{each['mean_accepted_length']:.2f}" for each in arms.values()))
    table.add_row("tokens/s of rounds", *(f"{each['tokens_per_second']:.1f}" for each in arms.values()))
    table_console().print(table)
    for name, each in arms.items():
        print(f"{name} is bound by {each['bound']}")
    notes = max(each["notes"]["share"] for each in arms.values())
    provenance = record["provenance"]
    waited = "; on this device each note waits for it" if str(provenance["device"]).startswith("cuda") else ""
    print(f"the instrument itself takes up to {notes:.2%} of the time{waited}; GB/s: the best sum over 268 MB")
    print(f"every round is in {folder / 'profile.json'}; for chrome://tracing or Perfetto: {folder}/trace-*.json")
    print(", ".join(str(provenance[key]) for key in ("model", "dtype", "device", "runtime", "cpu")))
