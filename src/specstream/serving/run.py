"""From a configuration to a server that listens."""

from __future__ import annotations

import shlex
from typing import Any

from specstream.engine import SpeculativeEngine
from specstream.errors import UsageError
from specstream.inventory import prepare
from specstream.serving.deployment import DeploymentConfig, check_machine
from specstream.serving.memory import check_fit
from specstream.serving.vllm_launch import shards


def check(config: DeploymentConfig) -> None:
    """Refuse what cannot be served, before anything is loaded.

    Raises:
        UsageError: what the machine cannot give, models that do not fit, or arguments for vLLM without it.
    """
    if config.engine == "local" and config.vllm_args:
        raise UsageError(f"vllm_args are {shlex.join(config.vllm_args)!r} and the engine is local; give engine: vllm")
    check_machine(config)
    check_fit(config, shards(config.vllm_args))


def load(config: DeploymentConfig) -> SpeculativeEngine:
    """The engine, warm: its self-tests have run."""
    settings: dict[str, Any] = {
        "drafter": config.drafter,
        "heads": config.heads,
        "gamma": config.gamma,
        "max_speculation_depth": config.gamma,
        "device": config.device,
        "dtype": config.dtype,
        "runtime": config.runtime,
        "temperature": config.temperature,
        "max_new_tokens": config.max_tokens,
    }
    engine = SpeculativeEngine(config.source, draft_model=config.draft_model, **settings)
    prepare(engine.parts, 1)
    return engine


def listen(engine: SpeculativeEngine, config: DeploymentConfig) -> None:
    """Serve until a signal ends it; what runs then is finished first."""
    from specstream.serving import web
    from specstream.serving.app import Server

    web.listen(Server(engine, config))
