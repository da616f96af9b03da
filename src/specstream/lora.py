"""LoRAAdapter: low-rank adapters in a model, over PEFT. The result is a new model, and a target like any other."""

from __future__ import annotations

import copy
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from specstream.errors import UsageError, shown
from specstream.extras import require
from specstream.lora_modules import is_turned, modules_for
from specstream.models.families import require_model

_NAMES = {"r": "r", "alpha": "lora_alpha", "dropout": "lora_dropout", "target_modules": "target_modules"}
"""Our names and PEFT's, which are taken too."""

_WEIGHTS, _CONFIG = "adapter_model.safetensors", "adapter_config.json"


class LoRAAdapter:
    """Low-rank adapters in the linear layers of a model.

    Args:
        base_model: a transformers causal language model. Adapters are put into it; its own weights never change.
        lora_config: ``r``, ``alpha``, ``dropout`` and ``target_modules`` (ends of the names of linear layers; if not
            given, those of the attention's queries, values and output, as the model's family calls them).
        tokenizer: for training on texts; None takes the one that lies beside the base's weights.

    Raises:
        UsageError: an unknown key, a value out of range, or a target module that the model does not have.
        UnsupportedModelError: ``base_model`` is no transformers model.
        MissingPackageError: PEFT is not installed.
    """

    def __init__(self, base_model: Any, lora_config: Mapping[str, Any] | None = None, tokenizer: Any = None) -> None:
        peft = require("peft", "train", "LoRAAdapter")
        require_model(base_model)
        if any(hasattr(module, "base_layer") for module in base_model.modules()):
            raise UsageError("base_model has adapters in it already; give one without, or with those merged")
        self.config = _settings(lora_config or {})
        self.config["target_modules"] = modules_for(base_model, self.config["target_modules"])
        self._base, self._tokenizer = base_model, tokenizer
        settings = {_NAMES[name]: value for name, value in self.config.items()}
        # GPT-2's matrices are all turned, other families' none.
        turned = any(is_turned(module) for module in base_model.modules())
        made = peft.LoraConfig(**settings, fan_in_fan_out=turned, task_type="CAUSAL_LM")
        try:
            self._peft = peft.get_peft_model(base_model, made)
        except ValueError as error:
            raise UsageError(f"target_modules {self.config['target_modules']} do not fit this model: {error}") from None
        base_model.eval()

    def train(self, training_data: Sequence[Any], epochs: int = 3, **settings: Any) -> list[dict[str, float]]:
        """Train the adapters on the next token.

        Args:
            training_data: texts; or records with a prompt and a completion, or with messages; or lists of token ids.
            epochs: times that every example is seen.
            **settings: ``batch_size`` (4), ``max_length`` (512), and any of ``TrainingSection``: ``learning_rate``,
                ``seed``, ``warmup_steps``, ...

        Returns:
            A line for every step: ``step``, ``epoch``, ``loss``, ``learning_rate``, ``tokens``, ...

        Raises:
            UsageError: no data, or a setting out of range.
            TrainingError: out of memory, or the loss is no number.
        """
        from specstream.training.adapt import train_adapter

        return train_adapter(self, training_data, epochs, settings)

    def save_weights(self, path: str | Path) -> None:
        """Write the adapters' weights and configuration into a folder, in PEFT's format."""
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as partial:
            self._peft.save_pretrained(partial, save_embedding_layers=False)
            for name in (_WEIGHTS, _CONFIG):
                os.replace(Path(partial, name), folder / name)

    def save_merged(self, path: str | Path, dtype: torch.dtype = torch.bfloat16) -> Any:
        """Write the new model whole, the adapters merged into its weights, and its tokenizer: a model like any other.

        Args:
            path: a folder.
            dtype: of the weights on disk. They are merged before they are rounded.

        Returns:
            The merged model, as it was written.
        """
        merged = self.get_adapted_model(merge=True).to(dtype)
        merged.save_pretrained(path)
        # safetensors makes its file readable by the owner alone, which a shared models folder cannot use.
        for weights in Path(path).glob("*.safetensors"):
            shutil.copymode(Path(path) / "config.json", weights)
        self.tokenizer.save_pretrained(path)
        return merged

    def load_weights(self, path: str | Path) -> None:
        """Take the adapters' weights from a folder that ``save_weights`` or PEFT wrote.

        Raises:
            UsageError: no adapter there, or one of another shape.
        """
        peft = require("peft", "train", "LoRAAdapter")
        from safetensors.torch import load_file

        folder = Path(path)
        try:
            found = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
            state: dict[str, Tensor] = load_file(folder / _WEIGHTS)
        except (OSError, ValueError) as error:
            raise UsageError(f"{str(path)!r} holds no LoRA weights: {error}; give a folder of save_weights") from None
        for name, theirs in _NAMES.items():
            ours, value = self.config[name], found.get(theirs)
            if name != "dropout" and (sorted(value or []) != sorted(ours) if isinstance(ours, list) else value != ours):
                raise UsageError(f"the weights in {str(path)!r} have {name} {value!r} and this adapter has {ours!r}")
        wanted = peft.get_peft_model_state_dict(self._peft, save_embedding_layers=False)
        if {name: each.shape for name, each in state.items()} != {name: each.shape for name, each in wanted.items()}:
            raise UsageError(f"the weights in {str(path)!r} belong to another base model; give those trained for this")
        peft.set_peft_model_state_dict(self._peft, state)

    def get_adapted_model(self, merge: bool = False) -> Any:
        """The model with the adapters at work: a transformers model, for ``generate`` or ``SpeculativeEngine``.

        Args:
            merge: return a copy whose own weights hold the adapters: as fast as the base.
        """
        if merge:
            return copy.deepcopy(self._peft).merge_and_unload().eval()
        return self._peft.get_base_model()

    def get_parameter_stats(self) -> dict[str, float]:
        """``trainable`` and ``total`` parameters, and the ``percent`` that the first are of the second."""
        trainable = sum(each.numel() for each in self.trainable_parameters())
        total = sum(each.numel() for each in self._peft.parameters())
        return {"trainable": trainable, "total": total, "percent": 100 * trainable / total}

    def trainable_parameters(self) -> list[nn.Parameter]:
        """The adapters' weights, always in the same order."""
        return [each for each in self._peft.parameters() if each.requires_grad]

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer.

        Raises:
            UsageError: none was given and none lies beside the base's weights.
        """
        if self._tokenizer is None:
            from transformers import AutoTokenizer

            name = self._base.config.name_or_path
            try:
                self._tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
            except (OSError, ValueError):
                raise UsageError(
                    f"texts need a tokenizer and none is at {name!r}; give LoRAAdapter tokenizer="
                ) from None
        return self._tokenizer


def _settings(given: Mapping[str, Any]) -> dict[str, Any]:
    from specstream.training.config import LoRASection
    from specstream.yaml_file import validated

    if not isinstance(given, Mapping):
        raise UsageError(f"lora_config is {shown(given)}; give a mapping, such as {{'r': 8, 'alpha': 16}}")
    ours = {theirs: name for name, theirs in _NAMES.items()}
    settings = {ours.get(name, name): value for name, value in given.items()}
    if isinstance(settings.get("target_modules"), (tuple, set)):
        settings["target_modules"] = sorted(settings["target_modules"])
    return validated(LoRASection, settings, "lora_config.").model_dump()
