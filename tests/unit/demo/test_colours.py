from __future__ import annotations

import re
from html import unescape

from specstream.demo.colours import DRAFTERS, MODEL, colour_of, coloured, legend, plain
from specstream.demo.race import Piece

NASTY = '<script>alert(1)</script> & "quotes" ${1 + 1} {{x}}\n'


def pieces() -> list[Piece]:
    return [
        Piece(text=NASTY, drafter="lookup", round=1),
        Piece(text="", drafter="lookup", round=1),
        Piece(text="€", drafter=None, round=1),
    ]


def test_each_token_has_the_colour_of_who_proposed_it() -> None:
    spans = re.findall(r'<span class="(\w+)" style="--by:(#\w+)" title="([^"]+)">([^<]*)</span>', coloured(pieces()))
    assert [(kind, colour, title) for kind, colour, title, _ in spans] == [
        ("drafted", DRAFTERS["lookup"], "drafted by lookup, round 1"),
        ("own", MODEL, "the model&#x27;s own, round 1"),
    ]
    assert "".join(unescape(text) for *_, text in spans) == f"{NASTY}€"


def test_what_a_model_says_is_never_markup() -> None:
    for html in (coloured(pieces()), plain(pieces()), coloured([Piece(text="a", drafter='"><b>', round=1)])):
        assert not re.search(r"<(?!/?span)", html)


def test_colours_differ_and_stay() -> None:
    assert len({colour_of(name) for name in (None, *DRAFTERS)}) == len(DRAFTERS) + 1
    assert colour_of("my own") == colour_of("my own") not in (MODEL, *DRAFTERS.values())


def test_the_legend_names_who_took_part() -> None:
    html = legend({"streams", "lookup"})
    assert html.index("drafted by lookup") < html.index("drafted by streams") < html.index("the model&#x27;s own")
    assert "medusa" not in html
