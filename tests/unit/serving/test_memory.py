"""What a deployment takes is known before anything is loaded, wherever the model comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, LlamaConfig, Qwen2VLConfig

from specstream import environment
from specstream.errors import ModelNotFoundError, UsageError
from specstream.models.cache import STEP
from specstream.serving.deployment import DeploymentConfig
from specstream.serving.memory import check_fit, needs
from tests.tiny import tiny_model

LAYERS, HEADS, HEAD = 4, 8, 64
TOKEN = 2 * LAYERS * HEADS * HEAD


def large(folder: Path, dtype: str = "float32") -> Path:
    """A model of 0.75 G weights that has none: its configuration alone."""
    config = LlamaConfig(
        vocab_size=32_000,
        hidden_size=4096,
        intermediate_size=8192,
        num_hidden_layers=LAYERS,
        num_attention_heads=4096 // HEAD,
        num_key_value_heads=HEADS,
        head_dim=HEAD,
        max_position_embeddings=2048,
        dtype=dtype,
    )
    config.save_pretrained(folder)
    return folder


def deployment(model: Path | str, **more: Any) -> DeploymentConfig:
    settings = {
        "model_path": str(model),
        "device": "cpu",
        "dtype": "float32",
        "memory_gb": 1,
        "prefix_cache_gb": 0,
        **more,
    }
    return DeploymentConfig(**settings)


def test_a_models_weights_are_counted_as_they_are_loaded(tmp_path: Path) -> None:
    model = tiny_model().to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    size = sum(weight.numel() for weight in model.parameters())
    for dtype, width in (("bfloat16", 2), ("float32", 4)):
        assert needs(deployment(tmp_path, dtype=dtype)).weights == size * width
    assert needs(deployment(tmp_path, draft_model=str(tmp_path))).weights == 2 * size * 4
    assert needs(deployment(tmp_path, draft_model="self:int8")).weights == size * 5


def test_the_cache_is_counted_for_all_rows(tmp_path: Path) -> None:
    large(tmp_path)
    assert needs(deployment(tmp_path, max_rows=3)).cache == 3 * 2048 * TOKEN * 4
    assert needs(deployment(tmp_path, max_rows=3, max_context=600, dtype="bfloat16")).cache == 3 * 2 * STEP * TOKEN * 2
    assert needs(deployment(tmp_path, max_rows=3, draft_model="self:int8")).cache == 2 * 3 * 2048 * TOKEN * 4
    assert needs(deployment(tmp_path, max_rows=3, prefix_cache_gb=2)).cache == 3 * 2048 * TOKEN * 4 + 2e9


def test_a_folder_that_does_not_fit_is_refused_with_the_numbers(tmp_path: Path) -> None:
    large(tmp_path, "bfloat16")
    with pytest.raises(UsageError, match=r"memory_gb is 1, the weights of .* in float32 take \d\.\d GB and the cache"):
        check_fit(deployment(tmp_path))
    size = needs(deployment(tmp_path))
    fits = (size.weights + size.cache) / 1e9
    check_fit(deployment(tmp_path, memory_gb=fits * 1.001))
    with pytest.raises(
        UsageError,
        match=r"8 rows of 2048 tokens, and 0 GB of earlier ones\); give more, fewer max_rows, a shorter max_context",
    ):
        check_fit(deployment(tmp_path, memory_gb=fits * 0.999))
    check_fit(deployment(tmp_path, memory_gb=fits * 0.999, max_rows=7))
    check_fit(deployment(tmp_path, memory_gb=None))


def test_a_catalog_name_that_does_not_fit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECSTREAM_MODELS", str(tmp_path))
    large(tmp_path / "smollm2-135m")
    with pytest.raises(UsageError, match="memory_gb is 1, the weights of smollm2-135m"):
        check_fit(DeploymentConfig(memory_gb=1, device="cpu"))


def test_a_hub_id_that_does_not_fit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("specstream.models.hub.snapshots.cached_snapshot", lambda hub_id: large(tmp_path))
    with pytest.raises(UsageError, match="memory_gb is 1, the weights of somebody/large"):
        check_fit(DeploymentConfig(model_name="somebody/large", memory_gb=1, device="cpu"))


def test_names_that_other_families_give_their_sizes_are_read(tmp_path: Path) -> None:
    GPT2Config(n_embd=64, n_layer=2, n_head=4, n_positions=128, vocab_size=100).save_pretrained(tmp_path)
    found = needs(deployment(tmp_path, max_rows=1))
    assert found.context == 128
    assert found.cache == STEP * 2 * 2 * 64 * 4


def test_a_model_that_reads_images_too_is_counted(tmp_path: Path) -> None:
    vision: dict[str, Any] = {"depth": 1, "embed_dim": 32, "hidden_size": 64, "num_heads": 2}
    text = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = Qwen2VLConfig(text_config={**text, "num_key_value_heads": 2, "vocab_size": 300}, vision_config=vision)
    config.save_pretrained(tmp_path)
    assert needs(deployment(tmp_path, max_rows=1, max_context=2)).cache == STEP * 2 * 2 * 2 * 16 * 4


def test_a_dtype_that_there_is_not_is_refused_before_loading(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="dtype is 'foo'"):
        check_fit(deployment(large(tmp_path), dtype="foo"))


def test_vllm_splits_the_weights_and_sizes_its_cache_itself(tmp_path: Path) -> None:
    large(tmp_path)
    whole, half = (needs(deployment(tmp_path, engine="vllm"), shards) for shards in (1, 2))
    assert half.weights == whole.weights / 2
    assert half.cache == 0


def test_a_name_that_nothing_answers_to_is_said_here_already() -> None:
    with pytest.raises(ModelNotFoundError, match="unknown model 'no thing'"):
        check_fit(DeploymentConfig(model_name="no thing", memory_gb=1))


def test_a_folder_that_cannot_be_read_is_left_to_loading(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "nothing"}')
    check_fit(deployment(tmp_path))


class TestSeveral:
    """Three of one size, two of them one model with an adapter."""

    @pytest.fixture(autouse=True)
    def on_a_machine_of_8_gb(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(environment, "free_memory", lambda: int(8e9))

    @staticmethod
    def several(tmp_path: Path, **more: Any) -> DeploymentConfig:
        large(tmp_path)
        settings: dict[str, Any] = {"model_name": "a", "max_rows": 1, "memory_gb": None, **more}
        return deployment(tmp_path, lora_modules={"sql": "/sql"}, models={"b": str(tmp_path)}, **settings)

    def test_what_is_not_free_is_refused_with_the_numbers(self, tmp_path: Path) -> None:
        config = self.several(tmp_path)
        size = (needs(config).weights + needs(config).cache) / 1e9
        with pytest.raises(UsageError) as caught:
            check_fit(config)
        each = f"{size:.1f}"
        assert str(caught.value) == (
            f"this machine has 8.0 GB free and 3 models take {3 * size:.1f} GB (weights and caches: a {each}, "
            f"sql {each}, b {each}); leave out b, or give fewer max_rows, a shorter max_context, a smaller "
            "prefix_cache_gb"
        )
        check_fit(self.several(tmp_path, dtype="bfloat16"))

    def test_an_adapter_goes_with_its_base(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=r"memory_gb is 1 and 3 models .*; give fewer max_rows"):
            check_fit(self.several(tmp_path, memory_gb=1))
        with pytest.raises(UsageError, match=r"memory_gb is 4 and 3 models .*; leave out a and sql, or give fewer"):
            check_fit(self.several(tmp_path, memory_gb=4, draft_model=str(tmp_path)))

    def test_adapters_share_the_draft(self, tmp_path: Path) -> None:
        config = self.several(tmp_path, draft_model=str(tmp_path), memory_gb=1)
        whole, draft = (each / 1e9 for each in (needs(config).weights + needs(config).cache, needs(config).draft))
        with pytest.raises(UsageError, match=rf"caches: a {whole:.1f}, sql {whole - draft:.1f}, b "):
            check_fit(config)
