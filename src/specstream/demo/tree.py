"""The tree of a round as a picture: what was drafted, the path that was accepted, the model's own token behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from specstream.demo.colours import colour_of
from specstream.demo.race import ShownRound

LONGEST_LABEL = 16
"""Characters; longer ones are cut."""

CHARACTER, PADDING = 7.9, 9.0
"""Pixels: the width of one, and beside the text in a box."""

BOX, ROW, GAP = 26.0, 36.0, 30.0
"""Pixels: the height of a box, of a row of the picture, and between two columns."""

VISIBLE = {"\n": "↵", "\t": "⇥", "\r": "␍", " ": "␣"}
UNPRINTABLE = "\N{MIDDLE DOT}"


@dataclass(frozen=True, kw_only=True)
class Node:
    """A box of the picture.

    Attributes:
        label: its text.
        parent: the box it hangs from; None for the root.
        depth: its column.
        row: its line; half lines do not occur.
        kind: ``root``, ``accepted``, ``rejected`` or ``own``.
    """

    label: str
    parent: int | None
    depth: int
    row: int
    kind: str

    @property
    def middle(self) -> float:
        """Of its box, in pixels from the top."""
        return self.row * ROW + ROW / 2


def layout(shown: ShownRound) -> list[Node]:
    """Every box with its place: the nodes of the tree in their order and, last, the model's own token."""
    labels, parents = list(shown.labels), list(shown.parents)
    if shown.own is not None:
        labels.append(shown.own)
        parents.append(shown.accepted[-1] if shown.accepted else 0)
    depths = [0]
    for parent in parents[1:]:
        depths.append(depths[parent] + 1)
    rows = _rows(parents)
    return [
        Node(
            label=visible(label),
            parent=parents[at] if at else None,
            depth=depths[at],
            row=rows[at],
            kind=_kind(shown, at),
        )
        for at, label in enumerate(labels)
    ]


def visible(label: str) -> str:
    """A token's text with what cannot be seen to be seen, cut where it is long."""
    shown = "".join(VISIBLE.get(each) or (each if each.isprintable() else UNPRINTABLE) for each in label)
    return shown if len(shown) <= LONGEST_LABEL else f"{shown[: LONGEST_LABEL - 1]}…"


def picture(shown: ShownRound) -> str:
    """The tree as an ``<svg>`` element."""
    nodes = layout(shown)
    widths = [len(node.label) * CHARACTER + 2 * PADDING for node in nodes]
    columns = [
        max(width for node, width in zip(nodes, widths, strict=True) if node.depth == depth)
        for depth in range(max(node.depth for node in nodes) + 1)
    ]
    lefts = [sum(columns[:depth]) + depth * GAP + 1 for depth in range(len(columns))]
    width = sum(columns) + GAP * (len(columns) - 1) + 2
    height = (max(node.row for node in nodes) + 1) * ROW
    edges = [_edge(node, nodes, widths, lefts) for node in nodes if node.parent is not None]
    boxes = [_box(node, own, lefts[node.depth]) for node, own in zip(nodes, widths, strict=True)]
    return (
        f'<svg role="img" aria-label="{escape(caption(shown))}" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" style="--by:{colour_of(shown.drafter)};--own:{colour_of(None)}">'
        f"{''.join(edges)}{''.join(boxes)}</svg>"
    )


def caption(shown: ShownRound) -> str:
    """A round in a sentence."""
    if not shown.drafted:
        return f"Round {shown.number}: nothing was drafted, the pass emitted the model's own token."
    emitted = len(shown.accepted) + (shown.own is not None)
    return (
        f"Round {shown.number}: {shown.drafter or 'a drafter'} drafted {_tokens(shown.drafted)}, "
        f"{len(shown.accepted)} accepted; the pass emitted {_tokens(emitted)}."
    )


def drawn(shown: ShownRound | None) -> str:
    """The picture and its sentence as HTML; an invitation where there is no round yet."""
    if shown is None:
        return '<div class="round"><p>Run a prompt to see the tree of each round.</p></div>'
    return f'<div class="round"><p>{escape(caption(shown))}</p><div class="canvas">{picture(shown)}</div></div>'


def most_telling(rounds: Sequence[ShownRound]) -> int:
    """The number of the round to show first: the first of those with most accepted tokens, then most drafted."""
    best = max(rounds, key=lambda each: (len(each.accepted), each.drafted, -each.number))
    return best.number


def _kind(shown: ShownRound, at: int) -> str:
    if at == 0:
        return "root"
    if at == len(shown.parents):
        return "own"
    return "accepted" if at in shown.accepted else "rejected"


def _rows(parents: Sequence[int]) -> list[int]:
    """Each leaf on a line of its own, and a parent beside its first child: a chain is a straight line."""
    children: list[list[int]] = [[] for _ in parents]
    for node, parent in enumerate(parents[1:], 1):
        children[parent].append(node)
    rows, waiting, line = [0] * len(parents), [0], 0
    while waiting:
        node = waiting.pop()
        first = node == 0 or children[parents[node]][0] == node
        if not first:
            line += 1
        rows[node] = line
        waiting.extend(reversed(children[node]))
    return rows


def _edge(node: Node, nodes: Sequence[Node], widths: Sequence[float], lefts: Sequence[float]) -> str:
    assert node.parent is not None
    above = nodes[node.parent]
    start, end = lefts[above.depth] + widths[node.parent], lefts[node.depth]
    top, bottom = above.middle, node.middle
    bend = (start + end) / 2 if above.row == node.row else end - GAP / 2
    return (
        f'<path class="edge {node.kind}" d="M{start:.1f} {top:.1f} '
        f'C{bend:.1f} {top:.1f} {bend:.1f} {bottom:.1f} {end:.1f} {bottom:.1f}"/>'
    )


def _box(node: Node, width: float, left: float) -> str:
    top = node.middle - BOX / 2
    return (
        f'<g class="node {node.kind}">'
        f'<rect x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{BOX:.0f}" rx="6"/>'
        f'<text x="{left + width / 2:.1f}" y="{node.middle:.1f}">{escape(node.label)}</text></g>'
    )


def _tokens(count: int) -> str:
    return f"{count} token" if count == 1 else f"{count} tokens"
