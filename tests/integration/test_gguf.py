"""A GGUF file as a model: every command and class takes it where it takes a folder, and it changes no output."""

from __future__ import annotations

import json

import pytest
import torch

from specstream import DeploymentConfig, SpeculativeEngine, speculative_decode
from specstream.cli import main
from specstream.errors import UnsupportedModelError, UsageError, VocabularyMismatchError
from specstream.heads.streams import Streams, StreamsConfig
from specstream.models.architecture.fingerprint import fingerprint
from specstream.models.hub.load import load_model
from specstream.models.hub.schemes import refuse_quantised
from specstream.models.invariance.selftest_cache import cache_of
from specstream.models.runtime import capabilities, native
from specstream.models.target.hf import HuggingFaceTarget
from specstream.serving.memory import needs
from specstream.training.recipes.draft import TrainedDraft
from tests.gguf_files import write_gguf

PROMPTS = ["ab cd ab cd ab", "one two one two"]

needs_kernels = pytest.mark.skipif(not native.available(), reason="needs a C++ compiler")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return str(write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", kind="Q4_1", seed=4))


@pytest.fixture(scope="module")
def draft(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gguf")
    return str(write_gguf(folder / "draft.gguf", kind="Q4_1", seed=4, noise=0.05))


def tokens_of(engine, count=24):
    return [result.token_ids for result in engine.generate(PROMPTS, max_new_tokens=count, ignore_eos=True)]


@pytest.fixture(scope="module")
def plain(file):
    return tokens_of(SpeculativeEngine(file, drafter="none"))


@pytest.mark.parametrize("drafter", ["lookup", "draft_model", "streams", "self"])
def test_drafts_change_nothing_of_what_it_says(file, draft, plain, tmp_path, drafter):
    settings = {"adaptive": False}
    if drafter == "streams":
        Streams(load_model(file)[0], StreamsConfig(gamma=2, layers=1)).save(tmp_path / "streams")
        settings["heads"] = str(tmp_path / "streams")
    given = {"draft_model": draft, "self": file}.get(drafter)
    engine = SpeculativeEngine(file, draft_model=given, **settings)
    assert tokens_of(engine) == plain
    assert engine.get_metrics()["mean_accepted_length"] > 1 or given is None
    assert engine.target.nbytes < 4 * engine.target.num_parameters / 2


def test_it_says_what_transformers_says_of_the_same_model(file):
    model, tokenizer = load_model(file, dtype="float32")
    engine = SpeculativeEngine(file, dtype="float32", runtime="eager")
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        expected = model.generate(ids, do_sample=False, max_new_tokens=24, eos_token_id=None)[0, ids.shape[1] :]
        found = engine.generate(prompt, max_new_tokens=24, ignore_eos=True)
        assert found.token_ids == expected.tolist()


@pytest.mark.parametrize(
    ("draft_model", "settings", "words"),
    [
        (None, {"quantization": "int8"}, r"quantization is 'int8' and .*tiny\.gguf is a GGUF file, which has its own"),
        (
            "self:int4",
            {},
            r"draft_model is 'self:int4' and .*tiny\.gguf is a GGUF file, which has its own; leave it out",
        ),
    ],
)
def test_another_quantisation_is_refused(file, draft_model, settings, words):
    with pytest.raises(UsageError, match=words):
        SpeculativeEngine(file, draft_model=draft_model, **settings)


@needs_kernels
@pytest.mark.parametrize("bits", ["int8", "int4"])
def test_a_draft_may_have_fewer_bits_than_its_file(file, draft, plain, bits):
    engine = SpeculativeEngine(file, draft_model=draft, draft_quantization=bits, adaptive=False)
    assert tokens_of(engine) == plain
    assert engine.get_metrics()["mean_accepted_length"] > 1
    assert engine.parts.drafter.model.runtime.name == f"native-{bits}"


@needs_kernels
@pytest.mark.parametrize(
    ("kind", "runtime"), [("Q8_0", "native-int4"), ("Q5_1", "native-int4"), ("Q4_1", "native-gguf")]
)
def test_a_large_draft_is_read_in_four_bits_where_its_file_has_more(file, plain, tmp_path, monkeypatch, kind, runtime):
    monkeypatch.setattr(capabilities, "LARGE_DRAFT", 1000)
    large = str(write_gguf(tmp_path / "large.gguf", kind=kind, seed=4, noise=0.05))
    engine = SpeculativeEngine(file, draft_model=large, adaptive=False)
    assert engine.parts.drafter.model.runtime.name == runtime
    assert tokens_of(engine) == plain
    assert engine.get_metrics()["mean_accepted_length"] > 1
    whole = SpeculativeEngine(file, draft_model=large, draft_quantization="none")
    assert whole.parts.drafter.model.runtime.name == "native-gguf"


@needs_kernels
def test_a_draft_in_fewer_bits_keeps_the_blocks_of_its_embedding(file):
    as_stored = HuggingFaceTarget(load_model(file)[0], exact=False)
    rounded = HuggingFaceTarget(load_model(file)[0], exact=False, quantization="int4")  # as many as the file's Q4_1
    rounded.release()
    assert rounded.nbytes - as_stored.nbytes == rounded.model.get_input_embeddings().weight.nbytes


def test_a_draft_of_another_vocabulary_is_refused_before_its_weights_are_read(tmp_path, file, model, tokenizer):
    with pytest.raises(VocabularyMismatchError, match=r"tiny\.gguf has another vocabulary \(\d+ tokens\)"):
        SpeculativeEngine(model, tokenizer, draft_model=file)


def test_a_damaged_draft_is_refused_before_the_target_is_loaded(tmp_path, file, monkeypatch):
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr("specstream.engine.engine.load_model", None)
    with pytest.raises(UsageError, match=r"x\.gguf' is damaged or cut short"):
        SpeculativeEngine(file, draft_model=str(tmp_path / "x.gguf"))


def test_the_function_takes_its_model(file, plain):
    model, tokenizer = load_model(file)
    ids = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    found, _ = speculative_decode(model, None, torch.tensor(ids[:1]), max_new_tokens=24, ignore_eos=True)
    assert found[0].tolist()[-24:] == plain[0]


def test_commands_take_it(file, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["generate", "ab cd ab cd", "--model", file, "--max-new-tokens", "4", "--json"])
    assert caught.value.code == 0
    assert len(json.loads(capsys.readouterr().out)["token_ids"]) <= 4
    with pytest.raises(SystemExit) as caught:
        main(["make-draft", "--target", file, "--output", str(tmp_path / "draft"), "--layers", "1"])
    assert caught.value.code == 2
    assert "a GGUF file, of which no draft is made; give the model's folder" in capsys.readouterr().err
    with pytest.raises(UnsupportedModelError, match=r"which is quantised already; give smollm2-135m$"):
        refuse_quantised(file, "model", "smollm2-135m.gguf", "which is quantised already")


def test_a_server_is_told_the_memory_of_the_blocks(file):
    needed = needs(DeploymentConfig(model_path=file, max_context=64))
    assert 0 < needed.weights < 200_000


def test_what_the_self_test_found_of_its_numbers_is_not_taken_for_its_blocks(file, tmp_path, monkeypatch):
    monkeypatch.delenv("SPECSTREAM_NO_SELFTEST_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model, _ = load_model(file)
    own = cache_of(model, "eager")
    own.keep("tree", 1)
    assert cache_of(load_model(file)[0], "eager").get("tree") == 1
    for module in model.modules():
        for name, weight in list(module._parameters.items()):
            numbers = None if weight is None else torch.nn.Parameter(weight.detach() + 0, requires_grad=False)
            module._parameters[name] = numbers
    model.get_output_embeddings().weight = model.get_input_embeddings().weight
    assert fingerprint(model) == fingerprint(load_model(file)[0])
    assert cache_of(model, "eager").get("tree") is None


def test_it_is_not_trained(file):
    with pytest.raises(UsageError, match=r"draft_model is .*tiny\.gguf', a GGUF file, which cannot be trained; give"):
        TrainedDraft(file, "all", "cpu")


def test_saving_it_fails_rather_than_to_write_other_numbers(file, tmp_path):
    model, _ = load_model(file)
    with pytest.raises(UsageError, match=r"has no numbers to save or to share; copy the file, or load the model's"):
        model.save_pretrained(tmp_path / "saved")
    assert not list((tmp_path / "saved").glob("*.safetensors"))


def test_tune_tries_drafts_and_names_a_runtime_that_can_be_asked_for(file, tmp_path, capsys):
    (tmp_path / "p.txt").write_text("\n".join(PROMPTS))
    best = str(tmp_path / "best.yaml")
    options = ["--prompts", str(tmp_path / "p.txt"), "--max-new-tokens", "4", "--repeats", "1", "--output", best]
    with pytest.raises(SystemExit) as caught:
        main(["tune", "--model", file, *options, "--json"])
    assert caught.value.code == 0
    assert "runtime is 'native-gguf'" not in capsys.readouterr().out
    with pytest.raises(SystemExit) as caught:
        main(["generate", "ab cd", "--config", best, "--max-new-tokens", "2"])
    assert caught.value.code == 0
