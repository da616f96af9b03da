"""`specstream models`: which models have a name, and bringing one onto this machine."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from specstream.cli import options

app = typer.Typer(help="List the named models, or pull one onto this machine.", no_args_is_help=False)


@app.command("list")
def list_models(as_json: options.AsJson = False) -> None:
    """Show the models of the catalog and which of them are on this machine."""
    from specstream.models.hub.catalog import DEFAULT_MODEL, cached_folder, catalog, models_root

    rows = []
    for entry in catalog().values():
        folder = cached_folder(entry.name)
        rows.append(
            {
                "name": entry.name,
                "summary": entry.summary,
                "parameters": entry.parameters,
                "download_bytes": entry.download_bytes,
                "hub_id": entry.hub_id,
                "licence": entry.licence,
                "default": entry.name == DEFAULT_MODEL,
                "cached": folder is not None,
                "path": str(folder) if folder is not None else None,
                "file": str(file) if (file := cached_folder(f"{entry.name}.gguf")) is not None else None,
            }
        )
    if as_json:
        print(json.dumps({"models": rows, "root": str(models_root())}))
        return
    _print_table(rows)


def _print_table(rows: list[dict[str, object]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("name", "parameters", "download", "here", "what")
    for row in rows:
        table.add_row(
            str(row["name"]),
            f"{float(str(row['parameters'])) / 1e6:.0f} M",
            f"{float(str(row['download_bytes'])) / 1e6:.0f} MB",
            " and ".join(name for name, is_here in (("yes", row["cached"]), ("as .gguf", row["file"])) if is_here)
            or "no",
            str(row["summary"]),
        )
    Console().print(table)


@app.command("pull")
def pull_model(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="A name that `specstream models list` shows; NAME.gguf is its file as it is."
        ),
    ],
    as_json: options.AsJson = False,
) -> None:
    """Download a model of the catalog; one that is here already is kept."""
    from specstream.models.hub.catalog import is_cached, pull

    already = is_cached(name)
    folder = pull(name)
    if as_json:
        print(json.dumps({"name": name, "path": str(folder), "already_here": already}))
    else:
        print(folder)
