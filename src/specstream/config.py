"""Typed, validated settings. An unknown key is an error, and every error names the value and the remedy."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from specstream.core.sampling import LogitsProcessor, Sampling
from specstream.environment import check_free
from specstream.errors import UsageError, listed, meant, remedy, shown
from specstream.files.yaml_file import Section, takes_numbers

DrafterName = Literal[
    "auto",
    "none",
    "lookup",
    "recycling",
    "lookahead",
    "streams",
    "medusa",
    "block",
    "eagle3",
    "dflash",
    "draft_model",
    "mixed",
    "router",
]


def truth_value(kind: type[BaseModel], values: Mapping[str, Any]) -> str | None:
    """The first field that is True or False where a number is wanted, which pydantic takes for 1 and 0."""
    fields = kind.model_fields
    given = (name for name, value in values.items() if isinstance(value, bool) and name in fields)
    return next((name for name in given if takes_numbers(fields[name].annotation)), None)


def _check_processors(processors: Any) -> None:
    for each in processors if isinstance(processors, list | tuple) else ():
        if isinstance(each, type):
            raise UsageError(f"logits_processor has the class {each.__name__}; give one that is made of it")
        try:
            signature(each).bind(None, None)
        except ValueError:  # compiled ones may have no signature
            continue
        except TypeError as error:
            if callable(each):
                name = getattr(each, "__name__", type(each).__name__)
                raise UsageError(
                    f"logits_processor has {name}: {error}; give functions of input_ids and scores"
                ) from None


class _Settings(Section):
    """Settings of which a wrong one is refused in one line."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    if not TYPE_CHECKING:  # for whom the fields are the arguments

        def __init__(self, **values: Any) -> None:
            if (name := truth_value(type(self), values)) is not None:
                raise UsageError(f"{name} is {values[name]}; give a number, or leave it out")
            _check_processors(values.get("logits_processor"))
            try:
                super().__init__(**values)
            except ValidationError as error:
                raise _refusal(type(self), error) from None


class SamplingSettings(TypedDict, total=False):
    """Keyword arguments of ``generate`` and ``stream``; see ``GenerationConfig``."""

    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    seed: int | None
    stop: str | list[str]
    stop_token_ids: list[int]
    include_stop_str_in_output: bool
    skip_special_tokens: bool
    ignore_eos: bool
    prediction: str | list[int] | None
    logits_processor: list[LogitsProcessor]


DEEPEST, UNMEASURED = 16, 5
"""How deep trees may be where the controller decides by what pays, and where nothing is measured."""


class EngineSettings(SamplingSettings, total=False):
    """Keyword arguments of ``SpeculativeEngine``; see ``EngineConfig`` and ``GenerationConfig``."""

    drafter: DrafterName
    gamma: int | None
    max_speculation_depth: int | None
    branches: int
    lookahead_window: int
    lookahead_ngram: int
    lookahead_guesses: int
    adaptive: bool
    draft_quantization: Literal["auto", "none", "int8", "int4"]
    quantization: Literal["none", "int8", "int4"]
    heads: str | None
    router: str | None
    router_state: str | None
    memory: bool | str
    prefix_cache_gb: float
    pruning: float | None
    acceptance_threshold: float | None
    device: str
    dtype: Any
    torch_dtype: Any
    runtime: Literal["auto", "eager", "native", "packed", "graphs", "static"]
    exact: Literal["bits", "rounding"]
    use_cache: bool
    measure_baseline: bool


def _all_for_zero(value: Any) -> Any:
    """What keeps all tokens, of a 0 that others write for it."""
    return 1.0 if isinstance(value, int | float) and not isinstance(value, bool) and value == 0 else value


class GenerationConfig(_Settings):
    """How one generation goes. Names are those of transformers, defaults are not: greedy, and all tokens are kept.

    transformers' own ``top_k`` is 50, which here is so only where the checkpoint says it.
    What is not given of ``repetition_penalty``, ``top_k``, ``top_p`` and ``min_p`` is as the checkpoint's own
    generation configuration says, and tokens that it forbids stay forbidden. ``repetition_penalty=1.0`` is without.

    Attributes:
        max_new_tokens: never one more than this.
        temperature: 0 is greedy decoding.
        top_k: keep the k likeliest tokens; 0 keeps all.
        top_p: keep the smallest set of tokens whose probability reaches this; 0 and 1 keep all.
        min_p: drop tokens less likely than this times the likeliest.
        repetition_penalty: above 1 makes tokens of the context less likely.
        seed: fixes the draws; row i of a batch uses ``seed + i``. None takes a fresh seed.
        stop: strings that end the text and are left out of it; special tokens may stand in them.
        stop_token_ids: tokens that end the text as an end of sequence does, with ``ignore_eos`` too.
        include_stop_str_in_output: leave what ended the text in it.
        skip_special_tokens: leave special tokens out of the text.
        ignore_eos: go on past the end-of-sequence token (for measuring).
        prediction: a text, or its tokens, that the answer may largely repeat: drafters that look up copy from it.
        logits_processor: any transformers ``LogitsProcessor``, called in order.
    """

    max_new_tokens: int = Field(default=100, ge=1)
    temperature: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    top_k: int = Field(default=0, ge=0)
    top_p: Annotated[float, BeforeValidator(_all_for_zero)] = Field(default=1.0, gt=0, le=1)
    min_p: float = Field(default=0.0, ge=0, le=1)
    repetition_penalty: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    stop: str | list[str] = Field(default_factory=list)
    stop_token_ids: list[Annotated[int, Field(ge=0)]] = Field(default_factory=list)
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    ignore_eos: bool = False
    prediction: str | list[int] | None = None
    logits_processor: list[Callable[..., Any]] = Field(default_factory=list)

    @field_validator("stop")
    @classmethod
    def _no_empty_stop(cls, stop: str | list[str]) -> str | list[str]:
        """Every text has the empty one in it, which would end it before its first token."""
        if "" in ([stop] if isinstance(stop, str) else stop):
            raise ValueError("not empty, or leave it out")
        return stop

    @property
    def stop_strings(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop

    def sampling(self) -> Sampling:
        return Sampling(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            processors=tuple(self.logits_processor),
        )


class EngineConfig(_Settings):
    """How an engine speculates, and the defaults of its generations.

    Attributes:
        generation: defaults that ``generate`` and ``stream`` may override.
        drafter: ``auto`` is what the heads or the draft model are for that are given, else ``lookup``, together with
            streams where some are shipped for the model; ``mixed`` is ``lookup`` with what is given, each step by
            expected profit; ``router`` takes for each prompt what it expects most of.
        gamma: how deep any drafter may draft in a round (Leviathan's gamma, ``-K``): tokens of a chain, passes of a
            draft model, streams or heads that are used, of those that there are. None leaves it to what is measured, up
            to ``DEEPEST``, and is ``UNMEASURED`` where nothing is (see ``adaptive``).
        max_speculation_depth: another name for the same limit; where both are given, the smaller holds.
        branches: candidates per step of ``lookup`` and of draft models; 1 drafts chains, more drafts trees. What drafts
            trees of a shape of its own refuses it.
        lookahead_window: positions that ``lookahead`` guesses ahead, the paper's W; the last is ``lookahead_window +
            lookahead_ngram - 3`` tokens deep; only those within ``max_speculation_depth`` are used. On a GPU more of
            them pay; the paper has 15.
        lookahead_ngram: tokens of its n-grams, the paper's N.
        lookahead_guesses: most n-grams that it has verified in one pass, the paper's G.
        adaptive: measure what passes and drafts cost and how often drafts are accepted, and speculate only as deep as
            pays, down to not at all. False always drafts as deep as allowed. A generation that samples with a seed
            is never adaptive: it must repeat, and times do not.
        draft_quantization: ``int8`` and ``int4`` read the draft's weights from fewer bits: less memory traffic, and the
            output cannot change, only the acceptance. ``auto`` is, on the CPU for drafts given by name, int4 from 256
            million parameters on, else int8; those in blocks stay, but for large ones of 5.5 bits or more, in int4.
        quantization: of the target, on the CPU: ``int8`` and ``int4`` read the weights of its linear layers from a copy
            in fewer bits, which makes it faster and another model: the output is exactly that one's own, whatever
            drafts (docs/quantization.md). ``SpeculativeEngine.release`` gives back the memory of what was copied.
        heads: a folder of heads that were trained for this very model: ``streams`` or ``medusa``; None takes those that
            are shipped, where ``drafter`` asks for them.
        router: the folder of a router that was trained for this very model (docs/router.md).
        router_state: the file in which a router keeps what it learns on; None keeps it in memory.
        memory: ``lookup`` copies from the answers of ``generate`` and ``stream`` so far too, for rows that decode
            greedily; a text names the file that keeps them, the newest 262,144 tokens. False copies from a row's own
            text alone. Measurements never add to it.
        prefix_cache_gb: most memory (10**9 bytes) for keys and values of earlier texts, of ``generate`` and ``stream``
            alike, draft models' included. A prompt that begins as one of them is read from there on; no output changes.
            0 reads every prompt anew, as measurements always do. Only the native runtime has one.
        pruning: ``streams`` drop drafts that their early exit finds less likely than this; None drops nothing.
        acceptance_threshold: None is lossless; a number turns on typical acceptance, which changes the output.
        device: ``auto`` is the GPU if there is one. A model object stays where it is, and another device is refused; so
            is a draft object on another device than the target.
        dtype: of the models given by name; ``auto`` is the checkpoint's, or float32 on a CPU that would emulate it. A
            model object, the draft too, stays what it is, and another dtype is refused. Without ``dtype`` a draft may
            have another one than the target: no token changes.
        runtime: how passes run; ``auto`` takes the fastest that fits (``graphs`` on CUDA). ``static`` is for debugging.
        exact: ``bits`` pads passes to widths that are bit-equal; ``rounding`` pads nothing.
        use_cache: False recomputes the whole context in every pass, as in transformers: slow, for debugging.
        measure_baseline: decode some tokens more without drafts, once for each batch size, so that ``speedup`` is
            against a measurement. False takes what the policy knows of plain passes.
    """

    generation: GenerationConfig = GenerationConfig()
    drafter: DrafterName = "auto"
    gamma: int | None = Field(default=None, ge=1)
    max_speculation_depth: int | None = Field(default=None, ge=1)
    branches: int = Field(default=1, ge=1)
    lookahead_window: int = Field(default=4, ge=1)
    lookahead_ngram: int = Field(default=4, ge=2)
    lookahead_guesses: int = Field(default=4, ge=1)
    adaptive: bool = True
    draft_quantization: Literal["auto", "none", "int8", "int4"] = "auto"
    quantization: Literal["none", "int8", "int4"] = "none"
    heads: str | None = None
    router: str | None = None
    router_state: str | None = None
    memory: bool | str = True
    prefix_cache_gb: float = Field(default=0.5, ge=0, allow_inf_nan=False)
    pruning: float | None = Field(default=None, gt=0, lt=1)
    acceptance_threshold: float | None = Field(default=None, gt=0, lt=1)
    device: str = "auto"
    dtype: Any = "auto"
    runtime: Literal["auto", "eager", "native", "packed", "graphs", "static"] = "auto"
    exact: Literal["bits", "rounding"] = "bits"
    use_cache: bool = True
    measure_baseline: bool = False

    @field_validator("memory")
    @classmethod
    def _under_home(cls, memory: bool | str) -> bool | str:
        """As models are, which a shell does for options."""
        return os.path.expanduser(memory) if isinstance(memory, str) else memory


def engine_config(settings: EngineSettings) -> EngineConfig:
    """Keyword arguments as a configuration.

    Raises:
        UsageError: an unknown name, or a value outside its range.
    """
    given: dict[str, Any] = {name: str(value) if isinstance(value, Path) else value for name, value in settings.items()}
    _check_by_name(given)
    generation = {name: given.pop(name) for name in GenerationConfig.model_fields if name in given}
    if "torch_dtype" in given:  # transformers' older name
        older = given.pop("torch_dtype")
        if str(given.setdefault("dtype", older)) != str(older):  # whatever they are: that is refused later
            raise UsageError(f"dtype is {given['dtype']!r} and torch_dtype is {older!r}; give one of them")
    if "device" in given and not isinstance(given["device"], str):
        given["device"] = str(given["device"])  # a torch.device
    return EngineConfig(**{**given, "generation": GenerationConfig(**generation)})


_KEEPS_ALL = {"top_k": (0,), "top_p": (0, 1), "min_p": (0,)}
"""What says of a setting of sampling that it is off."""


def check_prefix_cache(gigabytes: float, device: str) -> None:
    """Refuse more memory for earlier texts than is free. The default is nobody's choice, and may have to be freed.

    Raises:
        UsageError: so it is, with the numbers.
    """
    if gigabytes > EngineConfig.model_fields["prefix_cache_gb"].default:
        check_free("prefix_cache_gb", gigabytes, device)


def target_as_draft(name: str) -> str:
    """The note about a draft model that is the target, by its name."""
    return (
        f"draft_model is {name!r}, the target itself, and a draft of it costs what its own pass does; give a "
        "smaller model, or draft_model='self:int8'"
    )


def without_effect(temperature: float, **given: Any) -> str | None:
    """Says of settings of sampling that nothing comes of them in greedy decoding; None where nothing is to be said.

    Args:
        temperature: 0 is greedy decoding.
        **given: settings of sampling; None and what keeps all tokens are as if not given.
    """
    said = {name: value for name, value in given.items() if value is not None}
    idle = [f"{name} is {value}" for name, value in said.items() if value not in _KEEPS_ALL.get(name, ())]
    if temperature > 0 or not idle:
        return None
    return f"{' and '.join(idle)}, without effect at temperature 0; give temperature=0.7, or another above 0"


def with_settings(config: EngineConfig, settings: Mapping[str, Any]) -> EngineConfig:
    """A configuration with other settings of the engine.

    Raises:
        UsageError: an unknown name, or a value outside its range.
    """
    return EngineConfig(**{**dict(config), **settings})


def generation_config(defaults: GenerationConfig, settings: SamplingSettings) -> GenerationConfig:
    """The engine's defaults with one call's overrides.

    Raises:
        UsageError: an unknown name, or a value outside its range.
    """
    _check_by_name(settings)
    given = {name: getattr(defaults, name) for name in defaults.model_fields_set}  # the rest is the checkpoint's to say
    return GenerationConfig(**{**given, **settings}) if settings else defaults


def _check_by_name(settings: Mapping[str, Any]) -> None:
    """Refuse the settings of a generation as one object: each has a name here."""
    for name in ("generation", "generation_config"):
        if name in settings:
            value = shown(settings[name])
            raise UsageError(f"{name} is {value}; give its settings by name, such as max_new_tokens=100")


_INSTEAD = {
    "streamer": "engine.stream(prompt) gives the text piece by piece",
    **dict.fromkeys(("num_return_sequences", "n", "best_of"), "give the prompt so many times, in a list"),
    "generator": "give seed=, a whole number",
    "stopping_criteria": "give stop=, texts, or stop_token_ids=",
    "no_repeat_ngram_size": "give logits_processor=[NoRepeatNGramLogitsProcessor(n)], of transformers",
    **dict.fromkeys(
        ("suppress_tokens", "bad_words_ids", "sequence_bias", "forced_eos_token_id", "min_new_tokens"),
        "give logits_processor=, a list of transformers' own",
    ),
    **dict.fromkeys(
        ("num_beams", "num_beam_groups", "length_penalty", "early_stopping"), "one beam is decoded; leave it out"
    ),
    "assistant_tokenizer": "a draft has the target's vocabulary; leave it out",
    "pad_token_id": "leave it out: nothing is padded",
    "stream": "engine.stream(prompt) gives the text piece by piece",
    **dict.fromkeys(
        ("prompt", "prompts", "text", "messages", "inputs"), "give the prompt as the first argument of generate"
    ),
    **dict.fromkeys(("n_runs", "runs", "repeats", "iterations"), "benchmark counts its rounds by num_runs"),
    "draft_model": "give it to SpeculativeEngine, or to speculative_decode as its draft",
    "input_ids": "give what the tokenizer returned as one argument, the prompt",
    "attention_mask": "give what the tokenizer returned as one argument, the prompt",
    **dict.fromkeys(
        (
            *("revision", "token", "trust_remote_code", "attn_implementation", "cache_dir", "subfolder", "max_memory"),
            *("local_files_only", "low_cpu_mem_usage", "use_safetensors", "offload_folder", "torch_compile"),
        ),
        "load the model with transformers, and give model and tokenizer",
    ),
}
"""What is no setting here and is one of transformers' ``generate``, and what does it."""


def _refusal(kind: type[BaseModel], error: ValidationError) -> UsageError:
    first = error.errors()[0]
    field, *places = first["loc"]
    name = ".".join([str(field), *(str(at) for at in places if isinstance(at, int))])  # not "str" of str | list
    if first["type"] == "extra_forbidden":
        if name in EngineConfig.model_fields:
            return UsageError(f"{name} is a setting of the engine; give it to SpeculativeEngine")
        known = {*kind.model_fields, *GenerationConfig.model_fields} - {"generation"}
        own = {"draft_model"} if kind is EngineConfig else set()
        engines = meant(name, {*EngineConfig.model_fields, "draft_model"}) if meant(name, known | own) is None else None
        if name not in _INSTEAD and engines is not None:
            return UsageError(f"unknown setting {name!r}; give {engines} to SpeculativeEngine")
        known_names = _INSTEAD[name] if name in _INSTEAD else f"known are {listed(name, known | own)}"
        return UsageError(f"unknown setting {name!r}; {known_names}")
    wanted = remedy(first["msg"], first["input"])
    if name == "memory":
        wanted = "True, False or the name of a file"
    if name in ("heads", "router"):
        wanted = "a folder"
        if hasattr(first["input"], "save"):
            wanted = "a value that is a folder: heads.save(FOLDER), then heads=FOLDER"
    if name == "drafter" and hasattr(first["input"], "config"):
        wanted = "the name of a drafter; a model that drafts is given as draft_model="
    if str(field) == "stop_token_ids" and isinstance(first["input"], str):
        wanted = "a token id; a text that ends the output is given as stop="
    return UsageError(f"{name} is {shown(first['input'])}; give {wanted}")
