"""Loading a folder: nothing of it is run, and what cannot be loaded is one line."""

from __future__ import annotations

import ast
import json
import os
import pickle
from pathlib import Path

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from specstream.errors import ModelNotFoundError
from specstream.models.hub.load import load_model
from tests.tiny import tiny_model, tiny_tokenizer

SOURCE = Path(__file__).parents[4] / "src"


class Touches:
    """A pickle of it makes a file when it is read."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "model"
    tiny_model().save_pretrained(made)
    tiny_tokenizer().save_pretrained(made)
    return made


@pytest.fixture
def answers(monkeypatch):
    """Whoever asks on the terminal is told yes, and is found out."""
    asked = []
    monkeypatch.setattr("builtins.input", lambda *question: asked.append(question) or "y")
    return asked


def change(file, **values):
    settings = json.loads(file.read_text())
    file.write_text(json.dumps({**settings, **values}))


def refusal(folder):
    with pytest.raises(ModelNotFoundError) as caught:
        load_model(str(folder))
    message = str(caught.value)
    assert "\n" not in message and len(message) < 500
    return message


def test_code_in_a_folder_is_neither_run_nor_asked_about(folder, answers, tmp_path):
    mark = tmp_path / "ran"
    (folder / "code.py").write_text(f"import os; os.mkdir({str(mark)!r})\nfrom transformers import LlamaConfig as C\n")
    change(folder / "config.json", model_type="nosuch", auto_map={"AutoConfig": "code.C"})
    assert "code of its own" in refusal(folder)
    assert not answers and not mark.exists()


def test_code_for_the_tokenizer_is_neither_run_nor_asked_about(folder, answers, tmp_path):
    mark = tmp_path / "ran"
    (folder / "code.py").write_text(f"import os; os.mkdir({str(mark)!r})\n")
    change(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["code.T", None]}, tokenizer_class="Nope")
    try:
        load_model(str(folder))
    except ModelNotFoundError as error:
        assert "code of its own" in str(error)
    assert not answers and not mark.exists()


def test_a_known_model_with_code_beside_it_loads_without_that_code(folder, answers):
    change(folder / "config.json", auto_map={"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"})
    assert isinstance(load_model(str(folder))[0], hf.LlamaForCausalLM)
    assert not answers


@pytest.mark.parametrize("attention", ["evil/repo", "flash_attention_2", "flex_attention"])
def test_an_attention_that_a_folder_wishes_is_not_fetched(folder, attention):
    """Transformers would look for the code of the first on the hub."""
    change(folder / "config.json", attn_implementation=attention)
    assert load_model(str(folder))[0].config._attn_implementation == "sdpa"
    change(folder / "config.json", attn_implementation="eager")
    assert load_model(str(folder))[0].config._attn_implementation == "eager"


RUNS_NO_CODE = ("Streams", "MedusaHeads", "BlockHead", "EagleHead", "DFlashHead", "peft.PeftConfig")
"""They read numbers and settings."""


def test_every_reader_of_a_folder_forbids_its_code():
    """Asked on a terminal, a piped "yes" would run it."""
    forgetful = []
    for file in SOURCE.rglob("*.py"):
        for call in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            named = isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute)
            if not named or call.func.attr != "from_pretrained" or ast.unparse(call.func.value) in RUNS_NO_CODE:
                continue
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            if given.get("trust_remote_code") != "False":
                forgetful.append(f"{file.name}:{call.lineno}")
    assert forgetful == []


def only_a_pickle(folder, content):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(content)


def test_a_pickle_of_tensors_loads(folder):
    (folder / "model.safetensors").unlink()
    torch.save(tiny_model().state_dict(), folder / "pytorch_model.bin")
    assert isinstance(load_model(str(folder))[0], hf.LlamaForCausalLM)


@pytest.mark.parametrize("raw", [True, False])
def test_a_pickle_of_more_than_tensors_is_refused_without_advice_to_run_it(folder, tmp_path, raw):
    mark = tmp_path / "ran"
    if raw:
        only_a_pickle(folder, pickle.dumps({"weights": Touches(mark)}, protocol=2))
    else:
        (folder / "model.safetensors").unlink()
        torch.save({"weights": Touches(mark)}, folder / "pytorch_model.bin")
    message = refusal(folder)
    assert "pickle" in message and "safetensors" in message and "weights_only" not in message
    assert not mark.exists()


@pytest.mark.parametrize("damage", ["garbage", "short", "shape", "type", "tokenizer", "list", "quantized"])
def test_a_damaged_folder_is_one_line(folder, damage):
    weights, config = folder / "model.safetensors", folder / "config.json"
    if damage == "garbage":
        weights.write_bytes(b"garbage" * 9)
    elif damage == "short":
        weights.write_bytes(weights.read_bytes()[:-1000])
    elif damage == "shape":
        change(config, hidden_size=64)
    elif damage == "type":
        change(config, hidden_size="wide")
    elif damage == "tokenizer":
        (folder / "tokenizer.json").write_text("{}")
    elif damage == "list":
        config.write_text("[1]")
    else:
        change(config, quantization_config={"quant_method": "gptq", "bits": 4})
    assert str(folder) in refusal(folder)


def test_a_checkpoint_that_lacks_weights_is_refused(folder):
    """Of a model with adapters in it, whose names are other ones; the rest would be random."""
    weights = load_file(folder / "model.safetensors")
    renamed = {name.replace("q_proj.weight", "q_proj.base_layer.weight"): tensor for name, tensor in weights.items()}
    save_file(renamed, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelNotFoundError, match=r"lacks the weights of 'model.layers.0.*q_proj.weight' and \d more"):
        load_model(str(folder))


def test_a_model_that_sees_loads_by_its_folder(tmp_path):
    from tests.lossless.wrappers import build

    build("qwen2_vl").save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    assert isinstance(load_model(str(tmp_path))[0], hf.Qwen2VLForConditionalGeneration)
