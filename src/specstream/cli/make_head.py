"""`specstream make-head`: from a model to a trained head in one command."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from specstream.cli import options
from specstream.cli.progress import progress
from specstream.errors import UsageError
from specstream.files.prompts import read_prompts

_Model = Annotated[str, typer.Argument(metavar="MODEL", help="A catalog name, a local folder, or a hub id.")]
_Prompts = Annotated[list[str], typer.Option("--prompts", help="A .txt, .jsonl, .json or .csv file; may be repeated.")]
_Output = Annotated[str, typer.Option("--output", "-o", help="The folder to write. An interrupted run goes on.")]
_Kind = Annotated[Literal["block", "streams", "medusa", "eagle3"], typer.Option("--kind", help="Of the head.")]
_Exclude = Annotated[
    options.Texts, typer.Option("--exclude", help="A file of held-out prompts to leave out; may be repeated.")
]
_Tokens = Annotated[int, typer.Option("--tokens", min=1, help="Of the model's own answers, at most about so many.")]
_Hours = Annotated[options.Number, typer.Option("--hours", help="Choose answers and steps to fit, and stop in time.")]
_Disk = Annotated[
    options.Number, typer.Option("--disk", min=0, help="GB of hidden states kept at most. Default: 20, if free.")
]
_Seed = Annotated[int, typer.Option("--seed", min=0, help="Of the order of prompts, and of training.")]

DISK_GB, FREE = 20.0, 0.8
"""Default room for states, and the share of the free disk that it may take."""


def make_head(
    context: typer.Context,
    model: _Model,
    prompts: _Prompts,
    output: _Output,
    kind: _Kind = "streams",
    exclude: _Exclude = None,
    tokens: _Tokens = 300_000,
    hours: _Hours = None,
    disk: _Disk = None,
    max_new_tokens: options.MaxNewTokens = 128,
    seed: _Seed = 0,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    as_json: options.AsJson = False,
) -> None:
    """Train a head for a model on its own answers, and measure it. The same command goes on with a run that stopped."""
    _check(model, prompts, exclude or [], hours)
    from specstream.training.checkpoints import check_replaceable
    from specstream.training.make_head import STATE

    check_replaceable(Path(output), STATE, "--output")
    room = _room(disk, output)
    from specstream.cli.loading import quiet

    with quiet():
        _check_model(model, dtype, device)
        from specstream.training.make_head import HeadRun, HeadSettings

        settings = HeadSettings(
            model=model,
            kind=kind,
            prompts=tuple(prompts),
            exclude=tuple(exclude or ()),
            tokens=tokens,
            hours=hours,
            max_new_tokens=max_new_tokens,
            dtype=dtype,
            seed=seed,
        )
        run = HeadRun(output, settings, device=device, disk_gb=room, stage=progress, quiet=as_json)
        try:
            result = run.run()
        except KeyboardInterrupt:
            options.note(f"{output} holds what is done; to go on: {_line(context)}")
            raise
    if as_json:
        print(json.dumps({"output": output, **result}))
    else:
        _say(output, result)


def _check(model: str, prompts: list[str], exclude: list[str], hours: float | None) -> None:
    """Refuse before anything is loaded what cannot be read or done."""
    options.check_files(*prompts, *exclude)
    for file in prompts:
        read_prompts(file)
    if hours is not None and not 0 < hours < float("inf"):
        raise UsageError(f"--hours is {hours:g}; give a number above 0, such as 0.5")
    from specstream.models.hub.catalog import on_disk

    on_disk(model)


def _check_model(model: str, dtype: str, device: str) -> None:
    from specstream.models.hub.catalog import resolve
    from specstream.models.hub.load import pick_device, pick_dtype
    from specstream.models.hub.schemes import refuse_quantised

    pick_device(device)
    pick_dtype(dtype)
    refuse_quantised(resolve(model), "MODEL", model, "for which no head is trained")


def _room(disk: float | None, output: str) -> float:
    """GB for states: what is asked for, if it is free."""
    place = next(each for each in (Path(output).absolute(), *Path(output).absolute().parents) if each.is_dir())
    free = shutil.disk_usage(place).free / 1e9
    if disk is None:
        return min(DISK_GB, FREE * free)
    if disk > free:
        raise UsageError(f"--disk is {disk:g} and {free:.1f} GB are free for {output!r}; give less")
    return disk


def _line(context: typer.Context) -> str:
    """The command as it was given, options that have their default value left out."""
    words = ["specstream", "make-head", context.params["model"]]
    for each in context.command.params:
        value = context.params[str(each.name)]
        if each.name == "model" or value in (each.get_default(context), None, False, [], ()):
            continue
        form = next(form for form in each.opts if form.startswith("--"))
        for one in value if isinstance(value, list | tuple) else [value]:
            words += [form] if one is True else [form, str(one)]
    return shlex.join(words)


def _say(output: str, result: dict[str, Any]) -> None:
    from specstream.training.make_head import use_line

    figures, test = result["figures"], result["test"]
    depths = [f"{figures[name]:.2f}" for name in (f"top1_{depth}" for depth in range(1, 99)) if name in figures]
    print(
        f"{output}: {result['kind']} for {result['model']}, {result['parameters']} parameters "
        f"({result['extra_percent']:.1f} % of the base), from {result['answer_tokens']} tokens of its own answers, "
        f"{result['steps']} steps"
    )
    print(f"first candidates that are right, held out, by depth: {', '.join(depths)}")
    for each in test["sides"]:
        print(
            f"{each['side']}: {each['mean_accepted_length']:.2f} tokens a pass, {each['ratio']:.2f}x plain, "
            f"{each['equal']} of {each['outputs']} outputs equal to plain decoding's"
        )
    print(use_line(result["model"], shlex.quote(output)))
