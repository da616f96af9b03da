"""``python -m benchmarks.perplexity MODEL TEXT``: what fewer bits cost, by the perplexity of a text.

The text is read in windows, through the passes that decoding runs. Of each window the first tokens are context only.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch.nn import functional

from benchmarks.report import aligned, exit_codes, say
from specstream.cli.loading import load_engine
from specstream.core.tree import TokenTree
from specstream.errors import UsageError
from specstream.models.target.hf import HuggingFaceTarget

WINDOW, CONTEXT, WIDTH = 512, 64, 64
"""Tokens of a window, those of them that are context only, and tokens of a pass."""


def perplexity(
    model: Annotated[str, typer.Argument(help="A catalog name, a local folder, or a hub id.")],
    text: Annotated[str, typer.Argument(help="A file of text in UTF-8.")],
    tokens: Annotated[int, typer.Option("--tokens", min=WINDOW, help="Of the text, the first so many.")] = 20_000,
    bits: Annotated[list[str], typer.Option("--bits", help="none, int8 or int4; may be repeated.")] = [],  # noqa: B006
    output: Annotated[str, typer.Option("--json", help="A file for the figures; empty for none.")] = "",
) -> None:
    """The perplexity of a text to a model, whole and in fewer bits."""
    with exit_codes():
        try:
            whole = Path(text).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{text} cannot be read ({error}); give a file of text in UTF-8") from None
        cells, found = [["bits", "perplexity", "over none", "megabytes"]], dict[str, float]()
        for each in bits or ["none", "int8", "int4"]:
            engine = load_engine(model, None, {"drafter": "none", "quantization": each}, alone=True)
            ids = engine.tokenizer(whole)["input_ids"][:tokens]
            if len(ids) < WINDOW:
                raise UsageError(f"{text} has {len(ids)} tokens; give at least {WINDOW}")
            found[each] = perplexity_of(engine.target, ids)
            over = f"{found[each] / found['none'] - 1:+.2%}" if "none" in found else "-"
            cells.append([each, f"{found[each]:.4f}", over, f"{engine.target.nbytes / 1e6:.0f}"])
            say(f"{each}: {found[each]:.4f}")
        print(aligned(cells))
        if output:
            Path(output).write_text(json.dumps({"model": model, "text": text, "perplexity": found}), encoding="utf-8")


@torch.inference_mode()
def perplexity_of(target: HuggingFaceTarget, ids: list[int]) -> float:
    """Of all tokens of the windows but those that are context only."""
    lost = counted = 0.0
    for start in range(0, len(ids) - WINDOW + 1, WINDOW - CONTEXT):
        window = ids[start : start + WINDOW]
        session = target.begin([window[: CONTEXT - 1]])
        for at in range(CONTEXT - 1, WINDOW - 1, WIDTH):
            part, following = window[at : at + WIDTH], window[at + 1 : at + 1 + WIDTH]
            logits = session.score([TokenTree.chain(part)])[0, : len(following)].float()
            session.commit([tuple(range(len(part)))])
            lost += float(functional.cross_entropy(logits, torch.tensor(following), reduction="sum"))
            counted += len(following)
    return math.exp(lost / counted)


if __name__ == "__main__":
    typer.run(perplexity)
