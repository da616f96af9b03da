"""A smaller model of the same vocabulary drafts token by token (Leviathan et al., arXiv 2211.17192).

A greedy draft ends where the draft model is no longer sure enough of the path to pay for another step: below the
confidence threshold that the policy sets. How sure it is says its probability of each token, its doubts multiplied by
what came of the last ones. The token at which a draft ends is held against the target's own as well, or a draft that
never dares would never learn. Sampled drafts do not end early: which tokens are drawn must not decide whether they are
looked at.

A draft may say some of the target's tokens only (``part``): the others have probability 0 in what it proposes, which
verification weighs like any other proposal.

Where nodes of a pass are cheaper than that, the token before which a greedy draft ended is proposed all the same, and
so are runners-up beside the chain, as far as the draft takes them for likely enough (``DraftRequest.prices``).

With ``branches`` above 1 each step also proposes the runners-up as leaves beside the chain: they cost no further
draft pass. At temperature > 0 the candidates of a step are drawn without replacement from the draft's own
distribution, which goes into the tree for the verification to weigh.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

import torch
from torch import Tensor
from torch.nn.functional import pad

from specstream.core.device import deferred
from specstream.core.device.deferred import DeferredChain, Drafted, upload
from specstream.core.policy.acceptance import Calibration
from specstream.core.ports import (
    Components,
    Drafter,
    DraftModel,
    DraftRequest,
    DraftSession,
    Offer,
    TargetSession,
    Verdict,
)
from specstream.core.sampling import Sampling, distributions, draw, draw_each, largest, probabilities, process
from specstream.core.tree import TokenTree
from specstream.errors import UsageError

READ_AT_ONCE = 32
"""Tokens in one pass of a draft that catches up: it computes logits for each of them."""

RUNNERS_UP, HARDLY = 4, 0.005
"""Tokens beside the likeliest that are looked at, and the probability below which none is worth a look."""

FAR_BEHIND = 128
"""Unread tokens beyond which a draft starts afresh with the last ``READ_AT_ONCE``: it was of no use for that long, and
to read everything before it is tried again would cost more than such a trial may (docs/policy.md)."""


class DraftModelDrafter(Drafter):
    """Drafts with another model.

    Args:
        model: the draft, as a target of its own; it shares the target's vocabulary.
        gamma: most draft passes a round (each adds one token of depth).
        branches: candidates per step; 1 drafts chains.
        vocab_size: the target's, where it may differ from the draft's by padding; None if they are equal.
        part: the tokens that the draft's logits are of, ``[size]`` int64, rising, where they are not of all; it reads
            every token all the same, and ``vocab_size`` has to be given.
        from_cache: begins a session of the draft from the target's, with its KV cache and its rows' prefixes, where the
            two are one model; None where the draft reads prompts by itself.
        name: to be known by, where there are several.
    """

    def __init__(
        self,
        model: DraftModel,
        *,
        gamma: int = 4,
        branches: int = 1,
        vocab_size: int | None = None,
        part: Tensor | None = None,
        from_cache: Callable[[TargetSession, Sequence[Sequence[int]]], TargetSession] | None = None,
        name: str = "draft_model",
    ) -> None:
        for setting, value in (("gamma", gamma), ("branches", branches)):
            if value < 1:
                raise UsageError(f"{setting} is {value}; give 1 or more")
        self.model, self.gamma, self.branches = model, gamma, branches
        if part is not None and vocab_size is None:
            raise UsageError("part is given and vocab_size is not; give the size of the target's vocabulary")
        self.vocab_size, self.part, self.name = vocab_size, part, name
        self._from_cache = from_cache
        self.doubts = Calibration()  # tokens that were wrong, over the probability that the draft left for that
        self._names: list[int] = [] if part is None else part.tolist()

    @property
    def components(self) -> Components:
        return Components(models=(self.model,))

    def named(self, rows: list[int]) -> list[int]:
        """The tokens that rows of the draft's head stand for."""
        return [self._names[row] for row in rows]

    def begin(
        self, prompts: Sequence[Sequence[int]], samplings: Sequence[Sampling], session: TargetSession | None = None
    ) -> DraftModelSession:
        limit = self.model.context_length
        # A prompt that the draft cannot hold is never drafted for, so the draft does not read it.
        prefixes = [prompt[:-1] if limit is None or len(prompt) < limit else [] for prompt in prompts]
        lengths = [len(prefix) for prefix in prefixes]
        if self._from_cache is None or session is None:
            own = self.model.begin_reading(prefixes)
            if (kept := getattr(session, "prefixes", None)) is not None:  # a session of somebody's own has none
                own.reuse(kept)
        else:
            own = self._from_cache(session, prefixes)
        return DraftModelSession(self, own, lengths, [each.without_processors() for each in samplings])


@dataclass(kw_only=True)
class _Growing:
    """A tree under construction: a chain with leaves beside it."""

    request: DraftRequest
    skipped: int
    sampling: Sampling
    likelihood: float = 1.0
    ended: bool = False
    said: list[tuple[int, float]] = field(default_factory=list)  # tokens that were the likeliest, and the doubt of each
    steps: list[list[int]] = field(default_factory=list)
    taken: int = 0  # steps, the last of which may have found that the draft has to end
    beside: list[tuple[float, int, int]] = field(default_factory=list)  # likelihood, parent in the chain, token
    proposals: list[Tensor] = field(default_factory=list)

    @property
    def chain(self) -> list[int]:
        return [candidates[0] for candidates in self.steps]

    @property
    def sequence(self) -> list[int]:
        """The row's tokens and the chain drafted behind them."""
        return [*self.request.tokens, *self.chain]

    @property
    def readable(self) -> list[int]:
        """What the draft knows of them, or shall."""
        return self.sequence[self.skipped :]

    def tree(self) -> TokenTree:
        """The chain takes nodes 1, 2, 3, ...; the leaves follow."""
        root, chain = self.request.tokens[-1], self.chain
        leaves = [(depth, token) for depth, step in enumerate(self.steps) for token in step[1:]]
        prices = self.request.prices[len(chain) + len(leaves) :]
        likely = sorted(self.beside, reverse=True)
        leaves += [each[1:] for each, _ in takewhile(_pays, zip(likely, prices, strict=False))]
        return TokenTree(
            (root, *chain, *(token for _, token in leaves)),
            (-1, *range(len(chain)), *(depth for depth, _ in leaves)),
            dict(enumerate(self.proposals)),
            self.taken,
        )


class DraftModelSession(DraftSession):
    """The draft's own cache, kept in step with each row."""

    def __init__(
        self, drafter: DraftModelDrafter, session: TargetSession, lengths: list[int], samplings: list[Sampling]
    ) -> None:
        self._drafter = drafter
        self._session = session
        self._cached = lengths  # tokens of each row whose keys and values the draft holds
        self._skipped = [0] * len(lengths)  # first tokens of each row that the draft never reads
        self._samplings = samplings
        # Tokens that the draft can read: where it says all that it reads, known from its first pass.
        self._vocab_size = None if drafter.part is None else drafter.vocab_size
        self._before: list[int] = []
        self._said: list[list[tuple[int, float]]] = []

    def offers(self, requests: Sequence[DraftRequest]) -> list[list[Offer]]:
        return [self._offers(row, request) for row, request in enumerate(requests)]

    def read(self, most: int) -> bool:
        return self._session.read(most)

    def propose(self, requests: Sequence[DraftRequest]) -> list[TokenTree]:
        while self.read(sys.maxsize):  # what nobody has read before
            pass
        depths = [self._depth(request) for request in requests]
        self._said = []
        if not any(depths):
            self._before = list(self._cached)
            return [TokenTree.chain(request.tokens[-1:]) for request in requests]
        self._catch_up(requests, depths)
        growing = [
            _Growing(request=request, skipped=skipped, sampling=sampling)
            for request, skipped, sampling in zip(requests, self._skipped, self._samplings, strict=True)
        ]
        self._before = [len(row.readable) for row in growing]
        for step in range(max(depths)):
            goes_on = [step < depth and not row.ended for depth, row in zip(depths, growing, strict=True)]
            if not any(goes_on):
                break
            logits = self._feed([row.readable for row in growing], goes_on)
            if step == 0 and self._stays(logits[0].device, requests, max(depths)):
                return self._defer(growing, depths, torch.stack(logits))
            for row, grows, scores in zip(growing, goes_on, logits, strict=True):
                if grows:
                    self._grow(row, scores)
        self._said = [row.said for row in growing]
        return [row.tree() for row in growing]

    def observe(self, verdicts: Sequence[Verdict]) -> None:
        """Forget what the draft read beyond the accepted part of its own chain; learn what its doubts are worth."""
        for said, verdict in zip(self._said, verdicts, strict=False):
            for (token, doubt), truth in zip(said, verdict.tokens, strict=False):
                self._drafter.doubts.judge(doubt, token != truth)
                if token != truth:
                    break
        for row, verdict in enumerate(verdicts):
            on_chain = sum(1 for depth, node in enumerate(verdict.path[1:], 1) if node == depth)
            self._cached[row] = min(self._cached[row], self._before[row] + on_chain)
        self._session.rollback(self._cached)

    def keep(self, rows: Sequence[int]) -> None:
        self._session.keep(rows)
        self._cached = [self._cached[row] for row in rows]
        self._skipped = [self._skipped[row] for row in rows]
        self._samplings = [self._samplings[row] for row in rows]

    def join(self, other: DraftModelSession) -> None:
        self._session.join(other._session)
        self._cached.extend(other._cached)
        self._skipped.extend(other._skipped)
        self._samplings.extend(other._samplings)

    def _offers(self, row: int, request: DraftRequest) -> list[Offer]:
        depth, unread = self._depth(request), self._unread(row, request)
        if not depth:
            return []
        unread = READ_AT_ONCE if unread > FAR_BEHIND else unread
        # A chain that stays on the device takes every step: nobody looks at how likely it still is.
        cuts = self._samplings[row].greedy and not self._simple(self._session.device)
        return [
            Offer(source=self._drafter.name, depth=depth, branches=self._drafter.branches, unread=unread, cuts=cuts)
        ]

    def _unread(self, row: int, request: DraftRequest) -> int:
        return len(request.tokens) - self._skipped[row] - self._cached[row]

    def _depth(self, request: DraftRequest) -> int:
        depth = min(request.depth, self._drafter.gamma)
        limit = self._drafter.model.context_length
        return depth if limit is None else max(0, min(depth, limit - len(request.tokens)))

    def _catch_up(self, requests: Sequence[DraftRequest], depths: Sequence[int]) -> None:
        """Let the rows that will be drafted for read what is more than the first step's pass may hold."""
        growing = [depth > 0 for depth in depths]
        while behind := [self._unread(row, each) for row, each in enumerate(requests) if growing[row]]:
            # The first token that a draft reads is its prompt's: until then nobody knows which tokens it can read.
            most = READ_AT_ONCE if self._vocab_size else 1
            if max(behind) <= most:
                break
            for row, request in enumerate(requests):
                if growing[row] and self._vocab_size and self._unread(row, request) > FAR_BEHIND:
                    self._skipped[row], self._cached[row] = len(request.tokens) - READ_AT_ONCE, 0
            ends = [skipped + done + most for skipped, done in zip(self._skipped, self._cached, strict=True)]
            parts = zip(requests, self._skipped, ends, strict=True)
            self._feed([list(request.tokens[skipped:end]) for request, skipped, end in parts], growing)

    def _feed(self, sequences: list[list[int]], growing: Sequence[bool]) -> list[Tensor]:
        """Let the draft read what it has not read yet; its own logits after each row's last token.

        A row that is not growing reads along, as far as the others make the pass wide anyway; if it has read
        everything, the last token again.
        """
        limit = self._drafter.model.context_length or sys.maxsize
        width = max(len(sequences[row]) - self._cached[row] for row, grows in enumerate(growing) if grows)
        for row, sequence in enumerate(sequences):
            if not growing[row]:
                del sequence[max(1, min(self._cached[row] + width, limit)) :]
            self._cached[row] = min(self._cached[row], len(sequence) - 1)
        self._session.rollback(self._cached)
        news = [self._readable(tokens[done:]) for tokens, done in zip(sequences, self._cached, strict=True)]
        trees = [TokenTree.chain(tokens) for tokens in news]
        logits = self._session.score(trees)
        self._vocab_size = self._vocab_size or logits.shape[-1]
        self._session.commit([range(len(tree)) for tree in trees])
        self._cached = [len(sequence) for sequence in sequences]
        return [logits[row, len(tree) - 1] for row, tree in enumerate(trees)]

    def _readable(self, tokens: list[int]) -> list[int]:
        """A padding entry that only the target has, and said, has no embedding here: the draft reads another token.

        It drafts worse for it, never wrongly. The first pass reads the prompt, which is the tokenizer's.
        """
        size = self._vocab_size
        return tokens if size is None else [token if token < size else 0 for token in tokens]

    def _fit(self, logits: Tensor) -> Tensor:
        """Over the target's vocabulary: padding entries that only one of the two has cannot be drafted."""
        own, part = logits.shape[-1], self._drafter.part
        size = self._drafter.vocab_size or own
        if size == own and part is None:
            return logits
        if part is not None:
            return logits.new_full((*logits.shape[:-1], size), -math.inf).index_copy_(-1, part, logits)
        return pad(logits[..., :size], (0, max(0, size - own)), value=-math.inf)

    def _stays(self, device: torch.device, requests: Sequence[DraftRequest], depth: int) -> bool:
        """Whether the chain can be drafted to its end without the host: every row then goes as deep as the deepest."""
        limit = self._drafter.model.context_length
        fits = limit is None or max(len(request.tokens) for request in requests) + depth <= limit
        return fits and self._simple(device)

    def _simple(self, device: torch.device) -> bool:
        """Whether chains of these rows are drafted without the host, as far as they fit."""
        alike = all(sampling == self._samplings[0] for sampling in self._samplings)
        simple = self._drafter.branches == 1 and alike and not self._samplings[0].needs_context
        return deferred.asynchronous(device) and simple

    def _defer(self, growing: Sequence[_Growing], depths: Sequence[int], logits: Tensor) -> list[TokenTree]:
        """Draft chains on the device, from the draft's logits ``[rows, vocab]`` of their first tokens on."""
        held, deepest, rows, logits = list(self._cached), max(depths), range(len(growing)), self._fit(logits)
        sampling = self._samplings[0]  # of all rows
        chance = torch.empty(0) if sampling.greedy else self._chance(growing, depths, logits.device)
        tokens, proposals, sound = list[Tensor](), list[Tensor](), list[Tensor]()
        for step in range(deepest):
            if step:
                last = Drafted(tokens=tokens[-1][:, None])
                logits = self._fit(self._session.score([DeferredChain(last, row, 1, None) for row in rows])[:, 0])
                self._session.commit([[0]] * len(growing))
            if sampling.greedy:
                tokens.append(logits.float().argmax(-1))
                continue
            distribution, fine = distributions(logits, sampling)
            tokens.append(draw_each(distribution, chance[:, step]))
            proposals.append(distribution)
            sound.append(fine)
        # A row that wanted less was taken along; what the draft read of it beyond that is rolled back.
        self._cached = [known + max(0, depth - 1) for known, depth in zip(held, depths, strict=True)]
        drafts = Drafted(
            tokens=torch.stack(tokens, 1),
            proposals=torch.stack(proposals, 1) if proposals else None,
            sound=torch.stack(sound, 1) if sound else None,
        )
        return [DeferredChain(drafts, row, depths[row], grown.request.tokens[-1]) for row, grown in enumerate(growing)]

    def _chance(self, growing: Sequence[_Growing], depths: Sequence[int], device: torch.device) -> Tensor:
        """Numbers ``[rows, depth]`` from each row's own generator; a row takes as many as it wanted tokens."""
        numbers = []
        for row, depth in zip(growing, depths, strict=True):
            drawn = torch.rand(depth, generator=row.request.generator, dtype=torch.float64).tolist()
            numbers.append([*drawn, *[0.0] * (max(depths) - depth)])
        return upload(numbers, device, torch.float64)

    def _grow(self, row: _Growing, logits: Tensor) -> None:
        sampling, row.taken = row.sampling, row.taken + 1
        context = row.sequence if sampling.needs_context else ()
        branches = self._drafter.branches
        if sampling.greedy:
            # Where nothing but their order counts, logits of a part are looked at as they are: they are the fewer.
            short = self._drafter.part is not None and not sampling.needs_context
            scores = process(logits if short else self._fit(logits), sampling, context)
            best = int(largest(scores))
            chosen = [best] if branches == 1 else scores.topk(branches).indices.tolist()
            chosen = self._drafter.named(chosen) if short else chosen
            if row.request.threshold:
                self._doubt(row, scores, best, chosen[0], short)
            if not row.ended:
                row.steps.append(chosen)
            return
        distribution = probabilities(self._fit(logits), sampling, context)
        row.proposals.append(distribution)
        rest = distribution.clone()
        candidates: list[int] = []
        while len(candidates) < branches and rest.sum() > 0:
            candidates.append(draw(rest, row.request.generator))
            rest[candidates[-1]] = 0
        row.steps.append(candidates)

    def _doubt(self, row: _Growing, scores: Tensor, best: int, token: int, short: bool) -> None:
        """How likely the path is with this token, whether that is enough, and what else comes into question."""
        before, ratio, at = row.likelihood, self._drafter.doubts.ratio, len(row.steps)
        total = float((scores - scores[best]).exp_().sum())
        doubt = 1 - 1 / total
        row.said.append((token, doubt))
        row.likelihood = before * max(0.0, 1 - doubt * ratio)
        row.ended = row.likelihood < row.request.threshold
        if row.ended:
            row.beside.append((row.likelihood, at, token))
        if self._drafter.branches == 1 and row.request.prices and before * doubt * ratio > HARDLY:
            values, places = scores.topk(min(1 + RUNNERS_UP, len(scores)))
            shares = ((values - scores[best]).exp_() / total * ratio * before).tolist()
            others = self._drafter.named(places.tolist()) if short else places.tolist()
            row.beside += [(share, at, other) for share, other in zip(shares, others, strict=True) if other != token]


def _pays(node: tuple[tuple[float, int, int], float]) -> bool:
    """Whether a node is likelier than its price."""
    (likelihood, *_), price = node
    return likelihood > max(price, HARDLY)
