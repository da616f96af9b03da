"""A drafter that knows the output beforehand and errs as often as it is told: what the machinery reaches."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from specstream.core.ports import Drafter, DraftRequest, DraftSession, Offer, TargetSession, Verdict
from specstream.core.sampling import Sampling
from specstream.core.tree import TokenTree


class Oracle(Drafter):
    """Drafts a known output, at no cost.

    Args:
        outputs: by prompt.
        share: of tokens that are drafted right; the others are the next of the vocabulary.
        vocab_size: of the target.
    """

    def __init__(self, outputs: Mapping[tuple[int, ...], Sequence[int]], share: float, vocab_size: int) -> None:
        chance = random.Random(0)
        self._drafts = {
            prompt: [token if chance.random() < share else (token + 1) % vocab_size for token in tokens]
            for prompt, tokens in outputs.items()
        }
        self.name = f"oracle {share}"

    def begin(
        self, prompts: Sequence[Sequence[int]], samplings: Sequence[Sampling], session: TargetSession
    ) -> OracleSession:
        # The policy measures what drafts cost behind prompts of its own.
        return OracleSession([(len(prompt), self._drafts.get(tuple(prompt), [])) for prompt in prompts])


class OracleSession(DraftSession):
    """See ``Oracle``."""

    def __init__(self, rows: list[tuple[int, list[int]]]) -> None:
        self._rows = rows

    def offers(self, requests: Sequence[DraftRequest]) -> list[list[Offer]]:
        trees = [self._tree(row, request) for row, request in enumerate(requests)]
        return [[Offer(source="oracle", depth=tree.drafted, tree=tree)] if tree.drafted else [] for tree in trees]

    def propose(self, requests: Sequence[DraftRequest]) -> list[TokenTree]:
        return [self._tree(row, request) for row, request in enumerate(requests)]

    def observe(self, verdicts: Sequence[Verdict]) -> None:
        """The next request carries the new tokens."""

    def keep(self, rows: Sequence[int]) -> None:
        self._rows = [self._rows[row] for row in rows]

    def join(self, other: OracleSession) -> None:
        self._rows.extend(other._rows)

    def _tree(self, row: int, request: DraftRequest) -> TokenTree:
        before, drafts = self._rows[row]
        at = len(request.tokens) - before
        return TokenTree.chain([request.tokens[-1], *drafts[at : at + max(0, request.depth)]])
