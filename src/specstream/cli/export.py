"""`specstream export`: checkpoints for other systems."""

from __future__ import annotations

import json
import shlex
from typing import Annotated, Literal

import typer

from specstream.cli import options

_Source = Annotated[str, typer.Argument(metavar="MODEL_OR_HEAD", help="A draft model, or a folder of Medusa heads.")]
_To = Annotated[Literal["vllm"], typer.Option("--to", help="What is to load it.")]
_Output = Annotated[str, typer.Option("--output", "-o", help="The folder to write.")]
_Target = Annotated[
    options.Text, typer.Option("--target", help="For a draft: its target, whose vocabulary size vLLM asks for.")
]


def export(
    source: _Source,
    output: _Output,
    to: _To = "vllm",
    target: _Target = None,
    as_json: options.AsJson = False,
) -> None:
    """Write a draft model or Medusa heads as vLLM loads them: docs/scaling.md."""
    from dataclasses import asdict

    from specstream.cli.loading import quiet
    from specstream.reporting import step

    with quiet(), step(f"writing {output}"):
        from specstream.serving import vllm_export

        made = vllm_export.export(source, output, target)
    if as_json:
        print(json.dumps({"to": to, **asdict(made), "speculative_config": made.speculative_config}))
        return
    for line in made.changed:
        print(line)
    setting = shlex.quote(json.dumps(made.speculative_config))
    print(f"{made.folder}: vllm serve {_served(target)} --speculative-config {setting}")


def _served(target: str | None) -> str:
    """What vLLM finds the target by: it does not know the catalog's names."""
    from specstream.models.hub.catalog import cached_folder, catalog

    if target is None:
        return "TARGET"
    return str(cached_folder(target) or target) if target in catalog() else target
