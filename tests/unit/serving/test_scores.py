"""What penalties, biases and a least length make of scores."""

from __future__ import annotations

import math

import torch

from specstream.serving.scores import Adjustment


def test_penalties_count_the_answer_and_not_the_prompt() -> None:
    adjustment = Adjustment(presence=0.5, frequency=0.25, bias={3: 2.0}, prompt_length=2)
    scores = torch.zeros(1, 5)
    found = adjustment(torch.tensor([[4, 4, 1, 1, 2]]), scores)
    assert found.tolist() == [[0.0, -1.0, -0.75, 2.0, 0.0]]
    assert not scores.any()


def test_no_end_comes_before_the_least_length() -> None:
    adjustment = Adjustment(bias={}, least=2, ends=(0, 3), prompt_length=1)
    early = adjustment(torch.tensor([[1, 2]]), torch.ones(1, 4))
    assert early.tolist() == [[-math.inf, 1.0, 1.0, -math.inf]]
    assert adjustment(torch.tensor([[1, 2, 2]]), torch.ones(1, 4)).tolist() == [[1.0] * 4]


def test_one_that_changes_nothing_is_false() -> None:
    assert not Adjustment(bias={}, ends=(0,), prompt_length=3)
    assert Adjustment(bias={}, presence=-1.0, prompt_length=3)
