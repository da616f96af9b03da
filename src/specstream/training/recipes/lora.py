"""LoRA on a model: next-token loss through low-rank adapters. The result is a new model."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from specstream.lora import LoRAAdapter
from specstream.models.load import load_model
from specstream.training.config import LoRATrainingSection, TrainConfig
from specstream.training.data import Batch
from specstream.training.trainee import Goal, Prepared, token_loss

MODEL = "model"
"""The folder of the merged model, beside the adapters."""


class LoRATrainee:
    """An adapter that learns the next token.

    Args:
        adapter: around the base model.
        merge: save the whole new model too.
    """

    goal = Goal(figure="loss", rises=False)

    def __init__(self, adapter: LoRAAdapter, *, merge: bool = False) -> None:
        self._adapter, self._merge = adapter, merge

    def parameters(self) -> Iterable[nn.Parameter]:
        return self._adapter.trainable_parameters()

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        model = self._adapter.get_adapted_model()
        model.train()
        try:
            return token_loss(model(input_ids=batch.tokens, use_cache=False).logits, batch), {}
        finally:
            model.eval()

    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Loss and accuracy of the next token."""
        model: Any = self._adapter.get_adapted_model()
        totals = torch.zeros(3, dtype=torch.float64)
        for batch in batches:
            logits = model(input_ids=batch.tokens, use_cache=False).logits
            wanted = batch.mask[:, 1:]
            hits = (logits[:, :-1].argmax(-1) == batch.tokens[:, 1:]) & wanted
            count = float(wanted.sum())
            totals += torch.tensor([float(token_loss(logits, batch)) * count, float(hits.sum()), count])
        return {"loss": float(totals[0] / totals[2]), "token_accuracy": float(totals[1] / totals[2])}

    def save(self, folder: Path) -> None:
        self._adapter.save_weights(folder)
        if self._merge:
            self._adapter.save_merged(folder / MODEL)


def prepare(config: TrainConfig, device: str) -> Prepared:
    """The target with a fresh adapter."""
    model, tokenizer = load_model(config.model.target_model, dtype=config.model.dtype, device=device)
    torch.manual_seed(config.training.seed)
    adapter = adapter_of(config.lora, model, tokenizer)
    return Prepared(trainee=LoRATrainee(adapter, merge=config.lora.merge), tokenizer=tokenizer)


def adapter_of(section: LoRATrainingSection, model: Any, tokenizer: Any) -> LoRAAdapter:
    """A fresh adapter inside a model."""
    return LoRAAdapter(model, section.model_dump(exclude={"merge"}), tokenizer=tokenizer)
