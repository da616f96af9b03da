"""LoRA adapters of tiny models, as PEFT writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model

from tests.tiny import tiny_model


def save_adapter(folder: Path, seed: int, model: Any = None, **more: Any) -> Path:
    """An adapter that changes what its base says, of a tiny model unless of another."""
    settings = {"r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj", "down_proj"], **more}
    adapted = get_peft_model(tiny_model() if model is None else model, LoraConfig(**settings))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_" in name:
                weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
    adapted.save_pretrained(folder)
    return folder


def with_adapter(folder: Path, model: Any = None) -> Any:
    """A tiny model with an adapter at work beside its weights, which stay what they are."""
    return PeftModel.from_pretrained(tiny_model() if model is None else model, folder).eval()
