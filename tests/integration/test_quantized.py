"""Quantised checkpoints as models: every command and class takes them where it takes a folder, or says why not."""

from __future__ import annotations

import json

import pytest
import torch

from specstream import DeploymentConfig, SpeculativeEngine
from specstream.cli import main
from specstream.errors import UsageError
from specstream.heads.streams import Streams, StreamsConfig
from specstream.models.architecture.blocks import source_of
from specstream.models.hub.load import load_model
from specstream.models.runtime import native
from specstream.serving.memory import needs
from specstream.training.quantize import quantize
from specstream.training.recipes.draft import TrainedDraft
from tests.quantized_files import WAYS, Way, write_quantized
from tests.tiny import tiny_model, tiny_tokenizer

PROMPTS = ["the cat sat on the", "one two one two three"]
CALLED = {"awq": "an AWQ checkpoint", "gptq": "a GPTQ checkpoint", "ct": "a compressed-tensors checkpoint"}


def wide(noise=0.0):
    return tiny_model(seed=4, noise=noise, hidden_size=64)


@pytest.fixture(scope="module", params=["awq-32", "gptq-v1", "ct-8"])
def folder(request, tmp_path_factory):
    place = tmp_path_factory.mktemp("quantised") / request.param
    write_quantized(place, wide(), WAYS[request.param])
    return str(place)


@pytest.fixture
def called(folder):
    return CALLED[folder.rpartition("/")[2].partition("-")[0]]


def tokens_of(engine, count=24):
    return [result.token_ids for result in engine.generate(PROMPTS, max_new_tokens=count, ignore_eos=True)]


def test_drafts_change_nothing_of_what_it_says(folder, tmp_path):
    plain = SpeculativeEngine(folder, drafter="none")
    expected = tokens_of(plain)
    kernels = native.available()
    method = {"awq": "awq", "gptq": "gptq"}.get(folder.rpartition("/")[2].partition("-")[0], "compressed-tensors")
    assert not kernels or plain.target.runtime.name == f"native-{method}"
    write_quantized(tmp_path / "draft", wide(noise=0.05), WAYS["ct-32"])
    Streams(load_model(folder)[0], StreamsConfig(gamma=2, layers=1)).save(tmp_path / "streams")
    for draft, settings in (
        (None, {"drafter": "lookup"}),
        (str(tmp_path / "draft"), {}),
        (folder, {}),
        (None, {"heads": str(tmp_path / "streams")}),
    ):
        engine = SpeculativeEngine(folder, draft_model=draft, adaptive=False, **settings)
        assert tokens_of(engine) == expected
        assert engine.get_metrics()["mean_accepted_length"] > 1 or draft is None


def test_it_says_what_transformers_says_of_the_same_numbers(folder):
    model, tokenizer = load_model(folder, dtype="float32")
    engine = SpeculativeEngine(folder, dtype="float32", runtime="eager")
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        expected = model.generate(ids, do_sample=False, max_new_tokens=24, eos_token_id=None)[0, ids.shape[1] :]
        assert engine.generate(prompt, max_new_tokens=24, ignore_eos=True).token_ids == expected.tolist()


@pytest.mark.parametrize(
    ("draft_model", "settings", "words"),
    [
        (
            None,
            {"quantization": "int8"},
            "quantization is 'int8' and .* is {}, which has its own; leave it out",
        ),
        (
            "self:int4",
            {},
            "draft_model is 'self:int4' and .* is {}, which has its own; leave it out",
        ),
    ],
)
def test_another_quantisation_is_refused_before_it_is_loaded(folder, called, monkeypatch, draft_model, settings, words):
    monkeypatch.setattr("specstream.engine.engine.load_model", None)
    with pytest.raises(UsageError, match=words.format(called)):
        SpeculativeEngine(folder, draft_model=draft_model, **settings)


def test_another_quantisation_of_a_loaded_model_is_refused(folder, called):
    model, tokenizer = load_model(folder)
    with pytest.raises(UsageError, match=rf"quantization is 'int8' and .* is {called}, which has its own; leave it"):
        SpeculativeEngine(model, tokenizer, quantization="int8")


def test_it_is_not_trained_nor_saved_nor_made_a_draft_of(folder, called, tmp_path, capsys):
    with pytest.raises(UsageError, match=rf"draft_model is .*, {called}, which cannot be trained; give the model that"):
        TrainedDraft(folder, "all", "cpu")
    with pytest.raises(UsageError, match=rf"{called} has no numbers to save or to share; copy the file, or load the"):
        load_model(folder)[0].save_pretrained(tmp_path / "saved")
    with pytest.raises(UsageError, match=rf"model is .*, {called}, which is quantised already; give the model that it"):
        quantize(folder, "int8", tmp_path / "again")
    with pytest.raises(SystemExit) as caught:
        main(["make-draft", "--target", folder, "--output", str(tmp_path / "draft"), "--layers", "1"])
    assert caught.value.code == 2
    assert f"{called}, of which no draft is made; give the model that it was made of" in capsys.readouterr().err


def test_a_server_is_told_the_memory_of_the_file(folder):
    assert 0 < needs(DeploymentConfig(model_path=folder, max_context=64)).weights < 400_000


def test_a_server_is_told_the_memory_of_numbers_where_they_are_made(tmp_path):
    own = wide()
    write_quantized(tmp_path / "a", own, Way(method="compressed-tensors", layout="pack-quantized", group=16))
    needed = needs(DeploymentConfig(model_path=str(tmp_path / "a"), max_context=64, dtype="float32"))
    assert needed.weights == 4 * own.num_parameters()


def test_a_command_writes_a_checkpoint_and_says_how_to_use_it(tmp_path, capsys):
    wide().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    output = str(tmp_path / "made")
    with pytest.raises(SystemExit) as caught:
        main(["quantize", str(tmp_path / "model"), "--bits", "int4", "-o", output])
    assert caught.value.code == 0
    assert f"int4, 0 MB; specstream generate PROMPT --model {output}" in capsys.readouterr().out
    with pytest.raises(SystemExit) as caught:
        main(["generate", "the cat", "--model", output, "--max-new-tokens", "4", "--json"])
    assert caught.value.code == 0
    assert json.loads(capsys.readouterr().out)["runtime"].endswith("-compressed-tensors") or not native.available()
    with pytest.raises(SystemExit) as caught:
        main(["quantize", str(tmp_path / "model"), "-o", output])
    assert caught.value.code == 2
    assert "which is there already; give a new folder" in capsys.readouterr().err


@pytest.mark.skipif(not native.available(), reason="without our kernels there is no copy")
def test_blocks_that_were_copied_are_given_back(folder):
    engine = SpeculativeEngine(folder, drafter="lookup")
    expected, before = tokens_of(engine), engine.target.nbytes
    assert source_of(engine.model) is not None
    engine.release()
    assert source_of(engine.model) is None
    assert tokens_of(engine) == expected
    assert engine.target.nbytes == before
    with pytest.raises(UsageError, match=r"given back by release\(\); load it again"):
        SpeculativeEngine(engine.model, engine.tokenizer)


def test_activations_may_be_of_16_bits(folder):
    engine = SpeculativeEngine(folder, dtype="bfloat16", drafter="none")
    assert engine.model.dtype == torch.bfloat16 and all(tokens_of(engine, 4))
