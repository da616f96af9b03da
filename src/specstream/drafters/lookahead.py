"""Lookahead decoding: n-grams that the target itself makes on the side, without training and without a draft model.

After Fu et al., "Break the sequential dependency of LLM inference using lookahead decoding" (arXiv 2402.02057). Every
pass does two things. It verifies: n-grams that begin with the last token are candidates for what follows it. And it
looks ahead: a window of guesses, W positions wide and N - 1 Jacobi iterations deep, takes one more iteration, which
makes W new n-grams for the pool.

The paper runs the two as branches with a mask of their own. That mask is a tree's: iteration 0 of the window is a chain
of guesses behind the root, and from its token at position i hang the later iterations of column i, one below the other:

    root ── a1 ── a2 ── a3         iteration 0     column i, read downwards, is the n-gram in the making that begins at
     │      │     │     │                          position i; the target's choice after its last token completes it,
     b0     b1    b2    b3         iteration 1     (a1, b1, c1, choice), and is the column's newest token. Then every
     │      │     │     │                          column drops its oldest token: b1, c1 and the choice stay, and b is
     c0     c1    c2    c3         iteration 2     the chain behind the next root.

So the window is drafted like anything else. Unlike in the paper:

- Tokens of the window may be accepted, where they happen to be right: for a tree that is no exception.
- Equal prefixes, of candidates and of columns, are scored once.
- The window starts full, with tokens of the prompt; there it starts with one random iteration and fills up.
- A column that is deeper than a round may draft (near the end of a row, or of ``max_depth``) waits.
- In rounds that are not worth a wide pass nothing is scored, and the window waits; the paper always speculates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from specstream.core.by_rows import SessionByRows
from specstream.core.ports import Drafter, DraftRequest, Offer, TargetSession, Verdict
from specstream.core.sampling import Sampling
from specstream.core.tree import TokenTree
from specstream.errors import UsageError


class LookaheadDrafter(Drafter):
    """Drafts n-grams of the target's own making.

    Args:
        window: W, the positions that are guessed ahead. Its guesses are ``window + ngram - 3`` deep.
        ngram: N, the length of the n-grams; each is worth N - 1 drafted tokens.
        guesses: G, most candidates of one pass, and most n-grams kept with one first token: the newest.
        from_text: whether n-grams of the prompt and of the output go into the pool too (the paper's "prompt as
            reference").

    Raises:
        UsageError: a window without a column, n-grams of fewer than two tokens, no guess.
    """

    name = "lookahead"

    def __init__(self, *, window: int = 4, ngram: int = 4, guesses: int = 4, from_text: bool = True) -> None:
        for name, value, least in (("window", window, 1), ("ngram", ngram, 2), ("guesses", guesses, 1)):
            if value < least:
                raise UsageError(f"{name} is {value}; give {least} or more")
        self.window, self.ngram, self.guesses, self.from_text = window, ngram, guesses, from_text

    @property
    def limits(self) -> Mapping[str, int]:
        # The depth of the window's last column, or of an n-gram's last token.
        deepest = max(self.window + self.ngram - 3, self.ngram - 1)
        return {f"lookahead's window of {self.window} and n-grams of {self.ngram} tokens reach {deepest}": deepest}

    @property
    def nodes(self) -> int:
        """Drafted nodes of the largest tree."""
        return (self.window + self.guesses) * (self.ngram - 1)

    def begin(
        self, prompts: Sequence[Sequence[int]], samplings: Sequence[Sampling], session: TargetSession | None = None
    ) -> SessionByRows:
        if session is not None and session.chains_only:
            raise UsageError(
                "drafter is 'lookahead', whose guesses are branches, and this model scores chains only; give 'lookup'"
            )
        return SessionByRows([_Row(self, prompt) for prompt in prompts])


class Pool:
    """The newest n-grams, by their first token.

    Args:
        ngram: tokens of each.
        most: how many are kept for one first token.
    """

    def __init__(self, ngram: int, most: int) -> None:
        self._ngram, self._most = ngram, most
        self._continuations: dict[int, list[tuple[int, ...]]] = {}
        self._read = 0

    def add(self, first: int, continuation: tuple[int, ...]) -> None:
        """Remember that ``continuation`` may follow ``first``."""
        known = self._continuations.setdefault(first, [])
        if continuation in known:
            known.remove(continuation)
        known.append(continuation)
        del known[: -self._most]

    def read(self, tokens: Sequence[int]) -> None:
        """Add the n-grams of a growing text. Costs as much as there is news."""
        for end in range(max(self._read + 1, self._ngram), len(tokens) + 1):
            first, *continuation = tokens[end - self._ngram : end]
            self.add(first, tuple(continuation))
        self._read = max(self._read, len(tokens))

    def after(self, token: int) -> list[tuple[int, ...]]:
        """What may follow ``token``, the newest first."""
        return self._continuations.get(token, [])[::-1]


class _Row:
    """The pool and the window of one row.

    Attributes:
        columns: ``columns[i]`` are the guesses that begin at position i behind the root, N - 1 of them, one for each
            iteration; the first of column 0 stands where the root is, and is not used.
    """

    def __init__(self, drafter: LookaheadDrafter, prompt: Sequence[int]) -> None:
        self._pool, self._from_text = Pool(drafter.ngram, drafter.guesses), drafter.from_text
        depth = drafter.ngram - 1
        needed = drafter.window * depth
        tokens = (list(prompt) * -(-needed // len(prompt)))[-needed:]
        self.columns = [tokens[at : at + depth] for at in range(0, needed, depth)]
        self._scored: dict[int, int] = {}  # column -> the node of its last token in the tree just proposed
        self._root = prompt[-1]

    def offers(self, request: DraftRequest) -> list[Offer]:
        """One: the candidates as deep as they are taken, and with them the whole window."""
        candidates, columns = self._candidates(request), self._columns(request.depth)
        deepest = max(map(len, [*candidates, *columns]), default=0)
        if request.depth < 1 or not deepest:
            return []
        tree, ways = TokenTree.merged(request.tokens[-1], [*candidates, *columns])
        window = {node for way in ways[len(candidates) :] for node in way}
        at_depth = [0] * (deepest + 1)  # nodes of the candidates alone
        for node, depth in enumerate(tree.depths):
            at_depth[depth] += node not in window
        return [Offer(source="lookahead", depth=deepest, tree=tree, counts=tuple(at_depth[1:]), beside=len(window))]

    def propose(self, request: DraftRequest) -> TokenTree:
        self._root, self._scored = request.tokens[-1], {}
        if request.depth < 1:
            return TokenTree.chain(request.tokens[-1:])
        # The window is as deep as the offer had it, whatever depth of the candidates was taken.
        columns = self._columns(request.offer.depth if request.offer else request.depth)
        candidates = self._candidates(request)
        tree, ways = TokenTree.merged(request.tokens[-1], [*candidates, *columns])
        self._scored = {at: way[-1] if way else 0 for at, way in enumerate(ways[len(candidates) :])}
        return tree

    def observe(self, verdict: Verdict) -> None:
        """One Jacobi iteration of the window, if it was scored."""
        if not self._scored:
            return
        choices = verdict.choices()
        for at, node in self._scored.items():
            if (choice := choices[node]) < 0:  # the logits there are no numbers
                continue
            first, *rest = self.columns[at]
            self._pool.add(first if at else self._root, (*rest, choice))
            self.columns[at] = [*rest, choice]

    def _candidates(self, request: DraftRequest) -> list[tuple[int, ...]]:
        if self._from_text:
            self._pool.read(request.tokens)
        return [path[: request.depth] for path in self._pool.after(request.tokens[-1])]

    def _columns(self, depth: int) -> list[list[int]]:
        """The tokens from the root to the end of every column that is no deeper than ``depth``."""
        paths = []
        chain: list[int] = []
        for at, (first, *rest) in enumerate(self.columns):
            if at:
                chain.append(first)
            if at + len(rest) <= depth:
                paths.append([*chain, *rest])
        return paths
