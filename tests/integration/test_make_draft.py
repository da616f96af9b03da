"""`specstream make-draft` as people type it, and what its folder is good for."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from specstream import SpeculativeEngine
from specstream.cli import main
from specstream.errors import VocabularyMismatchError
from specstream.training.data import Example, Examples
from specstream.training.layer_choice import Judge, split
from tests.tiny import TEXT, tiny_model, tiny_tokenizer

LAYERS, PROMPT = 5, "one two three"


def deep_model():
    """Five layers, of which the middle ones do little."""
    config = LlamaConfig(**{**tiny_model().config.to_dict(), "num_hidden_layers": LAYERS, "dtype": "float32"})
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for layer in (1, 2, 3):
            model.model.layers[layer].self_attn.o_proj.weight.mul_(0.05)
            model.model.layers[layer].mlp.down_proj.weight.mul_(0.05)
    model.generation_config = tiny_model().generation_config
    return model


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "target"
    deep_model().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def make(capsys, target, tmp_path):
    def command(*words, output="draft"):
        fixed = ("--target", str(target), "--output", str(tmp_path / output), "--dtype", "float32", "--device", "cpu")
        with pytest.raises(SystemExit) as exit_:
            main(["make-draft", *fixed, *words])
        out, err = capsys.readouterr()
        return exit_.value.code, out, err

    return command


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": text, "completion": text}) for text in TEXT * 20), encoding="utf-8")
    return str(path)


def test_it_says_why_of_these_layers_and_transformers_loads_them(make, texts, target, tmp_path):
    code, out, err = make("--layers", "2", "--texts", texts)
    assert (code, err) == (0, "")
    assert "layers 0, 4 (" in out
    assert "the highest acceptance" in out
    made = json.loads((tmp_path / "draft" / "draft.json").read_text())
    acceptances = [each["acceptance"] for each in made["compared"]]
    assert acceptances == sorted(acceptances, reverse=True)
    assert made["head_fitted"]
    assert {each["name"] for each in made["compared"]} == {"first", "spaced", "ends", "last-only"}
    draft, whole = AutoModelForCausalLM.from_pretrained(tmp_path / "draft"), deep_model()
    assert draft.config.num_hidden_layers == 2
    assert made["parameters"] == draft.num_parameters()
    for own, layer in zip(draft.model.layers, (0, 4), strict=True):
        expected = whole.model.layers[layer].state_dict()
        assert all(torch.equal(weight, expected[name]) for name, weight in own.state_dict().items())
    card = (tmp_path / "draft" / "README.md").read_text()
    assert card.startswith("---\nbase_model: target\n")
    assert "| spaced | 0, 4 |" in card


def test_layers_may_be_searched_or_given(make, texts, tmp_path):
    code, out, _ = make("--layers", "2", "--texts", texts, "--layer-choice", "search", "--json")
    searched = json.loads(out)
    assert code == 0
    assert searched["compared"][0]["acceptance"] >= max(each["acceptance"] for each in searched["compared"])
    code, out, _ = make("--layers", "2", "--texts", texts, "--layer-choice", "1,3", "--json", output="given")
    assert json.loads(out)["layers"] == [1, 3]
    assert len(json.loads(out)["compared"]) == 5


def test_a_draft_of_a_part_of_the_vocabulary_drafts_and_changes_nothing(make, texts, target, tmp_path):
    code, out, err = make("--layers", "3", "--vocab", "120", "--texts", texts)
    assert (code, err) == (0, "")
    assert "its head has 120 tokens (the most frequent of texts.jsonl), which cover" in out
    part = json.loads((tmp_path / "draft" / "draft_vocabulary.json").read_text())["target_ids"]
    assert len(part) == 120
    assert {0, 1} <= set(part), "special tokens are always in it"
    plain = SpeculativeEngine(str(target), drafter="none", dtype="float32")
    engine = SpeculativeEngine(str(target), draft_model=str(tmp_path / "draft"), dtype="float32", adaptive=False)
    drafter = engine.parts.drafter
    assert drafter.part.tolist() == part
    assert drafter.model.model.get_output_embeddings().out_features == 120
    assert drafter.model.vocab_size == 300
    result = engine.generate(PROMPT, max_new_tokens=40)
    assert result["token_ids"] == plain.generate(PROMPT, max_new_tokens=40)["token_ids"]
    assert result["mean_accepted_length"] > 1
    assert engine.generate(PROMPT, max_new_tokens=8, temperature=0.8, seed=1)["lossless"]
    other = tiny_model(vocab_size=310)
    with pytest.raises(VocabularyMismatchError, match="make one of"):
        SpeculativeEngine(other, tokenizer=tiny_tokenizer(), draft_model=str(tmp_path / "draft"), dtype="float32")


def test_without_texts_the_target_is_asked(make, tmp_path):
    code, out, err = make("--layers", "2", "--vocab", "200", "--json")
    assert (code, err) == (0, "")
    made = json.loads(out)
    assert made["compared_on"] == "the target's own answers to 4 prompts"
    assert not made["head_fitted"]
    assert made["vocabulary"]["ranked_by"] == "the tokenizer's order"
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("one two\nthree four\n", encoding="utf-8")
    assert json.loads(make("--layers", "2", "--prompts", str(prompts), "--json")[1])["compared_on"].endswith(
        "2 prompts"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--layers", "5"), "layers is 5 and the target has 5; give 1 to 4"),
        (("--layers", "2", "--vocab", "301"), "vocab is 301; give 300 or fewer"),
        (("--layers", "2", "--layer-choice", "best"), "--layer-choice is 'best'; give auto, search"),
        (("--layers", "2", "--layer-choice", "3,1"), "2 rising numbers below 5"),
    ],
)
def test_a_wrong_call_is_one_line_and_writes_nothing(make, texts, tmp_path, words, message):
    code, out, err = make(*words, "--texts", texts)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "draft").exists()


def test_a_model_in_the_way_is_kept(make, texts, target, tmp_path):
    (tmp_path / "draft").mkdir()
    (tmp_path / "draft" / "config.json").write_text("{}")
    code, _, err = make("--layers", "2", "--texts", texts)
    assert code == 2
    assert "is something else that would be lost; give a new folder" in err


def test_a_spoiled_list_of_tokens_is_one_line(make, texts, target, tmp_path):
    make("--layers", "2", "--vocab", "120", "--texts", texts)
    (tmp_path / "draft" / "draft_vocabulary.json").write_text('{"target_ids": [3, 2]}')
    with pytest.raises(ValueError, match="target_ids are not rising ids; make the draft again"):
        SpeculativeEngine(str(target), draft_model=str(tmp_path / "draft"), dtype="float32")


def test_a_fitted_head_is_nearer_to_the_target(target):
    """On text that it was not fitted to; the target is as it was afterwards."""
    model = AutoModelForCausalLM.from_pretrained(target)
    chance = torch.Generator().manual_seed(2)
    rows = [Example(tokens=tuple(torch.randint(2, 300, (40,), generator=chance).tolist()), start=1) for _ in range(60)]
    judged, fitted = split(Examples(rows))
    assert fitted is not None
    before = {name: each.clone() for name, each in model.state_dict().items()}
    fitted, plain = (Judge(model, judged, each, None).judge("given", (0, 2)) for each in (fitted, None))
    assert fitted.acceptance > plain.acceptance
    assert fitted.divergence < plain.divergence
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())
    assert model.config.num_hidden_layers == LAYERS
