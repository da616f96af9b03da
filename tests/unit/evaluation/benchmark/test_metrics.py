from __future__ import annotations

import gc
from types import SimpleNamespace

import pytest

from specstream import SpeculativeEngine
from specstream.core.rows import Round
from specstream.core.stopping import Stopping
from specstream.core.tree import TokenTree
from specstream.evaluation.benchmark import metrics
from specstream.evaluation.benchmark.metrics import Energy, Memory, generate
from tests.tiny import tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def engine():
    draft = tiny_model(noise=0.02)
    return SpeculativeEngine(tiny_model(), tiny_tokenizer(), draft, adaptive=False, max_speculation_depth=3)


def test_a_reading_is_the_generation_pass_by_pass(engine):
    prompts = ["one two three one two three one", "the cat sat on the"]
    rows = [engine.tokenizer(text)["input_ids"] for text in prompts]
    config = engine.config.generation.model_copy(update={"max_new_tokens": 20})
    reading = generate(engine.parts, rows, config)
    expected = engine.generate(prompts, max_new_tokens=20)
    assert reading["tokens"] == [each.token_ids for each in expected]
    assert len(reading["passes"]) == len(reading["depths"]) == max(each.target_passes for each in expected)
    for row, result in enumerate(expected):
        assert sum(len(rows) > row for rows in reading["depths"]) >= 1
        assert len(reading["tokens"][row]) == result.new_tokens
    assert sum(row[3] for rows in reading["depths"] for row in rows) == sum(map(len, reading["tokens"]))
    assert sum(row[2] for rows in reading["depths"] for row in rows) >= reading["accepted"] > 0
    for (width, *_), judged in zip(reading["passes"], reading["depths"], strict=True):
        assert width == 1 + max(row[0] for row in judged), "chains"
    assert [max(sizes) for sizes in reading["sizes"]] == [width for width, *_ in reading["passes"]]
    assert sum(size - 1 for sizes in reading["sizes"] for size in sizes) == reading["drafted"]
    assert reading["texts"] == [each.text for each in expected]
    for (_, *seconds), judged in zip(reading["passes"], reading["depths"], strict=True):
        assert all(each >= 0 for each in seconds)
        assert all(accepted <= seen <= depth for depth, seen, accepted, _ in judged)
    assert reading["decode"] == pytest.approx(sum(each[3] for each in reading["passes"]), abs=1e-4)


@pytest.mark.parametrize(("path", "seen"), [((0,), 1), ((0, 1), 2), ((0, 1, 2), 2), ((0, 1, 2, 3), 3)])
def test_one_depth_behind_the_accepted_is_judged_but_not_behind_an_end(path, seen):
    tree = TokenTree.chain([5, 6, 2, 7])
    row = SimpleNamespace(stopping=Stopping(max_new_tokens=9, eos_token_ids=frozenset({2, 5})))
    share = Round(row=row, tokens=(6,), tree=tree, path=path, drafter=None)
    assert metrics._judged(share) == (3, seen, len(path) - 1, 1)


def test_energy_is_the_packages_and_counters_wrap(tmp_path):
    for name, energy in (("intel-rapl:0", 5_000_000), ("intel-rapl:1", 9_000_000), ("intel-rapl:0:0", 0)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "energy_uj").write_text(f"{energy}\n")
        (tmp_path / name / "max_energy_range_uj").write_text("10000000\n")
    energy = Energy(tmp_path)
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("7000000\n")
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("500000\n")
    assert energy.joules() == pytest.approx(2 + 1.5)


def test_energy_that_cannot_be_read_is_none(tmp_path):
    assert Energy(tmp_path).joules() is None
    (tmp_path / "intel-rapl:0").mkdir()
    assert Energy(tmp_path).joules() is None


def test_the_peak_of_memory_is_forgotten_and_found_again():
    gc.collect()  # what other tests left would be given back meanwhile, and the block fit in its place
    memory = Memory()
    block = bytearray(64 << 20)
    block[:: 4 << 10] = b"x" * len(block[:: 4 << 10])
    del block
    peak, grown = memory.read()
    if peak is None:
        pytest.skip("this system does not say")
    assert grown is not None
    assert grown > 48 << 20
    assert Memory().read()[1] < 48 << 20
