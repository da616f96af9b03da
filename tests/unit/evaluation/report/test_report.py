from __future__ import annotations

import re
import sys
from xml.etree import ElementTree

import pytest

from specstream.errors import MissingPackageError, UsageError
from specstream.evaluation.benchmark.folder import RunFolder
from specstream.evaluation.benchmark.summary import summarise
from specstream.evaluation.report.charts import draw
from specstream.evaluation.report.compare import compare
from specstream.evaluation.report.page import verdict, write_report
from specstream.evaluation.report.words import UNKNOWN, by_category
from tests.unit.evaluation.benchmark.made_runs import ABLATIONS, METHODS, Made, make_run

FEW = (Made("methods", "plain"), Made("methods", "streams", 3, 0.5, 0.002))


def test_the_page_is_one_file_with_everything_in_it(tmp_path):
    pytest.importorskip("matplotlib")
    folder = make_run(tmp_path / "run", (*METHODS, *ABLATIONS), prompts=6)
    html_file, markdown_file = write_report([folder], tmp_path / "report")
    html, markdown = html_file.read_text(encoding="utf-8"), markdown_file.read_text(encoding="utf-8")
    for text in (html, markdown):
        for words in (
            "Speculation pays here: the fastest arm is",
            "Losslessness:",
            "Left out: specialized_drafts, code",
            "Acceptance per position",
            "Latency distribution",
            "Speedup against theory",
            "Ablations",
            "a processor",
            "Which way is worth most?",
        ):
            assert words in text, words
    assert not re.search(r'(src|href)="(?!#)[^"]*"', html.replace('xlink:href="#', 'href="#')), "it needs no other file"
    assert html.count("<svg ") == html.count("</svg>") == 5
    names = re.findall(r' id="([^"]+)"', html)
    shapes = [name for name in names if re.match(r"[pm][0-9a-f]{8}", name)]
    assert len(shapes) == len(set(shapes)), "charts do not share clip paths and markers"
    for link in re.findall(r"!\[.*?\]\((.*?)\)", markdown):
        ElementTree.parse(markdown_file.parent / link)
    assert not list(markdown_file.parent.glob("**/.*partial"))


def test_arms_with_no_draft_one_category_and_one_prompt_are_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    arms = (*FEW, Made("methods", "never"))
    for prompts in (1, 2):
        summary = summarise(make_run(tmp_path / str(prompts), arms, prompts=prompts, repeats=1))
        assert {chart.name for chart in draw(summary["arms"])} == {"speedup", "theory", "acceptance", "latency"}
    assert "With one prompt nothing can be said" in verdict(summarise(RunFolder(tmp_path / "1"))["arms"])


@pytest.mark.parametrize(
    ("chance", "step", "words"),
    [(0.8, 0.0, "pays here"), (0.0, 0.02, "does not pay here"), (0.52, 0.0118, "not clear")],
)
def test_the_verdict_goes_by_the_interval(tmp_path, chance, step, words):
    arms = (Made("methods", "plain"), Made("methods", "draft", 2, chance, step))
    assert words in verdict(summarise(make_run(tmp_path / "run", arms, prompts=4))["arms"])


def test_a_run_against_itself_again_is_no_different(tmp_path):
    first, later = (make_run(tmp_path / str(seed), FEW, seed=seed) for seed in (1, 2))
    comparison = compare(first, later)
    assert comparison.apart == []
    assert [each.prompts for each in comparison.arms] == [18, 18]
    for each in comparison.arms:
        assert each.speed.verdict == "no difference seen"
        assert each.speed.ratio.low < 1 < each.speed.ratio.high
    plain, streams = comparison.arms
    assert plain.speedup is None
    assert streams.speedup is not None
    assert streams.speedup.verdict == "no difference seen"


@pytest.mark.parametrize(("slow", "words"), [(1.4, "slower"), (0.7, "faster")])
def test_a_run_that_is_slower_is_seen(tmp_path, slow, words):
    first = make_run(tmp_path / "1", FEW, seed=1)
    later = make_run(tmp_path / "2", FEW, seed=2, slow=slow)
    plain, streams = compare(first, later).arms
    assert plain.speed.verdict == "no difference seen"
    assert streams.speed.verdict == words
    assert streams.speedup is not None
    assert streams.speedup.verdict == words
    assert streams.speed.ratio.value == pytest.approx(1 / slow, rel=0.1)


@pytest.mark.parametrize(("prompts", "bars"), [(18, False), (24, True)])
def test_a_category_of_few_prompts_gets_no_interval(tmp_path, prompts, bars):
    summary = summarise(make_run(tmp_path / "run", FEW, prompts=prompts))
    streams = summary["arms"][1]
    kinds = list(streams["categories"])
    assert {streams["categories"][kind]["prompts"] for kind in kinds} == {prompts // len(kinds)}
    assert [" to " in by_category(streams, kind) for kind in kinds] == [bars] * len(kinds)
    assert by_category(streams, "a kind that was not measured") == UNKNOWN


def test_few_prompts_prove_nothing(tmp_path):
    first, later = (make_run(tmp_path / str(slow), FEW, prompts=3, slow=slow) for slow in (1.0, 2.0))
    assert compare(first, later).arms[1].speed.verdict == "no difference seen"


def test_runs_of_other_work_are_not_compared(tmp_path):
    first, later = make_run(tmp_path / "1", FEW), make_run(tmp_path / "2", FEW)
    for facts in later.arms.values():
        facts["batch"] = 4
    later.run["provenance"] = {**later.run["provenance"], "cpu": "another"}
    comparison = compare(first, later)
    assert comparison.arms == []
    assert "cpu: a processor and another" in comparison.apart
    assert any("other work" in each for each in comparison.apart)


def test_two_runs_on_one_page(tmp_path):
    pytest.importorskip("matplotlib")
    first, later = make_run(tmp_path / "1", FEW), make_run(tmp_path / "2", FEW, slow=1.5)
    html, markdown = write_report([first, later], tmp_path / "report")
    assert "slower (p = " in html.read_text(encoding="utf-8")
    assert "(charts/run2-speedup.svg)" in markdown.read_text(encoding="utf-8")


def test_what_is_missing_is_said(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="holds no run; give a folder that specstream benchmark wrote"):
        RunFolder.existing(tmp_path)
    folder = make_run(tmp_path / "run", ())
    with pytest.raises(UsageError, match="has no sample yet"):
        write_report([folder], tmp_path / "report")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingPackageError, match=r"pip install '.\[report\]'"):
        write_report([folder], tmp_path / "report")
