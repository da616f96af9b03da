"""What a request changes of the scores before a token is chosen, beside its schema: penalties, biases, a least length.

Each is a logits processor of the target; drafts know nothing of it, and those that it makes impossible are rejected.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Adjustment:
    """As OpenAI's API has it: penalties count the answer's tokens, not the prompt's.

    Attributes:
        presence: taken off the score of every token that the answer has.
        frequency: taken off as often as it has the token.
        bias: added to the scores of these tokens.
        least: tokens before which none of ``ends`` may come.
        ends: tokens that end an answer.
        prompt_length: tokens that are not the answer's.
    """

    presence: float = 0.0
    frequency: float = 0.0
    bias: Mapping[int, float]
    least: int = 0
    ends: Sequence[int] = ()
    prompt_length: int

    def __bool__(self) -> bool:
        """Whether it changes anything."""
        return bool(self.presence or self.frequency or self.bias or self.least)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores ``[1, vocab]``, a new tensor."""
        scores = scores.clone()
        if self.bias:
            scores[0, list(self.bias)] += torch.tensor(list(self.bias.values())).to(scores)
        answer = input_ids[0, self.prompt_length :]
        if self.presence or self.frequency:
            tokens, counts = torch.unique(answer, return_counts=True)
            scores[0, tokens] -= self.presence + self.frequency * counts
        if len(answer) < self.least:
            scores[0, list(self.ends)] = -math.inf
        return scores
