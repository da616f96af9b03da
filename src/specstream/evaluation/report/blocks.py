"""A page as blocks, written once and rendered twice: as one self-contained HTML file and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from specstream.evaluation.report.charts import Chart

_STYLE = """
body { font: 15px/1.45 "Helvetica Neue", Arial, sans-serif; color: #111 }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.6rem } h3 { font-size: 1.05rem }
h2 { font-size: 1.25rem; margin-top: 2.2rem; border-bottom: 1px solid #ccc }
table { border-collapse: collapse; font-size: 0.85rem; margin: 0.8rem 0 } div { overflow-x: auto }
th, td { padding: 0.2rem 0.6rem; border-bottom: 1px solid #ddd; text-align: right; font-variant-numeric: tabular-nums }
th { border-bottom: 2px solid #111 } th:first-child, td:first-child, .words td, .words th { text-align: left }
figure { margin: 1rem 0; break-inside: avoid } figure svg { max-width: 100%; height: auto }
figcaption { font-size: 0.85rem; color: #444 }
@media print { body { margin: 0; max-width: none } h2 { break-after: avoid } }
"""


@dataclass(frozen=True)
class Heading:
    """A heading of level 1, 2 or 3."""

    level: int
    text: str


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Items:
    """A list."""

    texts: Sequence[str]


@dataclass(frozen=True)
class Table:
    """Rows of cells under a row of titles; ``words`` if the cells are no numbers."""

    titles: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: bool = False


@dataclass(frozen=True)
class Figure:
    """A chart; ``file`` is where Markdown finds it."""

    chart: Chart
    file: str


Block = Heading | Text | Items | Table | Figure


def as_html(title: str, blocks: Sequence[Block]) -> str:
    """One file that needs no other."""
    body = "\n".join(_html(block) for block in blocks)
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}<style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n'
    )


def as_markdown(blocks: Sequence[Block]) -> str:
    """The same; charts are files beside it."""
    return "\n\n".join(_markdown(block) for block in blocks) + "\n"


def _html(block: Block) -> str:
    if isinstance(block, Heading):
        return f"<h{block.level}>{escape(block.text)}</h{block.level}>"
    if isinstance(block, Text):
        return f"<p>{escape(block.text)}</p>"
    if isinstance(block, Items):
        return "<ul>" + "".join(f"<li>{escape(text)}</li>" for text in block.texts) + "</ul>"
    if isinstance(block, Table):
        kind = ' class="words"' if block.words else ""
        rows = "".join(f"<tr>{_cells(row, 'td')}</tr>" for row in block.rows)
        titles = _cells(block.titles, "th")
        return f"<div><table{kind}><thead><tr>{titles}</tr></thead><tbody>{rows}</tbody></table></div>"
    chart = block.chart
    svg = chart.svg.replace("<svg ", f'<svg role="img" aria-label="{escape(chart.title)}" ', 1)
    return f"<figure><h3>{escape(chart.title)}</h3>{svg}<figcaption>{escape(chart.caption)}</figcaption></figure>"


def _cells(texts: Sequence[str], tag: str) -> str:
    return "".join(f"<{tag}>{escape(text)}</{tag}>" for text in texts)


def _markdown(block: Block) -> str:
    if isinstance(block, Heading):
        return f"{'#' * block.level} {block.text}"
    if isinstance(block, Text):
        return block.text
    if isinstance(block, Items):
        return "\n".join(f"- {text}" for text in block.texts)
    if isinstance(block, Table):
        rule = "|".join([" --- ", *[" --- " if block.words else " ---: "] * (len(block.titles) - 1)])
        lines = [_row(block.titles), f"|{rule}|", *map(_row, block.rows)]
        return "\n".join(lines)
    return f"### {block.chart.title}\n\n![{block.chart.title}]({block.file})\n\n{block.chart.caption}"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
