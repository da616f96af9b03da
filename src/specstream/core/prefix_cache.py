"""Keys and values of texts that were read before, for texts that begin alike.

A radix tree over tokens, as in SGLang (Zheng et al., arXiv 2312.07104): what several texts begin with is held once, and
a turn of a chat adds only its own tokens. The least recently used leaf goes first. Beside them stand states, of models
that keep one: these cannot be cut, so a text goes on from the last one on its way.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

Parts = Mapping[Any, Tensor]
"""Keys and values of neighbouring tokens, ``[heads, tokens, head_dim]`` each, by what tells layers and both apart."""


class State(Protocol):
    """What a model keeps of a text up to one of its tokens, where that cannot be cut out of a longer text's."""

    @property
    def nbytes(self) -> int: ...


class Found(NamedTuple):
    """What is known of a text's beginning.

    Attributes:
        pieces: keys and values up to its last state that is known, piece by piece.
        length: in tokens.
        state: behind those; None where there is none.
        known: tokens at its beginning that are some other text's too.
    """

    pieces: list[Parts]
    length: int
    state: State | None
    known: int


@dataclass(eq=False)
class _Node:
    """Tokens that follow those of the parent, their keys and values, and the states behind some of them, by number."""

    tokens: Sequence[int] = ()
    parts: Parts = field(default_factory=dict)
    parent: _Node | None = None
    states: dict[int, State] = field(default_factory=dict)
    children: dict[int, _Node] = field(default_factory=dict)  # by their first token
    used: int = 0

    @property
    def nbytes(self) -> int:
        return _bytes(self.parts) + sum(state.nbytes for state in self.states.values())


class PrefixCache:
    """Keys and values by the tokens they are of. Threads may share it.

    Args:
        most_bytes: held at a time.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most, self._held, self._clock, self._lock = most_bytes, 0, 0, Lock()
        self._roots: dict[Hashable, tuple[Hashable, _Node]] = {}  # by owner, with the state that it was in

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self._held

    def find(self, owner: Hashable, state: Hashable, tokens: Sequence[int]) -> list[Parts]:
        """Keys and values of as many of the first tokens as are known, piece by piece.

        Args:
            owner: the model whose they are.
            state: of its weights: what was kept in another one is forgotten.
            tokens: of the text.
        """
        with self._lock:
            path = list(self._path(self._root(owner, state), tokens))
            return [_cut(node.parts, 0, same) for node, same in path]

    def find_state(self, owner: Hashable, state: Hashable, tokens: Sequence[int]) -> Found:
        """As ``find``, as far as there is a state."""
        with self._lock:
            path = list(self._path(self._root(owner, state), tokens))
            known = before = sum(same for _, same in path)
            for last, (node, same) in reversed([*enumerate(path)]):
                before -= same
                if place := max((each for each in node.states if each <= same), default=0):
                    pieces = [*(each.parts for each, _ in path[:last]), _cut(node.parts, 0, place)]
                    return Found(pieces, before + place, node.states[place], known)
            return Found([], 0, None, known)

    def keep(
        self,
        owner: Hashable,
        state: Hashable,
        tokens: Sequence[int],
        parts: Callable[[int, int], Parts],
        states: Mapping[int, State] | None = None,
    ) -> None:
        """Hold those of a text, as far as they are not yet.

        Args:
            owner: see ``find``.
            state: see ``find``.
            tokens: of the text.
            parts: of its tokens from the first number up to the second; they are copied.
            states: for ``find_state``, by how many of the tokens they are of.
        """
        if not tokens:
            return
        with self._lock:
            tokens = tokens[: self._most // max(1, _bytes(parts(0, 1)))]
            path = list(self._path(root := self._root(owner, state), tokens))
            known = sum(same for _, same in path)
            if known < len(tokens):
                node, same = path[-1] if path else (root, 0)
                if same < len(node.tokens):
                    node = self._split(node, same)
                self._hang(node, tokens[known:], parts(known, len(tokens)))
            self._mark(root, tokens, states or {})
            while self._held > self._most:
                self._drop(min(self._leaves(), key=lambda leaf: leaf.used))

    def forget(self, owner: Hashable) -> None:
        """Let go of all that is one model's."""
        with self._lock:
            self._forget(owner)

    def _forget(self, owner: Hashable) -> None:
        if owner in self._roots:
            _, root = self._roots.pop(owner)
            self._held -= sum(node.nbytes for node in _below(root))

    def _root(self, owner: Hashable, state: Hashable) -> _Node:
        if owner not in self._roots or self._roots[owner][0] != state:
            self._forget(owner)
            self._roots[owner] = state, _Node()
        return self._roots[owner][1]

    def _path(self, node: _Node, tokens: Sequence[int]) -> Iterator[tuple[_Node, int]]:
        """The nodes that these tokens lead through, and how many tokens of each are theirs; all are used now."""
        self._clock += 1
        at = 0
        while at < len(tokens) and (child := node.children.get(tokens[at])) is not None:
            there = tokens[at : at + len(child.tokens)]
            pairs = enumerate(zip(there, child.tokens, strict=False))
            same = next((place for place, (one, other) in pairs if one != other), len(there))
            child.used = self._clock
            yield child, same
            if same < len(child.tokens):
                return
            node, at = child, at + same

    def _split(self, node: _Node, at: int) -> _Node:
        """Two nodes in place of one; the first of them. Copies: a view would hold the memory of both."""
        assert node.parent is not None
        front = self._hang(node.parent, node.tokens[:at], _cut(node.parts, 0, at))
        self._held -= node.nbytes
        front.states = {place: state for place, state in node.states.items() if place <= at}
        node.states = {place - at: state for place, state in node.states.items() if place > at}
        node.tokens, node.parts, node.parent = node.tokens[at:], _copied(_cut(node.parts, at)), front
        self._held += front.nbytes - _bytes(front.parts) + node.nbytes
        front.children[node.tokens[0]] = node
        return front

    def _mark(self, root: _Node, tokens: Sequence[int], states: Mapping[int, State]) -> None:
        """Put states where they belong, but for those that are there."""
        before = 0
        for node, same in self._path(root, tokens) if states else ():
            new = {at - before: state for at, state in states.items() if 0 < at - before <= same}
            node.states = new | node.states
            self._held += sum(state.nbytes for at, state in new.items() if node.states[at] is state)
            before += same

    def _hang(self, parent: _Node, tokens: Sequence[int], parts: Parts) -> _Node:
        self._clock += 1  # newer than what it was split from
        node = _Node(tuple(tokens), _copied(parts), parent, used=self._clock)
        parent.children[tokens[0]] = node
        self._held += node.nbytes
        return node

    def _leaves(self) -> Iterator[_Node]:
        for _, root in self._roots.values():
            yield from (node for node in _below(root) if not node.children and node.parent is not None)

    def _drop(self, leaf: _Node) -> None:
        assert leaf.parent is not None
        del leaf.parent.children[leaf.tokens[0]]
        self._held -= leaf.nbytes


def _below(node: _Node) -> Iterator[_Node]:
    waiting = [node]
    while waiting:
        node = waiting.pop()
        yield node
        waiting += node.children.values()


def _bytes(parts: Parts) -> int:
    return sum(part.nbytes for part in parts.values())


def _cut(parts: Parts, start: int, end: int | None = None) -> Parts:
    return {key: part[:, start:end] for key, part in parts.items()}


def _copied(parts: Parts) -> Parts:
    return {key: part.clone(memory_format=torch.contiguous_format) for key, part in parts.items()}
