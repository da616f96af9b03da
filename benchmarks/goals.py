"""The figures that SpecStream has to reach, in one place."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Goal:
    """One figure.

    Attributes:
        what: is measured.
        bound: to be reached; None where there is nothing to reach.
        at_most: the bound is an upper one.
    """

    what: str
    bound: float | None
    at_most: bool = False

    def met(self, value: float) -> bool:
        """Whether a value reaches the bound; a value that is no number does not."""
        if self.bound is None:
            return True
        return value <= self.bound if self.at_most else value >= self.bound

    def verdict(self, value: float) -> str:
        """One line: the figure, the goal, and whether it is met."""
        if self.bound is None:
            return f"{self.what}: no goal"
        sign = "<=" if self.at_most else ">="
        return f"{self.what}: {value:.3f}, goal {sign} {self.bound}: {'met' if self.met(value) else 'MISSED'}"


GOALS = {
    "plain-1.5b": Goal(what="plain decoding of the target over transformers generate", bound=1.8),
    "plain-smollm2": Goal(what="plain decoding of SmolLM2 over transformers generate", bound=1.6),
    "draft-humaneval": Goal(what="target with draft, HumanEval, over transformers generate", bound=4.0),
    "draft-vs-assisted": Goal(what="the same over transformers assisted generation", bound=2.5),
    "draft-vs-vllm": Goal(what="the same over vLLM draft_model at its best K", bound=1.7),
    "lookup": Goal(what="lookup over our plain decoding where it matches", bound=1.5),
    "never-slower": Goal(what="any drafter over our plain decoding, the worst median", bound=0.98),
    "predicted": Goal(what="measured speed over the speed predicted from costs and acceptance", bound=0.92),
    "deciding": Goal(what="what the policy costs, of a round of SmolLM2", bound=0.02, at_most=True),
    "cold-start-smollm2": Goal(what="SmolLM2's first answer after a cold start, seconds more", bound=3.0, at_most=True),
    "cold-start-1.5b": Goal(
        what="the target's first answer after a cold start, seconds more", bound=10.0, at_most=True
    ),
    "server-load": Goal(what="our server, 16 clients, mixed load, over the same without speculation", bound=1.05),
    "batch": Goal(what="a batch of mixed lengths over transformers batched generate, total tokens/s", bound=1.5),
    "memory": Goal(what="peak memory over transformers' with the same weights", bound=1.15, at_most=True),
    "linear-read": Goal(what="our linear layer, 1 row, over reading its weights", bound=1.25, at_most=True),
    "linear-rows": Goal(what="our linear layer, 8 rows, multiply-adds a second over sgemm's", bound=0.6),
    "long-context": Goal(what="milliseconds a token at long contexts", bound=None),
}
