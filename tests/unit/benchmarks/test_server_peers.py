from __future__ import annotations

import re
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from benchmarks.server_peers import Load, asking, equal, ratios, servers_of, table
from benchmarks.servers import Served
from benchmarks.traffic import Outcome, Request
from specstream.errors import UsageError

SERVED = Served(target="/m", dtype="auto", rows=8, queue=32, most=96, context=2048)


def answered(question: int, text: str, **changes: Any) -> Outcome:
    given = {"tokens": 9, "seconds": 3.0, "first_seconds": 1.0, **changes}
    return Outcome(request=Request(question=question, stream=True), text=text, reason="stop", **given)


LOADS = {
    "specstream": Load(weights="/m", runs="", outcomes=[[answered(0, "a b"), answered(1, "c")]], seconds=[2.0]),
    "specstream gguf": Load(weights="/g", runs="", outcomes=[[answered(0, "a b c d")]], seconds=[2.0]),
    "vllm float32": Load(
        weights="/m",
        runs="float32",
        outcomes=[[answered(0, "x"), answered(0, "a b"), answered(1, "c", error="500: no", refusals=2)]],
        seconds=[3.0],
        memory=[(float(at), 100.0 + at) for at in range(100)],
    ),
    "llama.cpp": Load(weights="/g", runs="as the file", outcomes=[[answered(0, "a b c d")]], seconds=[1.0]),
}


def length(text: str) -> int:
    return len(text.split())


def test_figures_are_of_answers_that_came() -> None:
    found = LOADS["vllm float32"].as_json(length)
    assert (found["requests"], found["refusals"], found["errors"]) == (3, 2, {"500": 1})
    assert (found["tokens"], found["speeds"], found["counted_by_server"]) == (3, [1.0], 18)
    assert found["first_seconds"] == {"p50": 1.0, "p95": 1.0}
    assert found["later_seconds"] == {"p50": 2.0, "p95": 2.0}, "of the one with two tokens"
    assert (found["memory"]["start_mib"], found["memory"]["end_mib"]) == (129.5, 189.5)


def test_ratios_are_of_ours_over_the_better_other_in_each_round() -> None:
    speeds = {
        "specstream": [4.0, 6.0],
        "specstream gguf": [2.0, 2.0],
        "vllm float32": [2.0, 1.0],
        "llama.cpp": [1.0, 3.0],
    }
    assert ratios(speeds) == {"specstream": [2.0, 2.0], "specstream gguf": [1.0, 2 / 3]}
    assert ratios({"specstream": [4.0]}) == {}


def test_answers_are_compared_with_ours_of_the_same_weights() -> None:
    assert [equal(LOADS, name) for name in LOADS] == ["", "", "0 of 1", "1 of 1"]


def test_the_table_has_a_line_for_each() -> None:
    found = {name: each.as_json(length) for name, each in LOADS.items()}
    over = ratios({name: each["speeds"] for name, each in found.items()})
    lines = table(found, over, {name: equal(LOADS, name) for name in LOADS}).splitlines()
    assert [line.split("  ")[0] for line in lines] == ["server", *LOADS]
    assert "1 500" in lines[3]
    assert "130 190" in lines[3]


def test_every_server_is_asked_the_same_and_all_is_streamed() -> None:
    first = list(islice(asking(5, 3), 12))
    assert first == list(islice(asking(5, 3), 12))
    assert sorted(each.question for each in first[:5]) == list(range(5))
    assert first[:5] != first[5:10]
    assert all(each.stream and each.leaves is None for each in first)


def test_servers_have_their_own_weights_dtypes_and_fields(tmp_path: Path) -> None:
    gguf = tmp_path / "m.gguf"
    gguf.touch()
    pythons = {"vllm": "/v/python", "llama.cpp": "/l/python"}
    found = servers_of(SERVED, str(gguf), pythons, ["bfloat16", "float32"], ["--enforce-eager"], ["drafter=none"])
    assert list(found) == ["specstream", "specstream gguf", "vllm bfloat16", "vllm float32", "llama.cpp"]
    for name, server in found.items():
        command, variables = server.command(7)
        own = name.startswith("specstream")
        assert server.weights == (str(gguf) if name in ("specstream gguf", "llama.cpp") else "/m")
        assert server.weights in (variables.values() if own else command)
        if own:
            assert (variables["SPECSTREAM_PREFIX_CACHE_GB"], variables["SPECSTREAM_DRAFTER"]) == ("0", "none")
    assert "float32" in found["vllm float32"].command(7)[0]
    assert found["llama.cpp"].extra == {"repeat_penalty": 1.0}
    assert list(servers_of(SERVED, "", {}, [], [], [])) == ["specstream"]


@pytest.mark.parametrize(
    ("pythons", "words"),
    [({"economize": "/e"}, "--python is for economize"), ({"llama.cpp": "/l"}, "gguf is '' and llama.cpp reads")],
)
def test_what_there_is_no_server_of_is_refused(pythons: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError, match=re.escape(words)):
        servers_of(SERVED, "", pythons, [], [], [])
