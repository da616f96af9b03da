"""`specstream serve`: an OpenAI-compatible server."""

from __future__ import annotations

import itertools
import logging
import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from specstream.cli import options
from specstream.errors import UsageError

if TYPE_CHECKING:
    from specstream.serving.deployment import DeploymentConfig

_log = logging.getLogger("specstream.serving")

_Config = Annotated[options.Text, typer.Option("--config", "-c", help="A YAML file; see configs/deploy.yaml.")]
_Engine = Annotated[options.Text, typer.Option("--engine", help="local (this package's own) or vllm.")]
_Models = Annotated[
    options.Texts,
    typer.Option("--model", "-m", help="What to serve: [NAME=] a name, a folder or a hub id; may be repeated."),
]
_Adapters = Annotated[
    options.Texts,
    typer.Option("--lora-modules", metavar="NAME=PATH..", help="LoRA adapters of the (first) model, by name."),
]
_Drafter = Annotated[options.Text, typer.Option("--drafter", help="As in generate.")]
_Memory = Annotated[options.Text, typer.Option("--memory", help="As in generate; answers of all clients go there.")]
_Host = Annotated[options.Text, typer.Option("--host", help="Where to listen; 127.0.0.1 is this machine only.")]
_Port = Annotated[options.Integer, typer.Option("--port", help="Likewise.")]
_Rows = Annotated[options.Integer, typer.Option("--max-rows", help="Answers decoded side by side.")]
_Queue = Annotated[options.Integer, typer.Option("--max-queue", help="Answers that may wait; more get 429.")]
_Tokens = Annotated[options.Integer, typer.Option("--max-tokens", help="Most new tokens of one answer.")]
_Context = Annotated[options.Integer, typer.Option("--max-context", help="Most tokens of a prompt and its answer.")]
_Served = Annotated[options.Text, typer.Option("--served-model-name", help="What clients call it; else as --model.")]
_KeyFile = Annotated[options.Text, typer.Option("--api-key-file", help="A file that holds the key clients must send.")]
_Level = Annotated[options.Text, typer.Option("--log-level", help="debug, info, warning or error.")]
_Reasoning = Annotated[options.Text, typer.Option("--reasoning-parser", help="auto, none or think (<think> tags).")]
_Dtype = Annotated[options.Text, typer.Option("--dtype", help="As in generate.")]
_Device = Annotated[options.Text, typer.Option("--device", help="As in generate.")]
_Runtime = Annotated[options.Text, typer.Option("--runtime", help="As in generate.")]
_Quantization = Annotated[options.Text, typer.Option("--quantization", help="As in generate.")]
_VllmArgs = Annotated[
    options.Texts,
    typer.Argument(metavar="[-- VLLM_ARGS]", help="With --engine vllm: what vLLM gets besides, such as -tp 4."),
]


def serve(
    vllm_args: _VllmArgs = None,
    config: _Config = None,
    engine: _Engine = None,
    model: _Models = None,
    lora_modules: _Adapters = None,
    draft: options.Draft = None,
    drafter: _Drafter = None,
    heads: options.HeadsFolder = None,
    memory: _Memory = None,
    prefix_cache_gb: options.PrefixCache = None,
    gamma: options.Depth = None,
    acceptance_threshold: options.AcceptanceThreshold = None,
    dtype: _Dtype = None,
    device: _Device = None,
    runtime: _Runtime = None,
    quantization: _Quantization = None,
    host: _Host = None,
    port: _Port = None,
    max_rows: _Rows = None,
    max_queue: _Queue = None,
    max_tokens: _Tokens = None,
    max_context: _Context = None,
    served_model_name: _Served = None,
    api_key_file: _KeyFile = None,
    log_level: _Level = None,
    reasoning_parser: _Reasoning = None,
) -> None:
    """Serve a model to OpenAI clients. Settings: --config, over it SPECSTREAM_... variables, over those the options.

    With --engine vllm, vLLM serves it: see docs/scaling.md.
    """
    from specstream.serving.deployment import DeploymentConfig

    adapters, vllm_args = _adapters(lora_modules, vllm_args or [])
    drafts: Any = {"draft_model": draft, "drafter": drafter, "heads": heads, "memory": memory, "gamma": gamma}
    passes: Any = {"dtype": dtype, "device": device, "runtime": runtime, "quantization": quantization}
    limits: Any = {"max_rows": max_rows, "max_queue": max_queue, "max_tokens": max_tokens, "max_context": max_context}
    places: Any = {"host": host, "port": port, "log_level": log_level, "reasoning_parser": reasoning_parser}
    settings = DeploymentConfig.read(
        config,
        engine=engine,
        **_models(model or [], served_model_name),
        lora_modules=adapters,
        **drafts,
        prefix_cache_gb=prefix_cache_gb,
        acceptance_threshold=acceptance_threshold,
        **passes,
        **limits,
        **places,
        api_key=None if api_key_file is None else _key(api_key_file),
        vllm_args=vllm_args or None,
    )
    if vllm_args and settings.engine == "local":
        _refuse_vllm_args(vllm_args)
    settings = settings if served_model_name is None else settings.called(served_model_name)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("specstream").setLevel(settings.log_level.upper())
    (_serve_with_vllm if settings.engine == "vllm" else _serve_ours)(settings)


def _models(words: list[str], served_name: str | None) -> dict[str, Any]:
    """The settings that ``--model`` stands for; a path goes over one of the file."""
    from specstream.serving.deployment import named

    if not words:
        return {}
    if len(words) > 1 and served_name is not None:
        raise UsageError(
            f"served_model_name is {served_name!r} and there are {len(words)} models; give --model NAME=PATH"
        )
    name, path = named(words[0])
    return {"model_name": name, "model_path": path, "models": words[1:] or None}


def _adapters(given: list[str] | None, words: list[str]) -> tuple[list[str] | None, list[str]]:
    """The adapters, and the words that are for vLLM: as there, one ``--lora-modules`` has several names."""
    if given is None:
        return None, words
    more = list(itertools.takewhile(lambda word: "=" in word and not word.startswith("-"), words))
    return [*given, *more], words[len(more) :]


def _refuse_vllm_args(words: list[str]) -> NoReturn:
    if not words[0].startswith("-"):
        raise UsageError(f"{words[0]!r} stands alone; give --model {words[0]}")
    raise UsageError(f"-- {shlex.join(words)} is for vLLM and the engine is local; give --engine vllm before it")


def _key(file: str) -> str:
    """What a file says, without the line break at its end."""
    try:
        key = Path(file).expanduser().read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise UsageError(f"api_key_file {file!r} cannot be read ({reason}); give a file with the key in it") from None
    if key and not re.fullmatch("[!-~]+", key):
        raise UsageError(
            f"api_key_file {file!r} has white space or a character that no header holds; write the key alone into it"
        )
    if not key:
        raise UsageError(f"api_key_file {file!r} is empty; write the key into it, or leave it out")
    return key


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
    from specstream.environment import require

    for package in ("fastapi", "uvicorn", "prometheus_client"):
        require(package, "serve", "specstream serve")
    from specstream.cli.loading import quiet
    from specstream.serving import run, web

    run.check(settings)
    with web.bound(settings) as sockets:  # before the model is loaded: a port that is taken is found at once
        _warn_of_open_host(settings)
        with quiet():
            loaded = run.load(settings)
        web.listen(loaded, settings, sockets)


def _warn_of_open_host(settings: DeploymentConfig) -> None:
    # Logged, not printed: a log that cannot be written, on a full disk, is no reason not to serve.
    if settings.api_key is None and options.open_to_others(settings.host):
        _log.warning("%s is open to others and there is no api_key", settings.host)
