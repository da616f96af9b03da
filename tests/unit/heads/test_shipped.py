"""Heads that come with the package: what is in their folders, and which models take them."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from specstream import SpeculativeEngine
from specstream.errors import HeadMismatchError, UsageError
from specstream.heads import shipped
from specstream.heads.folder import KINDS, kind_of, read_settings
from specstream.heads.streams import Streams
from specstream.heads.streams_config import StreamsConfig
from tests.tiny import tiny_model, tiny_tokenizer

MOST_BYTES = 5_000_000
FOLDERS = [folder for kind in KINDS for folder in shipped.shipped_folders(kind)]


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture
def ships(monkeypatch, tmp_path):
    """A package that ships untrained streams of the tiny model."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        Streams(tiny_model(), StreamsConfig(gamma=3, layers=1, rank=2)).save(tmp_path / "streams-tiny")
    monkeypatch.setattr(shipped, "ROOT", tmp_path)
    return tmp_path / "streams-tiny"


def fine_tuned():
    """The tiny model with one of its matrices changed a little."""
    model = tiny_model()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.mul_(1.01)
    return model


def test_the_default_model_has_streams():
    assert [folder.name for folder in shipped.shipped_folders("streams")] == ["streams-smollm2-135m"]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_folder_is_small_and_says_what_it_holds(folder):
    files = {file.name: file.stat().st_size for file in folder.iterdir()}
    assert set(files) == {"config.json", "heads.safetensors"}
    assert sum(files.values()) <= MOST_BYTES
    settings = read_settings(folder)
    assert folder.name == f"{kind_of(folder)}-{settings['base']['name']}"
    assert len(settings["base"]["fingerprint"]) == 16
    assert len(settings["data"]["sha256"]) == 64
    assert settings["data"]["answer_tokens"] > 0
    assert settings["recipe"]["recipe"] == kind_of(folder)
    assert settings["figures"]["accepted_length"] > 1
    assert "/work" not in json.dumps(settings), "paths of the machine that trained it say nothing elsewhere"
    tensors = load_file(folder / "heads.safetensors")
    assert all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values())
    if kind_of(folder) == "streams":
        trained = sum(tensor.numel() for name, tensor in tensors.items() if name != "vocabulary")
        assert trained == settings["extra_parameters"] < 0.01 * settings["base_parameters"]


def test_auto_takes_them_beside_the_lookup(tokenizer, ships):
    engine = SpeculativeEngine(tiny_model(), tokenizer)
    plain = SpeculativeEngine(tiny_model(), tokenizer, drafter="none")
    result = engine.generate("one two three one two", max_new_tokens=40)
    assert result.token_ids == plain.generate("one two three one two", max_new_tokens=40).token_ids
    assert result.drafter == "lookup+streams"
    assert set(result.drafts) <= {"lookup", "streams"}
    assert sum(result.drafts.values()) <= result.target_passes
    assert engine.provenance()["heads"] == str(ships)
    assert SpeculativeEngine(tiny_model(), tokenizer, drafter="streams").provenance()["heads"] == str(ships)


@pytest.mark.parametrize("settings", [{"adaptive": False}, {"seed": 1, "temperature": 1.0}])
def test_where_nothing_is_measured_auto_looks_up_and_no_more(tokenizer, ships, settings):
    engine = SpeculativeEngine(tiny_model(), tokenizer, **settings)
    drafts = [engine.generate(text, max_new_tokens=40).drafts for text in ("one two three one two", "the cat sat on")]
    assert any(drafts)
    assert all(set(each) <= {"lookup"} for each in drafts)
    named = SpeculativeEngine(tiny_model(), tokenizer, drafter="streams", **settings)
    assert named.generate("the cat sat on", max_new_tokens=40).drafts["streams"] > 10


def test_what_is_given_wins(tokenizer, ships):
    given = [{"drafter": "lookup"}, {"drafter": "none"}, {"draft_model": tiny_model(noise=0.1)}]
    names = [SpeculativeEngine(tiny_model(), tokenizer, **each).provenance()["drafter"] for each in given]
    assert names == ["lookup", "none", "draft_model"]
    engine = SpeculativeEngine(tiny_model(), tokenizer, heads=str(ships))
    assert engine.provenance()["drafter"] == "streams"
    engine = SpeculativeEngine(tiny_model(), tokenizer, heads=str(ships), drafter="mixed")
    assert engine.provenance()["drafter"] == "mixed"


def test_a_fine_tuned_model_does_not_take_them(tokenizer, ships):
    engine = SpeculativeEngine(fine_tuned(), tokenizer)
    assert (engine.provenance()["drafter"], engine.provenance()["heads"]) == ("lookup", None)
    with pytest.raises(UsageError, match="drafter is 'streams' and there are no heads for this model; give heads="):
        SpeculativeEngine(fine_tuned(), tokenizer, drafter="streams")
    with pytest.raises(HeadMismatchError, match=r"streams-tiny' belong to llama \(\w+\) and the model is llama"):
        SpeculativeEngine(fine_tuned(), tokenizer, heads=str(ships))


def test_shipped_heads_of_another_base_are_refused_by_name(tokenizer):
    (folder,) = shipped.shipped_folders("streams")
    with pytest.raises(HeadMismatchError, match=r"belong to smollm2-135m \(\w{16}\) and the model is llama \(\w{16}\)"):
        SpeculativeEngine(tiny_model(), tokenizer, heads=str(folder))


def test_models_of_another_size_are_not_looked_at(monkeypatch, ships):
    def refuse(model):
        raise AssertionError("a fingerprint of a model that no shipped head can fit")

    monkeypatch.setattr(shipped, "fingerprint", refuse)
    assert shipped.shipped_for(tiny_model(vocab_size=310), "streams") is None
    with pytest.raises(AssertionError, match="no shipped head can fit"):
        shipped.shipped_for(tiny_model(), "streams")


@pytest.mark.model
def test_the_default_model_takes_its_own(default_model_path):
    engine = SpeculativeEngine(default_model_path)
    assert engine.provenance()["drafter"] == "lookup+streams"
    with torch.no_grad():
        engine.model.model.layers[3].self_attn.q_proj.weight.add_(0.01)
    assert SpeculativeEngine(engine.model, engine.tokenizer).provenance()["drafter"] == "lookup"


WORDS = "one two three"


def test_streams_of_other_weights_are_left_out_with_a_line_that_results_carry(ships, tokenizer, capsys):
    engine = SpeculativeEngine(fine_tuned(), tokenizer)
    said = capsys.readouterr().err
    result = engine.generate(WORDS, max_new_tokens=4)
    assert result["drafter"] == "lookup"
    assert result["left_out"].startswith("streams-tiny, which comes with the package, is of other weights")
    assert said == f"specstream: {result['left_out']}\n"
    assert engine.provenance()["left_out"] == result.left_out
    assert engine.benchmark([WORDS], num_runs=1, max_new_tokens=4).provenance["left_out"] == result.left_out


def test_streams_are_left_out_of_drafting_at_a_fixed_depth_and_that_is_said(ships, tokenizer, capsys):
    engine = SpeculativeEngine(tiny_model(), tokenizer, adaptive=False)
    assert engine.parts.left_out is not None and "fixed draft depth" in engine.parts.left_out
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        (tiny_model, {}),
        (fine_tuned, {"drafter": "lookup"}),
        (fine_tuned, {"drafter": "none"}),
        (lambda: tiny_model(vocab_size=310), {}),
    ],
)
def test_nothing_is_said_where_nothing_is_left_out(ships, tokenizer, capsys, model, settings):
    result = SpeculativeEngine(model(), tokenizer, **settings).generate(WORDS, max_new_tokens=4)
    assert result.left_out is None
    assert capsys.readouterr().err == ""
