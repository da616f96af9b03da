"""Answers that follow a JSON schema: the tokens that would leave it are masked out, by llguidance.

The mask is a logits processor of the target. Drafts know nothing of it; those that leave the schema have probability 0
after the mask and are rejected, so the output is the masked model's own, as without speculation.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from specstream.errors import UsageError
from specstream.extras import require


class Schemas:
    """Makes the masks of one tokenizer.

    Args:
        tokenizer: the model's.
        ends: tokens that end an answer: the only ones that may follow a complete one.
    """

    def __init__(self, tokenizer: Any, ends: Collection[int]) -> None:
        self._tokenizer, self._ends = tokenizer, sorted(ends)
        self._library: Any = None
        self._tokens: Any = None

    def mask(self, schema: dict[str, Any] | bool, prompt_length: int) -> JsonMask:
        """A processor for one answer behind a prompt of so many tokens.

        Raises:
            MissingPackageError: llguidance is not installed.
            UsageError: a schema that cannot be followed.
        """
        if self._library is None:
            self._library = require("llguidance", "serve", "response_format")
            hugging_face = require("llguidance.hf", "serve", "response_format")
            self._tokens = hugging_face.from_tokenizer(self._tokenizer, eos_token=self._ends or None)
        # Compact JSON: a small model that may write any white space tends to write nothing else.
        matching = self._library.LLMatcher
        try:
            grammar = matching.grammar_from_json_schema(json.dumps(schema), overrides={"whitespace_flexible": False})
            complaint = matching.validate_grammar(grammar, self._tokens)
        except ValueError as error:
            complaint = str(error)
        except RecursionError:
            complaint = "it is nested too deeply"
        if complaint:
            raise UsageError(f"the JSON schema cannot be followed: {' '.join(complaint.split())[:300]}; give another")
        return JsonMask(matching(self._tokens, grammar), prompt_length, self._ends)


class JsonMask:
    """Knows how far one answer has come; shown its tokens in order, each once or more often.

    Args:
        matcher: of llguidance, at its beginning.
        prompt_length: tokens that are not the answer's.
        ends: see ``Schemas``.
    """

    def __init__(self, matcher: Any, prompt_length: int, ends: Collection[int]) -> None:
        self._matcher, self._read, self._ends = matcher, prompt_length, list(ends)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores ``[1, vocab]`` with minus infinity for every token that may not follow."""
        news = input_ids[0, self._read :].tolist()
        if news and not self._matcher.consume_tokens(news):
            raise RuntimeError(f"the answer has left its schema: {self._matcher.get_error()}")
        self._read += len(news)
        allowed = torch.zeros(scores.shape[-1], dtype=torch.bool)
        if self._matcher.is_stopped():
            allowed[self._ends] = True
        else:
            known = torch.frombuffer(bytearray(self._matcher.compute_logit_bias()), dtype=torch.uint8) > 0
            count = min(len(known), len(allowed))
            allowed[:count] = known[:count]
        return scores.masked_fill(~allowed.to(scores.device), -math.inf)
