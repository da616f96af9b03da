"""Prompt lookup: what followed the last time these tokens occurred, in the prompt or in the output so far.

After Saxena, "Prompt lookup decoding" (2023), and Yang et al., "Inference with reference" (arXiv 2304.04487). The
longest matching suffix wins, and of equally long matches the most recent.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from specstream.core.ports import Drafter, DraftRequest, DraftSession, Offer, TargetSession, Verdict
from specstream.core.sampling import Sampling
from specstream.core.tree import TokenTree
from specstream.errors import UsageError


class LookupDrafter(Drafter):
    """Drafts by copying.

    Args:
        max_ngram: longest suffix looked for.
        min_ngram: shortest suffix trusted.
        branches: how many different continuations one tree may hold; 1 drafts chains.
    """

    name = "lookup"

    def __init__(self, *, max_ngram: int = 6, min_ngram: int = 2, branches: int = 1) -> None:
        if not 1 <= min_ngram <= max_ngram:
            raise UsageError(f"min_ngram is {min_ngram} and max_ngram {max_ngram}; give 1 <= min_ngram <= max_ngram")
        if branches < 1:
            raise UsageError(f"branches is {branches}; give 1 or more")
        self.max_ngram, self.min_ngram, self.branches = max_ngram, min_ngram, branches

    def begin(
        self, prompts: Sequence[Sequence[int]], samplings: Sequence[Sampling], session: TargetSession | None = None
    ) -> LookupSession:
        indexes = [SuffixIndex(self.min_ngram, self.max_ngram) for _ in prompts]
        return LookupSession(indexes, self.branches)


class LookupSession(DraftSession):
    """One index per row."""

    def __init__(self, indexes: list[SuffixIndex], branches: int) -> None:
        self._indexes = indexes
        self._branches = branches

    def offers(self, requests: Sequence[DraftRequest]) -> list[list[Offer]]:
        """One per row that has a match. The longer the match, the surer the copy, so its length is in the source."""
        return [self._offers(index, request) for index, request in zip(self._indexes, requests, strict=True)]

    def propose(self, requests: Sequence[DraftRequest]) -> list[TokenTree]:
        return [self._tree(index, request) for index, request in zip(self._indexes, requests, strict=True)]

    def observe(self, verdicts: Sequence[Verdict]) -> None:
        """The next request carries the new tokens; there is nothing else to learn."""

    def keep(self, rows: Sequence[int]) -> None:
        self._indexes = [self._indexes[row] for row in rows]

    def join(self, other: LookupSession) -> None:
        self._indexes.extend(other._indexes)

    def _tree(self, index: SuffixIndex, request: DraftRequest) -> TokenTree:
        for offer in [request.offer] if request.offer else self._offers(index, request):
            if offer.tree is not None:
                return offer.tree.pruned(request.depth)
        return TokenTree.chain(request.tokens[-1:])

    def _offers(self, index: SuffixIndex, request: DraftRequest) -> list[Offer]:
        index.extend(request.tokens)
        if request.depth < 1:
            return []
        paths: list[list[int]] = []
        longest = 0
        for size, end in index.matches(request.tokens):
            longest = longest or size
            path = _continuation(request.tokens, end, request.depth)
            if path not in paths:
                paths.append(path)
            if len(paths) == self._branches:
                break
        if not paths:
            return []
        root = request.tokens[-1]
        tree = TokenTree.chain([root, *paths[0]]) if len(paths) == 1 else TokenTree.merge(root, paths)
        return [Offer(source=f"lookup/{longest}", depth=request.depth, branches=self._branches, tree=tree)]


class SuffixIndex:
    """Where each n-gram of a growing sequence ended, for n from ``min_ngram`` to ``max_ngram``.

    The n-grams that end the sequence are not in it yet: they would match themselves.
    """

    def __init__(self, min_ngram: int, max_ngram: int) -> None:
        self._sizes = range(max_ngram, min_ngram - 1, -1)
        self._ends: dict[tuple[int, ...], list[int]] = {}
        self._indexed = 0

    def extend(self, tokens: Sequence[int]) -> None:
        """Index every n-gram that ends before the last token. Costs as much as there is news."""
        for end in range(self._indexed + 1, len(tokens)):
            for size in self._sizes:
                if size <= end:
                    self._ends.setdefault(tuple(tokens[end - size : end]), []).append(end)
        self._indexed = max(self._indexed, len(tokens) - 1)

    def matches(self, tokens: Sequence[int]) -> Iterator[tuple[int, int]]:
        """``(size, position)`` of what followed the suffix before: longest suffix first, then most recent."""
        seen = set()
        for size in self._sizes:
            if size > len(tokens):
                continue
            for end in reversed(self._ends.get(tuple(tokens[-size:]), [])):
                if end not in seen:
                    seen.add(end)
                    yield size, end


def _continuation(tokens: Sequence[int], end: int, depth: int) -> list[int]:
    """The ``depth`` tokens from ``end`` on; a match near the end goes on as the repetition it found."""
    path = list(tokens[end : end + depth])
    while len(path) < depth:
        path.extend(path[: depth - len(path)])
    return path
