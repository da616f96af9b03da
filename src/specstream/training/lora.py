"""Low-rank adapters over PEFT: ``LoRAAdapter``, its training, and the recipe ``lora``. The result is a new model."""

from __future__ import annotations

import copy
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from specstream.engine.text import are_tokens, check_tokenizer
from specstream.errors import TrainingError, UsageError, count_of, listed, must_be, shown
from specstream.files.atomic import check_new, folder_of, path_of, why_unread, write_json
from specstream.files.yaml_file import validated
from specstream.models.architecture.families import describe, require_model
from specstream.models.hub.adapters import peft_for, with_adapters
from specstream.models.hub.load import load_model, pick_dtype
from specstream.training.checkpoints import check_replaceable, replace_folder
from specstream.training.config import (
    DataSection,
    LoggingSection,
    LoRASection,
    LoRATrainingSection,
    TrainConfig,
    TrainingSection,
)
from specstream.training.data import Batch, Example, Examples, examples_of
from specstream.training.loop import Loop, announce_warm_up, make_accelerator
from specstream.training.run_log import RunLog
from specstream.training.trainee import Goal, token_loss

_NAMES = {"r": "r", "alpha": "lora_alpha", "dropout": "lora_dropout", "target_modules": "target_modules"}
"""Our names and PEFT's, which are taken too."""

_WEIGHTS, _CONFIG = "adapter_model.safetensors", "adapter_config.json"

_MERGED = "merged_lora.json"
"""What was merged into a model; a folder with it may be written again."""

_OWN = {"epochs", "batch_size", "max_length"}
"""Settings of ``LoRAAdapter.train`` that ``TrainingSection`` has not."""

_ON_DISK = {"output_dir", "resume", "save_steps", "save_total_limit", "eval_steps"}
"""Settings of a run that writes files and looks at held-out examples."""

MODEL = "model"
"""The folder of the merged model, beside the adapters."""

_ATTENTION = (
    ("q_proj", "v_proj", "o_proj"),  # Llama, Mistral, Qwen, Gemma and most others
    ("q_proj", "v_proj", "out_proj"),  # OPT, GPT-Neo, GPT-J
    ("q_proj", "v_proj", "dense"),  # Phi
    ("qkv_proj", "o_proj"),  # Phi-3
    ("qkv_proj", "out_proj"),  # CodeGen
    ("Wqkv", "out_proj"),  # MPT
    ("query_key_value", "dense"),  # BLOOM, Falcon, GPT-NeoX
    ("c_attn", "attn.c_proj"),  # GPT-2, GPTBigCode
)
"""Queries, values and the output of attention, by family; the first that a model has whole is its default."""


class LoRAAdapter:
    """Low-rank adapters in the linear layers of a model.

    Args:
        base_model: a transformers causal language model. Adapters are put into it; its own weights never change.
        lora_config: ``r``, ``alpha``, ``dropout`` and ``target_modules`` (ends of the names of linear layers; if not
            given, those of the attention's queries, values and output, as the model's family calls them).
        tokenizer: for training on texts; None takes the one that lies beside the base's weights.

    Raises:
        UsageError: an unknown key, a value out of range, or a target module that the model does not have.
        UnsupportedModelError: ``base_model`` is no transformers model that can be a target.
        MissingPackageError: PEFT is not installed.
    """

    def __init__(self, base_model: Any, lora_config: Mapping[str, Any] | None = None, tokenizer: Any = None) -> None:
        peft = peft_for("LoRAAdapter")
        require_model(base_model)
        describe(base_model)
        if tokenizer is not None:
            check_tokenizer(tokenizer, len(base_model.get_input_embeddings().weight))
        if any(hasattr(module, "base_layer") for module in base_model.modules()):
            raise UsageError("base_model has adapters in it already; give one without, or with those merged")
        self.config = _settings(lora_config or {})
        self.config["target_modules"] = modules_for(base_model, self.config["target_modules"])
        _check_rank(base_model, self.config)
        self._base, self._tokenizer = base_model, tokenizer
        settings = {_NAMES[name]: value for name, value in self.config.items()}
        # GPT-2's matrices are all turned, other families' none.
        turned = any(is_turned(module) for module in base_model.modules())
        made = peft.LoraConfig(**settings, fan_in_fan_out=turned, task_type="CAUSAL_LM")
        try:
            self._peft = with_adapters(base_model, made)
        except ValueError as error:
            raise UsageError(f"target_modules {self.config['target_modules']} do not fit this model: {error}") from None
        base_model.eval()

    def train(self, training_data: Sequence[Any], epochs: int = 3, **settings: Any) -> list[dict[str, float]]:
        """Train the adapters on the next token.

        Args:
            training_data: texts; or records with a prompt and a completion, or with messages; or lists of token ids.
            epochs: times that every example is seen; the last step may be smaller. ``num_train_steps`` in its place
                gives so many steps of full batches.
            **settings: ``batch_size`` (4), ``max_length`` (512), and any of ``TrainingSection``: ``learning_rate``,
                ``seed``, ``warmup_steps``, ...

        Returns:
            A line for every step: ``step``, ``epoch`` in which it begins, ``loss``, ``learning_rate``, ``tokens``, ...

        Raises:
            UsageError: no data, or a setting out of range.
            TrainingError: out of memory, or the loss is no number; the adapters are as they were then.
        """
        if useless := sorted(_ON_DISK & set(settings)):
            raise UsageError(
                f"{useless[0]} is {settings[useless[0]]!r}, and here nothing is written; leave it out, and call "
                "save_weights(folder) afterwards"
            )
        known = {*TrainingSection.model_fields, *_OWN} - _ON_DISK
        if strange := next((name for name in settings if name not in known), None):
            raise UsageError(f"unknown setting {strange!r}; known are {listed(strange, known)}")
        size = settings.pop("per_device_batch_size", 4)  # the same thing here
        epochs, size = count_of("epochs", epochs), count_of("batch_size", settings.pop("batch_size", size))
        examples = _examples(self, training_data, count_of("max_length", settings.pop("max_length", 512), 2))
        size = min(size, len(examples))
        config = validated(TrainingSection, {"logging_steps": 1, **settings, "per_device_batch_size": size})
        if by_epochs := "num_train_steps" not in settings:
            batches = math.ceil(len(examples) / size) * epochs
            steps = math.ceil(batches / config.gradient_accumulation_steps)
            config = config.model_copy(update={"num_train_steps": steps})
        announce_warm_up(config)
        accelerator = make_accelerator(config, cpu=self.get_adapted_model().device.type == "cpu")
        data = (examples, examples.first(0))
        before = [each.detach().clone() for each in self.trainable_parameters()]
        with RunLog(None, LoggingSection(), {}, quiet=True) as run_log:
            try:
                loop = Loop(LoRATrainee(self), data, config, accelerator=accelerator, run_log=run_log)
                loop.run(epochs if by_epochs else None)
            except TrainingError:
                with torch.no_grad():
                    for own, was in zip(self.trainable_parameters(), before, strict=True):
                        own.copy_(was)
                        own.grad = None
                raise
            return [{**row, "epoch": loop.epoch_of(int(row["step"]))} for row in run_log.rows]

    def save_weights(self, path: str | Path) -> None:
        """Write the adapters' weights and configuration into a folder, in PEFT's format.

        Raises:
            UsageError: no folder, or one that holds a model or another kind of adapter.
        """
        folder = folder_of("path", path)
        if (folder / "config.json").exists():
            raise UsageError(
                f"path is {str(path)!r}, which holds a model, and whoever loads that would get these adapters too; "
                "give a new folder"
            )
        for name in (_WEIGHTS, _CONFIG):
            check_new(folder / name, "path", lambda _: _holds_lora(folder))
        with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as partial:
            self._peft.save_pretrained(partial, save_embedding_layers=False)
            for name in (_WEIGHTS, _CONFIG):
                os.replace(Path(partial, name), folder / name)

    def save_merged(self, path: str | Path, dtype: str | torch.dtype = torch.bfloat16) -> Any:
        """Write the new model whole, the adapters merged into its weights, and its tokenizer: a model like any other.

        Args:
            path: a folder; one that ``save_merged`` wrote is replaced.
            dtype: of the weights on disk, or its name; ``auto`` is the base's. They are merged before they are rounded.

        Returns:
            The merged model, as it was written.

        Raises:
            UsageError: no folder, one that holds something else, or a dtype that weights cannot have.
        """
        wanted, tokenizer, folder = pick_dtype(dtype), self.tokenizer, folder_of("path", path)
        _check_merged(folder)
        merged = self.get_adapted_model(merge=True).to(wanted)

        def fill(partial: Path) -> None:
            merged.save_pretrained(partial)
            # safetensors makes its file readable by the owner alone, which a shared models folder cannot use.
            for weights in partial.glob("*.safetensors"):
                shutil.copymode(partial / "config.json", weights)
            tokenizer.save_pretrained(partial)
            files = sorted([each.name for each in partial.iterdir()] + [_MERGED])
            write_json(partial / _MERGED, {"base": self._base.config.name_or_path, "lora": self.config, "files": files})

        replace_folder(folder.absolute(), fill)
        return merged

    def load_weights(self, path: str | Path) -> None:
        """Take the adapters' weights from a folder that ``save_weights`` or PEFT wrote.

        Raises:
            UsageError: no adapter there, or one of another shape.
        """
        peft = peft_for("LoRAAdapter")
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        folder = path_of("path", path, "a folder of save_weights")
        try:
            found = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
            state: dict[str, Tensor] = load_file(folder / _WEIGHTS)
        except (OSError, ValueError, SafetensorError) as error:
            raise UsageError(
                f"{str(path)!r} holds no LoRA weights: {why_unread(error)}; give a folder of save_weights"
            ) from None
        for name, theirs in _NAMES.items():
            ours, value = self.config[name], found.get(theirs)
            if name != "dropout" and (sorted(value or []) != sorted(ours) if isinstance(ours, list) else value != ours):
                raise UsageError(
                    f"the weights in {str(path)!r} have {name} {value!r} and this adapter has {ours!r}; make one with "
                    f"lora_config={{{name!r}: {value!r}}}"
                )
        wanted = peft.get_peft_model_state_dict(self._peft, save_embedding_layers=False)
        if {name: each.shape for name, each in state.items()} != {name: each.shape for name, each in wanted.items()}:
            raise UsageError(f"the weights in {str(path)!r} belong to another base model; give those trained for this")
        peft.set_peft_model_state_dict(self._peft, state)

    def get_adapted_model(self, merge: bool = False) -> Any:
        """The model with the adapters at work: a transformers model, for ``generate`` or ``SpeculativeEngine``.

        Args:
            merge: return a copy whose own weights hold the adapters: as fast as the base.
        """
        must_be(isinstance(merge, bool), "merge", merge, "True or False")
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
                    f"texts need a tokenizer and {f'none is at {name!r}' if name else 'there is none'}; "
                    "give LoRAAdapter tokenizer="
                ) from None
        return self._tokenizer


def _check_merged(folder: Path) -> None:
    """Refuse a folder for a merged model that holds anything but an earlier one.

    Raises:
        UsageError: so it is.
    """
    check_replaceable(folder, _MERGED, "path")
    if any(folder.iterdir()):
        own = json.loads((folder / _MERGED).read_text(encoding="utf-8"))["files"]
        if others := sorted({each.name for each in folder.iterdir()} - set(own)):
            raise UsageError(f"path is {str(folder)!r}, where {others[0]!r} would be lost; give a new folder")


def _holds_lora(folder: Path) -> bool:
    try:
        return bool(json.loads((folder / _CONFIG).read_text(encoding="utf-8"))["peft_type"] == "LORA")
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _settings(given: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        raise UsageError(f"lora_config is {shown(given)}; give a mapping, such as {{'r': 8, 'alpha': 16}}")
    ours = {theirs: name for name, theirs in _NAMES.items()}
    settings = {ours.get(name, name): value for name, value in given.items()}
    if isinstance(settings.get("target_modules"), (tuple, set)):
        settings["target_modules"] = sorted(settings["target_modules"])
    return validated(LoRASection, settings, "lora_config.").model_dump()


def _check_rank(model: Any, config: Mapping[str, Any]) -> None:
    """Refuse adapters that have more weights than the matrices whose changes they are."""
    layers = [each for name, each in _linear(model) if any(_matches(end, [name]) for end in config["target_modules"])]
    most = max(min(each.weight.shape) for each in layers)
    if config["r"] > most:
        raise UsageError(f"lora_config.r is {config['r']} and no layer to adapt has a rank above {most}; give less")


def _examples(adapter: LoRAAdapter, data: Sequence[Any], max_length: int) -> Examples:
    if isinstance(data, str | bytes | Mapping):
        raise UsageError(f"training_data is one {type(data).__name__}; give a list of texts, records or token ids")
    must_be(isinstance(data, Sequence), "training_data", data, "a list of texts, records or token ids")
    if not data:
        raise UsageError("training_data is empty; give texts, records or token ids")
    if all(map(are_tokens, data)):
        known = len(adapter.get_adapted_model().get_input_embeddings().weight)
        for at, token in ((at, token) for at, each in enumerate(data) for token in each):
            if not 0 <= token < known:
                raise UsageError(f"item {at} has the token {token}; the vocabulary is 0 to {known - 1}")
        examples = Examples([Example(tokens=tuple(each[:max_length]), start=1) for each in data if len(each) > 1])
    else:
        for at, each in enumerate(data):
            must_be(isinstance(each, str | Mapping), f"item {at}", each, "a text, a record or a list of token ids")
        config = validated(DataSection, {"max_length": max_length})
        records = [({"text": each} if isinstance(each, str) else each, f"item {at}") for at, each in enumerate(data)]
        examples = examples_of(records, config, adapter.tokenizer)
    if not examples:
        raise UsageError("training_data has no token to learn; give two tokens or more, or records with a completion")
    return examples


class LoRATrainee:
    """An adapter that learns the next token; with ``merge`` the whole new model is saved too."""

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


def prepare(config: TrainConfig, device: str) -> tuple[LoRATrainee, Any]:
    """The target with a fresh adapter."""
    model, tokenizer = load_model(config.model.target_model, dtype=config.model.dtype_on(device), device=device)
    torch.manual_seed(config.training.seed)
    return LoRATrainee(adapter_of(config.lora, model, tokenizer), merge=config.lora.merge), tokenizer


def adapter_of(section: LoRATrainingSection, model: Any, tokenizer: Any) -> LoRAAdapter:
    """A fresh adapter inside a model."""
    return LoRAAdapter(model, section.model_dump(exclude={"merge"}), tokenizer=tokenizer)


def modules_for(model: Any, wanted: Sequence[str] | None) -> list[str]:
    """The names of layers as PEFT takes them, each of which the model has.

    Args:
        model: a transformers model.
        wanted: ends of names; None for those of the model's family.

    Raises:
        UsageError: a name that no layer ends with, with those that would do.
    """
    head = model.get_output_embeddings()
    linear = _linear(model)
    names = [name for name, each in linear if each is not head]
    if wanted is None:
        found = next((group for group in _ATTENTION if all(_matches(end, names) for end in group)), None)
        if found is None:
            raise UsageError(
                f"target_modules is not given for a {model.config.model_type}; give some of {_ends(names)}"
            )
        return list(found)
    for end in wanted:
        if not _matches(end, names):
            is_head = _matches(end, [name for name, _ in linear])
            why = "gets no adapter: it is the output layer" if is_head else "this model has not"
            raise UsageError(f"target_modules has {end!r}, which {why}; give some of {_ends(names)}")
    return list(wanted)


def _linear(model: Any) -> list[tuple[str, Any]]:
    """Its layers that can have an adapter: GPT-2's matrices are in a class of transformers, which PEFT adapts too."""
    return [(name, each) for name, each in model.named_modules() if isinstance(each, nn.Linear) or is_turned(each)]


def is_turned(module: nn.Module) -> bool:
    """Whether its matrix is ``[in, out]``."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, Conv1D)


def _matches(end: str, names: Sequence[str]) -> bool:
    return any(name == end or name.endswith(f".{end}") for name in names)


def _ends(names: Sequence[str]) -> str:
    return ", ".join(sorted({name.rpartition(".")[2] for name in names}))
