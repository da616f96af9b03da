"""`specstream quantize`: a model's checkpoint in fewer bits."""

from __future__ import annotations

import json
import shlex
from typing import Annotated, Literal

import typer

from specstream.cli import options

_Model = Annotated[str, typer.Argument(metavar="MODEL", help="A catalog name, a local folder, or a hub id.")]
_Bits = Annotated[Literal["int8", "int4"], typer.Option("--bits", help="Of the linear layers' weights.")]
_Output = Annotated[str, typer.Option("--output", "-o", help="The folder to write; it must not be there.")]


def quantize(model: _Model, output: _Output, bits: _Bits = "int8", as_json: options.AsJson = False) -> None:
    """Write a model in eight or four bits, as a checkpoint that other systems load too: docs/quantization.md."""
    from specstream.cli.loading import quiet

    with quiet():
        from specstream.training import quantize as quantising

        folder = quantising.quantize(model, bits, output)
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    if as_json:
        print(json.dumps({"output": str(folder), "bits": bits, "bytes": size}))
        return
    print(f"{output}: {bits}, {size / 1e6:.0f} MB; specstream generate PROMPT --model {shlex.quote(output)}")
