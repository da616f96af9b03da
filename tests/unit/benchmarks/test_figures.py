from __future__ import annotations

import json
import re
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from benchmarks import cold_start, serving
from benchmarks import figures as commands
from benchmarks.alone import MATCHING, drafters, matching, never_slower
from benchmarks.beside import Outcome, Settings, smallest_ratio
from benchmarks.cold_start import COLD, Start, start
from benchmarks.deciding import spent
from benchmarks.goals import GOALS, Goal
from benchmarks.inprocess import Pair
from benchmarks.peers import conditions, default_reference, default_systems, peers
from benchmarks.prompts import Item
from benchmarks.rounds import Measured, Sample
from benchmarks.systems import parse_system
from specstream import SpeculativeEngine
from specstream.core.policy.controller import Controller
from specstream.engine.contestants import Run
from specstream.errors import SpecStreamError, UsageError
from tests.tiny import tiny_model, tiny_tokenizer

OUTCOME = Outcome(value=1.0, text="a table", details={"samples": []})


@pytest.fixture
def model(tmp_path: Path) -> str:
    """A folder that passes for a model until it is loaded."""
    (tmp_path / "config.json").write_text("{}")
    return str(tmp_path)


def invoke(function: Any, *words: str) -> tuple[int, str]:
    app = typer.Typer()
    app.command()(function)
    result = CliRunner().invoke(app, list(words))
    return result.exit_code, result.output


def test_a_goal_is_a_lower_or_an_upper_bound() -> None:
    least, most, free = Goal(what="a", bound=2.0), Goal(what="b", bound=2.0, at_most=True), Goal(what="c", bound=None)
    assert [least.met(value) for value in (1.99, 2.0, 2.01, float("nan"))] == [False, True, True, False]
    assert [most.met(value) for value in (1.99, 2.0, 2.01, float("nan"))] == [True, True, False, False]
    assert free.met(0.0)
    assert "MISSED" in least.verdict(1.9) and "met" in most.verdict(1.9) and "no goal" in free.verdict(1.9)


def test_every_goal_is_measured_and_its_command_documented() -> None:
    assert list(commands.measurements()) == list(GOALS)
    readme = Path(commands.__file__).with_name("README.md").read_text(encoding="utf-8")
    assert [name for name in GOALS if not re.search(f"\\| `{name}[ `]", readme)] == []


@pytest.mark.parametrize(("bound", "code"), [(0.9, 0), (1.1, 1)])
def test_a_figure_is_printed_and_written_and_a_missed_one_fails(
    bound: float, code: int, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(GOALS, "memory", Goal(what="a figure", bound=bound))
    monkeypatch.setattr(commands, "measurements", lambda: {"memory": lambda settings: OUTCOME})
    exit_code, output = invoke(commands.figures, "memory", "--target", model, "--json", model)
    assert exit_code == code
    assert "a table" in output and f"a figure: 1.000, goal >= {bound}" in output
    written = json.loads(Path(model, "memory.json").read_text())
    assert (written["value"], written["met"], written["arguments"]["rounds"]) == (1.0, code == 0, 3)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["fastest"], "no figure 'fastest'"),
        (["memory", "--rounds", "0"], "rounds"),
        (["memory", "--target", "/nowhere/at/all"], "/nowhere/at/all"),
        (["memory", "--python", "vllm"], "give ENGINE=PATH"),
        (["memory"], "no tokenizer"),
        (["draft-humaneval"], "give --draft"),
        (["draft-humaneval", "--draft", "MODEL"], "give --data"),
        (["lookup", "--data", "/nowhere"], "give --data"),
        (["never-slower", "--drafter", "magic"], "--drafter is 'magic'; give one of"),
        (["never-slower", "-b", "0"], "batch-size"),
    ],
)
def test_a_wrong_call_is_code_2(words: list[str], part: str, model: str) -> None:
    words = [model if word == "MODEL" else word for word in ("--target", "MODEL", *words)]
    code, output = invoke(commands.figures, *words, "--json", "")
    assert (code, part in output) == (2, True), output


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["-s", "tgi"], "has the engine 'tgi'"),
        (["--prompts", "/nowhere.jsonl"], "cannot be read"),
        (["--prompts", "/nowhere.jsonl", "--where", "a"], "give KEY=VALUE"),
        ([], "no tokenizer"),
    ],
)
def test_a_wrong_comparison_is_code_2(words: list[str], part: str, model: str) -> None:
    code, output = invoke(peers, "--target", model, *words, "--json", "")
    assert (code, part in output) == (2, True), output


def test_all_figures_run_in_processes_of_their_own_and_the_worst_code_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def run(command: list[str], *, check: bool) -> Any:
        asked.append(command[3:])
        return subprocess.CompletedProcess(command, 1 if "memory" in command else 0)

    monkeypatch.setattr(subprocess, "run", run)
    assert commands.run_all(["--rounds", "2", "all", "--draft", "d"]) == 1
    assert asked == [["--rounds", "2", name, "--draft", "d"] for name in GOALS]


def test_the_systems_by_default_are_those_the_models_allow() -> None:
    names = [system.name for system in default_systems("", "")]
    assert "specstream:none" in names and "vllm:ngram" in names
    assert not any("draft_model" in name or "llama" in name or "mixed" in name for name in names)
    names = [system.name for system in default_systems("draft", "file.gguf")]
    assert {"specstream:mixed", "transformers:assisted", "llama.cpp:none"} <= set(names)
    assert default_reference([parse_system("vllm"), parse_system("transformers:generate")]) == "transformers:generate"
    assert default_reference([parse_system("vllm:none")]) == "vllm:none"


def test_conditions_are_pairs() -> None:
    assert conditions(["a=1", "b=c=d"]) == {"a": "1", "b": "c=d"}


def test_the_best_of_the_others_counts() -> None:
    def sample(group: int, system: str, seconds: float) -> Sample:
        values: dict[str, Any] = {"round": 0, "item": "a", "tokens": [[1]], "counts": {}, "peak_mib": 1.0}
        return Sample(group=group, system=system, seconds=seconds, **values)

    samples = [sample(0, "ours", 1.0), sample(0, "k2", 3.0), sample(1, "ours", 1.0), sample(1, "k3", 2.0)]
    assert smallest_ratio(Measured(samples=samples), "ours", ["k2", "k3"]) == (2.0, "k3")


def pair(item: str, seconds: float, emitted: list[int], round_: int = 0) -> Pair:
    def run(decode: float, passes: list[int]) -> Run:
        counts: Any = {"drafted": 0, "accepted": 0, "rejected": 0, "exact": "bits", "texts": [""]}
        return Run(tokens=[list(range(sum(passes)))], emitted=[passes], prefill=1.0, decode=decode, **counts)

    return Pair(item=item, round=round_, own=run(seconds, emitted), plain=run(4.0, [1] * sum(emitted)))


def test_lookup_is_judged_where_it_matches() -> None:
    matches, none = [3, 1, 1, 1], [1] * 6
    assert pair("a", 1.0, matches).matching_passes == 0.25 >= MATCHING
    pairs = [pair("a", 2.0, matches), pair("a", 1.0, matches, 1), pair("b", 8.0, none), pair("c", 1.0, matches)]
    value, text = matching(pairs)
    assert value == 3.5  # of 3, the median of prompt a, and 4
    assert "matches on 2 of 3 prompts" in text
    assert matching([pair("b", 8.0, none)])[0] == 0.0


def test_a_ratio_is_of_decoding_and_another_of_the_whole_call() -> None:
    assert pair("a", 1.0, [2]).ratio == 4.0
    assert pair("a", 1.0, [2]).whole_ratio == 2.5


def test_heads_are_held_to_be_never_slower_too(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"kind": "streams"}), encoding="utf-8")
    assert drafters("", str(tmp_path)) == ["streams", "lookup", "recycling", "lookahead", "mixed"]
    assert drafters("d", str(tmp_path)) == ["streams", "lookup", "recycling", "lookahead", "draft_model", "mixed"]


def test_what_a_figure_needs_is_asked_for() -> None:
    with pytest.raises(UsageError, match="--draft"):
        Settings(target="a").with_draft()
    with pytest.raises(UsageError, match="--data"):
        Settings(target="a").data_file("humaneval")
    assert drafters("", "") == ["lookup", "recycling", "lookahead"]
    assert drafters("d", "") == ["lookup", "recycling", "lookahead", "draft_model", "mixed"]


def test_never_slower_measures_real_and_adversarial_drafts_at_every_size(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    amount = {"rounds": 2, "max_new_tokens": 8, "limit": 2, "dtype": "float32"}
    settings = Settings(target=str(tmp_path), drafters=("lookup",), batch_sizes=(1, 3), **amount)  # type: ignore[arg-type]
    outcome = never_slower(settings)
    names = ["lookup @1", "lookup, adversarial @1", "lookup @3", "lookup, adversarial @3"]
    assert list(outcome.details) == names
    for name, own in outcome.details.items():
        size = int(name[-1])
        assert [len(each["own"]["tokens"]) for each in own["pairs"]] == [size] * 4
        assert 0 < own["median"]["low"] <= own["median"]["value"] <= own["median"]["high"]
    assert outcome.value == min(own["median"]["value"] for own in outcome.details.values())
    assert outcome.text.count("12 of 12") == 2 and outcome.text.count("4 of 4") == 2, "outputs, not groups"


def test_the_policys_time_is_part_of_that_of_its_rounds() -> None:
    calls = [0, 0]  # a round of a pause asks nothing

    class Slow(Controller):
        def choose(self, *arguments: Any, **named: Any) -> Any:
            calls[0] += 1
            time.sleep(0.002)
            return super().choose(*arguments, **named)

        def observe(self, *arguments: Any, **named: Any) -> None:
            calls[1] += 1
            time.sleep(0.001)
            super().observe(*arguments, **named)

    parts = SpeculativeEngine(tiny_model(), tiny_tokenizer(), drafter="lookup").parts
    parts = replace(parts, speculation=replace(parts.speculation, controller=Slow()))
    found = spent(parts, Item(name="two", prompts=[[5, 6, 7], [8, 9]]), 8)
    assert 1 < found.rounds <= 8 and min(calls) > 1
    assert found.choosing >= calls[0] * 0.002 and found.learning >= calls[1] * 0.001
    assert found.choosing + found.learning < found.decode


def test_a_start_is_a_process_that_keeps_nothing_where_it_is_told_so(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    model = str(tmp_path / "model")
    found = start(["float32", "4", model, model], COLD)
    assert min(found.loading, found.first, found.again) > 0
    assert found.beyond == found.first - found.again
    with pytest.raises(SpecStreamError, match=r"a start ended with code 1: IndexError"):
        start([], COLD)  # which ends before it imports what loads models


def test_cold_and_warm_starts_are_made_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[bool] = []

    def begin(words: list[str], variables: dict[str, str]) -> Start:
        assert words == ["bfloat16", "64", "m", "d"]
        made.append(variables == COLD)
        return Start(loading=1.0, first=5.0 + len(made) if variables else 2.0, again=1.0)

    monkeypatch.setattr(cold_start, "start", begin)
    outcome = cold_start.cold_start(Settings(target="t", draft="d", rounds=3), "m")
    assert made == [True, False, True, False, False, True, True, False]
    assert outcome.value == 5.0 + 6 - 1
    assert [each["first"] for each in outcome.details["warm"]] == [2.0] * 3


def test_a_servers_load_is_over_the_same_without_speculation(monkeypatch: pytest.MonkeyPatch) -> None:
    speeds = {"auto @16": [30.0, 22.0, 24.0], "none @16": [20.0, 20.0, 20.0]}
    commands: list[list[str]] = []

    def measured(ways: Any, asked: Any, clients: list[int], rounds: int) -> dict[str, list[float]]:
        commands.extend(way(1)[1]["SPECSTREAM_DRAFTER"] for way in ways.values())
        assert (clients, rounds, len(asked)) == ([16], 3, 48)
        return speeds

    monkeypatch.setattr(serving, "speeds_of", measured)
    outcome = serving.server_load(Settings(target="", smollm2="m"))
    assert commands == ["auto", "none"]
    assert outcome.value == pytest.approx(1.2)
    assert outcome.details["medians"]["auto @16"]["low"] == pytest.approx(1.1)
