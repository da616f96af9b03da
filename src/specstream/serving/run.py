"""From a configuration to an engine that can be served."""

from __future__ import annotations

import logging
import shlex
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from specstream.config import engine_config
from specstream.engine.choices import check_choice
from specstream.engine.engine import SpeculativeEngine, check_names, check_vocabulary
from specstream.engine.inventory import prepare_up_to
from specstream.errors import UsageError
from specstream.models.hub.adapters import check_adapter, merge_adapter
from specstream.models.hub.catalog import check as check_name
from specstream.models.hub.load import load_model
from specstream.serving.deployment import DeploymentConfig, check_machine, most_connections
from specstream.serving.memory import check_fit
from specstream.serving.vllm_launch import shards

_log = logging.getLogger("specstream.serving")


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A model that is ready to be served.

    Attributes:
        config: its own; ``model_name`` is what clients call it.
        engine: warm.
        root: where it was loaded from; of an adapter its folder.
        parent: the name of the model that an adapter is of; None for others.
    """

    config: DeploymentConfig
    engine: SpeculativeEngine
    root: str
    parent: str | None = None


def check(config: DeploymentConfig) -> None:
    """Refuse what cannot be served, before anything is loaded.

    Raises:
        UsageError: what the machine cannot give, models that do not fit, or arguments for vLLM without it.
    """
    if config.engine == "local" and config.vllm_args:
        raise UsageError(f"vllm_args are {shlex.join(config.vllm_args)!r} and the engine is local; give engine: vllm")
    if config.engine == "vllm" and config.acceptance_threshold is not None:
        raise UsageError(
            f"acceptance_threshold is {config.acceptance_threshold} and the engine is vllm, which has no such rule; "
            "leave it out"
        )
    if config.engine == "vllm" and config.memory is not None:
        raise UsageError(f"memory is {config.memory!r} and the engine is vllm, which has none; leave it out")
    if config.engine == "vllm" and (config.models or config.lora_modules):
        name = "models" if config.models else "lora_modules"
        raise UsageError(
            f"{name} are {', '.join(getattr(config, name))} and the engine is vllm, which we start with one model; "
            "leave them out; its own adapters stand behind --: -- --enable-lora --lora-modules NAME=PATH"
        )
    if config.engine == "local":
        most_connections(config)
    for target in config.targets:
        if config.engine == "local":
            settings = _drafts(target) | _settings(target)
            check_choice(engine_config(settings), target.draft_model)
        for name, path in target.lora_modules.items():
            check_adapter(name, path, target.source)
    check_machine(config)
    check_fit(config, shards(config.vllm_args))


def load(config: DeploymentConfig) -> list[Loaded]:
    """The models, warm: their self-tests have run, and what their batches cost was measured."""
    return [each for target in config.targets for each in _with_adapters(target)]


def _with_adapters(config: DeploymentConfig) -> Iterator[Loaded]:
    begun = time.monotonic()
    if config.acceptance_threshold is not None:
        _log.warning(
            "acceptance_threshold is %s: answers at a temperature above 0 are not lossless", config.acceptance_threshold
        )
    check_name(config.source)
    settings = _drafts(config) | _settings(config)
    check_names(engine_config(settings), config.source, config.draft_model)  # before it is said that it loads
    check_vocabulary(config.source, config.draft_model)
    _log.info("loading %s", config.source)
    engine = SpeculativeEngine(config.source, draft_model=config.draft_model, **settings)
    if engine.unreleasable is None:
        engine.release()
    _warm(engine, config, begun)
    base = Loaded(config=config, engine=engine, root=config.source)
    yield base
    for name, path in config.lora_modules.items():
        yield _adapted(base, name, path)


def _adapted(base: Loaded, name: str, path: str) -> Loaded:
    """An adapter of a model that is loaded, merged into another copy of it; what drafts is the same."""
    config, begun, parts = base.config.adapted(name), time.monotonic(), base.engine.parts
    _log.info("loading the adapter %s of %s", name, base.config.model_name)
    model, _ = load_model(config.source, dtype=config.dtype, device=config.device)
    own: Any = "none" if config.drafter == "none" else "lookup"
    engine = SpeculativeEngine(
        merge_adapter(model, name, path), base.engine.tokenizer, drafter=own, memory=False, **_settings(config)
    )
    engine.parts = replace(
        engine.parts,
        drafter=parts.drafter,
        heads=parts.heads,
        memory=parts.memory,
        left_out=parts.left_out,
        speculation=replace(parts.speculation, controller=engine.parts.speculation.controller),
    )
    _warm(engine, config, begun)
    return Loaded(config=config, engine=engine, root=path, parent=base.config.model_name)


def _drafts(config: DeploymentConfig) -> Any:
    """What drafts, besides a draft model."""
    return {
        "drafter": config.drafter,
        "heads": config.heads,
        "memory": config.memory or False,
        "gamma": config.gamma,
    }


def _settings(config: DeploymentConfig) -> Any:
    """How passes run, and what requests get that do not say."""
    return {
        "prefix_cache_gb": config.prefix_cache_gb,
        "acceptance_threshold": config.acceptance_threshold,
        "device": config.device,
        "dtype": config.dtype,
        "runtime": config.runtime,
        "quantization": config.quantization,
        "temperature": config.temperature,
        "max_new_tokens": config.max_tokens,
    }


def _warm(engine: SpeculativeEngine, config: DeploymentConfig, begun: float) -> None:
    """Say what was loaded, test it and measure it."""
    model = engine.target.model
    what = f"{str(model.dtype).removeprefix('torch.')} on {model.device}, drafter {engine.parts.drafter.name}"
    _log.info("loaded in %.1f s: %s", time.monotonic() - begun, what)
    if (own := engine.target.context_length) is not None and own < (config.max_context or 0):
        _log.warning(
            "max_context is %s and the model's context holds %s tokens, which is the limit", config.max_context, own
        )
    limits = [limit for limit in (own, config.max_context) if limit is not None]
    if limits and config.max_tokens >= min(limits):
        _log.warning(
            "max_tokens is %s and a prompt with its answer has %s tokens at most: answers end there",
            config.max_tokens,
            min(limits),
        )
    _log.info("testing which passes have equal bits, and measuring what they cost")
    prepare_up_to(engine.parts, config.max_rows)
    _log.info("tested, %.1f s after the start", time.monotonic() - begun)
