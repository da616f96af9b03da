"""The tokens with the largest logits of a pass."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from specstream.core.device import deferred
from specstream.core.sampling import greedy_choices
from specstream.core.tree import TokenTree


class Finder:
    """Looks for the tokens with the largest logits of a pass. A runtime may have a faster one."""

    def choices(self, logits: Tensor, trees: Sequence[TokenTree] = ()) -> list[list[int]]:
        """``greedy_choices`` as lists, and with them, in the same transfer, the tokens of trees that were deferred.

        Raises:
            NumericalError: a token was drafted from NaN.
        """
        return deferred.fetch(trees, greedy_choices(logits))

    def likeliest(self, logits: Tensor, places: Sequence[tuple[int, int]], k: int) -> list[list[int]]:
        """The ``k`` tokens with the largest of ``logits``, ``[rows, width, vocab]``, the largest first.

        Where the largest is NaN or infinite, the first of them means nothing.

        Args:
            logits: of a pass.
            places: rows and nodes after which to look.
            k: at most ``vocab``.
        """
        rows, nodes = zip(*places, strict=True)
        found: list[list[int]] = logits[list(rows), list(nodes)].topk(k).indices.tolist()
        return found
