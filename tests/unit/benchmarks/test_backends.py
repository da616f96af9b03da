from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.backends import load
from benchmarks.options import ends, load_tokenizer, models
from benchmarks.prompts import Item
from specstream.errors import UsageError
from tests.tiny import tiny_model, tiny_tokenizer

PROMPTS = [[5, 6, 7, 5, 6, 7, 5, 6], [9, 10, 11, 12]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("models")
    for name, noise in (("target", 0.0), ("draft", 0.02)):
        model = tiny_model(noise=noise)
        model.generation_config.eos_token_id = 0
        model.generation_config.repetition_penalty = 1.5  # as some checkpoints have; nobody may apply it
        model.save_pretrained(path / name)
        tiny_tokenizer().save_pretrained(path / name)
    return str(path)


def request(folder: str, engine: str, mode: str, eos: list[int] | None = None) -> dict[str, Any]:
    return {
        "engine": engine,
        "mode": mode,
        "k": 3,
        "options": {},
        "target": f"{folder}/target",
        "draft": f"{folder}/draft" if mode in ("draft_model", "assisted") else None,
        "dtype": "float32",
        "eos": eos or [0],
        "pad": 1,
    }


def test_all_systems_generate_the_same_tokens(folder: str) -> None:
    plain = load(request(folder, "specstream", "none"))
    expected = [plain.generate([prompt], 16, True)[0][0] for prompt in PROMPTS]
    assert [len(tokens) for tokens in expected] == [16, 16]
    systems = [
        ("specstream", "lookup"),
        ("specstream", "draft_model"),
        ("transformers", "generate"),
        ("transformers", "assisted"),
        ("transformers", "lookup"),
    ]
    for system in systems:
        backend = load(request(folder, *system))
        assert [backend.generate([prompt], 16, True)[0][0] for prompt in PROMPTS] == expected, system
        assert "transformers" in backend.versions


def test_batches_of_different_lengths_end_row_by_row(folder: str) -> None:
    plain = load(request(folder, "specstream", "none"))
    free = [plain.generate([prompt], 16, True)[0][0] for prompt in PROMPTS]
    end = next(token for token in free[0] if free[0].index(token) > 2 and token not in free[1])
    expected = [free[0][: free[0].index(end) + 1], free[1]]
    for system in (("specstream", "none"), ("transformers", "generate")):
        backend = load(request(folder, *system, eos=[end]))
        assert backend.generate(PROMPTS, 16, False)[0] == expected, system
        assert backend.generate(PROMPTS, 16, True)[0] == free, system


def test_what_ours_did_is_counted(folder: str) -> None:
    _, counts = load(request(folder, "specstream", "draft_model")).generate([PROMPTS[0]], 16, True)
    assert counts["passes"] > 0 and counts["drafted"] >= counts["accepted"]


def test_a_checkpoint_says_what_ends_a_text(folder: str) -> None:
    items = [Item(name="a", prompts=PROMPTS)]
    found = models(f"{folder}/target", "", dtype="float32", items=items, limit=10)
    assert (found.eos, found.draft, found.batch) == ((0,), None, 2)
    assert found.context >= 18
    assert ends(f"{folder}/target")[0] == [0]


def test_models_that_cannot_be_compared_are_refused(folder: str, tmp_path: Path) -> None:
    items = [Item(name="a", prompts=PROMPTS)]
    with pytest.raises(UsageError, match="dtype is 'auto'"):
        models(f"{folder}/target", "", dtype="auto", items=items, limit=10)
    with pytest.raises(UsageError, match="no such file"):
        models(f"{folder}/target", "", dtype="float32", items=items, limit=10, gguf="/nowhere.gguf")
    with pytest.raises(UsageError, match="no eos_token_id"):
        ends(str(tmp_path))
    with pytest.raises(UsageError, match="no tokenizer"):
        load_tokenizer(str(tmp_path))
