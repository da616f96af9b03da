from __future__ import annotations

from xml.etree import ElementTree

import pytest

from specstream.demo.tree import LONGEST_LABEL, caption, drawn, layout, most_telling, picture, visible
from tests.unit.demo.racing import finished, shown


def parsed(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def test_every_node_has_its_place_and_its_kind() -> None:
    found = [(node.label, node.depth, node.row, node.kind, node.parent) for node in layout(shown())]
    assert found == [
        ("root", 0, 0, "root", None),
        ("a", 1, 0, "accepted", 0),
        ("b", 2, 0, "accepted", 1),
        ("c", 2, 1, "rejected", 1),
        ("d", 1, 2, "rejected", 0),
        ("own", 3, 0, "own", 2),
    ]


def test_the_models_own_token_hangs_below_what_was_turned_down() -> None:
    *_, own = layout(shown(accepted=()))
    assert (own.depth, own.row, own.parent, own.kind) == (1, 3, 0, "own")
    assert [node.kind for node in layout(shown(accepted=(1, 2), own=None))].count("own") == 0


def test_no_two_boxes_overlap() -> None:
    for each in finished().speculative.rounds:
        boxes = [
            tuple(float(rect.attrib[key]) for key in ("x", "y", "width", "height"))
            for rect in parsed(picture(each)).iter("rect")
        ]
        assert len(boxes) == each.drafted + 1 + (each.own is not None)
        for at, (x, y, width, height) in enumerate(boxes):
            for left, top, wide, high in boxes[:at]:
                assert x >= left + wide or left >= x + width or y >= top + high or top >= y + height


def test_the_picture_holds_its_boxes_and_says_what_it_is() -> None:
    svg = parsed(picture(shown(labels=("<b>", "&", '"', "\n", " long and longer and longest"))))
    wide, high = float(svg.attrib["width"]), float(svg.attrib["height"])
    for rect in svg.iter("rect"):
        assert 0 <= float(rect.attrib["x"]) <= wide - float(rect.attrib["width"])
        assert 0 <= float(rect.attrib["y"]) <= high - float(rect.attrib["height"])
    assert [text.text for text in svg.iter("text")][:4] == ["<b>", "&", '"', "↵"]
    assert svg.attrib["aria-label"] == caption(shown())
    assert len(list(svg.iter("path"))) == 5


@pytest.mark.parametrize(
    ("label", "seen"), [(" a\n", "␣a↵"), ("", ""), ("\0\x1b", "··"), ("x" * 99, "x" * (LONGEST_LABEL - 1) + "…")]
)
def test_white_space_is_seen_and_length_has_an_end(label: str, seen: str) -> None:
    assert visible(label) == seen


def test_captions() -> None:
    assert caption(shown()) == "Round 7: streams drafted 4 tokens, 2 accepted; the pass emitted 3 tokens."
    alone = shown(drafter=None, labels=("root",), parents=(-1,), accepted=())
    assert caption(alone) == "Round 7: nothing was drafted, the pass emitted the model's own token."
    assert "1 token," in caption(shown(labels=("root", "a"), parents=(-1, 0), accepted=(1,), own=None))


def test_the_most_telling_round_has_most_accepted() -> None:
    rounds = [shown(number=1, accepted=()), shown(number=2), shown(number=3)]
    assert most_telling(rounds) == 2


def test_before_a_run_there_is_an_invitation() -> None:
    assert "Run a prompt" in drawn(None)
    assert "<svg" in drawn(shown())
