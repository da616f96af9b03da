"""Which combinations of families, dtypes, runtimes and drafters are tested."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from typing import Any


def half(*factors: Iterable[Any]) -> list[tuple[Any, ...]]:
    """Every second combination of their values, and all those of the first factor's first value.

    Whatever values all factors but one have, a case has them, so that a fault is met that shows with any value of one
    factor. One that needs a certain value of each is met in half of all combinations, and always with the first value.
    """
    numbered = [list(zip(*places, strict=True)) for places in product(*map(enumerate, factors))]
    return [values for places, values in numbered if places[0] == 0 or sum(places) % 2 == 0]


def in_turn(one: Iterable[Any], other: Iterable[Any], *further: Iterable[Any]) -> list[tuple[Any, ...]]:
    """Every value of ``one`` with every value of ``other``, each time with another combination of the further ones.

    With the first value of ``one`` stand all combinations. Where ``one`` and ``other`` have as many values as there are
    combinations of the further ones, each value of either meets each of these combinations.
    """
    combinations = list(product(*further))
    return [
        (first, second, *values)
        for (at, first), (beside, second) in product(enumerate(one), enumerate(other))
        for place, values in enumerate(combinations)
        if at == 0 or place == (at + beside) % len(combinations)
    ]
