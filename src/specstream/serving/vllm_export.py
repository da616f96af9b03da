"""Checkpoints that vLLM loads: draft models and Medusa heads.

vLLM has no drafts with a part of the vocabulary: its heads have a row for each token. Rows of tokens that ours do not
draft are filled with the mean of the others. A mean of logits is never above the largest of them, so the likeliest
token of an exported head is the one that ours has.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from specstream.engine.choices import SELF
from specstream.environment import provenance
from specstream.errors import ModelNotFoundError, NumericalError, UnsupportedModelError, UsageError
from specstream.files.atomic import write_json
from specstream.heads import medusa
from specstream.heads.folder import KINDS, read_settings, save_head
from specstream.models.architecture.compat import config_of, text_config
from specstream.models.hub.catalog import resolve
from specstream.models.hub.damage import damage
from specstream.models.hub.load import config_in, reason
from specstream.models.hub.schemes import refuse_quantised
from specstream.models.hub.vocabulary import check_tokenizers, read_part
from specstream.training.checkpoints import check_replaceable, replace_folder

RECORD = "vllm_export.json"
"""What an exported folder came from; a folder with it may be written again."""

DEPTH = 4
"""Tokens that vLLM drafts per round where nothing says how many: it does not decide that by what pays."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A folder for vLLM.

    Attributes:
        folder: where it is.
        kind: ``draft_model`` or ``medusa``, as vLLM calls the method.
        depth: tokens that are drafted per round.
        changed: what was changed on the way, one line each.
    """

    folder: str
    kind: str
    depth: int
    changed: tuple[str, ...]

    @property
    def speculative_config(self) -> dict[str, Any]:
        """What ``vllm serve --speculative-config`` takes."""
        return {"method": self.kind, "model": self.folder, "num_speculative_tokens": self.depth}


def export(source: str, output: str, target: str | None = None) -> Exported:
    """Write what vLLM loads.

    Args:
        source: a draft model (a name, a folder, a hub id) or a folder of Medusa heads.
        output: the folder to write; one that was exported before is replaced.
        target: the model that a draft drafts for; its vocabulary is taken over where only the padding differs.

    Raises:
        UsageError: what vLLM cannot run, heads that are not whole, or an output that holds something else.
        VocabularyMismatchError: a draft of another vocabulary than the target's.
    """
    folder = Path(output).absolute()
    check_replaceable(Path(output), RECORD, "output")
    _check_source(source)
    place = resolve(source)
    refuse_quantised(place, "model", source, "which is not exported")
    settings = read_settings(place, "model")
    if (theirs := settings.get("speculators_model_type")) is not None:
        raise UsageError(f"{source!r} holds {theirs!r}, which vLLM loads as it is; give vLLM that folder")
    if (own := settings.get("kind")) is not None:
        here = "serve it with engine: local, train an eagle3 head, or " if own in KINDS else ""
        raise UsageError(f"{source!r} holds {own}, which vLLM cannot run; {here}export Medusa heads or a draft model")
    heads, tokens = settings.get("model_type") == "medusa", None
    if target is not None and not heads:
        tokens = int(config_in(resolve(target), target).get_text_config(decoder=True).vocab_size)
        check_tokenizers(target, source)  # before the weights are read
    kind, write = ("medusa", _medusa) if heads else ("draft_model", _draft_of(tokens))
    report: dict[str, Any] = {}

    def fill(partial: Path) -> None:
        report.update(write(Path(place), partial))
        write_json(partial / RECORD, {"source": Path(source).name, "method": kind, **report, **provenance()})
        for weights in partial.glob("*.safetensors"):  # made readable by the owner alone, who need not run vLLM
            shutil.copymode(partial / RECORD, weights)

    replace_folder(folder, fill)
    return Exported(folder=str(folder), kind=kind, depth=report["depth"], changed=tuple(report["changed"]))


def _check_source(source: str) -> None:
    """Refuse what is a draft or a run of training and no folder of weights."""
    if source.startswith(SELF):
        raise UsageError(
            f"{source!r} is a draft made of its target, and vLLM makes none; give a draft model or Medusa heads"
        )
    folder = Path(source).expanduser()
    for inner in ("best", "best/model"):
        if not (folder / "config.json").is_file() and (folder / inner / "config.json").is_file():
            raise UsageError(f"{source!r} is a run of training; give {str(Path(source) / inner)!r}")
    if (folder / "adapter_config.json").is_file():
        raise UsageError(f"{source!r} holds an adapter, not a model; merge it into its model, and export that")


def every_row(weight: Tensor, tokens: Tensor, vocab_size: int) -> Tensor:
    """Rows for a whole vocabulary from those of a part of it.

    Args:
        weight: ``[size, ...]``, a row for each token of the part.
        tokens: ``[size]`` int64, which tokens those are.
        vocab_size: rows of the result.

    Returns:
        ``[vocab_size, ...]`` of the same dtype; the rows of all other tokens are the mean of the part's.
    """
    mean = weight.float().mean(0, keepdim=True).to(weight.dtype)
    rows = mean.expand(vocab_size, *weight.shape[1:]).clone()
    rows[tokens] = weight
    return rows


def _medusa(source: Path, folder: Path) -> dict[str, Any]:
    config, tensors = medusa.read_heads(source)
    tokens = tensors.pop("token_map", None)
    _check_medusa(source, config, tensors)
    changed, heads, vocab_size = [], int(config["num_heads"]), int(config["vocab_size"])
    if tokens is not None:
        for head in range(heads):
            name = f"lm_heads.{head}.weight"
            tensors[name] = every_row(tensors[name], tokens, vocab_size)
        changed.append(f"heads of {len(tokens)} tokens have all {vocab_size} now, and draft the same ones")
    if any(not bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
        raise NumericalError(f"the heads in {str(source)!r} hold NaN or infinity; train them again")
    # A rotary or attention setting of the base would be read as the heads' own, so only these go along.
    kept = ("architectures", "model_type", "num_heads", "num_hidden_layers", "hidden_size", "vocab_size")
    settings = {key: config[key] for key in kept if key in config}
    save_head(folder, tensors, {**settings, "truncated_vocab_size": vocab_size}, weights=medusa.WEIGHTS)
    return {"depth": heads, "changed": changed}


def _check_medusa(source: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Refuse heads whose weights are not those that their configuration names."""
    try:
        heads, layers, hidden = (int(config[key]) for key in ("num_heads", "num_hidden_layers", "hidden_size"))
        rows = int(config.get("truncated_vocab_size", config["vocab_size"]))
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"the configuration in {str(source)!r} lacks {error}; give whole Medusa heads") from error
    wanted = {f"lm_heads.{head}.weight": (rows, hidden) for head in range(heads)}
    wanted |= {f"blocks.{head}.layers.{at}.weight": (hidden, hidden) for head in range(heads) for at in range(layers)}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if different := sorted(set(wanted.items()) ^ set(found.items())):
        raise UsageError(f"{str(source)!r} holds other weights than its config says: {different[0][0]}; fetch it again")


def _draft_of(tokens: int | None) -> Callable[[Path, Path], dict[str, Any]]:
    """What writes a draft for a target with so many rows of embeddings; None for as many as the draft has."""

    def write(source: Path, folder: Path) -> dict[str, Any]:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        if told := damage(source):
            raise ModelNotFoundError(f"{str(source)!r} cannot be loaded: {told}")
        try:
            # The checkpoint's own dtype, also on a CPU that would rather compute in another.
            model: Any = AutoModelForCausalLM.from_pretrained(
                source, config=config_of(source), dtype="auto", trust_remote_code=False
            )
            tokenizer: Any = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        except Exception as error:  # as in load_model
            raise UnsupportedModelError(
                f"{str(source)!r} is no draft for vLLM: {reason(error)}; give a causal model"
            ) from error
        changed = []
        part = read_part(source)
        if part is not None:
            _silence(model, part)
            size = text_config(model).vocab_size
            changed.append(f"its head drafts {len(part)} of {size} tokens, and has rows for all")
        if tokens is not None and (line := _fit(model, tokens)):
            changed.append(line)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return {"depth": DEPTH, "changed": changed, "parameters": int(model.num_parameters())}

    return write


def _silence(model: Any, part: Tensor) -> None:
    """Let the head of a model draft no other tokens than those of ``part``; a head of its own from then on."""
    head = model.get_output_embeddings()
    rows = int(head.weight.shape[0])
    own = nn.Linear(head.weight.shape[1], rows, bias=head.bias is not None, dtype=head.weight.dtype)
    with torch.no_grad():
        own.weight.copy_(every_row(head.weight.detach()[part], part, rows))
        if head.bias is not None:
            own.bias.copy_(every_row(head.bias.detach()[part], part, rows))
    model.config.tie_word_embeddings = False
    text_config(model).tie_word_embeddings = False
    model.set_output_embeddings(own)


def _fit(model: Any, wanted: int) -> str | None:
    """Give a draft the target's number of tokens, of which vLLM wants as many; None if it has it."""
    has = int(text_config(model).vocab_size)
    if has == wanted:
        return None
    if wanted < has:  # what goes is padding: all tokens are the target's too
        model.resize_token_embeddings(wanted, mean_resizing=False)
        return f"its vocabulary is cut from {has} to {wanted} rows, the target's"
    every = torch.arange(has)
    _silence(model, every)  # a head of its own, whose new rows are not those of the embedding
    model.resize_token_embeddings(wanted, mean_resizing=False)
    _silence(model, every)
    return f"its vocabulary is padded from {has} to {wanted} rows, the target's"
