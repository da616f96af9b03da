"""Options that a command has not because what they set is elsewhere: in its file, in vLLM, or nowhere."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from importlib import import_module

from specstream.environment import PREFIX
from specstream.errors import in_our_measure, meant

_FILES: Mapping[str, tuple[str, str]] = {
    "train": ("specstream.training.config", "TrainConfig"),
    "benchmark": ("specstream.evaluation.benchmark.config", "BenchmarkConfig"),
    "profile": ("specstream.evaluation.benchmark.config", "BenchmarkConfig"),
    "evaluate": ("specstream.evaluation.evaluate_config", "EvaluationConfig"),
    "router collect": ("specstream.training.router_config", "CollectConfig"),
    "router train": ("specstream.training.router_config", "RouterTrainConfig"),
}
"""What the files of commands hold, by the commands that take ``--set``; imported when one is asked about."""

_NAMES: Mapping[str, str] = {
    "one beam is decoded, leave it out": "num-beams",
    "one text is decoded, leave it out": "num-return-sequences best-of",
    "the same command goes on with a run that was stopped, leave it out": "resume-from-checkpoint",
    "the context is the model's own, leave it out": "ctx-size max-model-len n-ctx context-length max-seq-len num-ctx",
    "give --draft MODEL, or --drafter lookup": "speculative-config spec-config spec-type",
    "nothing has to be switched on, leave it out": "enable-lora enable-auto-tool-choice enable-prefix-caching jinja fa "
    "flash-attn flash-attention enable-chunked-prefill",
    "the model's own template is used, leave it out": "chat-template chat-template-file",
    "the hub's newest revision is taken, for another one give the folder of a copy": "revision",
    "hf auth login keeps the token, leave it out": "token hf-token",
    "the attention that fits is chosen, leave it out": "attn-implementation attention-backend",
    "give --device cuda to use the GPU": "ngl n-gpu-layers gpu-layers gpu-memory-utilization gpus cuda",
    "set OMP_NUM_THREADS in the environment": "threads num-threads n-threads",
    "what is noted goes to the standard error, 2>/dev/null hides it": "quiet silent q no-progress",
    "give --debug for the traceback of an error": "verbose v",
    "code of a model is not run, leave it out": "trust-remote-code",
    "text is shown as it is made, leave it out": "stream streaming",
    "generate, compare, audit and serve have it, benchmark has --set target.quantization=int8": "quantization",
}
"""What to do instead of options that transformers, vLLM, llama.cpp and others have and no command here has."""

_TOLD: Mapping[str, str] = {name: told for told, names in _NAMES.items() for name in names.split()}

_OF_VERBS: Mapping[str, str] = {
    "generate --output": "the text goes to the standard output, > FILE writes it",
    "generate -o": "the text goes to the standard output, > FILE writes it",
    "generate --prompts": "give --prompt-file FILE, of one prompt",
    "generate --no-memory": "an answer is kept only where --memory names a file, leave it out",
    "serve --no-memory": "an answer is kept only where --memory names a file, leave it out",
    **dict.fromkeys(("chat --prompt", "chat -p", "chat --json"), "give specstream generate for one answer"),
    "chat --save": "give /save FILE in the conversation",
    **dict.fromkeys(("quantize --quantization", "quantize --dtype"), "give --bits int8 or --bits int4"),
    "make-head --model": "give the model alone, make-head MODEL",
    "make-head -m": "give the model alone, make-head MODEL",
    "quantize --model": "give the model alone, quantize MODEL",
    "quantize -m": "give the model alone, quantize MODEL",
    "quantize --force": "what is there is kept, give a new folder, leave it out",
    "quantize --group-size": "groups have 32 weights, leave it out",
    "compare --prompts": "give --input-str TEXT, or --input-str - < FILE",
    "compare --output": "give --json > FILE",
    "compare -o": "give --json > FILE",
    "compare --batch-size": "one prompt is decoded, benchmark heads has --batch-size",
    "doctor --output": "give --json > FILE",
    "doctor -o": "give --json > FILE",
    "doctor --fix": "nothing is changed, what is to be mended is printed with its remedy, leave it out",
    **dict.fromkeys(
        (f"doctor --{name}" for name in ("device", "gpu", "gpus", "cuda")),
        "the processor and every GPU are looked at, leave it out",
    ),
    **dict.fromkeys(
        (f"audit --{name}" for name in ("num-prompts", "num-samples", "limit", "max-samples")),
        "all prompts of the file are decoded, give a file of fewer",
    ),
    "audit --prompt": "give the prompt alone, in quotes, or a file of some as --prompts",
    "audit -p": "give the prompt alone, in quotes, or a file of some as --prompts",
    "report --json": "the figures are in each run's summary.json, leave it out",
    "demo --share": "no link is published, --host 0.0.0.0 opens the page to the network",
    "models list --all": "all are listed, leave it out",
    "models list --format": "give --json",
    "models pull --force": "what is here is kept, delete the folder that pull prints to fetch it again",
    **dict.fromkeys(("models pull -o", "models pull --output"), "SPECSTREAM_MODELS names the folder, leave it out"),
    "models pull --name": "give the name alone, models pull NAME",
    **dict.fromkeys(
        (f"models {name}" for name in ("rm", "remove", "delete", "prune")),
        "delete the folder that specstream models pull NAME prints",
    ),
    **dict.fromkeys((f"models {name}" for name in ("show", "info", "inspect")), "give specstream doctor --model NAME"),
    "benchmark heads --num-runs": "every prompt is answered once by each drafter, --per-category sets how many",
    "benchmark heads --heads": "give --streams, --medusa, --block, --eagle3 or --dflash",
    "benchmark heads --task": "give specstream benchmark task",
    "benchmark heads --data": "give --prompts",
    "serve -n": "give --max-tokens",
    "serve --workers": "one process serves all, leave it out; --max-rows answers are decoded side by side",
    "serve --reload": "leave it out",
    " -v": "give --version",
    " -V": "give --version",
    "tune --drafter": "all that are at hand are tried, leave it out",
    "tune --temperature": "greedy decoding is tuned, leave it out",
    "tune -t": "greedy decoding is tuned, leave it out",
    "evaluate --num-fewshot": "a task's own prompts are asked, leave it out",
    "benchmark task --prompts": "give --data",
    "benchmark task --drafter": "give specstream benchmark heads",
}
"""What to do instead of an option, or a command, that one command has not."""

SHORT: Mapping[str, str] = {
    "o": "output",
    "m": "model",
    "n": "max-new-tokens",
    "K": "gamma",
    "t": "temperature",
    "d": "draft",
    "p": "prompt",
    "b": "batch-size",
}
"""What short options stand for where a command, or its file, has the long ones alone."""


def told_of(option: str, verb: str) -> str:
    """What to do instead of an option, or a command, that this one alone has not; empty if it is none of these."""
    return _OF_VERBS.get(f"{verb} {option.replace('_', '-')}", "")


def advice(option: str, verb: str) -> str:
    """What to do in place of an option that no option of the command stands for; empty if nobody knows.

    Args:
        option: as it was typed, dashes included.
        verb: the command, after ``specstream``.
    """
    name = option.lstrip("-").replace("_", "-")
    if verb == "serve" and name.replace("-", "_") in _served():
        key = name.replace("-", "_")
        return f"give {key} in a --config file, or {PREFIX}{key.upper()}"
    if verb == "serve":
        own = told_of_others(option)
        return f"{own}{'; ' if own else ''}what vLLM gets stands behind --: --engine vllm -- {option}"
    if verb in _FILES and (setting := _setting(SHORT.get(name, name).replace("-", "_"), verb)):
        if "=" in setting:
            return f"give --set {setting}"
        return (
            f"give --set {setting}={'[FILE]' if setting.endswith('.files') else 'VALUE'}{in_our_measure(name, setting)}"
        )
    return told_of_others(option)


def told_of_others(option: str) -> str:
    """What to do in place of an option of another tool's that no command here has; empty if it is none of these."""
    return _TOLD.get(option.lstrip("-").replace("_", "-"), "")


def _served() -> Collection[str]:
    """The settings of a server, of which not all have an option."""
    from specstream.serving.deployment import DeploymentConfig

    return DeploymentConfig.model_fields


def _setting(name: str, verb: str) -> str | None:
    """The setting of a command's file that an option stands for, with its section."""
    places = dict(_places(verb))
    found = name if name in places else meant(name, places)
    return None if found is None else places[found]


def _places(verb: str) -> Iterator[tuple[str, str]]:
    """Keys of a command's file with their whole names; a section of files is called by its own name too."""
    from specstream.files.yaml_file import NAME, list_of, sections_of

    module, kind = _FILES[verb]
    whole = getattr(import_module(module), kind)
    sections = sections_of(whole)
    for path, keys in reversed(sections.items()):  # of two homes of a key the first counts
        if NAME in path:
            continue
        needed = list_of(whole, path.split(".")) if path else None
        for key in keys:
            if f"{path}.{key}".lstrip(".") in {each.removesuffix(f".{NAME}") for each in sections}:
                continue  # a section is no value
            if needed is None:
                yield key, f"{path}.{key}".lstrip(".")
            else:  # --set gives a list as a whole
                values = ", ".join(f"{each}: {each.upper()}" for each in dict.fromkeys([*needed, key]))
                yield key, f"'{path}=[{{{values}}}]'"
    yield from ((path, f"{path}.files") for path, keys in sections.items() if "files" in keys)
