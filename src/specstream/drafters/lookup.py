"""Prompt lookup: what followed the last time these tokens occurred.

It looks in the row's own text, in one that it is expected to say, and in earlier answers.

After Saxena, "Prompt lookup decoding" (2023), and Yang et al., "Inference with reference" (arXiv 2304.04487); earlier
answers as in Oliaro et al., "SuffixDecoding" (arXiv 2411.04975). The longest matching suffix wins, and of equally long
matches the most recent. How many tokens followed it in the same way says no more than its length does
(docs/experiments/0075).

The shape of a tree decides how chance is spent, and a seed has to repeat: a row that samples is not drafted for from
what earlier generations said.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Iterator, Sequence

from specstream.core.by_rows import SessionByRows
from specstream.core.ports import Drafter, DraftRequest, Offer, TargetSession, Verdict
from specstream.core.sampling import Sampling
from specstream.core.suffix_index import SuffixIndex
from specstream.core.tree import TokenTree
from specstream.errors import UsageError

LENGTHS = (1, 2, 3, 4, 5, 6, 8, 12, 24)
"""Matches that are accepted alike: as long as one of these, and shorter than the next."""


PREDICTION = "prediction"
"""Whose drafts those are that were copied from what is expected of a row."""


class LookupDrafter(Drafter):
    """Drafts by copying.

    Args:
        max_ngram: longest suffix looked for.
        min_ngram: shortest suffix trusted.
        branches: how many different continuations one tree may hold; 1 drafts chains.
        memory: texts to copy from besides the row's own, where it decodes greedily; others may write to it meanwhile.
    """

    name = "lookup"

    def __init__(
        self, *, max_ngram: int = 24, min_ngram: int = 2, branches: int = 1, memory: SuffixIndex | None = None
    ) -> None:
        if not 1 <= min_ngram <= max_ngram:
            raise UsageError(f"min_ngram is {min_ngram} and max_ngram {max_ngram}; give 1 <= min_ngram <= max_ngram")
        if branches < 1:
            raise UsageError(f"branches is {branches}; give 1 or more")
        self.max_ngram, self.min_ngram, self.branches, self.memory = max_ngram, min_ngram, branches, memory

    def begin(
        self, prompts: Sequence[Sequence[int]], samplings: Sequence[Sampling], session: TargetSession | None = None
    ) -> SessionByRows:
        return _Session([_Row(self, self.memory if sampling.greedy else None) for sampling in samplings])


class _Session(SessionByRows):
    """What is expected of rows comes before any of them joins others or leaves."""

    def __init__(self, rows: Sequence[_Row]) -> None:
        super().__init__(rows)
        self._begun = rows

    def expect(self, row: int, text: Sequence[int]) -> None:
        self._begun[row].expected.extend(text)


class _Row:
    """What one row copies from."""

    def __init__(self, drafter: LookupDrafter, memory: SuffixIndex | None) -> None:
        self._own, self.expected = (SuffixIndex(drafter.min_ngram, drafter.max_ngram) for _ in range(2))
        self._memory, self._branches = memory, drafter.branches

    def propose(self, request: DraftRequest) -> TokenTree:
        for offer in [request.offer] if request.offer else self.offers(request):
            if offer.tree is not None:
                return offer.tree.pruned(request.depth)
        return TokenTree.chain(request.tokens[-1:])

    def observe(self, verdict: Verdict) -> None:
        """The next request carries the new tokens; there is nothing else to learn."""

    def offers(self, request: DraftRequest) -> list[Offer]:
        """One for each place of a match. The longer it is, the surer the copy, so its length is in the source."""
        self._own.extend(request.tokens[len(self._own) :])
        if request.depth < 1:
            return []
        found = list(self._found(PREDICTION, self.expected, request)) if len(self.expected) else []
        found.extend(self._found("lookup", self._own, request))
        if self._memory is not None:
            found.extend(self._found("memory", self._memory, request))
        return [offer for _, offer in sorted(found, key=lambda each: -each[0])]

    def _found(self, source: str, index: SuffixIndex, request: DraftRequest) -> Iterator[tuple[int, Offer]]:
        """The offer of a place and how long its match is, where it has one."""
        paths: list[list[int]] = []
        longest = 0
        for length, end in index.matches(request.tokens):
            path = index.after(end, request.depth)
            if index is self._own:
                path = _repeated(path, request.depth)
            if path and path not in paths:
                longest = longest or length
                paths.append(path)
            if len(paths) == self._branches:
                break
        if not paths:
            return
        root = request.tokens[-1]
        tree = TokenTree.chain([root, *paths[0]]) if len(paths) == 1 else TokenTree.merge(root, paths)
        alike = LENGTHS[bisect(LENGTHS, longest) - 1]
        yield longest, Offer(source=f"{source}/{alike}", depth=max(tree.depths), branches=self._branches, tree=tree)


def _repeated(path: list[int], depth: int) -> list[int]:
    """``depth`` tokens: a match near the end goes on as the repetition it found."""
    while len(path) < depth:
        path.extend(path[: depth - len(path)])
    return path
