"""Adapters are checked before a model is loaded for them, and merged as PEFT merges them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from specstream.errors import ModelNotFoundError, UsageError
from specstream.models.hub.adapters import check_adapter, merge_adapter
from tests.adapters import save_adapter, with_adapter
from tests.tiny import tiny_model

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # PEFT's

BASE = "smollm2-135m"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "more", [{}, {"use_rslora": True}, {"use_dora": True}, {"modules_to_save": ["lm_head"]}], ids=str
)
def test_a_merged_model_is_pefts_own(tmp_path: Path, dtype: torch.dtype, more: dict[str, object]) -> None:
    save_adapter(tmp_path, 1, **more)
    check_adapter("a", str(tmp_path), BASE)
    merged = merge_adapter(tiny_model().to(dtype), "a", str(tmp_path))
    expected = with_adapter(tmp_path, tiny_model().to(dtype)).merge_and_unload()
    own, theirs = merged.state_dict(), expected.state_dict()
    assert own.keys() == theirs.keys()
    assert all(torch.equal(weight, theirs[name]) for name, weight in own.items())
    assert not torch.equal(
        own["model.layers.0.mlp.down_proj.weight"], tiny_model().to(dtype).model.layers[0].mlp.down_proj.weight
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "whose adapter_config.json cannot be read (No such file or directory); give the folder of an adapter"),
        ("[]", "cannot be read (it is no JSON object); give the folder of an adapter"),
        ('{"peft_type": "IA3"}', ", an adapter of the kind 'IA3'; give one of the kind LORA"),
        ('{"peft_type": "LORA"}', "which has no adapter_model.safetensors; save it as safetensors"),
    ],
)
def test_what_is_no_adapter_is_refused(tmp_path: Path, text: str | None, words: str) -> None:
    if text is not None:
        (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(UsageError) as caught:
        check_adapter("a", str(tmp_path), BASE)
    assert words in str(caught.value)


def test_quantised_weights_take_no_adapter(tmp_path: Path) -> None:
    save_adapter(tmp_path / "adapter", 1)
    settings = {"model_type": "llama", "quantization_config": {"quant_method": "gptq", "bits": 4}}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(
        UsageError, match="and the model is a GPTQ checkpoint, whose weights take no adapter; give the model"
    ):
        check_adapter("a", str(tmp_path / "adapter"), str(tmp_path))
    with pytest.raises(ModelNotFoundError, match="unknown model 'no thing'"):
        check_adapter("a", str(tmp_path / "adapter"), "no thing")


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    save_adapter(tmp_path / "wide", 1, tiny_model(hidden_size=64))
    save_adapter(tmp_path / "some", 1, layers_to_transform=[0])
    deep = json.loads((tmp_path / "some" / "adapter_config.json").read_text())
    (tmp_path / "some" / "adapter_config.json").write_text(json.dumps({**deep, "layers_to_transform": None}))
    for name, words in (("wide", "size mismatch"), ("some", "is in one of both only")):
        with pytest.raises(UsageError, match=r"^lora_modules is 'a=.*', which does not fit the model") as caught:
            merge_adapter(tiny_model(), "a", str(tmp_path / name))
        assert words in str(caught.value)
        assert str(caught.value).endswith("; give an adapter that was trained for it")
