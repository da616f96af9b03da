"""Drafters that exist to test the loop: trees of every shape, drawn or not, right or wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from specstream.core.ports import Drafter, DraftRequest, DraftSession, Offer, TargetSession, Verdict
from specstream.core.sampling import Sampling
from specstream.core.tree import TokenTree
from tests.lossless.table_model import TableModel


@dataclass
class FunctionDrafter(Drafter, DraftSession):
    """A tree for every request, by a function of that request alone."""

    tree: Callable[[DraftRequest], TokenTree]
    name: str = "function"

    def begin(
        self, prompts: Sequence[Sequence[int]], samplings: Sequence[Sampling], session: object
    ) -> FunctionDrafter:
        return self

    def offers(self, requests: Sequence[DraftRequest]) -> list[list[Offer]]:
        return [[Offer(source=self.name, depth=each.depth)] if each.depth > 0 else [] for each in requests]

    def propose(self, requests: Sequence[DraftRequest]) -> list[TokenTree]:
        return [self.tree(request) for request in requests]

    def observe(self, verdicts: Sequence[Verdict]) -> None:
        pass

    def keep(self, rows: Sequence[int]) -> None:
        pass

    def join(self, other: FunctionDrafter) -> None:
        pass


@dataclass
class Priced(Drafter):
    """Another drafter on a machine where nodes cost next to nothing: it proposes whatever it saw on its way.

    Attributes:
        beside: nodes beside the chain that it proposed, over all rounds.
        taken: those of them that were accepted.
    """

    drafter: Drafter
    name: str = "draft_model"
    beside: int = 0
    taken: int = 0

    def begin(
        self, prompts: Sequence[Sequence[int]], samplings: Sequence[Sampling], session: TargetSession
    ) -> PricedSession:
        return PricedSession(self, self.drafter.begin(prompts, samplings, session))


@dataclass
class PricedSession(DraftSession):
    priced: Priced
    session: DraftSession
    chains: list[int] = field(default_factory=list)  # nodes of each row's chain, which come first

    def offers(self, requests: Sequence[DraftRequest]) -> list[list[Offer]]:
        return self.session.offers(requests)

    def read(self, most: int) -> bool:
        return self.session.read(most)

    def propose(self, requests: Sequence[DraftRequest]) -> list[TokenTree]:
        trees = self.session.propose([replace(each, threshold=1e-6, prices=(1e-6,) * 15) for each in requests])
        self.chains = [sum(at - 1 == parent for at, parent in enumerate(each.parents)) for each in trees]
        self.priced.beside += sum(map(len, trees)) - sum(self.chains)
        return trees

    def observe(self, verdicts: Sequence[Verdict]) -> None:
        self.priced.taken += sum(
            node >= chain for each, chain in zip(verdicts, self.chains, strict=True) for node in each.path
        )
        self.session.observe(verdicts)

    def keep(self, rows: Sequence[int]) -> None:
        self.session.keep(rows)

    def join(self, other: PricedSession) -> None:
        self.session.join(other.session)


def oracle(model: TableModel) -> FunctionDrafter:
    """Drafts what greedy decoding will say, as deep as it is asked to: nothing is ever rejected."""

    def tree(request: DraftRequest) -> TokenTree:
        return TokenTree.chain([request.tokens[-1], *model.favourites(request.tokens, request.depth)])

    return FunctionDrafter(tree)


@dataclass(frozen=True)
class Branching:
    """A full tree: ``branches`` children below every node, down to ``depth``.

    Attributes:
        draft: the model whose distributions children are drawn from.
        drawn_to: children at this depth and above are drawn; deeper ones are the draft's likeliest tokens.
        declared: the distribution the tree claims for one that was drawn from; the truth, unless a test lies.
    """

    draft: TableModel
    branches: int
    depth: int
    drawn_to: int = 99
    declared: Callable[[Tensor], Tensor] = lambda distribution: distribution

    def __call__(self, request: DraftRequest) -> TokenTree:
        tokens, parents, contexts, depths = [request.tokens[-1]], [-1], [list(request.tokens)], [0]
        proposals = {}
        for node, context in enumerate(contexts):  # grows while it is read: breadth first
            if depths[node] >= min(self.depth, request.depth):
                continue
            distribution = self.draft.logits(context).softmax(-1)
            if depths[node] < self.drawn_to:
                proposals[node] = self.declared(distribution)
                count = min(self.branches, int((distribution > 0).sum()))
                # torch draws without replacement one after another, each in proportion to what is left.
                drawn = torch.multinomial(distribution, count, generator=request.generator)
            else:
                drawn = distribution.topk(self.branches).indices
            for token in drawn.tolist():
                tokens.append(token)
                parents.append(node)
                contexts.append([*context, token])
                depths.append(depths[node] + 1)
        return TokenTree(tuple(tokens), tuple(parents), proposals)
