"""`specstream serve`: an OpenAI-compatible server."""

from __future__ import annotations

import logging
import sys
from typing import Annotated, Optional

import typer

from specstream.cli import options

_log = logging.getLogger("specstream.serving")

_Config = Annotated[options.Text, typer.Option("--config", "-c", help="A YAML file; see configs/deploy.yaml.")]
_Engine = Annotated[options.Text, typer.Option("--engine", help="local (this package's own) or vllm.")]
_Model = Annotated[options.Text, typer.Option("--model", "-m", help="What to serve: a name, a folder or a hub id.")]
_Drafter = Annotated[options.Text, typer.Option("--drafter", help="As in generate.")]
_Host = Annotated[options.Text, typer.Option("--host", help="Where to listen; 127.0.0.1 is this machine only.")]
_Port = Annotated[Optional[int], typer.Option("--port", help="Likewise.")]  # noqa: UP045
_Rows = Annotated[Optional[int], typer.Option("--max-rows", help="Answers decoded side by side.")]  # noqa: UP045


def serve(
    config: _Config = None,
    engine: _Engine = None,
    model: _Model = None,
    draft: options.Draft = None,
    drafter: _Drafter = None,
    host: _Host = None,
    port: _Port = None,
    max_rows: _Rows = None,
) -> None:
    """Serve a model to OpenAI clients. Settings: --config, over it SPECSTREAM_... variables, over those the options."""
    from specstream.extras import require

    for package in ("fastapi", "uvicorn", "prometheus_client"):
        require(package, "serve", "specstream serve")
    from specstream.serving.deployment import DeploymentConfig

    settings = DeploymentConfig.read(
        config,
        engine=engine,
        model_name=model,
        draft_model=draft,
        drafter=drafter,
        host=host,
        port=port,
        max_rows=max_rows,
    )
    from specstream.cli.loading import quiet
    from specstream.serving import run

    run.check(settings)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    with quiet():
        loaded = run.load(settings)
    if settings.api_key is None and settings.host not in ("127.0.0.1", "localhost", "::1"):
        _log.warning("%s is open to others and there is no api_key", settings.host)
    # Logged, not printed: a log that cannot be written, on a full disk, is no reason not to serve.
    _log.info("serving %s on http://%s:%d/v1", settings.model_name, settings.host, settings.port)
    run.listen(loaded, settings)
