"""Does this model follow a token tree? Asked of the model itself, once, before its first pass.

A tree reaches the model through its mask, its positions and its cache. A family that computes positions from the
places in the cache, or adds a bias of its own, would take them without complaint and score every branch but the first
wrongly. So a small tree with two branches is scored both ways: through the cache, and by the model's own forward over
each path. Where the processor emulates the model's dtype, that forward runs our linear layers, which it is compared
with at one token: mask, positions and attention stay the model's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from specstream.core.tree import TokenTree
from specstream.errors import UnsupportedModelError
from specstream.models.architecture import compat
from specstream.models.architecture.view import view_of
from specstream.models.invariance.tolerance import relative_errors, tolerance
from specstream.models.runtime import native
from specstream.models.target.chains import ChainSession
from specstream.models.target.passes import ModelPasses
from specstream.models.target.session import HuggingFaceSession

CONTEXT = 24
"""Tokens before the tree; with fewer, BLOOM's mistakes drown in bfloat16's rounding."""

BRANCH = 6
"""Tokens of each branch; the second stands this many slots behind its positions, enough to show in half precision."""


@torch.inference_mode()
def check_tree(target: ModelPasses) -> None:
    """Compare both ways of scoring one tree. Three small passes, four where the runtime has an attention of its own.

    It shows that a tree's mask and positions give what the plain sequences give, in every attention of the runtime, and
    that its linear layers are the model's. One that emulates the dtype makes one more pass, over one token. Of a model
    that is scored in chains it shows that its layers go on from a state, and from one that was put back.

    Raises:
        UnsupportedModelError: the model fails at it, or its logits differ by more than rounding.
    """
    limits = [limit for limit in (target.context_length, target.long_after) if limit is not None]
    room = min([CONTEXT + 2 * BRANCH + 1, *limits])
    branch = min(BRANCH, (room - 1) // 3)
    if branch < 1:
        return
    before = min(CONTEXT, room - branch - 1)
    chance = torch.Generator().manual_seed(1)
    tokens = torch.randperm(target.vocab_size, generator=chance)[: before + 1 + 2 * branch].tolist()
    if len(tokens) < before + 1 + 2 * branch:  # a vocabulary too small for two branches
        return
    context, root, branches = tokens[:before], tokens[before], [tokens[before + 1 :][:branch], tokens[-branch:]]
    sequences = torch.tensor([[*context, root, *path] for path in branches], device=target.model.device)
    runtime, off = target.runtime, list[float]()
    emulated = runtime.kind == "native" and not runtime.quantized and native.emulates(target.model.dtype)
    # Quantised, the runtime's linear layers are the model's: its own may have given their memory back.
    own = _plain(target, sequences[:1, :1] if emulated else sequences, lent=runtime.quantized)
    if not bool(torch.isfinite(own).all()):  # verification says so in better words
        return
    try:
        if emulated:
            first, own = own, _plain(target, sequences, lent=True)
            off.append(_difference(own[:1, :1], first))
        own = own[:, before + 1 :]
        scoring = _scored_chains if target.family.chains_only else _scored_tree
        off.extend(_difference(scored.view_as(own), own) for scored in scoring(target, context, root, branches))
    except (AttributeError, IndexError, TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise UnsupportedModelError(f"{_refusal(target)}: {_first_line(error)}{compat.advice_if_untested()}") from error
    # An input that rounds otherwise may become another number of eight bits.
    eight = target.family.chains_only and runtime.quantized
    dtypes = (own.dtype, torch.bfloat16 if eight else target.model.dtype)
    wrong = [error for error in off if not error <= tolerance(*dtypes)]
    if wrong:
        reason = f"{_refusal(target)}: its logits on a small tree are off by {wrong[0]:.1%}"
        raise UnsupportedModelError(reason + compat.advice_if_untested())


def _scored_tree(
    target: ModelPasses, context: Sequence[int], root: int, branches: Sequence[Sequence[int]]
) -> Iterator[Tensor]:
    """Logits ``[2 * branch, vocab]`` of both branches, in every attention."""
    session, tree = HuggingFaceSession(target, [context], None), TokenTree.merge(root, branches)
    # A runtime's own attention is for narrow passes only; wide ones go through the mask.
    for masked in {True, not target.runtime.exact_branches}:
        session.masked = masked
        yield session.score([tree])[0, 1 : len(tree)]


def _scored_chains(
    target: ModelPasses, context: Sequence[int], root: int, branches: Sequence[Sequence[int]]
) -> Iterator[Tensor]:
    """The same of a session that forgets the first branch before it scores the second."""
    session = ChainSession(target, [context])
    first = session.score([TokenTree.chain([root, *branches[0]])])[0, 1:]
    session.commit([[0]])
    yield torch.cat([first, session.score([TokenTree.chain(branches[1])])[0]])


def _plain(target: ModelPasses, sequences: Tensor, *, lent: bool) -> Tensor:
    """Logits of plain sequences, by the model's own forward, whose linear layers may be the runtime's."""
    with target.runtime.kernels() if lent else nullcontext():
        logits: Tensor = (target.view if lent else view_of(target.model))(input_ids=sequences, use_cache=False).logits
    return logits


def _difference(scored: Tensor, own: Tensor) -> float:
    return float(relative_errors(scored, own).median(-1).values.max())


def _refusal(target: ModelPasses) -> str:
    tree = "its attention does not follow a tree's mask and positions"
    state = "its layers do not go on from the state before a rejected draft"
    return f"{target.family.name} cannot be a target: {state if target.family.chains_only else tree}"


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
