"""From one GGUF file to the folder that `from_pretrained` loads, with what the format loses put back.

What comes out of transformers' own reading of a GGUF file differs from the upstream model in a few ways that matter
here. Each is repaired below, and each repair says what it would cost to leave it. The chat template, the end of a
turn as EOS and the padding token arrive intact.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import shutil
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from specstream.distribution import VERSION
from specstream.errors import DownloadError
from specstream.models.hub.entry import CatalogEntry

# Two quantisations of one matrix differ by 4 to 7 % here; unrelated matrices by more than 100 %.
_SAME_MATRIX = 0.15


def gguf_to_folder(gguf: Path, folder: Path, entry: CatalogEntry) -> None:
    """De-quantise `gguf` to bfloat16 and save it, its tokenizer and a `specstream.json` into `folder`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    with _quiet():
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False)
        # Packed GGUF weights, the default, cannot be saved again.
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            trust_remote_code=False,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),
        )
        if getattr(model.config, "quantization_config", None) is not None:
            del model.config.quantization_config
        if entry.splits_digits:
            _split_digits(tokenizer)
        _decode_bytes(tokenizer)
        _bound_length(tokenizer, model)
        _name_stop_tokens(tokenizer, model, entry)
        _tie_embeddings(model)
        tokenizer.save_pretrained(folder)
        model.save_pretrained(folder)
    _require_complete(folder, entry)
    _unmark_special(folder / "tokenizer.json", entry.plain_tokens)
    # safetensors makes its file readable by the owner alone, which a shared models folder cannot use.
    shutil.copymode(folder / "config.json", folder / "model.safetensors")
    _write_origin(folder, entry)


def _split_digits(tokenizer: Any) -> None:
    """Split every digit off before words are found, as SmolLM2's own tokenizer does.

    The file names this rule and transformers does not read it. Without it, a run of spaces before a number is cut
    into other tokens than the model was trained on.
    """
    from tokenizers import pre_tokenizers

    digits = pre_tokenizers.Digits(individual_digits=True)
    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, words])


def _decode_bytes(tokenizer: Any) -> None:
    """Turn tokens into text as every byte-level tokenizer does.

    transformers before 5.20 gives these the decoder of SentencePiece too, which drops a leading space.
    """
    from tokenizers import decoders

    tokenizer.backend_tokenizer.decoder = decoders.ByteLevel()


def _bound_length(tokenizer: Any, model: Any) -> None:
    """State the context length on the tokenizer too, which otherwise claims 10^30 tokens."""
    tokenizer.model_max_length = model.config.max_position_embeddings


def _name_stop_tokens(tokenizer: Any, model: Any, entry: CatalogEntry) -> None:
    """Let every token that ends a generation upstream end it here: a GGUF file names one, Qwen2.5 has two.

    With one missing, a model that has finished runs on until the token limit.
    """
    ids = [tokenizer.convert_tokens_to_ids(token) for token in entry.stop_tokens]
    model.generation_config.eos_token_id = ids if len(ids) > 1 else ids[0]
    # transformers before 5.20 gives the tokenizer the beginning of a turn as its end, and no padding token.
    tokenizer.eos_token = entry.stop_tokens[0]
    if tokenizer.pad_token is None and (pad := model.generation_config.pad_token_id) is not None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad)
    # Otherwise generate() may rebuild this configuration from the model's, which has one id again.
    model.generation_config._from_model_config = False


def _tie_embeddings(model: Any) -> None:
    """Make the embedding and the output head one matrix again where they are so upstream.

    A GGUF file may hold that matrix twice, quantised two ways. The output's copy is the finer one and is kept for
    both: 0.3 GB less for Qwen2.5-Coder-0.5B, and an embedding nearer to the original.
    """
    import torch

    if model.config.tie_word_embeddings:
        return
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if embedding.weight.shape != head.weight.shape:
        return
    with torch.no_grad():
        difference = (embedding.weight.float() - head.weight.float()).norm() / head.weight.float().norm()
    if difference < _SAME_MATRIX:
        embedding.weight = head.weight
        model.config.tie_word_embeddings = True
        model.tie_weights()


def _unmark_special(tokenizer_file: Path, plain: tuple[str, ...]) -> None:
    """Let text that a user is to read, a tool call for instance, survive `decode(skip_special_tokens=True)`."""
    content = json.loads(tokenizer_file.read_text(encoding="utf-8"))
    for token in content["added_tokens"]:
        if token["content"] in plain:
            token["special"] = False
    tokenizer_file.write_text(json.dumps(content, ensure_ascii=False, indent=2), encoding="utf-8")


def _require_complete(folder: Path, entry: CatalogEntry) -> None:
    wanted = ("config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors")
    if missing := [name for name in wanted if not (folder / name).is_file()]:
        raise DownloadError(
            f"{entry.name}: the conversion wrote no {', '.join(missing)}: this transformers "
            f"({version('transformers')}) does not read the file as expected; install one that pyproject.toml names"
        )


def _write_origin(folder: Path, entry: CatalogEntry) -> None:
    origin = {
        "name": entry.name,
        "upstream": entry.hub_id,
        "licence": entry.licence,
        "wheels": list(entry.wheels),
        "sha256": entry.sha256,
        "conversion": "GGUF de-quantised to bfloat16",
        "versions": {"specstream": VERSION, **{name: version(name) for name in ("transformers", "torch", "gguf")}},
    }
    (folder / "specstream.json").write_text(json.dumps(origin, indent=2) + "\n", encoding="utf-8")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the reading libraries' own progress bars and notes from the terminal; exceptions still come through."""
    from transformers.utils import logging as transformers_logging

    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
