"""What a checkpoint's own generation configuration says of the next token, for those who do not call ``generate``."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import transformers as hf

from specstream.core.sampling import LogitsProcessor, Sampling
from specstream.errors import UsageError, shown
from specstream.models.architecture import compat

SETTINGS = ("repetition_penalty", "top_k", "top_p", "min_p")
FORBIDS = ("no_repeat_ngram_size", "bad_words_ids", "suppress_tokens")
_UNFOLLOWED = (
    *("min_length", "min_new_tokens", "forced_eos_token_id", "exponential_decay_length_penalty", "stop_strings"),
    *("begin_suppress_tokens", "encoder_repetition_penalty", "encoder_no_repeat_ngram_size", "sequence_bias"),
    *("guidance_scale", "watermarking_config", "typical_p", "epsilon_cutoff", "eta_cutoff", "top_h", "num_beams"),
)


@dataclass(frozen=True, kw_only=True)
class CheckpointRules:
    """Rules that hold unless a caller says otherwise, as in transformers.

    Attributes:
        settings: ``repetition_penalty``, ``top_k``, ``top_p`` and ``min_p``, as far as the checkpoint has them.
        processors: what it forbids: ``no_repeat_ngram_size``, ``bad_words_ids``, ``suppress_tokens``.
        unfollowed: the rest of its rules, as a warning says them.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    processors: tuple[LogitsProcessor, ...] = ()
    unfollowed: tuple[str, ...] = ()

    def applied(self, given: Sampling, said: Collection[str]) -> Sampling:
        """How tokens are chosen: as was given, and where nothing was said, as the checkpoint does.

        Raises:
            UsageError: a rule of the checkpoint has no meaning.
        """
        for rule in self.unfollowed:
            compat.warn_once(
                f"the checkpoint's {rule}, which an engine does not follow; custom_generate does or refuses it"
                + compat.advice_if_untested()
            )
        unsaid = {name: value for name, value in self.settings.items() if name not in said}
        try:
            return replace(given, **unsaid, processors=(*self.processors, *given.processors))
        except (TypeError, ValueError) as error:
            raise _meaningless(error, unsaid) from error


def checkpoint_rules(model: Any) -> CheckpointRules:
    """Those of a model as its generation configuration stands now.

    Raises:
        UsageError: one of them has no meaning.
    """
    own, usual = getattr(model, "generation_config", None), hf.GenerationConfig()  # type: ignore[no-untyped-call]
    said = {
        name: value
        for name in (*SETTINGS, *FORBIDS, *_UNFOLLOWED, "eos_token_id")
        if (value := getattr(own, name, None)) is not None and value != getattr(usual, name, None)
    }
    # 1 is a penalty, a scale or a number of beams without effect.
    rest = tuple(f"{name} is {said[name]!r}" for name in _UNFOLLOWED if said.get(name) and said[name] != 1)
    try:
        processors = tuple(_forbidding(said, model.device))
    except (TypeError, ValueError) as error:
        raise _meaningless(error, {name: said[name] for name in FORBIDS if name in said}) from error
    settings = {name: said[name] for name in SETTINGS if name in said}
    return CheckpointRules(settings=settings, processors=processors, unfollowed=rest)


def _meaningless(error: Exception, rules: dict[str, Any]) -> UsageError:
    said = ", ".join(f"{name} {shown(value)}" for name, value in rules.items())
    return UsageError(f"the model's generation_config has no meaning: {said} ({error}); mend it")


def _forbidding(said: dict[str, Any], device: torch.device) -> Iterator[LogitsProcessor]:
    if (length := said.get("no_repeat_ngram_size", 0)) > 0:
        yield hf.NoRepeatNGramLogitsProcessor(length)
    if words := said.get("bad_words_ids"):
        ends = said.get("eos_token_id")
        yield hf.NoBadWordsLogitsProcessor(
            words, None if ends is None else torch.tensor(ends, device=device).reshape(-1)
        )
    if tokens := said.get("suppress_tokens"):
        yield hf.SuppressTokensLogitsProcessor(tokens, device=str(device))
