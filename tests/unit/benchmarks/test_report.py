from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import typer

from benchmarks.report import Spread, aligned, exit_codes, ratios, rows, setting, table, write_json
from benchmarks.rounds import Measured, Sample
from specstream.errors import SpecStreamError, UsageError


def sample(system: str, seconds: float, tokens: list[int], round_: int = 0, item: str = "a", group: int = 0) -> Sample:
    return Sample(
        group=group,
        round=round_,
        item=item,
        system=system,
        tokens=[tokens],
        seconds=seconds,
        counts={},
        peak_mib=seconds,
    )


def measured() -> Measured:
    return Measured(
        samples=[
            sample("ours", 1.0, [1, 2, 3, 4]),
            sample("theirs", 2.0, [1, 2, 3, 4]),
            sample("ours", 1.0, [1, 2, 3, 5], round_=1),
            sample("theirs", 4.0, [1, 2, 3, 4], round_=1),
            sample("ours", 2.0, [7, 8], round_=1, item="b"),
            sample("theirs", 1.0, [7], round_=1, item="b"),
        ],
        loaded={"ours": {}, "theirs": {}},
        skipped={"vllm:none": "vllm:none: not installed"},
        failed={"llama.cpp:none": "llama.cpp:none: no such file"},
    )


def test_ratios_are_of_speeds_in_pairs_of_one_round_and_one_item() -> None:
    assert ratios(measured().samples, "ours", "theirs") == [2.0, 4.0, 1.0]
    assert ratios(measured().samples, "theirs", "ours") == [0.5, 0.25, 1.0]


def test_samples_of_different_groups_make_no_pairs() -> None:
    samples = [sample("ours", 1.0, [1]), sample("theirs", 2.0, [1], group=1), sample("ours", 4.0, [1], group=1)]
    assert ratios(samples, "ours", "theirs") == [0.5]


def test_a_row_sums_up_a_system() -> None:
    ours, theirs = rows(measured(), "theirs")
    assert ours.ratio == Spread(low=1.0, middle=2.0, high=4.0)
    assert ours.speed == Spread(low=1.0, middle=4.0, high=4.0)
    assert (ours.tokens, ours.equal, ours.pairs, ours.peak_mib) == (10, 1, 3, 2.0)
    assert theirs.ratio == Spread(low=1.0, middle=1.0, high=1.0)
    assert theirs.equal == 3


def test_what_was_accepted_is_summed_up_where_it_is_counted() -> None:
    counts = [{"drafted": 4, "accepted": 1}, {"drafted": 6, "accepted": 4}]
    own = [replace(sample("ours", 1.0, [1], round_=at), counts=each) for at, each in enumerate(counts)]
    other = [sample("theirs", 1.0, [1], round_=at) for at in range(2)]
    ours, theirs = rows(Measured(samples=[*own, *other], loaded={"ours": {}, "theirs": {}}), "theirs")
    assert (ours.acceptance, theirs.acceptance) == ("5 of 10 (0.50)", "-")


def test_the_outputs_of_a_batch_are_compared_one_by_one() -> None:
    both = {"group": 0, "round": 0, "item": "a", "seconds": 1.0, "counts": {}, "peak_mib": 1.0}
    samples = [
        Sample(system="ours", tokens=[[1], [2], [3]], **both),  # type: ignore[arg-type]
        Sample(system="theirs", tokens=[[1], [2], [4]], **both),  # type: ignore[arg-type]
    ]
    row, _ = rows(Measured(samples=samples, loaded={"ours": {}, "theirs": {}}), "theirs")
    assert (row.equal, row.pairs) == (2, 3)


def test_the_table_names_the_reference_and_what_was_left_out() -> None:
    text = table(measured(), "theirs")
    assert "4.00 (1.00-4.00)" in text and "1.00 2.00 4.00" in text and "1 of 3" in text
    assert "over theirs's" in text
    assert "vllm:none: not installed" in text and "FAILED llama.cpp:none: no such file" in text


def test_columns_are_aligned() -> None:
    assert aligned([["a", "bb"], ["ccc", "d"]]) == "a    bb\nccc  d"


def test_json_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [each.name for each in path.parent.iterdir()] == ["a.json"]


def test_what_a_run_is_to_be_read_with_can_be_written() -> None:
    values = json.loads(json.dumps(setting({"rounds": 3}, "bfloat16")))
    assert values["provenance"]["dtype"] == "bfloat16" and values["arguments"] == {"rounds": 3}


@pytest.mark.parametrize(("error", "code"), [(UsageError("a\nb"), 2), (SpecStreamError("a\nb"), 1)])
def test_a_failure_on_purpose_is_one_line_and_a_code(
    error: Exception, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit) as caught, exit_codes():
        raise error
    assert caught.value.exit_code == code
    assert capsys.readouterr().err == "error: a b\n"
