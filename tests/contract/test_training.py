"""One training step of an adapter and of heads, and a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from specstream.training.config import train_config
from specstream.training.run import train
from tests.tiny import tiny_model, tiny_tokenizer
from tests.unit.training.short_run import rows, short

SECTIONS: dict[str, dict[str, Any]] = {
    "lora": {"r": 4, "alpha": 8, "target_modules": ["q_proj", "v_proj"]},
    "streams": {"gamma": 2, "layers": 1, "rank": 4, "vocabulary": 120, "live_prompts": 2, "live_tokens": 8},
    "medusa": {"num_heads": 2, "vocabulary": 120, "live_prompts": 2, "live_tokens": 8},
    "block": {"gamma": 2, "layers": 1, "vocabulary": 120, "live_prompts": 2, "live_tokens": 8},
}


@pytest.mark.parametrize("recipe", SECTIONS)
def test_a_step(recipe: str, tmp_path: Path) -> None:
    target = tmp_path / "target"
    tiny_model().save_pretrained(target)
    tiny_tokenizer().save_pretrained(target)
    chance = torch.Generator().manual_seed(1)
    tokens = torch.randint(2, 300, (12, 20), generator=chance).tolist()
    lines = [json.dumps({"prompt_token_ids": row[:5], "answer_token_ids": row[5:]}) for row in tokens]
    (tmp_path / "answers.jsonl").write_text("\n".join(lines), encoding="utf-8")
    settings = train_config(
        {
            "recipe": recipe,
            "model": {"target_model": str(target), "dtype": "float32", "device": "cpu"},
            "data": {"files": [str(tmp_path / "answers.jsonl")], "eval_examples": 4, "max_length": 64},
            recipe: SECTIONS[recipe],
            **short(tmp_path / "run", num_train_steps=1, eval_steps=1, save_steps=1),
        }
    )
    assert train(settings, quiet=True).finished
    assert [row["loss"] for row in rows(tmp_path / "run") if "loss" in row]
    assert list((tmp_path / "run" / "best").glob("*.safetensors"))
