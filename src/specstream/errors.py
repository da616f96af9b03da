"""What the package raises on purpose: every message is one line that names the value and the remedy."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from inspect import signature
from math import isfinite
from numbers import Integral, Real
from types import MappingProxyType
from typing import Any


class SpecStreamError(Exception):
    """A failure whose message is meant for the user; `exit_code` is what the command line ends with."""

    exit_code = 1


class UsageError(SpecStreamError, ValueError):
    """A value given by the caller cannot be used."""

    exit_code = 2


class ModelNotFoundError(UsageError):
    """No model answers to this name, folder or hub id."""


class UnsupportedModelError(UsageError):
    """The model exists but cannot be decoded speculatively."""


class VocabularyMismatchError(UsageError):
    """A draft and its target do not share one vocabulary."""


class HeadMismatchError(UsageError):
    """Heads that were trained for another base than the model they were given."""


class NumericalError(SpecStreamError):
    """The model produced numbers that no token can be chosen from."""


class DeviceMemoryError(SpecStreamError):
    """The device has no room for what it was asked to compute."""


class DownloadError(SpecStreamError):
    """A model could not be fetched or written to disk."""


class MissingPackageError(SpecStreamError, ImportError):
    """An optional package is needed and not installed."""


class TrainingError(SpecStreamError):
    """A training run cannot go on."""


def shown(value: object) -> str:
    """A value in a message: one line, and not all of a long one."""
    text = one_line(repr(value))
    return text if len(text) <= 80 else f"{text[:80]}..."


def must_be(fits: bool, name: str, value: object, wanted: str) -> None:
    """Refuse an argument of the wrong kind.

    Args:
        fits: whether it is of the right one.
        name: of the argument.
        value: shown where it is short, else its type is.
        wanted: what to give.

    Raises:
        UsageError: it does not fit.
    """
    if not fits:
        text = one_line(repr(value))
        said = text if len(text) <= 80 and " at 0x" not in text else f"a {type(value).__name__}"
        raise UsageError(f"{name} is {said}; give {wanted}")


def has(value: object, *methods: str) -> bool:
    """Whether a value is an object with these methods; a class that such objects are made of is none."""
    return not isinstance(value, type) and all(callable(getattr(value, each, None)) for each in methods)


def takes(function: Any, *given: Any) -> bool:
    """Whether something can be called with these arguments; of compiled functions that is not always known."""
    try:
        signature(function).bind(*given)
    except ValueError:  # it has no signature
        return True
    except TypeError:
        return False
    return callable(function)


def is_number(value: Any) -> bool:
    """Whether a value is a finite real number; True and False are none, numpy's are."""
    real = value is not True and value is not False and isinstance(value, Real)
    try:
        return real and isfinite(value)
    except OverflowError:  # a whole number that no float holds
        return False


def count_of(name: str, value: Any, least: int = 1) -> int:
    """A count that was given.

    Raises:
        UsageError: it is no whole number, or smaller than the least.
    """
    fits = value is not True and isinstance(value, Integral) and int(value) >= least  # numpy's are such too
    must_be(fits, name, value, f"a whole number from {least} on")
    return int(value)


def reason_of(error: Exception) -> str:
    """What went wrong, in one line: for records of what failed and was not fatal. Our own words need no class."""
    return one_line(error) if isinstance(error, SpecStreamError) else f"{type(error).__name__}: {one_line(error)}"


def counted(number: int, noun: str) -> str:
    """A number of things: ``1 token``, ``2 tokens``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def one_line(value: object) -> str:
    """A text of any number of lines, such as another library's error, as one."""
    return " ".join(str(value).split())


_OURS = {
    # of generation and of engines: transformers, vLLM, llama.cpp
    "max_new_tokens": "max_tokens max_length n_predict num_predict max_gen_len new_tokens",
    "temperature": "temp do_sample sampling",
    "repetition_penalty": "repeat_penalty frequency_penalty presence_penalty",
    "stop": "stop_strings stop_sequences stop_words reverse_prompt",
    "stop_token_ids": "eos_token_id eos stop_tokens",
    "gamma": "k n num_assistant_tokens num_speculative_tokens num_draft_tokens draft_max draft_tokens depth "
    "prompt_lookup_num_tokens speculation_depth lookahead",
    "draft_model": "draft assistant_model assistant speculative_model model_draft drafter_model speculative_config",
    "draft": "draft_model assistant_model assistant speculative_model model_draft drafter_model",
    "quantization": "load_in_8bit load_in_4bit quantization_config quantize bits quant",
    "draft_quantization": "assistant_quantization speculative_quantization",
    "model": "model_name_or_path model_id pretrained model_path model_name target target_model hf_repo",
    "target_model": "model target model_name_or_path base_model",
    "target": "model target_model",
    "model_name": "model model_id served_model_name target_model",
    "dtype": "torch_dtype precision",
    "device": "device_map gpu cuda main_gpu",
    "seed": "random_seed manual_seed",
    "acceptance_threshold": "typical_p posterior_threshold typical",
    "heads": "medusa eagle streams medusa_heads",
    "input_str": "prompt text input",
    "prompts": "prompt prompt_file dataset data input input_file",
    "prompt_file": "file input_file prompts",
    "text": "generated_text output_text",
    "prompt": "text content",
    "token_ids": "sequences ids output_ids tokens",
    "acceptance_rate": "acceptance",
    # of servers
    "max_context": "max_model_len ctx_size n_ctx max_seq_len context_length context_size",
    "max_rows": "max_num_seqs parallel max_batch_size batch_size num_slots",
    "max_tokens": "max_new_tokens max_length n_predict num_predict max_gen_len new_tokens",
    "api_key_file": "api_key",
    "port": "http_port server_port",
    "host": "bind address server_name",
    # of measuring and of training
    "num_runs": "runs repeats iterations trials num_repeats",
    "repeats": "num_runs runs iterations trials num_repeats",
    "limit": "num_samples max_samples num_prompts n_samples",
    "num_prompts": "num_samples limit",
    "num_samples": "num_prompts limit",
    "per_category": "num_samples limit num_prompts",
    "dataset": "task tasks benchmark",
    "task": "tasks dataset",
    "output": "out output_file out_file output_dir save_to",
    "output_dir": "output out out_dir output_path save_dir",
    "learning_rate": "lr",
    "epochs": "num_train_epochs num_epochs",
    "max_length": "max_seq_length max_seq_len model_max_length cutoff_len seq_length block_size",
    "batch_size": "per_device_train_batch_size train_batch_size",
    "num_train_steps": "steps max_steps epochs num_train_epochs num_epochs",
    "per_device_batch_size": "batch_size per_device_train_batch_size train_batch_size",
    "r": "rank lora_r",
    "alpha": "lora_alpha",
    "dropout": "lora_dropout",
    "target_modules": "modules lora_target_modules",
    "set": "override overrides",
    # values
    "float32": "fp32 f32 float single full",
    "bfloat16": "bf16",
    "float16": "fp16 f16 half",
    "int8": "8 8bit q8_0 w8a16",
    "int4": "4 4bit q4_0 q4_k_m nf4 w4a16",
    "lookup": "ngram prompt_lookup pld prompt_lookup_decoding",
    "eagle3": "eagle",
    "json_object": "json",
    "user": "human",
    # commands
    "generate": "run complete infer prompt",
    "evaluate": "eval lm_eval",
    "benchmark": "bench",
    "train": "finetune fine_tune distill",
    "list": "ls",
    "pull": "download get",
}

ELSEWHERE: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {name: tuple(ours for ours in _OURS if name in _OURS[ours].split()) for name in " ".join(_OURS.values()).split()}
)
"""Names that transformers, vLLM, llama.cpp and others have for ours, each with those of ours it may stand for."""


def in_our_measure(name: str, ours: str) -> str:
    """How a setting of another library becomes ours where that counts something else; empty where it does not."""
    counts_others = "epoch" in name and "epoch" not in ours
    return ", and epochs are not counted: steps = epochs * examples / batch" if counts_others else ""


def closest(name: str, known: Iterable[str]) -> str | None:
    """The known name that is most like a misspelt one, if one is."""
    return next(iter(get_close_matches(name.lower(), list(known), n=1, cutoff=0.7)), None)


def meant(name: str, known: Iterable[str], *, alike: bool = True) -> str | None:
    """The known name that one which is not known stands for: ours for that of another library, else the closest.

    Args:
        name: a key or an option; hyphens are as good as underscores.
        known: likewise; what is returned is one of them.
        alike: whether one that is merely spelt alike will do.
    """
    names = {_plain(each): each for each in known}
    for ours in ELSEWHERE.get(_plain(name), ()):
        if ours in names:
            return names[ours]
    like = closest(_plain(name), names) if alike else None
    opposite = like is not None and {_plain(name)[:3], like[:3]} == {"min", "max"}
    return None if like is None or opposite else names[like]


def listed(name: str, known: Iterable[str]) -> str:
    """The known names for the error about another one, with the one that may be meant."""
    names = sorted(known)
    return ", ".join(names) + suggested(name, names)


def suggested(name: str, known: Iterable[str]) -> str:
    """The end of an error that lists the known names: the one that may be meant; empty for none."""
    like = meant(name, known)
    return "" if like is None else f"; did you mean {like!r}{in_our_measure(name, like)}?"


def remedy(message: str, value: object = None) -> str:
    """What a value has to be, of pydantic's message about it, or the one that is meant: 0.7 where 0,7 was given.

    Every option, key of a file, argument and field of a request is refused in these words.
    """
    text = message.removeprefix("Value error, ").split(", unable to ")[0].split(", got a ")[0]
    text = text.split(" after validation")[0].split(" or instance of ")[0]
    text = text.removesuffix(" or object to extract fields from")
    if " is not one of " in text:
        text = "one of " + text.split(" is not one of ", 1)[1].rstrip(".")
        return text + suggested(str(value), re.findall(r"'([^']*)'", text))
    if " should have " in text:
        return "a value that has " + text.split(" should have ", 1)[1]
    number = re.search(r"a valid (integer|number)$", text)
    form = _written_out(value.strip(), whole=number[1] == "integer") if number and isinstance(value, str) else ""
    if form:
        return form
    one = value if isinstance(value, str) and value.isprintable() and len(value) < 40 else "a, b"
    known = {"valid integer": "whole number", "valid number": "number", "valid list": f"list, such as [{one}]"}
    known |= {"valid string": "text"}
    text = text.removeprefix("Input ").removeprefix("should be ")
    for theirs, ours in {**known, "valid dictionary": "mapping of keys to values"}.items():
        text = text.replace(f"a {theirs}", f"a {ours}")
    text = text.replace("a valid boolean", "true or false")
    choices = re.findall(r"'([^']*)'", text) if isinstance(value, str | int) and text.startswith("'") else []
    return f"a value that is {text}{suggested(str(value), choices)}"


_THOUSANDS = {"": 1, "k": 10**3, "m": 10**6}
_UNITS = "(ms|s|secs?|seconds?|m|mins?|minutes?|h|hours?|d|days?|[kmgt]i?b?|bytes?|tok|tokens?|steps?)"


def _written_out(text: str, *, whole: bool) -> str:
    """How a number is to be given that was written as no number is: 1e3, 300k, 25%, 0,7 or 2GB; empty for none."""
    if not whole and re.fullmatch(r"-?\d*,\d+", text):
        return f"{text.replace(',', '.')}, with a point"
    if not whole and re.fullmatch(r"\d+(\.\d+)?%", text):
        return f"{float(text[:-1]) / 100:g}"
    if whole and (parts := re.fullmatch(r"(\d{1,3}(?:,\d{3})+|\d+(?:\.\d+)?(?:e\d)?)([km]?)", text.lower())):
        number = float(parts[1].replace(",", "")) * _THOUSANDS[parts[2]]
        return f"{number:.0f}" if number.is_integer() else ""
    if re.fullmatch(rf"-?\d+(?:\.\d+)?\s*{_UNITS}", text, re.IGNORECASE):
        return f"a {'whole ' if whole else ''}number alone, in the unit that its name or the help says"
    return ""


def _plain(name: str) -> str:
    return name.lstrip("-").replace("-", "_").lower()
