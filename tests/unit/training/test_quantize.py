"""Checkpoints in fewer bits: the integers are those of our own rounding, and nothing is written that is not whole."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel

from specstream.errors import ModelNotFoundError, UnsupportedModelError, UsageError
from specstream.models.architecture.blocks import BlockTensor
from specstream.models.hub.load import load_model
from specstream.models.runtime.rounding import rounded
from specstream.training import quantize as quantising
from specstream.training.quantize import quantize
from tests.quantized_files import words
from tests.tiny import tiny_model, tiny_tokenizer


@pytest.fixture
def model() -> Any:
    return tiny_model(seed=4, hidden_size=64)


@pytest.fixture
def folder(model: Any, tmp_path: Path) -> str:
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bits", ["int4", "int8"])
def test_the_file_has_the_integers_of_our_rounding(
    bits: Any, dtype: torch.dtype, model: Any, folder: str, tmp_path: Path
) -> None:
    """Scales are of the model's dtype: others cast them to that, and have the weights that we have."""
    model.to(dtype).save_pretrained(folder)
    quantize(folder, bits, tmp_path / "made")
    tensors, loaded = load_file(tmp_path / "made" / "model.safetensors"), load_model(str(tmp_path / "made"))[0]
    layers = [name for name, each in loaded.named_modules() if isinstance(getattr(each, "weight", None), BlockTensor)]
    assert len(layers) == 14
    for layer in layers:
        found = rounded(model.get_submodule(layer).weight, bits, dtype=dtype)
        four = found.zeros is not None
        numbers = found.numbers.long() + (0 if four else 128)
        assert torch.equal(tensors[f"{layer}.weight_packed"], words(numbers, 4 if four else 8))
        scales = tensors[f"{layer}.weight_scale"]
        assert scales.dtype == dtype and torch.equal(scales.float(), found.scales.float())
        assert tensors[f"{layer}.weight_shape"].tolist() == list(found.numbers.shape)
        if found.zeros is not None:
            assert torch.equal(tensors[f"{layer}.weight_zero_point"], words(found.zeros.t().long(), 4).t())
        weights = loaded.get_submodule(layer).weight.dequantized()
        off = (weights - found.weights()).abs().view(*found.scales.shape, -1).amax(-1)
        assert torch.all(off <= (found.scales.float() / 136 if four else 0))
    for name in ("model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"):
        assert torch.equal(tensors[name], model.get_parameter(name))


def test_the_folder_is_a_model_like_any_other(model: Any, folder: str, tmp_path: Path) -> None:
    model.generation_config.eos_token_id = [0, 5]
    model.save_pretrained(folder)
    assert quantize(folder, "int4", tmp_path / "made") == tmp_path / "made"
    config = json.loads((tmp_path / "made" / "config.json").read_text())
    assert config["quantization_config"]["ignore"] == ["lm_head"]
    assert config["dtype"] == "float32"
    loaded, tokenizer = load_model(str(tmp_path / "made"))
    assert loaded.generation_config.eos_token_id == [0, 5]
    assert tokenizer.chat_template == tiny_tokenizer().chat_template
    modes = {each.stat().st_mode for each in (tmp_path / "made").iterdir()}
    assert len(modes) == 1


def test_a_tied_head_is_written_once(tmp_path: Path) -> None:
    own = tiny_model(hidden_size=64, tie_word_embeddings=True)
    own.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    quantize(str(tmp_path / "model"), "int8", tmp_path / "made")
    assert "lm_head.weight" not in load_file(tmp_path / "made" / "model.safetensors")
    loaded = load_model(str(tmp_path / "made"))[0]
    assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight


def test_layers_whose_inputs_do_not_fit_are_left_as_they_are(tmp_path: Path) -> None:
    own = tiny_model(hidden_size=64, intermediate_size=80)
    own.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    quantize(str(tmp_path / "model"), "int8", tmp_path / "made")
    config = json.loads((tmp_path / "made" / "config.json").read_text())
    downs = [f"model.layers.{at}.mlp.down_proj" for at in range(2)]
    assert config["quantization_config"]["ignore"] == [*downs, "lm_head"]
    loaded = load_model(str(tmp_path / "made"))[0]
    assert torch.equal(loaded.get_parameter(f"{downs[0]}.weight"), own.get_parameter(f"{downs[0]}.weight"))


def test_what_cannot_be_done_is_refused_before_anything_is_loaded(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantising, "load_model", None)
    (tmp_path / "there").mkdir()
    for bits, output, words_ in (
        ("int3", tmp_path / "made", "bits is 'int3'; give int8 or int4"),
        ("int4", tmp_path / "there", "output is .*there', which is there already; give a new folder"),
        ("int4", tmp_path / "x.gguf", r"a folder is written; give a name without \.gguf"),
        ("int4", "", "output is ''; give a folder"),
    ):
        with pytest.raises(UsageError, match=words_):
            quantize(folder, bits, output)  # type: ignore[arg-type]
    with pytest.raises(ModelNotFoundError):
        quantize(str(tmp_path / "there"), "int4", tmp_path / "made")
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage(10))
    with pytest.raises(UsageError, match=r"where 0\.0 GB are free and up to 0\.0 GB needed; give a folder on another"):
        quantize(folder, "int4", tmp_path / "made")


def test_a_model_without_linear_layers_is_refused(tmp_path: Path) -> None:
    GPT2LMHeadModel(GPT2Config(vocab_size=300, n_layer=1, n_head=2, n_embd=32)).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    with pytest.raises(UnsupportedModelError, match=r"a gpt2, which has no plain linear layers; give another one"):
        quantize(str(tmp_path / "model"), "int4", tmp_path / "made")


def test_a_failure_leaves_nothing(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **named: Any) -> None:
        raise OSError("no space")

    monkeypatch.setattr(quantising, "save_torch_state_dict", fail)
    before = set(tmp_path.iterdir())
    with pytest.raises(OSError, match="no space"):
        quantize(folder, "int4", tmp_path / "made")
    assert set(tmp_path.iterdir()) == before
