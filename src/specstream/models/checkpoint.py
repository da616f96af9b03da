"""What a checkpoint's own generation configuration says of the next token, for those who do not call ``generate``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import transformers as hf

from specstream.core.sampling import LogitsProcessor


@dataclass(frozen=True, kw_only=True)
class CheckpointRules:
    """Rules that hold unless a caller says otherwise, as in transformers.

    Attributes:
        settings: ``repetition_penalty``, ``top_k``, ``top_p`` and ``min_p``, as far as the checkpoint has them.
        processors: what it forbids: ``no_repeat_ngram_size``, ``bad_words_ids``, ``suppress_tokens``.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    processors: tuple[LogitsProcessor, ...] = ()


def checkpoint_rules(model: Any) -> CheckpointRules:
    """Those of a model as its generation configuration stands now."""
    own, usual = getattr(model, "generation_config", None), hf.GenerationConfig()  # type: ignore[no-untyped-call]

    def said(name: str) -> Any:
        value = getattr(own, name, None)
        return None if value == getattr(usual, name, None) else value

    names = ("repetition_penalty", "top_k", "top_p", "min_p")
    processors: list[LogitsProcessor] = []
    if length := said("no_repeat_ngram_size"):
        processors.append(hf.NoRepeatNGramLogitsProcessor(length))
    if words := said("bad_words_ids"):
        ends = getattr(own, "eos_token_id", None)
        ends = ends if ends is None else torch.tensor(ends, device=model.device).reshape(-1)
        processors.append(hf.NoBadWordsLogitsProcessor(words, ends))
    if tokens := said("suppress_tokens"):
        processors.append(hf.SuppressTokensLogitsProcessor(tokens, device=str(model.device)))
    settings = {name: value for name in names if (value := said(name)) is not None}
    return CheckpointRules(settings=settings, processors=tuple(processors))
