"""Who proposed a token, in colour: accepted drafts by their drafter, the model's own tokens apart."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from html import escape
from zlib import crc32

from specstream.demo.race import Piece

MODEL = "#8a8f98"
"""The model's own tokens."""

DRAFTERS = {
    "lookup": "#0072B2",
    "streams": "#E69F00",
    "draft_model": "#009E73",
    "medusa": "#CC79A7",
    "block": "#F0E442",
    "eagle3": "#999933",
    "dflash": "#AA4499",
    "lookahead": "#56B4E9",
}
"""Okabe and Ito's, which people with colour-blindness can tell apart."""

OTHERS = ("#D55E00", "#7A5195", "#B8A200")
"""For drafters of other names, such as a router's."""

OWN = "the model's own"


def colour_of(drafter: str | None) -> str:
    """The same for the same name, always."""
    if drafter is None:
        return MODEL
    return DRAFTERS.get(drafter) or OTHERS[crc32(drafter.encode()) % len(OTHERS)]


def coloured(pieces: Sequence[Piece]) -> str:
    """Text as HTML, a ``<span>`` for each token."""
    return "".join(map(_span, (piece for piece in pieces if piece.text)))


def _span(piece: Piece) -> str:
    who = f"drafted by {piece.drafter}" if piece.drafter is not None else OWN
    kind = "own" if piece.drafter is None else "drafted"
    title = escape(f"{who}, round {piece.round}")
    return f'<span class="{kind}" style="--by:{colour_of(piece.drafter)}" title="{title}">{escape(piece.text)}</span>'


def plain(pieces: Sequence[Piece]) -> str:
    """Text as HTML, without colours."""
    return escape("".join(piece.text for piece in pieces))


def output(html: str) -> str:
    """The box that a text stands in."""
    return f'<div class="output">{html}</div>'


def legend(drafters: Collection[str]) -> str:
    """What the colours mean, as HTML."""
    entries = [("drafted", name, f"drafted by {name}, accepted") for name in sorted(drafters)]
    words = [
        f'<span><span class="{kind}" style="--by:{colour_of(name)}">&nbsp;ab&nbsp;</span> {escape(text)}</span>'
        for kind, name, text in [*entries, ("own", None, OWN)]
    ]
    return f'<div class="legend">{"".join(words)}</div>'
