"""`specstream serve`: an OpenAI-compatible server."""

from __future__ import annotations

import logging
import shlex
import sys
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from specstream.cli import options

if TYPE_CHECKING:
    from specstream.serving.deployment import DeploymentConfig

_log = logging.getLogger("specstream.serving")

_Config = Annotated[options.Text, typer.Option("--config", "-c", help="A YAML file; see configs/deploy.yaml.")]
_Engine = Annotated[options.Text, typer.Option("--engine", help="local (this package's own) or vllm.")]
_Model = Annotated[options.Text, typer.Option("--model", "-m", help="What to serve: a name, a folder or a hub id.")]
_Drafter = Annotated[options.Text, typer.Option("--drafter", help="As in generate.")]
_Host = Annotated[options.Text, typer.Option("--host", help="Where to listen; 127.0.0.1 is this machine only.")]
_Port = Annotated[Optional[int], typer.Option("--port", help="Likewise.")]  # noqa: UP045
_Rows = Annotated[Optional[int], typer.Option("--max-rows", help="Answers decoded side by side.")]  # noqa: UP045
_VllmArgs = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Argument(metavar="[-- VLLM_ARGS]", help="With --engine vllm: what vLLM gets besides, such as -tp 4."),
]


def serve(
    vllm_args: _VllmArgs = None,
    config: _Config = None,
    engine: _Engine = None,
    model: _Model = None,
    draft: options.Draft = None,
    drafter: _Drafter = None,
    heads: options.HeadsFolder = None,
    gamma: options.Depth = None,
    host: _Host = None,
    port: _Port = None,
    max_rows: _Rows = None,
) -> None:
    """Serve a model to OpenAI clients. Settings: --config, over it SPECSTREAM_... variables, over those the options.

    With --engine vllm, vLLM serves it: see docs/scaling.md.
    """
    from specstream.serving.deployment import DeploymentConfig

    settings = DeploymentConfig.read(
        config,
        engine=engine,
        model_name=model,
        draft_model=draft,
        drafter=drafter,
        heads=heads,
        gamma=gamma,
        host=host,
        port=port,
        max_rows=max_rows,
        vllm_args=vllm_args or None,
    )
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    if settings.engine == "vllm":
        _serve_with_vllm(settings)
    else:
        _serve_ours(settings)


def _serve_with_vllm(settings: DeploymentConfig) -> None:
    from specstream.serving import run, vllm_launch

    run.check(settings)
    launch = vllm_launch.plan(settings)
    for note in launch.notes:
        print(f"note: {note}", file=sys.stderr)
    _warn_of_open_host(settings)
    print(f"starting {shlex.join(launch.command)}", file=sys.stderr, flush=True)
    vllm_launch.start(launch)


def _serve_ours(settings: DeploymentConfig) -> None:
    from specstream.extras import require

    for package in ("fastapi", "uvicorn", "prometheus_client"):
        require(package, "serve", "specstream serve")
    from specstream.cli.loading import quiet
    from specstream.serving import run, web

    run.check(settings)
    _warn_of_open_host(settings)
    with web.bound(settings) as sockets:  # before the model is loaded: a port that is taken is found at once
        with quiet():
            loaded = run.load(settings)
        run.listen(loaded, settings, sockets)


def _warn_of_open_host(settings: DeploymentConfig) -> None:
    # Logged, not printed: a log that cannot be written, on a full disk, is no reason not to serve.
    if settings.api_key is None and options.open_to_others(settings.host):
        _log.warning("%s is open to others and there is no api_key", settings.host)
