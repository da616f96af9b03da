"""What an engine's parts come to: how wide their trees are, and what drafting adds in parameters and bytes."""

from __future__ import annotations

from specstream.core.ports import Drafter
from specstream.drafters.draft_model import DraftModelDrafter
from specstream.drafters.lookahead import LookaheadDrafter
from specstream.drafters.medusa import Heads, MedusaDrafter
from specstream.drafters.mixed import MixedDrafter
from specstream.drafters.streams import StreamHead, StreamsDrafter
from specstream.engine.generation import Parts
from specstream.errors import UsageError
from specstream.models.architecture.memory import held_bytes
from specstream.models.target.hf import HuggingFaceTarget
from specstream.reporting import announce
from specstream.routing.drafter import RoutedDrafter


def prepare(parts: Parts, rows: int) -> None:
    """Let the target test itself for batches of so many rows before anything is timed."""
    if isinstance(parts.target, HuggingFaceTarget):  # without a cache there is nothing to test
        parts.target.prepare(rows=rows, nodes=most_nodes(parts) + 1)


def announce_left_out(parts: Parts, name: str) -> None:
    """Say on stderr what of a contestant does not draft, and why."""
    if parts.left_out is not None:
        announce(f"{name}: {parts.left_out}")


def most_nodes(parts: Parts) -> int:
    """Drafted nodes of the largest tree, as far as that is known beforehand."""
    sized = (LookaheadDrafter, MedusaDrafter, StreamsDrafter)
    own = [each.nodes for each in _each(parts.drafter) if isinstance(each, sized)]
    return max(parts.speculation.max_depth, *own, 0)


def shallower(drafter: Drafter, name: str, depth: int) -> list[str]:
    """What drafts less deep than it may, for want of streams, heads or a wider window, in words.

    Args:
        drafter: or those that it is made of.
        name: of the setting that says how deep.
        depth: that it says.
    """
    found = dict[str, int]()
    for each in _each(drafter):
        if isinstance(each, StreamsDrafter):
            found[f"there are {each.head.gamma} streams"] = each.head.gamma
        elif isinstance(each, MedusaDrafter):
            found[f"there are {each.heads.depth} Medusa heads"] = each.heads.depth
        elif isinstance(each, LookaheadDrafter):
            found[f"lookahead's window of {each.window} and n-grams of {each.ngram} tokens reach {each.deepest}"] = (
                each.deepest
            )
    return [
        f"{name} is {depth} and {there}, so {deepest} tokens deep is the most that they draft"
        for there, deepest in found.items()
        if deepest < depth
    ]


def with_fixed_tree(parts: Parts, nodes: int) -> Parts:
    """The same heads with one tree of so many drafted nodes in every round, whether it pays or not.

    Raises:
        UsageError: a drafter without heads.
    """
    drafter = parts.drafter
    if isinstance(drafter, StreamsDrafter):
        return parts.with_drafter(
            StreamsDrafter(drafter.head, sizes=(nodes,), rates=drafter.rates, pruning=drafter.pruning)
        )
    if isinstance(drafter, MedusaDrafter):
        return parts.with_drafter(MedusaDrafter(drafter.heads, nodes=nodes))
    raise UsageError(f"drafter is {drafter.name!r}; give streams or medusa for a fixed tree")


def extra_parameters(drafter: Drafter, target: HuggingFaceTarget) -> int:
    """Parameters that a drafter needs beyond the target's own."""
    drafts = [draft for draft in _drafts_of(drafter) if draft.model is not target.model]
    heads = sum(each.extra_parameters for each in _heads_of(drafter))
    return heads + sum(int(draft.model.num_parameters()) for draft in drafts)


def draft_bytes(drafter: Drafter, target: HuggingFaceTarget) -> int:
    """Bytes of weights that are there to draft with, merged and quantised copies among them.

    Of a draft in the target's place, ``self:int8``, the copy alone counts. What a generation holds while it runs, the
    caches of keys and values, does not.
    """
    heads, own = _heads_of(drafter), target.runtime.nbytes
    drafts = [draft for draft in _drafts_of(drafter) if draft is not target]
    weights = sum(each.runtime.nbytes - (own if each.model is target.model else 0) for each in drafts)
    return weights + (held_bytes([*heads, *target.runtime.for_drafts], without=target.model) if heads else 0)


def _each(drafter: Drafter) -> list[Drafter]:
    """A drafter, or those that it is made of, each once."""
    if isinstance(drafter, RoutedDrafter):
        parts = [each for own in drafter.drafters.values() for each in _each(own)]
    elif isinstance(drafter, MixedDrafter):
        parts = list(drafter.drafters)
    else:
        parts = [drafter]
    return list({id(each): each for each in parts}.values())


def _heads_of(drafter: Drafter) -> list[Heads | StreamHead]:
    """The heads that there are to draft with."""
    medusa = [each.heads for each in _each(drafter) if isinstance(each, MedusaDrafter)]
    return [*medusa, *(each.head for each in _each(drafter) if isinstance(each, StreamsDrafter))]


def _drafts_of(drafter: Drafter) -> list[HuggingFaceTarget]:
    """The draft models that there are."""
    models = [each.model for each in _each(drafter) if isinstance(each, DraftModelDrafter)]
    return list({id(model): model for model in models if isinstance(model, HuggingFaceTarget)}.values())
