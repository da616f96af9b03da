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
