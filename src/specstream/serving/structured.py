"""Answers that follow a JSON schema: the tokens that would leave it are masked out, by llguidance.

The mask is a logits processor of the target. Drafters know nothing of it; what leaves the schema has probability 0
after the mask and is rejected, so the output is the masked model's own, as without speculation. Where the schema leaves
no choice, as of keys and punctuation, the mask itself says what comes next, and that is the draft of the round.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from specstream.environment import require
from specstream.errors import MissingPackageError, one_line
from specstream.serving.faults import FieldError

FIELD = "response_format"
"""The field of a body that all of this is about."""

_WITHIN = re.compile(r"at \d+\(\d+\): failed to compile JSON schema: (.*?)\n +1 \| .*", re.DOTALL)
"""What llguidance says of a schema within a grammar: the reason, then the grammar, which nobody sent."""


class Schemas:
    """Makes the masks of one tokenizer, for any thread.

    What the masks share is made here, and not with the first of them: requests arrive on several threads at once. What
    cannot be made is told to those who ask for a mask, for a server has other answers to give.

    Args:
        tokenizer: the model's.
        ends: tokens that end an answer: the only ones that may follow a complete one.
    """

    def __init__(self, tokenizer: Any, ends: Collection[int]) -> None:
        self._ends = sorted(ends)
        self._refusal: Exception | None = None
        try:
            self._matching = require("llguidance", "serve", "response_format").LLMatcher
            hugging_face = require("llguidance.hf", "serve", "response_format")
            self._tokens = hugging_face.from_tokenizer(tokenizer, eos_token=self._ends or None)
        except MissingPackageError as error:
            self._refusal = error
        except ValueError:
            self._refusal = FieldError(
                f"response_format needs a fast tokenizer and this one is a {type(tokenizer).__name__}; leave it out",
                FIELD,
            )
        if self._refusal is None and not self._ends:
            self._refusal = FieldError("response_format needs an end-of-sequence token and this model has none", FIELD)

    def mask(
        self, schema: dict[str, Any] | bool, prompt_length: int, behind: Callable[[str], str] | None = None
    ) -> JsonMask:
        """A processor for one answer behind a prompt of so many tokens.

        Args:
            schema: of the answer.
            prompt_length: tokens that are not the answer's.
            behind: makes a grammar of the schema's in which something else may come first; None for nothing else.

        Raises:
            MissingPackageError: llguidance is not installed.
            FieldError: a schema that cannot be followed, as far as that is known before its first token.
        """
        if isinstance(schema, bool):  # JSON Schema has them, the library has not
            schema = {} if schema else {"enum": []}
        if behind is not None:
            held = {**schema, "x-guidance": {"whitespace_flexible": False}}
            return self.held_to(lambda: behind(f"start: %json {json.dumps(held)}"), FIELD)
        # Compact JSON: a small model that may write any white space tends to write nothing else.
        return self._started(
            lambda: self._matching.grammar_from_json_schema(
                json.dumps(schema), overrides={"whitespace_flexible": False}
            ),
            FIELD,
        ).behind(prompt_length)

    def held_to(self, grammar: Callable[[], str], field: str) -> JsonMask:
        """A processor for an answer that a grammar describes, in Lark's notation; ``field`` is what it was made of.

        Raises:
            MissingPackageError: llguidance is not installed.
            FieldError: a grammar that cannot be followed.
        """
        return self._started(lambda: self._matching.grammar_from_lark(grammar()), field)

    def _started(self, made: Callable[[], str], field: str) -> JsonMask:
        if self._refusal is not None:
            raise self._refusal
        try:
            grammar = made()
            complaint = self._matching.validate_grammar(grammar, self._tokens)
        except ValueError as error:
            complaint = str(error)
        except RecursionError:
            complaint = "it is nested too deeply"
        if complaint:
            said = one_line(_WITHIN.sub(r"\1", complaint))[:300]
            raise FieldError(f"the JSON schema cannot be followed: {said}; give another", field)
        # Silent: what the library writes to stderr quotes the schema and the answer.
        mask = JsonMask(self._matching(self._tokens, grammar, log_level=0), 0, self._ends, field)
        mask.follow()
        return mask


class JsonMask:
    """Knows how far one answer has come; shown its tokens in order, each once or more often.

    Args:
        matcher: of llguidance, at its beginning.
        prompt_length: tokens that are not the answer's.
        ends: see ``Schemas``.
        field: of the body that a refusal is about.
    """

    def __init__(self, matcher: Any, prompt_length: int, ends: Collection[int], field: str = FIELD) -> None:
        self._matcher, self._read, self._ends = matcher, prompt_length, list(ends)
        self._prompt_length, self._field = prompt_length, field

    def behind(self, prompt_length: int) -> JsonMask:
        """The same for another answer, without reading the schema again."""
        return JsonMask(self._matcher.deep_copy(), prompt_length, self._ends, self._field)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores ``[1, vocab]`` with minus infinity for every token that may not follow.

        Raises:
            FieldError: the schema cannot be followed from here.
        """
        self._show(input_ids[0, self._read :].tolist())
        allowed = torch.zeros(scores.shape[-1], dtype=torch.bool)
        known = self.follow()
        if known is None:
            allowed[self._ends] = True
        else:
            count = min(len(known), len(allowed))
            allowed[:count] = known[:count]
            if not allowed.any():
                raise self._lost("no token")
        return scores.masked_fill(~allowed.to(scores.device), -math.inf)

    def known(self, tokens: Sequence[int]) -> list[int]:
        """Tokens that are likely to come behind those of prompt and answer, where the grammar leaves no choice of text.

        The text is certain, and how the model cuts it into tokens is not.
        """
        self._show(list(tokens[self._read :]))
        return [] if self._matcher.is_stopped() else list(self._matcher.compute_ff_tokens())

    def _show(self, news: list[int]) -> None:
        if news:
            self._matcher.consume_tokens(news)
        self._read += len(news)

    def follow(self) -> Tensor | None:
        """Which of the library's tokens may come next, None where the answer is complete and only its end may.

        Raises:
            FieldError: the schema cannot be followed from here.
        """
        known = None
        if not self._matcher.is_stopped():
            known = torch.frombuffer(bytearray(self._matcher.compute_logit_bias()), dtype=torch.uint8) > 0
        # A matcher that has failed calls itself stopped too, and its mask lets an answer end.
        if self._matcher.is_error() or (known is None and not self._matcher.is_accepting()):
            raise self._lost(self._matcher.stop_reason())
        return known

    def _lost(self, reason: str) -> FieldError:
        """Without the library's own words: they quote the schema and the answer, and errors may be logged."""
        read = self._read - self._prompt_length
        where = f"beyond token {read}: llguidance stops with {reason}"
        return FieldError(f"the JSON schema cannot be followed {where}; give a simpler one", self._field)
