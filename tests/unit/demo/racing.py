"""Races of a tiny model."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

from specstream.config import GenerationConfig
from specstream.demo.race import Race, ShownRound
from specstream.drafters.none import NoDrafter
from specstream.engine.engine import SpeculativeEngine
from specstream.engine.generation import Generation
from specstream.engine.text import encode
from tests.tiny import tiny_model, tiny_tokenizer

PROMPT = "the cat sat on the mat and the dog"


@cache
def engine() -> SpeculativeEngine:
    """With a draft that is right now and then."""
    draft = tiny_model(noise=0.02)
    return SpeculativeEngine(
        tiny_model(), tiny_tokenizer(), draft, drafter="mixed", adaptive=False, gamma=3, runtime="eager"
    )


def race(ends: frozenset[int] = frozenset(), **settings: Any) -> Race:
    """One that has not started; ``ends`` are its end-of-sequence tokens."""
    parts = replace(engine().parts, eos_token_ids=ends)
    prompt = encode(parts.tokenizer, PROMPT)
    config = GenerationConfig(**{"max_new_tokens": 40, **settings})
    plain = Generation(parts.with_drafter(NoDrafter()), [prompt], config)
    return Race(plain, Generation(parts, [prompt], config))


def finished(ends: frozenset[int] = frozenset(), **settings: Any) -> Race:
    """One at its end."""
    (*_, last) = race(ends, **settings).run(0.0)
    return last


def shown(**changes: Any) -> ShownRound:
    """A round: four drafted nodes, two of them accepted::

    root - a - b - (own)
         |   |
         |   - c
         - d
    """
    values = {
        "number": 7,
        "drafter": "streams",
        "labels": ("root", "a", "b", "c", "d"),
        "parents": (-1, 0, 1, 1, 0),
        "accepted": (1, 2),
        "own": "own",
    }
    return ShownRound(**{**values, **changes})
