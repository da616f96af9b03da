"""A draft that says some of the tokens only: it reads them all, and its head has a row for each that it says.

To look a token up in the input embedding costs nothing, whatever its size, while the head is read whole in every step
and is most of a shallow draft. So the folder is a plain one, with the whole vocabulary at both ends, which transformers
and vLLM load; beside it ``draft_vocabulary.json`` names the part, and here the head is cut to it. Verification is the
target's, over the whole vocabulary: a token outside the part is one that the draft gives probability 0.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from filecmp import cmp
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from specstream.errors import ModelNotFoundError, SpecStreamError, UsageError, VocabularyMismatchError
from specstream.files.atomic import why_unread
from specstream.models.hub.catalog import resolve
from specstream.models.hub.gguf_header import is_gguf, read_header
from specstream.models.hub.load import check_holds_model, load_model, reason, tokenizer_in

PART = "draft_vocabulary.json"
_ABOUT = (
    "The tokens that this draft is to say. target_ids[i] is the token, by its id in the target's tokenizer, that row i "
    "of the cut head stands for: row target_ids[i] of the head in this folder. The ids rise."
)


def write_part(folder: str | Path, part: Tensor) -> None:
    """Name the tokens that the draft in a folder says.

    Args:
        folder: of the draft.
        part: ``[size]`` int64, rising.
    """
    text = json.dumps({"about": _ABOUT, "size": len(part), "target_ids": part.tolist()}) + "\n"
    (Path(folder) / PART).write_text(text, encoding="utf-8")


def read_part(folder: str | Path) -> Tensor | None:
    """The tokens that the draft in a folder says, ``[size]`` int64, rising; None for all.

    Raises:
        ModelNotFoundError: the file is there and does not say it.
    """
    path = Path(folder) / PART
    if not path.is_file():
        return None
    try:
        ids = json.loads(path.read_text(encoding="utf-8"))["target_ids"]
        if not ids or sorted(set(ids)) != ids or ids[0] < 0:
            raise ValueError("target_ids are not rising ids")
        return torch.tensor(ids, dtype=torch.int64)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ModelNotFoundError(f"{str(path)!r} cannot be read: {why_unread(error)}; make the draft again") from error


def cut_head(model: Any, part: Tensor) -> nn.Linear:
    """Replace the head of a model by a copy of the rows for these tokens; its logits are ``[..., size]`` from then on.

    Args:
        model: a transformers causal language model that nobody else uses.
        part: ``[size]`` int64, rising.

    Returns:
        The head that was there.

    Raises:
        ModelNotFoundError: it has no row for some of them.
    """
    whole = model.get_output_embeddings()
    rows = int(whole.weight.shape[0])
    if int(part[-1]) >= rows:
        raise ModelNotFoundError(
            f"the part of the vocabulary has token {int(part[-1])} and the head has {rows} rows; make the draft again"
        )
    weight = whole.weight.detach()
    head = nn.Linear(weight.shape[1], len(part), bias=whole.bias is not None, device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        head.weight.copy_(weight[part.to(weight.device)])
        if whole.bias is not None:
            head.bias.copy_(whole.bias[part.to(weight.device)])
    head.requires_grad_(whole.weight.requires_grad)
    model.set_output_embeddings(head.train(model.training))
    return whole  # type: ignore[no-any-return]


def load_draft(
    name: str,
    *,
    dtype: str | torch.dtype = "auto",
    device: str = "auto",
    check: Callable[[Any], None] = lambda tokenizer: None,
) -> tuple[Any, Any, Tensor | None]:
    """A draft, its tokenizer, and the tokens that it says, to which its head is cut; None for all of them.

    Raises:
        SpecStreamError: as ``load_model``, which explains the arguments; or a part that does not fit.
    """
    model, tokenizer = load_model(name, dtype=dtype, device=device, check=check)
    part = read_part(model.config.name_or_path)
    if part is not None:
        cut_head(model, part)
        part = part.to(model.device)
    return model, tokenizer, part


def check_tokenizers(target: str, draft: str, *, quick: bool = False) -> None:
    """Refuse a draft of another vocabulary, by the tokenizers alone.

    To make tokenizers takes seconds, so their files are asked first: such as list the same tokens are taken for one
    vocabulary, and a token with two ids is proof of two.

    Args:
        target: a model argument.
        draft: likewise.
        quick: make none either where the files do not tell: who loads the draft compares them then.

    Raises:
        ModelNotFoundError: nothing answers to a name.
        UsageError: a tokenizer that cannot be read.
        VocabularyMismatchError: the draft's is another one.
    """
    folders = resolve(target), resolve(draft)
    for folder, name in zip(folders, (target, draft), strict=True):
        check_holds_model(folder, name)
    own, other = (Path(folder) / "tokenizer.json" for folder in folders)
    if own.is_file() and other.is_file() and cmp(own, other, shallow=False):  # large ones take a second to parse
        return
    ours, theirs = map(_listed, folders)
    told = None not in (ours, theirs) and is_gguf(folders[0]) == is_gguf(folders[1])
    if told and any(theirs.get(token, number) != number for token, number in ours.items()):
        raise another_vocabulary(draft, len(theirs), target, len(ours))
    if ours == theirs if told else quick:
        return
    try:
        ours, theirs = (tokenizer_in(folder).get_vocab() for folder in folders)
    except SpecStreamError:
        raise
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(f"no tokenizer of {draft!r} or {target!r} can be read: {reason(error)}") from None
    if ours != theirs:
        raise another_vocabulary(draft, len(theirs), target, len(ours))


def another_vocabulary(draft: str, theirs: int, target: str, ours: int) -> VocabularyMismatchError:
    """The error of a draft with so many tokens for a target with so many."""
    return VocabularyMismatchError(
        f"the draft {draft} has another vocabulary ({theirs} tokens) than {target} ({ours} tokens); give a draft of "
        "the same tokenizer, or leave draft_model out"
    )


def _listed(folder: str) -> Any:
    """The tokens that the file of a tokenizer lists, with their ids; None where it is of another form."""
    if is_gguf(folder):
        tokens = read_header(Path(folder)).fields.get("tokenizer.ggml.tokens")
        return {token: number for number, token in enumerate(tokens)} if tokens else None
    try:
        said = json.loads((Path(folder) / "tokenizer.json").read_text(encoding="utf-8"))
        return {**said["model"]["vocab"], **{each["content"]: each["id"] for each in said["added_tokens"]}}
    except (OSError, ValueError, KeyError, TypeError):
        return None
