"""A thing to train that costs nothing: next tokens from the last one, through dropout."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from specstream.training.config import LoggingSection, TrainingSection
from specstream.training.data import Batch, Example, Examples
from specstream.training.loop import Loop, make_accelerator
from specstream.training.run_log import RunLog
from specstream.training.trainee import Goal, token_loss

VOCAB = 12


class Bigram:
    goal = Goal(figure="loss", rises=False)

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(5)
        self.table = nn.Parameter(torch.randn(VOCAB, VOCAB, generator=generator))
        self.steps = 0

    def parameters(self) -> Iterable[nn.Parameter]:
        return [self.table]

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        self.steps += 1
        loss = token_loss(nn.functional.dropout(self.table[batch.tokens], 0.2), batch)
        return loss, {"main": loss}

    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        losses = [float(token_loss(self.table[batch.tokens], batch)) for batch in batches]
        return {"loss": sum(losses) / len(losses)}

    def save(self, folder: Path) -> None:
        save_file({"table": self.table.detach()}, folder / "bigram.safetensors")


def counting(count: int, start: int = 0) -> Examples:
    """Sequences that count up by one from different places, of different lengths."""
    return Examples(
        [
            Example(tokens=tuple((start + at + place) % VOCAB for place in range(5 + at % 4)), start=1 + at % 2)
            for at in range(count)
        ]
    )


def loop(trainee: Bigram, checkpoints=None, run_log=None, **settings) -> Loop:
    values = {"num_train_steps": 24, "per_device_batch_size": 3, "learning_rate": 0.1, "warmup_steps": 2, **settings}
    config = TrainingSection(**values)
    return Loop(
        trainee,
        (counting(20), counting(4, start=3)),
        config,
        accelerator=make_accelerator(config, cpu=True),
        run_log=run_log or RunLog(None, LoggingSection(), {}, quiet=True),
        checkpoints=checkpoints,
    )
