"""A small world: a vocabulary, prompts of two kinds, and drafters whose worth depends on the kind."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch

from specstream.routing.config import DrafterSpec, RouterConfig
from specstream.routing.features import CLASSES, Features, no_embedding
from specstream.routing.learn import FitSection, Fitted, Samples, fit
from specstream.routing.model import RouterModel
from specstream.routing.router import Router

VOCAB = 40
DIGITS = range(10)
LETTERS = range(10, VOCAB)
DRAFTERS = {
    "none": DrafterSpec(drafter="none"),
    "lookup": DrafterSpec(drafter="lookup"),
    "draft": DrafterSpec(drafter="draft_model", draft="small"),
}
OUTPUTS = ("lookup", "draft")


def vocabulary() -> torch.Tensor:
    """Each token is one character: the first ten digits, the others letters."""
    table = torch.zeros(VOCAB, 1 + len(CLASSES), dtype=torch.uint8)
    table[:, 0] = 1
    table[list(DIGITS), 1 + list(CLASSES).index("digits")] = 1
    table[list(LETTERS), 1 + list(CLASSES).index("letters")] = 1
    return table


def prompt(chance: random.Random, kind: str) -> list[int]:
    """``sums`` hold mostly digits, ``words`` mostly letters."""
    most, few = (DIGITS, LETTERS) if kind == "sums" else (LETTERS, DIGITS)
    return [chance.choice(most if chance.random() < 0.8 else few) for _ in range(chance.randint(20, 60))]


def prompts(count: int, seed: int) -> list[tuple[str, list[int]]]:
    chance = random.Random(seed)
    return [(kind, prompt(chance, kind)) for kind in ("sums", "words") * (count // 2)]


def worth(kind: str, drafter: str) -> float:
    """Log of the speed over plain decoding's: each drafter is good at one kind, and harms at the other."""
    if drafter == "none":
        return 0.0
    return 0.5 if (kind == "sums") == (drafter == "lookup") else -0.3


def samples(questions: Sequence[tuple[str, list[int]]], noise: float = 0.05, seed: int = 0) -> Samples:
    chance = random.Random(seed)
    features = Features(vocabulary(), no_embedding)
    ratios = [[worth(kind, name) + chance.gauss(0, noise) for name in OUTPUTS] for kind, _ in questions]
    return Samples(
        features=torch.stack([features(tokens) for _, tokens in questions]),
        ratios=torch.tensor(ratios),
        weights=torch.ones(len(questions)),
    )


def model_of(fitted: Fitted, **changed: Any) -> RouterModel:
    settings: dict[str, Any] = {
        "network": fitted.network,
        "table": vocabulary(),
        "drafters": DRAFTERS,
        "noise": dict(zip(OUTPUTS, fitted.noise, strict=True)),
        "base": {"name": "toy", "fingerprint": "0123"},
        "embedding": {"name": "none", "model": None},
        "plain_tokens_per_second": 10.0,
    }
    return RouterModel(**{**settings, **changed})


def trained(seed: int = 0) -> RouterModel:
    return model_of(fit(samples(prompts(60, seed)), FitSection(epochs=200, hidden=8)))


class UnboundRouter(Router):
    """One that needs no target: its features are the hints alone."""

    def __init__(self, model: RouterModel, **settings: Any) -> None:
        config = RouterConfig(router="", **settings)
        super().__init__(model, config, torch.Generator().manual_seed(config.seed))
        self._features = Features(model.table, no_embedding)
