from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from specstream.cli import main
from specstream.evaluation import doctor
from specstream.evaluation.doctor import Report
from specstream.evaluation.doctor.facts import Caches, DraftCost, PassCost
from specstream.evaluation.doctor.findings import Finding
from specstream.models.hub import snapshots
from specstream.models.hub.catalog import DEFAULT_MODEL
from specstream.models.invariance import selftest_cache
from tests.unit.evaluation.test_doctor import CACHE, CARD, GPUS, PASSES, PROCESSOR, WIDTHS, version

KEYS = {"versions", "processor", "passes", "gpus", "caches", "widths", "speed", "pass_costs", "findings", "notes"}
SPEED = {
    "device": "cpu",
    "threads": 1,
    "read": 10e9,
    "read_by": "torch, a sum, over 268 MB",
    "products": 20e9,
    "products_by": "torch in bfloat16 on 8 rows",
    "float32": 30e9,
    "seconds": 5.0,
}
COSTS = {
    "model": "m",
    "bytes": 269e6,
    "parameters": 134e6,
    "one": 0.0269,
    "eight": 0.0538,
    "ratio": 2.0,
    "break_even": 1.0,
}
REPORT = Report(
    versions=(version("transformers", "5.20.1"), version("tokenizers", None)),
    processor=PROCESSOR,
    passes=PASSES,
    gpus=GPUS,
    caches=Caches(folders=(CACHE,), keeps_self_tests=True),
    widths=WIDTHS,
    speed=SPEED,
    pass_costs=COSTS,
    findings=(),
    notes=(),
)
FINDING = Finding(about="caches", problem="the cache is full", remedy="empty it")


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as caught:
        main(["doctor", *arguments])
    assert isinstance(caught.value.code, int)
    return caught.value.code, capsys.readouterr().out


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A machine of this report; what was asked for."""
    asked: list[tuple[str | None, bool]] = []

    def pretend(report: Report) -> list[tuple[str | None, bool]]:
        def examine(model: str | None, *, measure: bool, hush: object) -> Report:
            asked.append((model, measure))
            return report

        monkeypatch.setattr(doctor, "examine", examine)
        return asked

    return pretend


def test_a_sound_machine_is_0_and_the_last_line_says_so(pretend: Any, capsys: pytest.CaptureFixture[str]) -> None:
    asked = pretend(replace(REPORT, notes=("the machine is busy",)))
    code, out = run(capsys)
    assert code == 0
    assert out.splitlines()[-1] == "nothing to mend"
    assert asked == [(DEFAULT_MODEL, True)]
    assert {line[:11].strip() for line in out.splitlines()[:-1]} == {
        *("versions", "processor", "kernels", "passes", "gpu", "widths"),
        *("caches", "measured", "predicted", "note", ""),
    }
    assert max(map(len, out.splitlines())) <= 120
    assert "a pass of 1 node 26.9 ms or more, of 8 nodes 53.8 ms, 2.00 times as much" in out
    assert "speculation pays where more than 1.0 of 7 drafted tokens are accepted on average" in out


def test_a_finding_is_1_and_stands_before_the_last_line(pretend: Any, capsys: pytest.CaptureFixture[str]) -> None:
    pretend(replace(REPORT, findings=(FINDING,)))
    code, out = run(capsys)
    assert code == 1
    assert out.splitlines()[-2:] == ["to mend    the cache is full; empty it", "1 thing to mend"]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"passes": replace(PASSES, kernels="missing", kernels_reason="no compiler", path="")}, "missing: no compiler"),
        ({"passes": replace(PASSES, kernels="prebuilt", kernels_reason="came along")}, "prebuilt, came along: /a/b.so"),
        ({"passes": replace(PASSES, device="cuda", kernels_reason="they run on the CPU")}, "not used: they run on the"),
        ({"gpus": replace(GPUS, usable=(CARD,), cuda="13.0", driver="580.1")}, "Some GPU, 80 GB, compute capability"),
        ({"widths": replace(WIDTHS, state="not downloaded", exact=None)}, "m: not downloaded"),
        (
            {"processor": replace(PROCESSOR, level="x86-64-v3", libraries={"A": "b"})},
            "x86-64-v3 of x86-64-v4, with A=b",
        ),
        ({"pass_costs": {**COSTS, "break_even": 0.0}}, "speculation pays wherever drafted tokens are accepted at all"),
        (
            {"pass_costs": {**COSTS, "break_even": 7.0}},
            "7 drafted tokens do not pay even if all are accepted; fewer may",
        ),
        (dict.fromkeys(KEYS - {"findings", "notes"}), "nothing to mend"),
    ],
)
def test_other_machines_are_described(
    changed: dict[str, Any], words: str, pretend: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend(replace(REPORT, **changed))
    assert words in run(capsys)[1]


def test_costs_are_two_tables(pretend: Any, capsys: pytest.CaptureFixture[str]) -> None:
    passes = tuple(
        PassCost(rows=rows, nodes=nodes, context=context, seconds=nodes / 1000)
        for rows, nodes, context in [(1, 1, 64), (1, 2, 64), (1, 1, 1024), (4, 4, 64)]
    )
    drafts = (
        DraftCost(drafter="draft_model", rows=1, depth=2, seconds=0.0061),
        DraftCost(drafter="streams", rows=1, depth=1, seconds=0.002),
    )
    measured = replace(REPORT, widths=replace(WIDTHS, passes=passes, drafts=drafts))
    pretend(measured)
    lines = run(capsys)[1].splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("costs"))
    assert [line[11:] for line in lines[at + 1 : at + 9]] == [
        "rows  context       1       2       4",
        "   1       64     1.0     2.0       -",
        "   1     1024     1.0       -       -",
        "   4       64       -       -     4.0",
        "ms of a draft so many tokens deep:",
        "drafter rows        1       2",
        "draft_model 1       -     6.1",
        "streams 1         2.0       -",
    ]
    pretend(measured)
    kept = json.loads(run(capsys, "--json")[1])["widths"]
    assert kept["passes"][1] == {"rows": 1, "nodes": 2, "context": 64, "seconds": 0.002}
    assert kept["drafts"][0] == {"drafter": "draft_model", "rows": 1, "depth": 2, "seconds": 0.0061}


def test_json_is_one_object(pretend: Any, capsys: pytest.CaptureFixture[str]) -> None:
    asked = pretend(replace(REPORT, findings=(FINDING,)))
    code, out = run(capsys, "--json", "--model", "none", "--no-measure")
    record = json.loads(out)
    assert code == 1
    assert asked == [(None, False)]
    assert set(record) == KEYS | {"healthy"}
    assert record["healthy"] is False
    assert record["findings"] == [{"about": "caches", "problem": "the cache is full", "remedy": "empty it"}]


def test_a_model_that_is_not_here_is_not_fetched(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SPECSTREAM_MODELS", str(tmp_path))
    monkeypatch.setenv(selftest_cache.SWITCH, "1")
    monkeypatch.setattr(snapshots, "cached_snapshot", lambda hub_id: None)
    code, out = run(capsys, "--json", "--no-measure")
    record = json.loads(out)
    assert record["widths"]["state"] == "not downloaded"
    assert f"{DEFAULT_MODEL} is not here; to fetch it: specstream models pull {DEFAULT_MODEL}" in record["notes"]
    assert record["speed"] is None
    assert code == 1
    assert [each["about"] for each in record["findings"] if "SELFTEST" in each["problem"]] == ["caches"]
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_name_is_a_wrong_call(capsys: pytest.CaptureFixture[str]) -> None:
    code, out = run(capsys, "--model", "no pe", "--no-measure")
    assert (code, out) == (2, "")
