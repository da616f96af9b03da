"""From a configuration to a trained thing: the model, the data, the loop, the folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

from specstream.environment import provenance
from specstream.errors import ModelNotFoundError, UsageError, must_be
from specstream.files.atomic import check_ending, set_aside
from specstream.models.hub.catalog import check, on_disk
from specstream.models.hub.load import pick_device, pick_dtype
from specstream.training.checkpoints import Checkpoints
from specstream.training.config import Recipe, TrainConfig
from specstream.training.data import load_examples, read_file
from specstream.training.loop import Loop, Outcome, announce_warm_up, make_accelerator
from specstream.training.run_log import RunLog

RECIPES: Mapping[str, str] = {
    **{name: f"specstream.training.recipes.{name}" for name in get_args(Recipe)},
    "lora": "specstream.training.lora",
}
"""Modules with a ``prepare(config, device)`` that returns a ``Trainee`` and its tokenizer."""

_MAY_CHANGE = {
    "training": {
        "num_train_steps",
        "per_device_batch_size",
        "gradient_accumulation_steps",
        "output_dir",
        "resume",
        "max_seconds",
        "save_steps",
        "save_total_limit",
        "eval_steps",
        "logging_steps",
    },
    "model": {"device", "states_dir", "states_gb"},
    "logging": {"use_wandb", "project", "plot"},
}
"""What may differ from the run that is gone on with. Of these, steps and batches change how it goes on from there."""


def train(config: TrainConfig, *, quiet: bool = False) -> Outcome:
    """Train by a configuration, or go on with it.

    Args:
        config: what and how.
        quiet: show nothing.

    Returns:
        How far it came. ``output_dir`` then holds ``best``, ``checkpoints``, ``log.jsonl``, ``log.csv`` and the plot.

    Raises:
        UsageError: data or settings that do not fit, or a run in ``output_dir`` of other settings.
        TrainingError: out of memory, or the loss is no number.
        MissingPackageError: an optional package that this configuration needs is not installed.
    """
    must_be(isinstance(config, TrainConfig), "config", config, "training.config.read_config(FILE)")
    _check_names(config)
    accelerator = make_accelerator(config.training, cpu=config.model.device == "cpu")
    root = Path(config.training.output_dir)
    settings = config.model_dump(mode="json")
    checkpoints = Checkpoints(root, config.training.save_total_limit)
    if accelerator.is_main_process:
        if config.training.resume:
            _check_same(checkpoints, settings)
        elif any((root / name).exists() for name in ("checkpoints", "best")):
            set_aside(root)
        _make_folder(root)
    accelerator.wait_for_everyone()
    if not quiet:
        announce_warm_up(config.training, "training.")
    main = bool(accelerator.is_main_process)
    with RunLog(root if main else None, config.logging, settings, quiet=quiet or not main) as run_log:
        trainee, tokenizer = _prepared(config, str(accelerator.device))
        data = load_examples(config.data, tokenizer, config.training.seed)
        loop = Loop(
            trainee,
            data,
            config.training,
            accelerator=accelerator,
            run_log=run_log,
            checkpoints=checkpoints,
            record={"config": settings, "provenance": provenance(str(accelerator.device), config.model.dtype)},
        )
        run_log.say(f"{config.recipe}: {len(data[0])} examples to train on, {len(data[1])} held out, in {root}")
        outcome = loop.run()
        if main:
            run_log.plot()
    return outcome


def _prepared(config: TrainConfig, device: str) -> tuple[Any, Any]:
    """What is trained, and its tokenizer; what is wrong with a key of the recipe is said with its section."""
    try:
        trainee, tokenizer = import_module(RECIPES[config.recipe]).prepare(config, device)
    except UsageError as error:
        section = getattr(config, config.recipe, None)
        if str(error).partition(" is ")[0] in getattr(type(section), "model_fields", ()):
            raise type(error)(f"{config.recipe}.{error}") from error
        raise
    return trainee, tokenizer


def _check_names(config: TrainConfig) -> None:
    """Refuse a draft model and files that are not there, before a target is fetched or loaded for nothing."""
    data = config.data
    on_disk(config.model.target_model)
    if config.model.draft_model is not None:
        try:
            check(config.model.draft_model)
        except ModelNotFoundError as error:
            made = "" if config.recipe != "draft" else "; specstream make-draft makes a draft"
            raise ModelNotFoundError(f"model.draft_model: {error}{made}") from None
    for file in [*data.files, *data.eval_files, *data.exclude]:
        if not read_file(file) and file not in data.exclude:
            raise UsageError(f"file {file!r} holds no example; give another")
    try:
        pick_device(config.model.device)
        pick_dtype(config.model.dtype)
    except UsageError as error:
        raise UsageError(f"model.{error}") from None


def _make_folder(root: Path) -> None:
    """Refuse before anything is loaded a folder that the run could not be written into."""
    check_ending(str(root), "training.output_dir", "", "a folder")
    try:
        root.mkdir(parents=True, exist_ok=True)
        writable = os.access(root, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        raise UsageError(f"training.output_dir is {str(root)!r}, which cannot be written; give a folder elsewhere")


def _check_same(checkpoints: Checkpoints, settings: Mapping[str, Any]) -> None:
    """A run goes on only with the settings it began with."""
    steps = checkpoints.steps()
    if not steps:
        return
    _, record = checkpoints.load(steps[-1])
    before = record.get("config", {})
    for section, values in settings.items():
        old = before.get(section)
        pairs = {section: (old, values)}
        if isinstance(values, Mapping) and isinstance(old, Mapping):
            fixed = values.keys() - _MAY_CHANGE.get(section, set())
            pairs = {f"{section}.{key}": (old.get(key, values[key]), values[key]) for key in values if key in fixed}
        for name, (was, now) in pairs.items():
            if was != now:
                raise UsageError(
                    f"{checkpoints.root} holds a run with {name} {was!r} and now it is {now!r}; give the old value, "
                    "another training.output_dir, or --no-resume to set that run aside"
                )
