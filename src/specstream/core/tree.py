"""TokenTree: drafted tokens hanging from the last token that is already decided.

A chain is a tree with one path; plain decoding is a tree with no drafted token at all.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import takewhile

from torch import Tensor


@dataclass(frozen=True, eq=False)
class TokenTree:
    """Tokens to score in one pass.

    Attributes:
        tokens: token ids; node 0 is the root, the last token of the sequence, which is not a draft.
        parents: index of each node's parent; ``parents[0] == -1`` and ``parents[i] < i``.
        proposals: for a node whose children were *drawn*, the distribution ``[vocab]`` (float32, sums to 1)
            they were drawn from, in the order of their indices and without replacement. A node that is
            missing here had its children chosen deterministically (a top-k list, a lookup).
        steps: that the drafter took for it; None for as many as it is deep.
        survival: how likely each node is accepted by the drafter's own estimate, 1 for the root, never above its
            parent's; empty where the drafter does not say.

    Raises:
        ValueError: a malformed tree: no root, a parent after its child, two siblings with one token, or a survival for
            other than every node.
    """

    tokens: tuple[int, ...]
    parents: tuple[int, ...]
    proposals: Mapping[int, Tensor] = field(default_factory=dict)
    steps: int | None = None
    survival: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.tokens or len(self.tokens) != len(self.parents) or self.parents[0] != -1:
            raise ValueError(f"a token tree needs a root and one parent per token, got parents {self.parents}")
        if self.survival and len(self.survival) != len(self.tokens):
            raise ValueError(f"survival must have one value per token or none, got {self.survival}")
        if self.is_chain:
            return
        if any(not 0 <= parent < node for node, parent in enumerate(self.parents) if node):
            raise ValueError(f"every parent must come before its child, got parents {self.parents}")
        siblings = list(zip(self.parents, self.tokens, strict=True))
        if len(set(siblings)) != len(siblings):
            raise ValueError(f"siblings must differ in their token, got {siblings}")

    @classmethod
    def chain(cls, tokens: Sequence[int], proposals: Sequence[Tensor] = ()) -> TokenTree:
        """One path: the root, then drafted tokens. ``proposals[i]`` is what token ``i + 1`` was drawn from."""
        return cls(tuple(tokens), tuple(range(-1, len(tokens) - 1)), dict(enumerate(proposals)))

    @classmethod
    def merge(cls, root: int, paths: Sequence[Sequence[int]]) -> TokenTree:
        """The prefix tree of several drafted paths. The first path gets nodes 1, 2, 3, ... in a row."""
        return cls.merged(root, paths)[0]

    @classmethod
    def merged(cls, root: int, paths: Sequence[Sequence[int]]) -> tuple[TokenTree, list[list[int]]]:
        """``merge``, and the nodes of each path, without the root."""
        tokens, parents = [root], [-1]
        index: dict[tuple[int, int], int] = {}
        ways: list[list[int]] = []
        for path in paths:
            node, way = 0, list[int]()
            for token in path:
                if (node, token) not in index:
                    index[node, token] = len(tokens)
                    tokens.append(token)
                    parents.append(node)
                node = index[node, token]
                way.append(node)
            ways.append(way)
        return cls(tuple(tokens), tuple(parents)), ways

    def __len__(self) -> int:
        return len(self.parents)

    @property
    def drafted(self) -> int:
        """How many tokens were drafted: every node but the root."""
        return len(self) - 1

    @cached_property
    def is_chain(self) -> bool:
        return self.parents == tuple(range(-1, len(self) - 1))

    @cached_property
    def depths(self) -> tuple[int, ...]:
        """Distance of each node from the root."""
        if self.is_chain:
            return tuple(range(len(self)))
        depths: list[int] = []
        for parent in self.parents:
            depths.append(depths[parent] + 1 if parent >= 0 else 0)
        return tuple(depths)

    @cached_property
    def children(self) -> tuple[tuple[int, ...], ...]:
        """Children of each node, in the order they were drawn."""
        children: list[list[int]] = [[] for _ in self.parents]
        for node, parent in enumerate(self.parents[1:], 1):
            children[parent].append(node)
        return tuple(map(tuple, children))

    @property
    def first_path(self) -> TokenTree:
        """This tree without all but the first child of each node."""
        kept, node = [0], 0
        while self.children[node]:
            node = self.children[node][0]
            kept.append(node)
        return self if len(kept) == len(self) else self.kept(kept)

    def pruned(self, depth: int) -> TokenTree:
        """This tree without the nodes deeper than ``depth``."""
        kept = [node for node, deep in enumerate(self.depths) if deep <= depth]
        return self if len(kept) == len(self) else self.kept(kept)

    def places_in(self, other: TokenTree) -> tuple[int, ...]:
        """For every node of this tree the same node of a tree that it is a part of.

        Raises:
            ValueError: it is not a part of that tree.
        """
        places: list[int] = []
        for token, parent in zip(self.tokens, self.parents, strict=True):
            among = other.children[places[parent]] if parent >= 0 else (0,)
            place = next((node for node in among if other.tokens[node] == token), None)
            if place is None:
                raise ValueError(f"token {token} below node {parent} is not in the other tree")
            places.append(place)
        return tuple(places)

    def kept(self, nodes: Collection[int]) -> TokenTree:
        """This tree without the nodes that are not named, and without what hangs from them; the root stays."""
        stays, index = [True], {0: 0}
        for node in range(1, len(self)):
            stays.append(node in nodes and stays[self.parents[node]])
            if stays[node]:
                index[node] = len(index)
        return TokenTree(
            tuple(self.tokens[node] for node in index),
            tuple(index.get(self.parents[node], -1) for node in index),
            {
                index[node]: drawn
                for node, drawn in self.proposals.items()
                if not index.keys().isdisjoint(self.children[node])
            },
            survival=tuple(self.survival[node] for node in index) if self.survival else (),
        )

    def matched(self, tokens: Sequence[int]) -> int:
        """How many of the tokens that followed the root lie on one path below it."""
        if self.is_chain:
            return sum(
                1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(self.tokens[1:], tokens, strict=False))
            )
        node = 0
        for depth, token in enumerate(tokens):
            node = next((child for child in self.children[node] if self.tokens[child] == token), 0)
            if not node:
                return depth
        return len(tokens)

    def path(self, node: int) -> tuple[int, ...]:
        """The nodes from the root to ``node``, both included."""
        path = []
        while node >= 0:
            path.append(node)
            node = self.parents[node]
        return tuple(reversed(path))
