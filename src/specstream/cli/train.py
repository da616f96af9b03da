"""`specstream train`: train what a configuration says, or go on with it."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from specstream.cli import options

_Config = Annotated[str, typer.Option("--config", "-c", help="A YAML file; see configs/.")]
_Resume = Annotated[
    options.Flag,
    typer.Option("--resume/--no-resume", help="Go on from the last checkpoint (default), or set that run aside."),
]


def train(config: _Config, resume: _Resume = None, set_: options.Set = None, as_json: options.AsJson = False) -> None:
    """Train a head, an adapter or a draft. The same command goes on with a run that was stopped."""
    from specstream.training.config import read_config

    overrides = [*(set_ or []), *([] if resume is None else [f"training.resume={str(resume).lower()}"])]
    settings = read_config(config, overrides)
    for file in settings.data.files:
        if file.endswith(".txt"):
            cut = f"one text here, in blocks of {settings.data.max_length} tokens"
            options.note(f"{file!r} is a .txt, {cut}; a .jsonl has an example a line")
    from specstream.cli.loading import quiet
    from specstream.training.run import train as run

    with quiet():
        outcome = run(settings)
    progress, folder = outcome.progress, settings.training.output_dir
    if as_json:
        print(json.dumps({"finished": outcome.finished, "output_dir": folder, **asdict(progress)}))
        return
    asked = settings.training.num_train_steps
    of = f"of {asked} steps" if progress.step <= asked else f"steps, more than the {asked} asked for"
    steps = f"{progress.step} {of}, {progress.tokens} tokens"
    best = "" if progress.best is None else f"; best/ is of step {progress.best_step} ({progress.best:.4g})"
    end = "finished" if outcome.finished else "stopped, the time was up; run the same command to go on"
    print(f"{end}: {steps}, in {folder}{best}")
