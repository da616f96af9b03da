"""From one GGUF file to the folder that `from_pretrained` loads, with what the format loses put back.

What comes out of transformers' own reading of a GGUF file differs from the upstream model in a few ways that matter
here; ``repairs.py`` mends them. The chat template, the end of a turn as EOS and the padding token arrive intact.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from specstream.distribution import VERSION
from specstream.errors import DownloadError
from specstream.models.architecture.compat import without_bars
from specstream.models.hub import repairs
from specstream.models.hub.entry import CatalogEntry
from specstream.reporting import errors_only


def gguf_to_folder(gguf: Path, folder: Path, entry: CatalogEntry) -> None:
    """De-quantise `gguf` to bfloat16 and save it, its tokenizer and a `specstream.json` into `folder`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    with quiet():
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
            repairs.split_digits(tokenizer)
        repairs.decode_bytes(tokenizer)
        repairs.bound_length(tokenizer, model)
        repairs.name_stop_tokens(tokenizer, model, entry.stop_tokens)
        repairs.tie_embeddings(model)
        tokenizer.save_pretrained(folder)
        model.save_pretrained(folder)
    _require_complete(folder, entry)
    _unmark_special(folder / "tokenizer.json", entry.plain_tokens)
    # safetensors makes its file readable by the owner alone, which a shared models folder cannot use.
    shutil.copymode(folder / "config.json", folder / "model.safetensors")
    _write_origin(folder, entry)


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
def quiet() -> Iterator[None]:
    """Keep transformers' own progress bars and notes from the terminal; exceptions still come through.

    The standard error stays where it is: other threads write there too.
    """
    with errors_only(), without_bars():
        yield
