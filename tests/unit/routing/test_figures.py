from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from specstream.errors import UsageError
from specstream.routing.figures import router_table
from specstream.routing.records import Collected, Run, read_collected


def run(seconds, tokens=10):
    return Run(tokens=tokens, passes=5, drafted=8, accepted=4, seconds=seconds, total=seconds + 1, equal=True)


def collected(prompt, domain="code", **seconds):
    runs = {name: [run(each) for each in own] for name, own in seconds.items()}
    return Collected(prompt=prompt, token_ids=[1, 2], domain=domain, source=f"file:{prompt}", runs=runs)


ONE = [
    collected("a", none=[4.0], lookup=[1.0], draft=[2.0]),
    collected("b", none=[4.0], lookup=[8.0], draft=[2.0]),
    collected("c", "chat", none=[4.0], lookup=[4.0], draft=[5.0]),
]


def test_the_routers_seconds_are_its_own_and_the_oracle_is_the_best_of_each_prompt():
    table = router_table(ONE, ["lookup", "draft", "draft"], [0.5, 0.25, 0.25])
    speeds = {each.name: each.tokens_per_second for each in table.all}
    assert speeds == pytest.approx(
        {"none": 30 / 12, "lookup": 30 / 13, "draft": 30 / 9, "router": 30 / 9, "oracle": 30 / 7}
    )
    assert table.best_single == "draft"
    assert table.regret == pytest.approx(1 - 7 / 9)
    assert table.gap_closed == pytest.approx(0)
    assert table.agreement == pytest.approx(2 / 3)
    assert table.chosen == {"none": 0, "lookup": 1, "draft": 2}
    assert table.routing_seconds == pytest.approx(1 / 3)
    assert {each.name: each.ratio for each in table.all}["draft"] == pytest.approx(12 / 9)
    assert list(table.domains) == ["code", "chat"]
    chat = {each.name: each.tokens_per_second for each in table.domains["chat"]}
    assert (chat["oracle"], chat["router"]) == pytest.approx((10 / 4, 10 / 5.25))
    assert json.loads(json.dumps(asdict(table)))["prompts"] == 3


def test_half_of_the_gap():
    table = router_table(ONE, ["lookup", "draft", "draft"], [0.0] * 3)
    lead = 30 / 7 - 30 / 9
    assert table.gap_closed == pytest.approx((30 / 8 - 30 / 9) / lead)
    perfect = router_table(ONE, ["lookup", "draft", "none"], [0.0] * 3)
    assert (perfect.gap_closed, perfect.regret) == (pytest.approx(1), pytest.approx(0))
    assert router_table(ONE[1:2], ["draft"], [0.0]).gap_closed is None


def test_a_lead_within_the_noise_is_not_divided_by():
    near = [
        collected("a", none=[2.0], lookup=[1.0], draft=[1.01]),
        collected("b", none=[2.0], lookup=[1.01], draft=[1.0]),
    ]
    table = router_table(near, ["draft", "lookup"], [0.0, 0.0])
    assert 0 < table.lead < 0.02
    assert table.gap_closed is None


def test_with_repeated_runs_the_oracle_is_judged_on_others_than_it_was_chosen_by():
    """Both drafters take 1.5 s on the whole: what looks better in one run is luck, and luck is not counted."""
    noisy = [collected("a", none=[1.0, 2.0], lookup=[2.0, 1.0])]
    table = router_table(noisy, ["lookup"], [0.0])
    speeds = {each.name: each.tokens_per_second for each in table.all}
    assert speeds["none"] == speeds["lookup"] == pytest.approx(10 / 1.5)
    assert speeds["oracle"] == pytest.approx(10 / 2)
    assert table.runs == 2


def written(path, *lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return str(path)


def test_lines_are_read_as_they_were_written(tmp_path):
    failed = Collected(prompt="x", token_ids=[1], domain="code", source="f:1", runs={}, error="RuntimeError: no")
    first = written(tmp_path / "a.jsonl", asdict(ONE[0]), asdict(failed))
    second = written(
        tmp_path / "b.jsonl", asdict(ONE[0]), asdict(collected("u\u2028v", none=[1.0], lookup=[1.0], draft=[1.0]))
    )
    measured, failures = read_collected([first, second])
    assert [each.prompt for each in measured] == ["a", "u\u2028v"]
    assert measured[0] == ONE[0]
    assert failures == [failed]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"prompt": "a"}, r"file.jsonl:1 is no line of a collection"),
        ({**asdict(ONE[0]), "runs": {}}, "no runs and no error"),
        ({**asdict(ONE[0]), "runs": {"none": [{"tokens": 1}]}}, "no line of a collection"),
        ({**asdict(collected("a", none=[0.0]))}, "without tokens or time"),
        ({**asdict(collected("a", lookup=[1.0], draft=[1.0]))}, "collect with 'none' among them"),
        ([1, 2], "no line of a collection"),
    ],
)
def test_a_line_that_is_none_is_named(tmp_path, line, message):
    with pytest.raises(UsageError, match=message):
        read_collected([written(tmp_path / "file.jsonl", line)])


def test_collections_that_do_not_go_together_are_refused(tmp_path):
    file = written(tmp_path / "a.jsonl", asdict(ONE[0]), asdict(collected("z", none=[1.0], lookup=[1.0])))
    with pytest.raises(UsageError, match="file:z was measured with lookup, none and others with draft, lookup, none"):
        read_collected([file])
    with pytest.raises(UsageError, match="no prompt was measured"):
        read_collected([written(tmp_path / "b.jsonl")])
    with pytest.raises(UsageError, match="cannot be read"):
        read_collected([str(tmp_path / "nowhere.jsonl")])
    cut = tmp_path / "a.jsonl"
    cut.write_text(cut.read_text()[:-1])
    with pytest.raises(UsageError, match=r"a.jsonl:2 is cut off; drop it, or run specstream router collect again"):
        read_collected([cut])
