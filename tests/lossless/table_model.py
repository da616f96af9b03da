"""An exact target: the next-token logits are a seeded random table, looked up by the last tokens of a node's own path.

Small enough to enumerate every continuation, and strict about its cache: it knows which tokens are committed, and
every misuse by a loop or a drafter is an AssertionError.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from types import MappingProxyType

import torch
from torch import Tensor

from specstream.core.ports import Target, TargetSession
from specstream.core.tree import TokenTree
from specstream.core.tree_shapes import Candidates, Ranked
from specstream.heads.block import BlockConfig
from specstream.heads.published import Memory


@dataclass(frozen=True, eq=False)
class TableModel(Target):
    """A target.

    Attributes:
        table: logits ``[(vocab + 1) ** memory, vocab]``; the row is the number that the last ``memory`` tokens
            spell in base ``vocab + 1``, where 0 stands for "before the first token".
        memory: how many tokens back the logits depend on.
        context_length: as a Target's.
    """

    table: Tensor
    memory: int
    context_length: int | None = None

    @classmethod
    def random(cls, seed: int, *, vocab: int = 4, memory: int = 2, scale: float = 1.5) -> TableModel:
        generator = torch.Generator().manual_seed(seed)
        return cls(torch.randn((vocab + 1) ** memory, vocab, generator=generator) * scale, memory)

    @property
    def vocab(self) -> int:
        return self.table.shape[1]

    def disturbed(self, seed: int, noise: float) -> TableModel:
        """A model that is nearly this one."""
        generator = torch.Generator().manual_seed(seed)
        return replace(self, table=self.table + noise * torch.randn(self.table.shape, generator=generator))

    def sharpened(self, factor: float) -> TableModel:
        """A model that is nearly always sure of this one's favourite."""
        return replace(self, table=self.table * factor)

    def without(self, seed: int, count: int) -> TableModel:
        """A model that never says ``count`` of the tokens, other ones after every context."""
        generator = torch.Generator().manual_seed(seed)
        dropped = torch.rand(self.table.shape, generator=generator).argsort(-1)[:, :count]
        return replace(self, table=self.table.scatter(1, dropped, -math.inf))

    def limited(self, context_length: int) -> TableModel:
        return replace(self, context_length=context_length)

    def index(self, context: Sequence[int], start: int = 0) -> int:
        """The table's row after ``context``, read on from the row ``start``."""
        row, base, rows = start, self.vocab + 1, len(self.table)
        for token in context:
            assert 0 <= token < self.vocab, f"token {token} is not one of {self.vocab}"
            row = (row * base + token + 1) % rows
        return row

    def logits(self, context: Sequence[int]) -> Tensor:
        """Logits ``[vocab]`` after ``context``."""
        return self.table[self.index(context[-self.memory :])]

    def favourites(self, prompt: Sequence[int], count: int) -> list[int]:
        """Greedy decoding, by the definition."""
        tokens = list(prompt)
        for _ in range(count):
            tokens.append(int(self.logits(tokens).argmax()))
        return tokens[len(prompt) :]

    def begin(self, prefixes: Sequence[Sequence[int]]) -> TableSession:
        return TableSession(self, prefixes)

    def begin_reading(self, prefixes: Sequence[Sequence[int]]) -> TableSession:
        session = TableSession(self, [[] for _ in prefixes])
        session.unread = [list(prefix) for prefix in prefixes]
        return session


class TableSession(TargetSession):
    """A batch at work; ``committed`` is what a real model would hold keys and values of."""

    exact = "bits"
    device = torch.device("cpu")

    def __init__(self, model: TableModel, prefixes: Sequence[Sequence[int]]) -> None:
        self.model = model
        self.committed = [list(prefix) for prefix in prefixes]
        self.unread: list[list[int]] = []
        self.passes = 0
        self.nodes = 0  # scored in all passes
        self._pending: list[TokenTree] | None = None
        self._begun: list[TokenTree] | None = None
        self._reads = False

    def read(self, most: int) -> bool:
        for committed, unread in zip(self.committed, self.unread, strict=False):
            committed.extend(unread[:most])
            del unread[:most]
        return any(self.unread)

    def score(self, trees: Sequence[TokenTree]) -> Tensor:
        self._require(not any(self.unread), "scored before the prompts were read")
        self._require(self._pending is None, "scored twice without a commit")
        self._require(len(trees) == len(self.committed), f"{len(trees)} trees for {len(self.committed)} rows")
        width = max(len(tree) for tree in trees)
        indexes = [
            self._indexes(tree, committed) + [0] * (width - len(tree))
            for tree, committed in zip(trees, self.committed, strict=True)
        ]
        self._states = torch.tensor(indexes)
        logits = self.model.table[self._states]
        # What lies beyond a tree is meaningless: whoever reads it shall notice.
        logits[torch.arange(width) >= torch.tensor([[len(tree)] for tree in trees])] = math.nan
        for tree, whole in zip(trees, self._begun or trees, strict=True):
            tree.places_in(whole)
        self._pending, self._begun = list(trees), None
        self.passes += 1
        self.nodes += sum(map(len, trees))
        return logits

    @property
    def hidden_states(self) -> TableSession:
        return self

    def tap(self, layers: Collection[int]) -> None:
        self._require(set(layers) == {TableHeads.layer}, f"there is no layer of {layers} here")

    def tap_prompts(self, layers: Collection[int]) -> None:
        self._require(set(layers) == {TableHeads.layer}, f"there is no layer of {layers} here")
        self._reads = True

    def prompt_states(self, row: int, layers: Sequence[int]) -> Tensor:
        tokens = self.committed[row] if self._reads else []
        indexes = [self.model.index(tokens[: at + 1]) for at in range(len(tokens))]
        return torch.tensor(indexes, dtype=torch.float64).view(-1, 1, 1)

    def states(self, layer: int) -> Tensor:
        """All that a table knows of a node: the number of its row, ``[rows, width, 1]``."""
        return self._states[..., None].double()

    def descend(self, trees: Sequence[TokenTree], layer: int) -> Tensor:
        self._require(self._begun is None and self._pending is None, "a pass was begun within another")
        self._require(layer == TableHeads.layer, f"there is no layer {layer} here")
        width = max(len(tree) for tree in trees)
        self._begun = list(trees)
        indexes = [
            self._indexes(tree, committed) + [0] * (width - len(tree))
            for tree, committed in zip(trees, self.committed, strict=True)
        ]
        return torch.tensor(indexes)[..., None].double()

    def commit(self, paths: Sequence[Sequence[int]]) -> None:
        self._require(self._pending is not None, "commit without a pass")
        assert self._pending is not None
        self._require(len(paths) == len(self._pending), f"{len(paths)} paths for {len(self._pending)} trees")
        for tree, path, committed in zip(self._pending, map(list, paths), self.committed, strict=True):
            self._require(path[:1] == [0], f"path {path} does not begin at the root")
            self._require(
                all(tree.parents[child] == node for node, child in pairwise(path)), f"{path} is no path of the tree"
            )
            committed.extend(tree.tokens[node] for node in path)
        self._pending = None

    def rollback(self, lengths: Sequence[int]) -> None:
        self._require(self._pending is None, "rolled back between a pass and its commit")
        self._require(len(lengths) == len(self.committed), f"{len(lengths)} lengths for {len(self.committed)} rows")
        for committed, length in zip(self.committed, lengths, strict=True):
            self._require(0 <= length <= len(committed), f"cannot keep {length} of {len(committed)} tokens")
            del committed[length:]

    def keep(self, rows: Sequence[int]) -> None:
        self._require(self._pending is None, "rows dropped between a pass and its commit")
        self._require(len(set(rows)) == len(rows) > 0, f"cannot keep the rows {rows}")
        self._require(all(0 <= row < len(self.committed) for row in rows), f"cannot keep the rows {rows}")
        self.committed = [self.committed[row] for row in rows]

    def join(self, other: TableSession) -> None:
        self._require(self._pending is None and self._begun is None, "rows joined between a pass and its commit")
        self._require(other._pending is None and other.model is self.model, "rows of another kind joined")
        self.committed.extend(other.committed)
        del other.committed  # whoever still uses it shall notice

    def exact_of(self, row: int) -> str:
        return self.exact

    def _indexes(self, tree: TokenTree, committed: Sequence[int]) -> list[int]:
        """The table's row after each node, from the node's own ancestors and no other node."""
        limit = self.model.context_length
        fits = limit is None or len(committed) + max(tree.depths) + 1 <= limit
        self._require(fits, f"{len(committed)} tokens and a tree of depth {max(tree.depths)} exceed {limit}")
        start = self.model.index(committed[-self.model.memory :])
        indexes: list[int] = []
        for token, parent in zip(tree.tokens, tree.parents, strict=True):
            indexes.append(self.model.index([token], start if parent < 0 else indexes[parent]))
        return indexes

    @staticmethod
    def _require(condition: bool, misuse: str) -> None:
        if not condition:
            raise AssertionError(misuse)


@dataclass(frozen=True, eq=False)
class Part(Target):
    """A draft that reads every token and whose logits are of some of them only.

    Attributes:
        model: what it would say.
        tokens: those that it says, rising.
    """

    model: TableModel
    tokens: tuple[int, ...]

    @property
    def context_length(self) -> int | None:
        return self.model.context_length

    def begin(self, prefixes: Sequence[Sequence[int]]) -> PartSession:
        session = PartSession(self.model, prefixes)
        session.tokens = list(self.tokens)
        return session

    def begin_reading(self, prefixes: Sequence[Sequence[int]]) -> PartSession:
        return self.begin(prefixes)


class PartSession(TableSession):
    tokens: list[int]

    def score(self, trees: Sequence[TokenTree]) -> Tensor:
        return super().score(trees)[..., self.tokens]


@dataclass(frozen=True, eq=False)
class TableHeads:
    """Heads that say what ``model`` would, of each depth behind its own favourites.

    Attributes:
        model: of the same vocabulary and memory as the target.
        depth: how many heads.
        rates: as those of ``MedusaHeads``.
    """

    model: TableModel
    depth: int = 3
    rates: list[list[float]] = field(default_factory=list)
    layer = 0
    nbytes = 0

    def draft(self, states: Tensor, depth: int, ranks: int) -> tuple[Tensor, Tensor]:
        rows = states[:, 0].long()
        drafted = []
        for _ in range(depth):
            favourites = self.model.table[rows].argmax(-1).tolist()
            rows = torch.tensor(
                [self.model.index([token], row) for row, token in zip(rows.tolist(), favourites, strict=True)]
            )
            drafted.append(self.model.table[rows].softmax(-1).topk(min(ranks, self.model.vocab), -1))
        return torch.stack([each.indices for each in drafted], 1), torch.stack([each.values for each in drafted], 1)


@dataclass(frozen=True, eq=False)
class TableBlock:
    """A block head that says what ``TableHeads`` would; its window holds the states of two positions."""

    model: TableModel
    gamma: int = 3
    config: BlockConfig = field(default_factory=lambda: BlockConfig(taps=(0,), window=2))
    taps = (0,)
    nbytes = 0

    def memory(self, states: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        return states, positions[:, None]

    def candidates(
        self,
        last: Tensor,
        positions: Tensor,
        following: Tensor,
        memory: tuple[Sequence[Tensor], Sequence[Tensor]],
        count: int,
        depth: int,
    ) -> list[Candidates]:
        for state, position, keys, places in zip(last, positions.tolist(), *memory, strict=True):
            assert torch.equal(keys[-1, -1], state), "the last committed node's state is the last of the window"
            there = places.flatten().tolist()  # without those that were committed while the policy paused
            assert there == sorted(set(there))
            assert there[-1] == position
        drafted = TableHeads(self.model).draft(last, depth, count)
        return [Candidates(*own) for own in zip(*(part.tolist() for part in drafted), strict=True)]


@dataclass(frozen=True, eq=False)
class TableEagle:
    """An EAGLE-3 head that says what the table says behind what it drafted; its outputs are rows of the table."""

    model: TableModel
    gamma: int = 3
    taps = (0,)
    nbytes = 0
    details = MappingProxyType[str, object]({})

    @property
    def vocabulary(self) -> Tensor:
        return torch.arange(self.model.vocab)

    def combined(self, states: Tensor) -> Tensor:
        return states[:, 0]

    def fed_back(self, output: Tensor) -> Tensor:
        return output

    def step(self, hidden: Tensor, tokens: Tensor, positions: Tensor, memories: Sequence[tuple[Memory, int]]) -> Tensor:
        places = positions.tolist()
        for memory, count in memories:
            own, places = places[:count], places[count:]
            assert own == sorted(set(own)) and memory.length <= own[0]  # without those of a pause
            memory.length += count
        rows = [self.model.index([token], int(row)) for row, token in zip(hidden[:, 0], tokens.tolist(), strict=True)]
        return torch.tensor(rows, dtype=hidden.dtype)[:, None]

    def logits(self, output: Tensor) -> Tensor:
        return self.model.table[output[:, 0].long()].float()


@dataclass(frozen=True, eq=False)
class TableDFlash:
    """A DFlash head that says what ``TableHeads`` would; its memory holds the last state that was read."""

    model: TableModel
    gamma: int = 3
    layers = (None,)
    taps = (0,)
    nbytes = 0

    @property
    def vocabulary(self) -> Tensor:
        return torch.arange(self.model.vocab)

    def read(
        self, memories: Sequence[Sequence[Memory]], counts: Sequence[int], states: Tensor, positions: Tensor
    ) -> None:
        parts = zip(memories, torch.split(states, list(counts)), torch.split(positions, list(counts)), strict=True)
        for (memory,), own, places in parts:
            assert places.tolist() == sorted(set(places.tolist())) and memory.length <= int(places[0])
            memory.length += len(own)
            memory._held = own[-1, 0]

    def logits(self, roots: Tensor, positions: Tensor, memories: Sequence[Sequence[Memory]], depth: int) -> Tensor:
        found = list[Tensor]()
        for root, place, (memory,) in zip(roots.tolist(), positions.tolist(), memories, strict=True):
            assert memory.length <= place
            own, at = list[Tensor](), self.model.index([root], int(memory._held))
            for _ in range(depth):
                own.append(self.model.table[at])
                at = self.model.index([int(own[-1].argmax())], at)
            found.append(torch.stack(own))
        return torch.stack(found).float()


@dataclass(frozen=True, eq=False)
class TableCandidates(Candidates):
    """Behind each token, what the table says there."""

    model: TableModel
    row: int

    def behind(self, at: int, rank: int) -> Ranked:
        if at == 0:
            return super().behind(at, rank)
        shares = self.model.table[self.model.index([self.tokens[at - 1][rank]], self.row)].softmax(-1)
        ranked = [(float(shares[token]), each) for each, token in enumerate(self.tokens[at])]
        return sorted(ranked, key=lambda each: -each[0])


@dataclass(frozen=True, eq=False)
class TableStreams:
    """Streams that say what ``TableHeads`` would, and an early exit that says what the table ``exit`` would.

    ``chained``: what the streams behind the first say depends on the token before.
    """

    model: TableModel
    gamma: int = 3
    exit: TableModel | None = None
    chained: bool = False
    first = 0
    nbytes = 0

    def candidates(
        self,
        session: TableSession,
        places: Sequence[tuple[int, int]],
        following: Sequence[int],
        count: int,
        rows: Sequence[int] | None = None,
        *,
        depth: int | None = None,
    ) -> list[Candidates]:
        at, nodes = zip(*places, strict=True)
        states = session.states(0)[list(at), list(nodes)]
        drafted = TableHeads(self.model).draft(states, min(depth or self.gamma, self.gamma), count)
        each = zip(*(part.tolist() for part in drafted), strict=True)
        if not self.chained:
            return [Candidates(*own) for own in each]
        return [
            TableCandidates(*own, self.model, row) for own, row in zip(each, states[:, 0].long().tolist(), strict=True)
        ]

    def likelihoods(self, hidden: Tensor, trees: Sequence[TokenTree]) -> list[list[float]]:
        assert self.exit is not None
        shares = self.exit.table.softmax(-1)
        return [
            [
                1.0,
                *(float(shares[int(hidden[row, tree.parents[at], 0]), tree.tokens[at]]) for at in range(1, len(tree))),
            ]
            for row, tree in enumerate(trees)
        ]
