"""What an engine's parts come to: how wide their trees are, and what drafting adds in parameters and bytes."""

from __future__ import annotations

from collections.abc import Iterable

from specstream.config import EngineConfig, target_as_draft, without_effect
from specstream.core.ports import Drafter
from specstream.drafters.none import NoDrafter
from specstream.engine.generation import Generation, Parts
from specstream.errors import UsageError
from specstream.models.architecture.memory import held_bytes
from specstream.models.cache import capacity_for, token_bytes
from specstream.models.invariance.costs import forget_prices, prices_of, rungs
from specstream.models.target.hf import HuggingFaceTarget
from specstream.reporting import announce

DRAWN = ("top_k", "top_p", "min_p", "seed")
"""Settings of a generation that say how tokens are drawn."""


def prepare(parts: Parts, rows: int) -> None:
    """Let the target test itself for batches of so many rows, and the policy know their costs, before any answer."""
    parts.target.prepare(rows=rows, nodes=most_nodes(parts) + 1)
    _tell_costs(parts, [rows])


def prepare_up_to(parts: Parts, rows: int) -> None:
    """The same where a batch may grow to so many rows while it runs, when nothing may be measured any more."""
    parts.target.prepare(nodes=most_nodes(parts) + 1)
    _tell_costs(parts, rungs(rows))


def _tell_costs(parts: Parts, rows: Iterable[int]) -> None:
    """Tell the policy what passes and drafts of so many rows cost, where it decides anything by that."""
    controller, target = parts.speculation.controller, parts.target
    # Without a cache a pass costs by the text before it, which no list says.
    if controller is None or isinstance(parts.drafter, NoDrafter) or not isinstance(target, HuggingFaceTarget):
        return
    target.refresh()  # of the model as it is now
    if controller.costs.outdated:
        forget_prices(target)
        with parts.speculation.lock:
            controller.forget_costs()
    for each in rows:
        prices = prices_of(target, parts.drafter, each, most_nodes(parts) + 1)
        with parts.speculation.lock:
            controller.know(prices)


def announce_left_out(parts: Parts, name: str) -> None:
    """Say on stderr what of a contestant does not draft, and why."""
    if parts.left_out is not None:
        announce(f"{name}: {parts.left_out}")


def announce_short_context(target: HuggingFaceTarget, max_new_tokens: int) -> None:
    """Say on stderr that texts end before they have as many tokens as were asked for."""
    limit = target.context_length
    if limit is not None and max_new_tokens >= limit:
        announce(f"max_new_tokens is {max_new_tokens} and the context holds {limit}, prompt included: texts end there")


HOT = 2.0
"""The highest temperature that servers take; above it texts are hardly the model's."""


def notes_of(config: EngineConfig, generation: Generation, itself: str | None = None) -> list[str]:
    """What of the settings of a generation that has ended had no effect, each in a line.

    Args:
        config: the engine's.
        generation: whose own settings replace those of the engine.
        itself: the target's name where it is the draft model too; None where it is not.
    """
    own, limit = generation.config, generation.parts.target.context_length
    said = {name: getattr(own, name) for name in DRAWN if name in own.model_fields_set}
    notes = [without_effect(own.temperature, **said, acceptance_threshold=config.acceptance_threshold)]
    depth = next((name for name in ("gamma", "max_speculation_depth") if getattr(config, name) is not None), None)
    if config.drafter == "none" and depth is not None:
        notes.append(f"{depth} is {getattr(config, depth)}, without effect as drafter is 'none'; leave {depth} out")
    if itself is not None:
        notes.append(target_as_draft(itself))
    if isinstance(config.memory, str) and own.temperature > 0:
        notes.append(f"memory is {config.memory!r}, and above temperature 0 no draft is copied from it")
    if own.temperature > HOT:
        notes.append(
            f"temperature is {own.temperature:g}, where tokens are drawn almost at random; 1 is the model's own"
        )
    if any(row.finish_reason == "length" and len(row.emitted) < own.max_new_tokens for row in generation.rows):
        notes.append(f"max_new_tokens is {own.max_new_tokens} and the context holds {limit}: the text ended there")
    return [each for each in notes if each is not None]


def most_nodes(parts: Parts) -> int:
    """Drafted nodes of the largest tree, as far as that is known beforehand."""
    return max(parts.speculation.max_depth, parts.drafter.nodes, 0)


def shallower(drafter: Drafter, name: str, depth: int) -> list[str]:
    """What drafts less deep than it may, for want of streams, heads or a wider window, in words.

    Args:
        drafter: or those that it is made of.
        name: of the setting that says how deep.
        depth: that it says.
    """
    return [
        f"{name} is {depth} and {there}, so {deepest} tokens deep is the most that they draft"
        for there, deepest in drafter.limits.items()
        if deepest < depth
    ]


def with_fixed_tree(parts: Parts, nodes: int) -> Parts:
    """The same heads with one tree of so many drafted nodes in every round, whether it pays or not.

    Raises:
        UsageError: a drafter without heads.
    """
    fixed = parts.drafter.fixed_tree(nodes)
    if fixed is None:
        raise UsageError(
            f"drafter is {parts.drafter.name!r}; give streams, medusa, block, eagle3 or dflash for a fixed tree"
        )
    return parts.with_drafter(fixed)


def extra_parameters(drafter: Drafter, target: HuggingFaceTarget) -> int:
    """Parameters that a drafter needs beyond the target's own."""
    components = drafter.components
    heads = sum(each.extra_parameters for each in components.heads)
    return heads + sum(each.num_parameters for each in components.models if each.model is not target.model)


def memory_overhead(drafter: Drafter, target: HuggingFaceTarget, tokens: int) -> float:
    """What drafting adds in memory, over what the target alone takes: weights with their copies, and KV caches.

    Args:
        drafter: with its draft models and heads.
        target: that it drafts for.
        tokens: of the text whose keys and values are cached.
    """
    models = [each.model for each in drafter.components.models if each is not target]
    own, *drafts = (token_bytes(each.config, each.dtype) * capacity_for(tokens) for each in (target.model, *models))
    return (draft_bytes(drafter, target) + sum(drafts)) / (target.nbytes + own)


def draft_bytes(drafter: Drafter, target: HuggingFaceTarget) -> int:
    """Bytes of weights that are there to draft with, merged and quantised copies among them.

    Of a draft in the target's place, ``self:int8``, the copy alone counts.
    """
    heads, drafts = drafter.components.heads, [each for each in drafter.components.models if each is not target]
    weights = sum(each.nbytes - (target.nbytes if each.model is target.model else 0) for each in drafts)
    return weights + (held_bytes([*heads, *target.runtime.for_drafts], without=target.model) if heads else 0)
