"""The benchmark of a GPU, on a CPU with tiny shapes: that it measures, survives what fails, and says so."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import matrix, passes, speed, suites
from benchmarks.gpu.models import as_folder, load
from benchmarks.gpu.options import Options
from benchmarks.gpu.page import page
from benchmarks.gpu.records import Records
from specstream.heads.block import BlockConfig, BlockHead
from specstream.heads.medusa import MedusaHeads
from tests.gguf_files import LAYERS, write_gguf

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is measured is not looked at here: short contexts, and one round behind the one that warms up."""
    monkeypatch.setattr(passes, "CONTEXT", 40)
    for name, value in {"PROMPT": 40, "ROUNDS": 1, "DEEPEST": 8}.items():
        monkeypatch.setattr(speed, name, value)
    monkeypatch.setattr(matrix, "NEW_TOKENS", 12)


@pytest.fixture
def options(tmp_path: Path) -> Options:
    return Options(output=tmp_path, device="cpu", tiny=True)


def written(options: Options, job: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((options.output / f"part-{job}.json").read_text())
    return found


def said(rows: list[dict[str, Any]]) -> str:
    part = {"ended": "done", "seconds": 1.0, "records": rows, "log": ""}
    return page({"provenance": {}, "parts": {"part": part}})


def broken(records: Records, options: Options) -> None:
    records.measure("good", lambda: {"value": 1})
    records.measure("bad", lambda: {"value": 1 // 0})
    records.measure("good after it", lambda: {"value": 2})


def test_what_fails_is_recorded_and_the_rest_goes_on(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gpu.PARTS, "broken", {"broken": broken})
    gpu.run_job("broken", options, 60.0)
    good, bad, after = written(options, "broken")
    assert (good["value"], after["value"]) == (1, 2)
    assert bad["error"].startswith("ZeroDivisionError")
    assert "1 // 0" in bad["traceback"]
    assert "ZeroDivisionError" in said([good, bad, after])


def test_a_process_that_starts_again_goes_on_behind_what_is_recorded(options: Options) -> None:
    first = Records(options.output / "part-again.json", 60.0)
    broken(first, options)
    again = Records(options.output / "part-again.json", 60.0)
    broken(again, options)
    assert again.rows == first.rows


def test_nothing_is_begun_when_the_time_is_up(options: Options) -> None:
    records = Records(options.output / "part-late.json", -1.0)
    assert not records.measure("late", lambda: {"value": 1})
    assert written(options, "late") == [{"label": "late", "left_out": "out of time"}]


def test_a_run_gathers_what_its_processes_wrote(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "GRACE", 600.0)  # beside other work its process imports for longer than a GPU's takes
    options = Options(output=options.output, device="cpu", tiny=True, seconds=0.5)
    report = gpu.Run(options).go(["passes", "speed"])
    assert report["parts"]["passes"]["ended"] == "done"
    assert report["parts"]["passes"]["records"]
    assert report["parts"]["speed"]["ended"] == "left out: the budget is spent"
    assert json.loads((options.output / "gpu.json").read_text()) == report
    assert "| passes | done |" in (options.output / "gpu.md").read_text()


def test_passes_are_timed_in_every_runtime(options: Options) -> None:
    records = Records(options.output / "part-passes.json", 120.0)
    passes.passes(records, options)
    assert not [row for row in records.rows if "error" in row or "left_out" in row]
    assert {row["runtime"] for row in records.rows if "widths" in row} == {"static", "transformers", "eager"}
    assert "| smollm2 | transformers | 2 | dynamic 1 |" in said(records.rows)


def test_outputs_are_compared_with_those_of_generate(options: Options) -> None:
    records = Records(options.output / "part-speed.json", 120.0)
    speed._group(records, options, "1.5b", "static", 2)
    (row,) = records.rows
    assert all(each["equal_to_generate"] == "2 of 2" for each in row["contestants"][1:])
    sure = next(each for each in row["contestants"] if each["name"] == "oracle 1.0, fixed")
    assert sure["acceptance"] == 1.0
    assert "| oracle 1.0, fixed |" in said(records.rows)


def test_a_family_is_compared_token_by_token(options: Options) -> None:
    records = Records(options.output / "part-matrix.json", 120.0)
    partial(matrix.family_matrix, "bloom")(records, options)
    assert {row["drafter"]: row["unequal"] for row in records.rows if "equal" in row} == {
        "none": 0,
        "lookup": 0,
        "streams": 0,
        "block": 0,
        "eagle3": 0,
        "dflash": 0,
    }
    assert "| float32 | static | lookup | 3 | 0 |" in said(records.rows)


def test_a_difference_is_said_with_its_place_and_its_gap(options: Options) -> None:
    column = matrix._Column("llama", matrix.torch.float32, "static", options)
    column.cell("none", 1)
    expected = column._expected[0]
    wrong = [*expected[:3], expected[3] + 1, *expected[4:]]
    difference = column._difference(0, wrong)
    assert (difference["at"], difference["expected"], difference["got"]) == (3, expected[3], expected[3] + 1)
    assert difference["gap"] > 0


def test_failures_of_the_suites_are_listed(tmp_path: Path) -> None:
    xml = tmp_path / "pytest.xml"
    xml.write_text(
        '<testsuites><testsuite><testcase classname="a" name="b"><failure message="no">at 3</failure></testcase>'
        '<testcase classname="a" name="c"><skipped message="x"/></testcase><testcase classname="a" name="d"/>'
        "</testsuite></testsuites>"
    )
    found = suites._outcomes(xml)
    assert (found["passed"], found["failed"], found["skipped"]) == (1, 1, 1)
    assert found["failures"] == [{"test": "a::b", "message": "no", "text": "at 3"}]
    assert "| a::b | no |" in said([{"label": "suite", "exit": 1, "took": 1.0, **found}])


def test_heads_take_part_by_their_kind_and_those_that_fail_say_why(options: Options, tmp_path: Path) -> None:
    heads = BlockHead(load("smollm2", options), BlockConfig(gamma=3, layers=1, window=8))
    heads.save(tmp_path / "block")
    MedusaHeads(load("1.5b", options), num_heads=2).save(tmp_path / "of another model")
    given = replace(options, heads=(str(tmp_path / "block"), str(tmp_path / "of another model")))
    assert given.arguments[-5:-1] == ["--heads", str(tmp_path / "block"), "--heads", str(tmp_path / "of another model")]
    records = Records(options.output / "part-speed.json", 120.0)
    speed._group(records, given, "smollm2", "static", 1)
    found = {each["name"]: each for each in records.rows[0]["contestants"]}
    assert found["heads: block"]["equal_to_plain"] == "1 of 1"
    assert "HeadMismatchError" in found["heads: medusa"]["failed"]


def test_a_gguf_file_becomes_a_folder_once(tmp_path: Path) -> None:
    write_gguf(tmp_path / "model.gguf")
    folder = as_folder(str(tmp_path / "model.gguf"), tmp_path / "runs")
    assert (folder, as_folder(folder, tmp_path)) == (str(tmp_path / "runs" / "model"), folder)
    (tmp_path / "model.gguf").unlink()
    assert as_folder(str(tmp_path / "model.gguf"), tmp_path / "runs") == folder
    assert load("smollm2", Options(output=tmp_path, device="cpu", smollm2=folder)).config.num_hidden_layers == LAYERS
