from __future__ import annotations

import pytest

from specstream.evaluation.benchmark.folder import RunFolder
from specstream.evaluation.benchmark.summary import side_of, summarise

PLACE = {"experiment": "e", "value": None, "arm_value": None}


def sample(arm, item, passes, depths, *, prefill=1.0, tokens=None):
    emitted = sum(row[3] for rows in depths for row in rows)
    return {
        "kind": "sample",
        **PLACE,
        "arm": arm,
        "item": item,
        "name": f"p{item}",
        "repeat": 0,
        "category": "ab"[item % 2],
        "session": 0,
        "tokens": [tokens or list(range(emitted))],
        "prompt_tokens": 20,
        "drafted": sum(row[0] for rows in depths for row in rows),
        "accepted": sum(row[2] for rows in depths for row in rows),
        "rejected": 0,
        "prefill": prefill,
        "decode": sum(each[3] for each in passes),
        "passes": passes,
        "depths": depths,
        "exact": "bits",
        "peak_bytes": 100,
        "grown_bytes": 10,
        "joules": None,
        "error": None,
    }


PLAIN = [(1, 0.0, 2.0, 2.0)] * 4, [[(0, 0, 0, 1)]] * 4
DRAFTED = [(3, 0.5, 2.5, 3.0)] * 2, [[(2, 2, 2, 3)], [(2, 1, 0, 1)]]


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.begin({"experiments": {"e": {}}}, {}, {"left_out": {}, "prompts": []})
    for arm in ("plain", "draft"):
        facts = {"weights_bytes": 200, "draft_bytes": 50, "memory_overhead": 0.2, "generation": {"temperature": 0.0}}
        folder.append({"kind": "arm", **PLACE, "arm": arm, **facts})
    return folder


def arm(folder, name):
    (found,) = [each for each in summarise(folder)["arms"] if each["arm"] == name]
    return found


def test_figures_are_those_one_can_count_by_hand(folder):
    for item in range(2):
        folder.append(sample("plain", item, *PLAIN))
        folder.append(sample("draft", item, *DRAFTED))
    own = arm(folder, "draft")
    figures = own["all"]
    assert own["memory_overhead"] == 0.2
    assert figures["tokens_per_second"] == pytest.approx(4 / 6)
    assert figures["prefill_tokens_per_second"] == 20
    assert figures["first_token_seconds"] == pytest.approx(1 + 3)
    assert figures["inter_token_seconds"] == {"p50": 3, "p90": 3, "p99": 3}, "one token came with the second pass"
    assert figures["arrival_seconds"]["p99"] == 3
    assert figures["acceptance_rate"] == 0.5
    assert figures["judged"] == [4, 2]
    assert figures["acceptance"] == [0.5, 1.0]
    assert figures["reach"] == [0.5, 0.5]
    assert figures["mean_accepted_length"] == 2
    assert figures["target_passes"] == 4
    assert figures["speedup"]["value"] == pytest.approx((4 / 6) / (4 / 8))
    assert figures["total_speedup"]["value"] == pytest.approx((4 / 7) / (4 / 9))
    # 1 + 0.5 + 0.5 tokens for a pass of 2.5 s and a draft of 0.5 s, over 1 token for a pass of 2 s.
    assert figures["theory"] == pytest.approx((2 / 3.0) / (1 / 2.0))
    assert figures["efficiency"] == pytest.approx(1.0)
    assert (figures["equal"], figures["compared"]) == (2, 2)
    assert figures["nodes"] == 2
    assert figures["joules_per_token"] is None
    assert set(own["categories"]) == {"a", "b"}
    assert arm(folder, "plain")["all"]["speedup"] == {"value": 1, "low": 1, "high": 1}


def test_tokens_of_one_pass_share_its_seconds(folder):
    passes, depths = [(3, 0.0, 6.0, 6.0)] * 2, [[(2, 2, 2, 3)]] * 2
    folder.append(sample("draft", 0, passes, depths))
    figures = arm(folder, "draft")["all"]
    assert figures["inter_token_seconds"]["p50"] == 2
    assert figures["arrival_seconds"]["p50"] == 6
    assert figures["speedup"] is None, "there is nothing to compare it with"


def test_what_failed_is_counted_and_left_out_of_both_sides(folder):
    folder.append(sample("plain", 0, *PLAIN))
    folder.append(sample("plain", 1, *PLAIN, prefill=50.0))
    folder.append(sample("draft", 0, *DRAFTED))
    failed = {key: value for key, value in sample("draft", 1, *DRAFTED).items() if key not in ("tokens", "passes")}
    folder.append({**failed, "error": "it broke"})
    summary = summarise(folder)
    figures = arm(folder, "draft")["all"]
    assert (figures["generations"], figures["failed"], figures["prompts"]) == (2, 1, 1)
    assert figures["total_speedup"]["value"] == pytest.approx((4 / 7) / (4 / 9)), "the other prompt is on neither side"
    assert [each["error"] for each in summary["failures"]] == ["it broke"]


def test_another_text_is_seen(folder):
    folder.append(sample("plain", 0, *PLAIN))
    folder.append(sample("draft", 0, *DRAFTED, tokens=[9, 9, 9, 9]))
    figures = arm(folder, "draft")["all"]
    assert (figures["equal"], figures["compared"]) == (0, 1)


def test_of_a_batch_every_output_is_compared(folder):
    plain, own = sample("plain", 0, *PLAIN), sample("draft", 0, *DRAFTED)
    folder.append({**plain, "tokens": [[1, 2], [3, 4], [5]]})
    folder.append({**own, "tokens": [[1, 2], [3, 9], [5]]})
    figures = arm(folder, "draft")["all"]
    assert (figures["equal"], figures["compared"]) == (2, 3)


def test_one_slow_prompt_moves_the_ratio_and_not_the_median(folder):
    for item, seconds in enumerate((3.0, 3.0, 30.0)):
        folder.append(sample("plain", item, *PLAIN))
        folder.append(sample("draft", item, [(3, 0.5, 2.5, seconds)] * 2, DRAFTED[1]))
    figures = arm(folder, "draft")["all"]
    assert figures["speedup"]["value"] == pytest.approx((12 / 72) / (12 / 24))
    assert figures["middle_speedup"] == pytest.approx(8 / 6)


def test_a_ratio_is_what_passes_and_drafting_should_take_over_what_they_took(folder):
    passes = [(3, 1.0, 1.0, 2.5), (3, 2.0, 1.0, 2.5), (3, 9.0, 1.0, 2.5), (1, 0.5, 1.0, 2.5)]
    depths = [[(2, 2, 2, 3)]] * 3 + [[(0, 0, 0, 1)]]
    own = sample("draft", 0, passes, depths)
    folder.append(own)
    assert arm(folder, "draft")["all"]["measured_over_predicted"] is None, "no pass was timed alone"
    folder.append({**own, "predicted": 10.0})
    ratio = arm(folder, "draft")["all"]["measured_over_predicted"]
    assert ratio == (10 + 3 * 2.0 + 0.5) / 10, "a slow draft counts as the median one"


def test_a_side_tells_how_often_each_of_the_first_four_drafts_was_accepted(folder):
    folder.append(sample("plain", 0, *PLAIN))
    folder.append(sample("draft", 0, *DRAFTED))
    line = {**folder.arms["e", "null", "draft", "null"], "draft_parameters": 7}
    folder.append(line)
    side = side_of(arm(folder, "draft"))
    assert (side["side"], side["parameters"], side["equal"], side["outputs"]) == ("draft", 7, 1, 1)
    assert side["acceptance"] == [0.5, 0.5, 0, 0]
    assert side["ratio"] == side["ratio_interval"]["value"] == side["middle_ratio"] == pytest.approx(8 / 6)


def test_an_item_that_one_arm_failed_at_is_left_out_for_all(folder):
    for item in range(2):
        folder.append(sample("plain", item, *PLAIN))
        folder.append(sample("draft", item, *DRAFTED) | ({"error": "it broke"} if item else {}))
    answered = folder.answered()
    assert [(each["arm"], each["item"]) for each in answered.samples] == [("plain", 0), ("draft", 0)]
    assert answered.arms == folder.arms
    assert answered.plain_of(answered.samples[1]) == answered.samples[0]


def test_the_later_of_two_samples_counts_and_a_torn_line_does_not(folder):
    folder.append(sample("plain", 0, *PLAIN))
    folder.append(sample("plain", 0, *PLAIN, tokens=[7]))
    with (folder.root / "samples.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"kind":"sample","experi')
    again = RunFolder(folder.root)
    assert [each["tokens"] for each in again.samples] == [[[7]]]
    again.begin({"experiments": {"e": {}}}, {}, {"left_out": {}, "prompts": []})
    again.append(sample("draft", 0, *DRAFTED))
    assert len(RunFolder(folder.root).samples) == 2
