"""What a call of transformers' ``generate`` says beside its prompt: followed, without effect, or refused by name.

``generate`` hands all of it to a callable and says nothing about what the callable ignores. So everything that stands
in no list here and is given a value is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from specstream.errors import UsageError
from specstream.models.architecture import compat


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


FOLLOWED = _names(
    """
    max_length max_new_tokens min_length min_new_tokens max_time stop_strings do_sample num_return_sequences
    temperature top_k top_p min_p top_h typical_p epsilon_cutoff eta_cutoff repetition_penalty
    encoder_repetition_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids renormalize_logits
    forced_bos_token_id forced_eos_token_id remove_invalid_values exponential_decay_length_penalty suppress_tokens
    begin_suppress_tokens sequence_bias guidance_scale watermarking_config return_dict_in_generate pad_token_id
    bos_token_id eos_token_id
    """
)
"""Settings that are followed: most are logits processors and stopping criteria by the time we are called."""

WITHOUT_EFFECT = _names(
    """
    early_stopping length_penalty diversity_penalty num_beam_groups use_cache decoder_start_token_id
    num_assistant_tokens num_assistant_tokens_schedule assistant_confidence_threshold assistant_lookbehind
    target_lookbehind max_matching_ngram_size disable_compile transformers_version
    """
)
"""Settings that change no token of one beam of a decoder-only model, and stand in many checkpoints."""

_CACHES = _names("dynamic static hybrid hybrid_chunked sliding_window")
"""Values of ``cache_implementation`` that say how a cache is laid out, not what is in it; some stand in checkpoints."""

_READ = frozenset({"attention_mask", "position_ids", "logits_to_keep", "use_cache"})
"""Arguments of the model's forward that are followed, or that ``generate`` adds by itself."""


def check_call(model: Any, input_ids: Tensor, config: Any, arguments: Mapping[str, Any]) -> None:
    """Refuse what a call asks for and would not get.

    Args:
        model: whose ``generate`` it is.
        input_ids: ``[rows, width]``.
        config: the prepared generation configuration.
        arguments: what ``generate`` would hand to the model's forward.

    Raises:
        UsageError: the first setting or argument that is not followed, by name.
    """
    if (config.num_beams or 1) > 1:
        raise UsageError(f"num_beams is {config.num_beams}; speculative decoding follows one beam, give num_beams=1")
    known = FOLLOWED | WITHOUT_EFFECT | {"num_beams"}
    for name in vars(GenerationConfig()):  # type: ignore[no-untyped-call]
        value = getattr(config, name, None)
        if name == "cache_implementation" and value in _CACHES:
            continue
        if name not in known and not name.startswith("_") and value is not None and value is not False:
            raise UsageError(f"{name} is {value!r}, which speculative decoding does not follow; leave it out")
    _check_arguments(model, arguments)
    _check_mask(input_ids, arguments.get("attention_mask"))
    _check_positions(input_ids, arguments)
    _check_adapters(model)


def check_length(prompts: list[list[int]], max_new_tokens: int, context_length: int | None) -> None:
    """Refuse tokens beyond the context: a shorter output than was asked for would look like a finished one.

    Raises:
        UsageError: so many do not fit.
    """
    longest = max(map(len, prompts))
    room = None if context_length is None else context_length - longest
    if room is not None and 0 < room < max_new_tokens:
        raise UsageError(
            f"max_new_tokens is {max_new_tokens} behind a prompt of {longest} tokens, and the model's context holds "
            f"{context_length}; give {room} or fewer"
        )


def _check_arguments(model: Any, arguments: Mapping[str, Any]) -> None:
    for name, value in arguments.items():
        if name in _READ or _says_nothing(value) or _says_text(model, name, value):
            continue
        if name in compat.CACHE_ARGUMENTS:
            if compat.is_fresh(value):
                continue
            raise UsageError(f"{name} is given; SpecStream keeps a cache of its own, so give the whole text instead")
        given = "an image or a video" if name == "mm_encoder_outputs" else name  # generate has encoded it
        raise UsageError(
            f"{given} is given, and speculative decoding reads token ids, no images or sound; leave it out"
        )


def _says_nothing(value: Any) -> bool:
    return value is None or value is False or (isinstance(value, dict) and not value)


def _says_text(model: Any, name: str, value: Any) -> bool:
    """Whether these are the token types of an image model's processor, and they say that everything is text."""
    multimodal = compat.text_config(model) is not model.config
    named = name == "mm_token_type_ids" or (name == "token_type_ids" and multimodal)
    return named and isinstance(value, Tensor) and not bool(value.any())


def _check_mask(input_ids: Tensor, mask: Tensor | None) -> None:
    if mask is None:
        return
    if mask.shape != input_ids.shape:
        raise UsageError(f"attention_mask is {tuple(mask.shape)} and the prompts are {tuple(input_ids.shape)}")
    kept = mask.bool()
    if bool((kept[:, :-1] & ~kept[:, 1:]).any()):
        raise UsageError("attention_mask hides tokens behind others; pad on the left: tokenizer.padding_side='left'")


def _check_positions(input_ids: Tensor, arguments: Mapping[str, Any]) -> None:
    """They have to be the ones that ``generate`` prepares: a tree's nodes get theirs by their depth."""
    positions = arguments.get("position_ids")
    if positions is None:
        return
    mask = arguments.get("attention_mask")
    kept = torch.ones_like(input_ids, dtype=torch.bool) if mask is None else mask.bool()
    expected = kept.long().cumsum(-1) - 1
    fits = positions.shape[-1] == expected.shape[-1]
    if not fits or not bool(((positions == expected) | ~kept).all()):
        raise UsageError("position_ids are not those of the tokens' places; leave them out")


def _check_adapters(model: Any) -> None:
    """What PEFT adds by the inputs that its own generate prepares, or row by row of a batch that stays as it is."""
    owner = getattr(model.prepare_inputs_for_generation, "__self__", None)
    config: Any = getattr(owner, "active_peft_config", None)
    if getattr(config, "is_prompt_learning", False):
        kind = str(getattr(config.peft_type, "value", config.peft_type))
        raise UsageError(f"{kind} of PEFT puts virtual tokens before the prompt, which speculative decoding does not")
    keywords = (getattr(hook, "keywords", {}) for module in model.modules() for hook in compat.hooks_of(module))
    if any({"adapter_names", "alora_offsets"} & given.keys() for given in keywords):
        raise UsageError(
            "adapters of PEFT are chosen for each row (adapter_names, aLoRA), and rows advance at their own pace; "
            "choose one for all rows: set_adapter()"
        )
