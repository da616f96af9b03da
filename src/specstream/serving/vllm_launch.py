"""vLLM in place of our engine, for what takes more than one GPU: its command line from our configuration."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

from specstream.drafters.lookup import LookupDrafter
from specstream.engine.choices import SELF
from specstream.errors import MissingPackageError, UnsupportedModelError, UsageError, VocabularyMismatchError
from specstream.heads.folder import kind_of, located, read_settings
from specstream.heads.published import depth_of
from specstream.models.hub.catalog import catalog, resolve
from specstream.serving.deployment import DeploymentConfig
from specstream.serving.vllm_export import DEPTH

OURS_ALONE = (
    *("device", "runtime", "max_queue", "max_choices", "max_body_bytes", "max_connections"),
    *("request_seconds", "prefill_chunk_tokens", "prefix_cache_gb", "log_level"),
)
"""Settings that vLLM has no counterpart of."""

_PARALLEL = ("--tensor-parallel-size", "-tp", "--pipeline-parallel-size", "-pp")


@dataclass(frozen=True, kw_only=True)
class Launch:
    """A vLLM to start.

    Attributes:
        command: its words; the first is the executable.
        environment: variables beside those of this process; they hold the key, which a command line would show.
        notes: what of the configuration is not carried out, one line each.
    """

    command: tuple[str, ...]
    environment: Mapping[str, str]
    notes: tuple[str, ...]


HEADS = ("medusa", "eagle3", "dflash")
"""Heads that vLLM runs; the last two as they were published."""

LONGEST_NGRAM = 6
"""Tokens of the longest match that vLLM's ngram looks for."""


def plan(config: DeploymentConfig) -> Launch:
    """The vLLM that a configuration asks for.

    Raises:
        UsageError: a setting that vLLM has no counterpart of, or a draft or heads it cannot load.
        MissingPackageError: there is no vLLM.
    """
    if config.quantization != "none":  # left out, another model would be served than was asked for
        raise UsageError(
            f"quantization is {config.quantization!r}, which is not vLLM's; leave it out, or give engine='local'; "
            "vLLM's own stands behind --, such as -- --quantization fp8"
        )
    if config.tool_call_parser == "smollm2":
        raise UsageError("tool_call_parser is 'smollm2', which vLLM has not; give hermes, llama3_json or mistral")
    if config.reasoning_parser != "auto":
        raise UsageError(
            f"reasoning_parser is {config.reasoning_parser!r}, which vLLM has not; leave it out; vLLM's own stands "
            "behind --, such as -- --reasoning-parser qwen3"
        )
    command = [executable(config.vllm_path), "serve", where(config.source), "--served-model-name", config.model_name]
    command += ["--host", config.host, "--port", str(config.port), "--dtype", config.dtype]
    # Requests that do not say get what they get from our engine, not what the checkpoint's file says.
    defaults = {"temperature": config.temperature, "max_new_tokens": config.max_tokens}
    command += ["--generation-config", "vllm", "--override-generation-config", json.dumps(defaults)]
    command += ["--shutdown-timeout", str(round(config.grace_seconds))]
    if "max_rows" in config.model_fields_set:  # ours is for one machine; vLLM has a default of its own
        command += ["--max-num-seqs", str(config.max_rows)]
    if config.max_context is not None:
        command += ["--max-model-len", str(config.max_context)]
    if config.cors_origins:
        command += ["--allowed-origins", json.dumps(config.cors_origins)]
    if config.tool_call_parser != "auto":
        command += ["--enable-auto-tool-choice", "--tool-call-parser", config.tool_call_parser]
    if config.log_prompts:
        command.append("--enable-log-requests")
    drafts = speculation(config)
    if drafts is not None:
        command += ["--speculative-config", json.dumps(drafts)]
    key = config.api_key
    return Launch(
        command=(*command, *config.vllm_args),
        environment={} if key is None else {"VLLM_API_KEY": key.get_secret_value()},
        notes=tuple(_notes(config, drafts)),
    )


def start(launch: Launch) -> NoReturn:
    """Become vLLM: signals reach it and its exit code is ours, as there is no process in between.

    Raises:
        UsageError: its executable cannot be run.
    """
    try:
        os.execve(launch.command[0], list(launch.command), {**os.environ, **launch.environment})
    except OSError as error:
        raise UsageError(
            f"vllm_path is {launch.command[0]!r}, which cannot be run ({error.strerror}); give vLLM's own command"
        ) from error


def speculation(config: DeploymentConfig) -> dict[str, Any] | None:
    """What ``--speculative-config`` gets; None for plain decoding.

    Raises:
        UsageError: a drafter that vLLM has no counterpart of, or a draft or heads that it cannot load.
    """
    drafter = _drafter(config)
    if drafter == "none":
        return None
    if drafter in HEADS:
        return _heads(config, drafter)
    drafts = {"num_speculative_tokens": config.gamma or DEPTH}
    if drafter == "draft_model":
        return {"method": "draft_model", "model": _draft(config), **drafts}
    shortest = LookupDrafter().min_ngram
    return {"method": "ngram", **drafts, "prompt_lookup_max": LONGEST_NGRAM, "prompt_lookup_min": shortest}


def executable(path: str | None) -> str:
    """The ``vllm`` command, by its whole path.

    Raises:
        MissingPackageError: there is none.
    """
    found = shutil.which(path or "vllm")
    if found is None:
        missing = f"vllm_path is {path!r}, which is no command" if path else "engine vllm finds no command 'vllm'"
        raise MissingPackageError(
            f"{missing}; run: pip install vllm, best in an environment of its own, and give the path of its vllm as "
            "vllm_path or SPECSTREAM_VLLM_PATH"
        )
    return os.path.abspath(found)


def where(model: str) -> str:
    """A model as vLLM loads it: a folder, or a hub id, which every machine of a cluster fetches for itself.

    Raises:
        ModelNotFoundError: nothing answers to the name.
    """
    hub_id = model.count("/") == 1 and not Path(model).expanduser().exists() and model not in catalog()
    return model if hub_id else os.path.abspath(resolve(model))


def shards(arguments: Sequence[str]) -> int:
    """How many parts of the weights vLLM's own arguments ask for, each on a GPU of its own."""
    parts = 1
    words = [piece for word in arguments for piece in (word.split("=", 1) if word.startswith("--") else [word])]
    for name, value in pairwise(words):
        if name in _PARALLEL and value.isdecimal():
            parts *= max(1, int(value))
    return parts


def _drafter(config: DeploymentConfig) -> str:
    """``none``, ``lookup``, ``draft_model`` or one of ``HEADS``."""
    drafter: str = config.drafter
    if drafter == "auto":
        if config.heads is not None:
            drafter = kind_of(config.heads)
        else:
            drafter = "lookup" if config.draft_model is None else "draft_model"
    if drafter not in ("none", "lookup", "draft_model", *HEADS):
        raise UsageError(
            f"drafter is {drafter!r}, which vLLM cannot run; give lookup (its ngram), draft_model, {', '.join(HEADS)}, "
            "or engine: local"
        )
    return drafter


def _draft(config: DeploymentConfig) -> str:
    draft = config.draft_model
    if draft is None:
        raise UsageError("drafter is 'draft_model' and there is no draft_model; give one")
    if draft.startswith(SELF):
        raise UsageError(f"draft_model is {draft!r}, which vLLM cannot run; give a smaller model, or engine: local")
    place, target = where(draft), where(config.source)
    sizes = [_vocabulary(each) for each in (place, target)]
    if None not in sizes and sizes[0] != sizes[1]:
        raise VocabularyMismatchError(
            f"draft_model has {sizes[0]} tokens and the model {sizes[1]}, which vLLM refuses; run: specstream export "
            f"{draft} --to vllm --target {config.source} --output FOLDER, and give that folder"
        )
    return place


def _heads(config: DeploymentConfig, drafter: str) -> dict[str, Any]:
    if config.heads is None:
        raise UsageError(f"drafter is {drafter!r} and there are no heads; give a folder of {drafter} heads")
    if (kind := kind_of(config.heads)) != drafter:
        raise UsageError(f"heads in {config.heads!r} are {kind} and drafter is {drafter!r}; give {drafter} heads")
    settings = read_settings(config.heads)
    if settings.get("truncated_vocab_size", settings.get("vocab_size")) != settings.get("vocab_size"):
        raise UsageError(
            f"heads in {config.heads!r} draft a part of the vocabulary, which vLLM cannot load; run: specstream export "
            f"{config.heads} --to vllm --output FOLDER, and give that folder"
        )
    deepest = _deepest(drafter, settings)
    if deepest is not None and config.gamma is not None and config.gamma > deepest:
        raise UsageError(f"gamma is {config.gamma} and the heads draft {deepest} tokens; give {deepest} or less")
    return {
        "method": drafter,
        "model": os.path.abspath(located(config.heads)),
        "num_speculative_tokens": config.gamma or deepest or depth_of(settings, DEPTH),
    }


def _deepest(drafter: str, settings: Mapping[str, Any]) -> int | None:
    """The most tokens that heads draft in a round; None for EAGLE-3's, whose layer takes as many steps as it is told.

    Raises:
        UnsupportedModelError: a block whose first token is drafted too, which vLLM leaves out; no block size.
    """
    if drafter == "eagle3":
        return None
    if drafter == "medusa":
        return int(settings["num_heads"])
    size = settings.get("block_size", (settings.get("dflash_config") or {}).get("block_size"))
    if size is None or settings.get("sample_from_anchor"):
        named = "has no block_size" if size is None else "has sample_from_anchor"
        raise UnsupportedModelError(f"the head {named}, which vLLM cannot run; give another head, or engine: local")
    return int(size) - 1


def _vocabulary(place: str) -> int | None:
    """The number of tokens of a model in a folder; None if it says none, or is elsewhere."""
    if not Path(place).is_dir():
        return None
    settings = read_settings(place, "model")
    size = settings.get("vocab_size", settings.get("text_config", {}).get("vocab_size"))
    return None if size is None else int(size)


def _notes(config: DeploymentConfig, drafts: Mapping[str, Any] | None) -> list[str]:
    notes = []
    if dropped := [name for name in OURS_ALONE if name in config.model_fields_set]:
        notes.append(f"vLLM has no {', '.join(dropped)}: left out")
    if drafts is not None and config.gamma is None:
        depth = drafts["num_speculative_tokens"]
        notes.append(f"vLLM drafts {depth} tokens in every round, whether it pays or not; gamma sets how many")
    return notes
