"""Options that a command has not because what they set is elsewhere: in its file, in vLLM, or nowhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module

from specstream.errors import meant

_FILES: Mapping[str, tuple[str, str]] = {
    "train": ("specstream.training.config", "TrainConfig"),
    "benchmark": ("specstream.evaluation.benchmark.config", "BenchmarkConfig"),
    "profile": ("specstream.evaluation.benchmark.config", "BenchmarkConfig"),
    "evaluate": ("specstream.evaluation.evaluate_config", "EvaluationConfig"),
    "router collect": ("specstream.training.router_config", "CollectConfig"),
    "router train": ("specstream.training.router_config", "RouterTrainConfig"),
}
"""What the files of commands hold, by the commands that take ``--set``; imported when one is asked about."""

_TOLD: Mapping[str, str] = {
    "num-beams": "one beam is decoded, leave it out",
    "num-return-sequences": "one text is decoded, leave it out",
    "resume-from-checkpoint": "the same command goes on with a run that was stopped, leave it out",
}
"""Options of transformers that no command has, and what to do instead."""


def advice(option: str, verb: str) -> str:
    """What to do in place of an option that no option of the command stands for; empty if nobody knows.

    Args:
        option: as it was typed, dashes included.
        verb: the command, after ``specstream``.
    """
    name = option.lstrip("-").replace("_", "-")
    if name in _TOLD:
        return _TOLD[name]
    if verb == "benchmark heads" and name == "heads":
        return "give --streams or --medusa"
    if verb == "serve":
        return f"what vLLM gets stands behind --: --engine vllm -- {option}"
    if verb in _FILES and (setting := _setting(name.replace("-", "_"), verb)):
        return f"give --set {setting}={'[FILE]' if setting.endswith('.files') else 'VALUE'}"
    return ""


def _setting(name: str, verb: str) -> str | None:
    """The setting of a command's file that an option stands for, with its section."""
    places = dict(_places(verb))
    found = name if name in places else meant(name, places)
    return None if found is None else places[found]


def _places(verb: str) -> Iterator[tuple[str, str]]:
    """Keys of a command's file with their whole names; a section of files is called by its own name too."""
    from specstream.files.yaml_file import NAME, sections_of

    module, kind = _FILES[verb]
    sections = sections_of(getattr(import_module(module), kind))
    for path, keys in reversed(sections.items()):  # of two homes of a key the first counts
        if NAME not in path:
            yield from ((key, f"{path}.{key}".lstrip(".")) for key in keys)
    yield from ((path, f"{path}.files") for path, keys in sections.items() if "files" in keys)
