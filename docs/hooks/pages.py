"""What the site is built with besides its pages: the command line's reference, and pictures that follow the theme."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

_PICTURE = re.compile(r'<img alt="(?P<alt>[^"]*)" src="(?:\.\./)*(?P<file>pictures/[\w-]+\.svg)" ?/?>')


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the reference of the command line."""
    files.append(File.generated(config, "reference/cli.md", content=command_line_reference()))
    return files


def on_page_content(html: str, config: MkDocsConfig, **_: Any) -> str:
    """Put pictures into the page, where the page's colours reach them: an image would follow the system's only."""

    def inlined(found: re.Match[str]) -> str:
        drawing = (Path(config.docs_dir) / found["file"]).read_text(encoding="utf-8")
        return drawing.replace("<svg ", f'<svg role="img" aria-label="{found["alt"]}" ', 1)

    return _PICTURE.sub(inlined, html)


def command_line_reference() -> str:
    """Every command with its arguments and options, as ``--help`` says them."""
    import typer

    from specstream.cli import build_app

    root = typer.main.get_command(build_app())
    lines = ["# Command line", "", "What `--help` says, of every command.", ""]
    for words, command in _commands("specstream", root):
        lines += _section(words, command, typer.Context(command, info_name=words))
    return "\n".join(lines)


def _commands(words: str, command: Any) -> Iterator[tuple[str, Any]]:
    yield words, command
    for name, below in getattr(command, "commands", {}).items():
        yield from _commands(f"{words} {name}", below)


def _section(words: str, command: Any, context: Any) -> list[str]:
    usage = " ".join([words, *command.collect_usage_pieces(context)])
    lines = [f"## {words}", "", *_paragraphs(command.help or ""), "", f"    {usage}", ""]
    rows = [row for row in (_row(parameter, context) for parameter in command.get_params(context)) if row]
    if rows:
        lines += ["| | | default |", "|---|---|---|", *rows, ""]
    return lines


def _row(parameter: Any, context: Any) -> str | None:
    """A parameter's line of the table; None if ``--help`` does not show it."""
    record = parameter.get_help_record(context)
    if record is None:
        return None
    said, _, extra = record[1].partition("  [")
    default = "; ".join(part.removeprefix("default: ") for part in extra.removesuffix("]").split("; "))
    return f"| `{_cell(record[0])}`{{.option}} | {_cell(said)} | {_cell(default)} |"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _paragraphs(text: str) -> list[str]:
    # A form feed ends what --help shows of a docstring.
    return text.partition("\f")[0].splitlines()
