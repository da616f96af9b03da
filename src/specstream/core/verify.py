"""Which drafted tokens stay: the acceptance rules, for chains and trees alike.

Greedy: walk down while a child is the target's argmax.

Sampling, lossless (chains: Leviathan et al., arXiv 2211.17192, and Chen et al., arXiv 2302.01318; several
candidates: the recursive rejection of SpecInfer, arXiv 2305.09781, with the without-replacement update proven in
Jeon et al., arXiv 2402.14160, theorem 3.1, and Sequoia, arXiv 2402.12374). At a node with target distribution p
and children drawn one after another from q, q without its first draw, and so on:

    accept x with probability min(1, p(x) / q(x))
    on rejection p becomes normalise(max(p - q, 0)), and q forgets x
    with no child left, the token is drawn from what p has become

A child chosen without chance is drawn from a point mass, q(x) = 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache, partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from specstream.core.device import deferred
from specstream.core.device.verification import judge_chains
from specstream.core.ports import Verdict
from specstream.core.sampling import Finder, Sampling, checked, draw, largest, probabilities
from specstream.core.tree import TokenTree

Walk = Callable[[int], Tensor]
"""node -> the target's distribution ``[vocab]`` after it."""

FINDER = Finder()
"""For whoever has no session to ask for one."""


def verify(  # noqa: PLR0913
    trees: Sequence[TokenTree],
    logits: Tensor,
    contexts: Sequence[Sequence[int]],
    sampling: Sampling,
    generators: Sequence[torch.Generator],
    acceptance_threshold: float | None = None,
    ends: frozenset[int] = frozenset(),
    finder: Finder = FINDER,
) -> list[Verdict]:
    """Verify every row's tree.

    Args:
        trees: one per row.
        logits: ``[rows, width, vocab]``: the target's logits after each node; width may exceed a tree.
        contexts: each row's tokens up to and including its tree's root.
        sampling: how the target chooses tokens.
        generators: each row's own source of chance, on the CPU.
        acceptance_threshold: None is lossless. A number turns on typical acceptance (lossy) at temperature > 0.
        ends: tokens nothing comes after, so that no processor is asked what would.
        finder: looks for the tokens with the largest logits.

    Returns:
        A verdict for each row; with an ``error`` where a processor fails, or where the output meets logits that are NaN
        or infinite (``NumericalError``).

    Raises:
        NumericalError: a token was drafted from NaN.
    """
    if sampling.greedy and not sampling.needs_context:
        rows = choose(finder, logits, trees)
        verdicts = [
            _guarded(verify_greedy, tree, partial(_choice, row), ends) for tree, row in zip(trees, rows, strict=True)
        ]
        return _with_choices(verdicts, logits, finder, lambda: rows)
    verdicts = _walks(trees, logits, contexts, sampling, generators, acceptance_threshold, ends)
    return _with_choices(verdicts, logits, finder, lambda: choose(finder, logits))


def choose(finder: Finder, logits: Tensor, trees: Sequence[TokenTree] = ()) -> list[list[int]]:
    """The target's choice after every node, and with it, in the same transfer, the tokens of trees that were deferred.

    Raises:
        NumericalError: a token was drafted from NaN.
    """
    found = finder.choices(logits)
    return deferred.fetch(trees, found) if isinstance(found, Tensor) else found


def verify_each(
    trees: Sequence[TokenTree],
    logits: Tensor,
    contexts: Sequence[Sequence[int]],
    rules: Sequence[tuple[Sampling, frozenset[int]]],
    generators: Sequence[torch.Generator],
    acceptance_threshold: float | None = None,
    finder: Finder = FINDER,
) -> list[Verdict]:
    """``verify`` for rows that each have their own sampling and ends; those of one rule are judged together."""
    alike: dict[object, list[int]] = {}
    for row, (sampling, ends) in enumerate(rules):
        alike.setdefault((id(sampling) if sampling.processors else sampling, ends), []).append(row)
    verdicts: dict[int, Verdict] = {}
    for rows in alike.values():
        judged = verify(
            [trees[row] for row in rows],
            logits if len(rows) == len(trees) else logits[rows],
            [contexts[row] for row in rows],
            rules[rows[0]][0],
            [generators[row] for row in rows],
            acceptance_threshold,
            rules[rows[0]][1],
            finder,
        )
        verdicts.update(zip(rows, judged, strict=True))
    return [verdicts[row] for row in range(len(trees))]


def _with_choices(
    verdicts: list[Verdict], logits: Tensor, finder: Finder, choices: Callable[[], list[list[int]]]
) -> list[Verdict]:
    rows, likely = cache(choices), cache(partial(_likeliest, verdicts, logits, finder))
    for row, verdict in enumerate(verdicts):
        verdict.choices = lambda row=row: rows()[row]  # type: ignore[misc]
        verdict.likeliest = lambda k, row=row: likely(k)[row]  # type: ignore[misc]
    return verdicts


def _likeliest(verdicts: Sequence[Verdict], logits: Tensor, finder: Finder, k: int) -> list[list[list[int]]]:
    """After the nodes of every row's path, all at once: behind a pass it is calls that cost."""
    places = [(row, node) for row, verdict in enumerate(verdicts) for node in verdict.path]
    found = iter(finder.likeliest(logits, places, min(k, logits.shape[-1])))
    return [list(islice(found, len(verdict.path))) for verdict in verdicts]


def _choice(choices: Sequence[int], node: int) -> int:
    return checked(choices[node])


def _guarded(rule: Callable[..., Verdict], *arguments: Any) -> Verdict:
    """One row's failure is no other's."""
    try:
        return rule(*arguments)
    except Exception as error:
        return Verdict(path=(0,), tokens=(), error=error)


def _walks(
    trees: Sequence[TokenTree],
    logits: Tensor,
    contexts: Sequence[Sequence[int]],
    sampling: Sampling,
    generators: Sequence[torch.Generator],
    acceptance_threshold: float | None,
    ends: frozenset[int],
) -> list[Verdict]:
    """``verify`` wherever the argmax alone does not decide."""
    if _on_the_device(trees, logits, sampling) and acceptance_threshold is None:
        judged = zip(trees, judge_chains(trees, logits, sampling, generators), strict=True)
        return [_guarded(_chain_verdict, tree, *found, ends) for tree, found in judged]
    return [
        _guarded(_verify_row, tree, logits[row], contexts[row], sampling, generators[row], acceptance_threshold, ends)
        for row, tree in enumerate(trees)
    ]


def _verify_row(
    tree: TokenTree,
    logits: Tensor,
    context: Sequence[int],
    sampling: Sampling,
    generator: torch.Generator,
    acceptance_threshold: float | None,
    ends: frozenset[int],
) -> Verdict:
    def scores(node: int) -> Tensor:
        # The walk visits the nodes of the output only, so a processor that keeps state sees each token once.
        prefix = [*context, *(tree.tokens[i] for i in tree.path(node)[1:])] if sampling.needs_context else ()
        return probabilities(logits[node], sampling, prefix)

    if sampling.greedy:
        return verify_greedy(tree, lambda node: int(largest(scores(node))), ends)
    if acceptance_threshold is None:
        return verify_sampled(tree, scores, generator, ends)
    return verify_typical(tree, scores, generator, acceptance_threshold, ends)


def _walk(tree: TokenTree, step: Callable[[int], tuple[int | None, int]], ends: frozenset[int]) -> Verdict:
    """Down from the root; ``step`` says which child of a node stays, if one does, and the token behind the node."""
    node, path, tokens = 0, [0], list[int]()
    while not ends.intersection(tokens[-1:]):
        child, token = step(node)
        tokens.append(token)
        if child is None:
            break
        node = child
        path.append(node)
    return Verdict(path=tuple(path), tokens=tuple(tokens))


def verify_greedy(tree: TokenTree, choice: Callable[[int], int], ends: frozenset[int] = frozenset()) -> Verdict:
    """Walk down while a child carries the token the target would have chosen."""

    def step(node: int) -> tuple[int | None, int]:
        token = choice(node)
        return next((child for child in tree.children[node] if tree.tokens[child] == token), None), token

    return _walk(tree, step, ends)


def verify_sampled(
    tree: TokenTree, target: Walk, generator: torch.Generator, ends: frozenset[int] = frozenset()
) -> Verdict:
    """Lossless sampling: the emitted tokens are distributed as the target's own, whatever drew the tree."""

    def step(node: int) -> tuple[int | None, int]:
        accepted, residual = _choose_child(tree, node, target(node), generator)
        return accepted, draw(residual, generator) if accepted is None else tree.tokens[accepted]

    return _walk(tree, step, ends)


def verify_typical(
    tree: TokenTree, target: Walk, generator: torch.Generator, threshold: float, ends: frozenset[int] = frozenset()
) -> Verdict:
    """Typical acceptance (Medusa, arXiv 2401.10774, section 2.3.1). Lossy: it changes the distribution.

    A drafted token stays if the target gives it more than ``min(threshold, sqrt(threshold) * exp(-entropy))``;
    of several such children the target's likeliest is followed. The last token is drawn from the target.
    """

    def step(node: int) -> tuple[int | None, int]:
        p = target(node)
        entropy = -(p * p.clamp_min(1e-30).log()).sum()
        floor = min(threshold, math.sqrt(threshold) * math.exp(-float(entropy)))
        likelihood = {child: float(p[tree.tokens[child]]) for child in tree.children[node]}
        best = max(likelihood, key=likelihood.__getitem__, default=None)
        if best is None or likelihood[best] <= floor:
            return None, draw(p, generator)
        return best, tree.tokens[best]

    return _walk(tree, step, ends)


def _on_the_device(trees: Sequence[TokenTree], logits: Tensor, sampling: Sampling) -> bool:
    """Whether to verify with one question to the device; several candidates, or contexts, take a walk with many."""
    simple = not sampling.greedy and not sampling.needs_context and all(tree.is_chain for tree in trees)
    return simple and deferred.asynchronous(logits.device)


def _chain_verdict(tree: TokenTree, accepted: int, following: int, ends: frozenset[int]) -> Verdict:
    """What ``verify_sampled`` would say; the walk ends at an accepted end."""
    drafted = tree.tokens[1 : accepted + 1]
    ended = next((depth for depth, token in enumerate(drafted, 1) if token in ends), None)
    if ended is not None:
        return Verdict(path=tuple(range(ended + 1)), tokens=drafted[:ended])
    return Verdict(path=tuple(range(accepted + 1)), tokens=(*drafted, checked(following)))


def _choose_child(tree: TokenTree, node: int, p: Tensor, generator: torch.Generator) -> tuple[int | None, Tensor]:
    """The accepted child of a node, or None and the distribution that the rejections left."""
    q = tree.proposals.get(node)
    for child in tree.children[node]:
        token = tree.tokens[child]
        proposed = 1.0 if q is None else float(q[token])
        if proposed <= 0:  # not drawn from q after all: to ignore it is lossless, to weigh it is not
            continue
        if float(torch.rand((), generator=generator, dtype=torch.float64)) * proposed < float(p[token]):
            return child, p
        if q is None:
            p = _normalise(_without(p, token), otherwise=p)
        else:
            p = _normalise((p - q).clamp_min(0), otherwise=p)
            rest = _without(q, token)
            q = _normalise(rest, otherwise=rest)
    return None, p


def _without(distribution: Tensor, token: int) -> Tensor:
    rest = distribution.clone()
    rest[token] = 0
    return rest


def _normalise(weights: Tensor, otherwise: Tensor) -> Tensor:
    """Weights that sum to 1; ``otherwise`` where nothing is left (a rejection that only rounding can cause)."""
    total = weights.sum()
    return weights / total if total > 0 else otherwise
