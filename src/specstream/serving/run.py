"""From a configuration to an engine that can be served."""

from __future__ import annotations

import logging
import shlex
import time
from typing import Any

from specstream.engine.engine import SpeculativeEngine
from specstream.engine.inventory import prepare_up_to
from specstream.errors import UsageError
from specstream.serving.deployment import DeploymentConfig, check_machine, most_connections
from specstream.serving.memory import check_fit
from specstream.serving.vllm_launch import shards

_log = logging.getLogger("specstream.serving")


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
    if config.engine == "local":
        most_connections(config)
    check_machine(config)
    check_fit(config, shards(config.vllm_args))


def load(config: DeploymentConfig) -> SpeculativeEngine:
    """The engine, warm: its self-tests have run, and what its batches cost was measured."""
    settings: dict[str, Any] = {
        "drafter": config.drafter,
        "heads": config.heads,
        "memory": config.memory or False,
        "prefix_cache_gb": config.prefix_cache_gb,
        "gamma": config.gamma,
        "acceptance_threshold": config.acceptance_threshold,
        "device": config.device,
        "dtype": config.dtype,
        "runtime": config.runtime,
        "quantization": config.quantization,
        "temperature": config.temperature,
        "max_new_tokens": config.max_tokens,
    }
    begun = time.monotonic()
    if config.acceptance_threshold is not None:
        _log.warning(
            "acceptance_threshold is %s: answers at a temperature above 0 are not lossless", config.acceptance_threshold
        )
    _log.info("loading %s", config.source)
    engine = SpeculativeEngine(config.source, draft_model=config.draft_model, **settings)
    if engine.unreleasable is None:
        engine.release()
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
    return engine
