"""``LoRAAdapter.train``: the one loop, without a folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from specstream.errors import UsageError
from specstream.training.config import DataSection, LoggingSection, TrainingSection
from specstream.training.data import Example, Examples, examples_of
from specstream.training.journal import Journal
from specstream.training.loop import Loop, make_accelerator
from specstream.training.recipes.lora import LoRATrainee
from specstream.yaml_file import validated

if TYPE_CHECKING:
    from specstream.lora import LoRAAdapter


def train_adapter(
    adapter: LoRAAdapter, training_data: Sequence[Any], epochs: int, settings: Mapping[str, Any]
) -> list[dict[str, float]]:
    """See ``LoRAAdapter.train``."""
    given = dict(settings)
    if epochs < 1:
        raise UsageError(f"epochs is {epochs}; give 1 or more")
    size = int(given.pop("batch_size", 4))
    examples = _examples(adapter, training_data, int(given.pop("max_length", 512)))
    size = min(size, len(examples))
    per_epoch = len(examples) // size
    config = validated(
        TrainingSection,
        {"num_train_steps": per_epoch * epochs, "per_device_batch_size": size, "logging_steps": 1, **given},
    )
    trainee = LoRATrainee(adapter)
    device = adapter.get_adapted_model().device
    accelerator = make_accelerator(config, cpu=device.type == "cpu")
    with Journal(None, LoggingSection(), {}, quiet=True) as journal:
        Loop(trainee, (examples, examples.first(0)), config, accelerator=accelerator, journal=journal).run()
        return [{**row, "epoch": (row["step"] - 1) // per_epoch + 1} for row in journal.rows]


def _examples(adapter: LoRAAdapter, data: Sequence[Any], max_length: int) -> Examples:
    if isinstance(data, str | bytes | Mapping):
        raise UsageError(f"training_data is one {type(data).__name__}; give a list of texts, records or token ids")
    if not data:
        raise UsageError("training_data is empty; give texts, records or token ids")
    if all(isinstance(each, Sequence) and not isinstance(each, str) and isinstance(each[0], int) for each in data):
        return Examples([Example(tokens=tuple(each[:max_length]), start=1) for each in data if len(each) > 1])
    config = validated(DataSection, {"max_length": max_length})
    records = [({"text": each} if isinstance(each, str) else each, f"item {at}") for at, each in enumerate(data)]
    return examples_of(records, config, adapter.tokenizer)
