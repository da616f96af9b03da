from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.systems import INSTALL, MODES, environment, parse_pythons, parse_system
from specstream.errors import UsageError


def test_a_name_has_an_engine_a_mode_a_depth_and_options() -> None:
    system = parse_system("specstream:draft_model@6+int8+branches=2+exact=rounding")
    assert (system.engine, system.mode, system.k) == ("specstream", "draft_model", 6)
    assert system.options == {"draft_quantization": "int8", "branches": 2, "exact": "rounding"}
    assert system.needs_draft


def test_the_first_mode_is_meant_where_none_is_named() -> None:
    assert parse_system("vllm").mode == "none"
    assert not parse_system("transformers").needs_draft
    assert parse_system("llama.cpp").k is None


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("tgi:none", "known are specstream"),
        ("vllm:eagle", "vllm has none, ngram, draft_model, medusa, eagle3, dflash"),
        ("vllm:ngram@0", "above 0"),
        ("vllm:ngram@x", "'x'"),
        ("vllm:ngram+quick", "KEY=VALUE"),
    ],
)
def test_a_name_that_is_none_is_refused(name: str, part: str) -> None:
    with pytest.raises(UsageError, match=part):
        parse_system(name)


def test_every_engine_says_how_it_is_installed() -> None:
    assert set(INSTALL) == set(MODES)


def test_interpreters_are_given_by_engine() -> None:
    assert parse_pythons([f"vllm={sys.executable}"]) == {"vllm": sys.executable}


@pytest.mark.parametrize("value", ["/usr/bin/python3", f"tgi={sys.executable}", "vllm=/nowhere/python"])
def test_an_interpreter_that_is_none_is_refused(value: str) -> None:
    with pytest.raises(UsageError, match="--python"):
        parse_pythons([value])


def test_vllm_runs_on_intels_openmp_where_it_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    python = tmp_path / "bin" / "python"
    assert "LD_PRELOAD" not in environment("vllm", str(python))
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libiomp5.so").touch()
    assert environment("vllm", str(python))["LD_PRELOAD"] == str(tmp_path / "lib" / "libiomp5.so")
    assert "LD_PRELOAD" not in environment("economize", str(python))


def test_what_the_caller_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert "HF_HUB_OFFLINE" not in environment("transformers")
