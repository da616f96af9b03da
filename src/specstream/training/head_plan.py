"""How many answers and steps a head gets: from what a sample of both took, as many as fit the hours."""

from __future__ import annotations

from dataclasses import dataclass

from specstream.errors import UsageError

BATCH = 8
"""Examples of a training step."""

ANSWER_BATCH = 16
"""Prompts that are answered at once; a sample is one batch of them."""

LEAST = ANSWER_BATCH + BATCH
"""Answers of a head, at least."""

EPOCHS, MOST_EPOCHS = 3, 8
"""Times that a training step sees each answer; the most, where prompts end before the hours do."""

EVALUATIONS = 6
"""Of a run, besides that before the first step."""

TEST_PROMPTS, TEST_TOKENS = 8, 64
"""Of the test in decoding."""

TEST_CONTESTANTS = 3
"""Plain decoding, and the head by the policy and with a fixed tree."""

SLOWEST = 1.5
"""What a token of the test costs at most on average, in tokens of plain decoding: a fixed tree may not pay."""


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What a sample took.

    Attributes:
        answer: seconds for a token of an answer, of a whole batch at once.
        alone: seconds for a token of one prompt alone.
        states: seconds of the target for a token that is trained on.
        step: seconds of a training step whose states are there.
        evaluation: seconds for each held-out example, likewise.
        setup: seconds before a first step.
        kept: bytes of the states of a token.
        answer_tokens: of an answer, on average.
        length: tokens of an example, its prompt among them.
        available: prompts that can be answered.
    """

    answer: float
    alone: float
    states: float
    step: float
    evaluation: float
    setup: float
    kept: float
    answer_tokens: float
    length: float
    available: int


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Seconds of each stage, and bytes that are kept for training."""

    answers: float
    states: float
    training: float
    test: float
    kept: float

    @property
    def seconds(self) -> float:
        return self.answers + self.states + self.training + self.test


def held_out(answers: int) -> int:
    """Examples that are not trained on."""
    return max(1, min(48, answers // 8))


def steps_of(answers: int, epochs: int) -> int:
    """Training steps that see every example so often."""
    return max(1, (answers - held_out(answers)) * epochs // BATCH)


def estimate(costs: Costs, answers: int, steps: int, disk_gb: float) -> Estimate:
    """What so many answers and steps take, with so much room for states.

    States that fit are computed once, the others each time that they are needed.
    """
    judged = (EVALUATIONS + 1) * held_out(answers)
    needed = min(answers, steps * BATCH + held_out(answers)) * costs.length
    share = min(1.0, disk_gb * 1e9 / max(1.0, needed * costs.kept))
    again = max(0.0, (steps * BATCH + judged) * costs.length - needed)
    tested = TEST_CONTESTANTS * (TEST_PROMPTS + 1) * TEST_TOKENS  # the warm-up among them
    return Estimate(
        answers=answers * costs.answer_tokens * costs.answer,
        states=(needed + (1 - share) * again) * costs.states,
        training=costs.setup + steps * costs.step + judged * costs.evaluation,
        test=tested * costs.alone * SLOWEST,
        kept=share * needed * costs.kept,
    )


def answers_for(costs: Costs, tokens: int | None, seconds: float | None, disk_gb: float) -> int:
    """The most answers whose training fits.

    Args:
        costs: of a sample.
        tokens: of all answers; None for as many as there are prompts for.
        seconds: that are left; None is no limit.
        disk_gb: room for states.

    Raises:
        UsageError: not even the least fits.
    """
    most = costs.available
    if tokens is not None:
        most = min(most, max(LEAST, round(tokens / costs.answer_tokens)))
    if seconds is None:
        return most

    def took(answers: int) -> float:
        return estimate(costs, answers, steps_of(answers, EPOCHS), disk_gb).seconds

    least = min(most, LEAST)
    sizes: list[int] = [most, *range(most // ANSWER_BATCH * ANSWER_BATCH, least, -ANSWER_BATCH), least]
    if (found := next((size for size in sizes if took(size) <= seconds), None)) is None:
        raise UsageError(
            f"hours is too small: {seconds / 3600:.2f} are left after a sample, and {least} answers take "
            f"{took(least) / 3600:.2f}; give more"
        )
    return found


def steps_for(costs: Costs, answers: int, seconds: float | None, disk_gb: float) -> int:
    """Steps on answers that are there: of ``EPOCHS`` epochs, or as many as fit the seconds that are left."""
    if seconds is None:
        return steps_of(answers, EPOCHS)

    def took(steps: int) -> float:
        each = estimate(costs, answers, steps, disk_gb)
        return each.seconds - each.answers

    return next((steps for steps in range(steps_of(answers, MOST_EPOCHS), 1, -1) if took(steps) <= seconds), 1)
