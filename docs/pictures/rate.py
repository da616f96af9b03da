"""Draws rate.svg: what a round is expected to bring by the nodes that it verifies, and how many the policy takes.

    python docs/pictures/rate.py

The costs and the drafts are examples. What follows from them is computed by the policy itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from specstream.core.policy.acceptance import Calibrations, Estimates
from specstream.core.policy.cost_model import CostModel
from specstream.core.policy.plan import Planner
from specstream.core.policy.prices import PriceList
from specstream.core.ports import Offer
from specstream.core.tree_shapes import RankAcceptance

FOLDER = Path(__file__).parent

# Seconds by rows, nodes of all rows and tokens of context; of a draft by the rows that ask and its depth.
ONE = {1: 14, 2: 15, 4: 17, 8: 22, 16: 33, 32: 56}
FOUR = {4: 18, 8: 24, 16: 36, 32: 60}
PASSES = {(rows, nodes, 64): ms / 1000 for rows, table in ((1, ONE), (4, FOUR)) for nodes, ms in table.items()}
DRAFTS = {"heads": {(1, 1): 0.003, (1, 4): 0.003, (4, 1): 0.004, (4, 4): 0.004}}

MOST, DEPTH = 24, 4
LEFT, RIGHT, TOP, BOTTOM = 84, 524, 48, 310  # of the axes, in pixels
LOW, HIGH = 0.6, 2.0  # times plain decoding, at BOTTOM and TOP


class Case(NamedTuple):
    """How often the likeliest draft of each row is accepted where the one before was, and how its curve looks."""

    rows: Sequence[float]
    style: str
    label: str


CASES = (
    Case((0.7,), "keep", "1 row: 0.7"),
    Case((0.9, 0.7, 0.5, 0.3), "own", "4 rows: 0.9, 0.7, 0.5, 0.3"),
    Case((0.3, 0.3, 0.3, 0.3), "drop", "4 rows: all 0.3"),
)


def offer(accepted: float) -> Offer:
    """Trees that grow by the likeliest node: the best candidate of each depth is accepted so often, others seldom."""
    rates = [accepted, (1 - accepted) / 2, (1 - accepted) / 4]
    return RankAcceptance([rates] * DEPTH).grow(MOST, DEPTH).offer("heads")


def curve(rows: Sequence[float]) -> tuple[list[float], list[int]]:
    """Expected speed over plain decoding with 0, 1, ... verified nodes, and how many the policy gives each row."""
    costs, count = CostModel(PriceList(PASSES, DRAFTS)), len(rows)
    planner = Planner(
        costs=costs,
        estimates=Estimates(),
        calibrations=[Calibrations() for _ in rows],
        ragged=True,
        worth=[1.0] * count,
    )
    offers = [[offer(each)] for each in rows]
    survivals = sorted((share for own in offers for _, share in own[0].ranked), reverse=True)[:MOST]
    drafting = costs.drafting("heads", count, DEPTH)
    rates = [count / planner.plain]
    for nodes in range(1, MOST + 1):
        rates.append((count + sum(survivals[:nodes])) / (drafting + costs.passing(count, count + nodes)))
    plan = planner.best(offers, spare=1.0)
    shares = [round(share.nodes) if share else 0 for share in plan.shares] if plan else [0] * count
    return [rate / rates[0] for rate in rates], shares


def across(nodes: float) -> float:
    """Pixels of a number of nodes."""
    return LEFT + (RIGHT - LEFT) * nodes / MOST


def up(speed: float) -> float:
    """Pixels of a speed."""
    return BOTTOM - (BOTTOM - TOP) * (speed - LOW) / (HIGH - LOW)


def axes() -> list[str]:
    """Lines and numbers of both axes."""
    lines = []
    for tenths in range(round(10 * LOW), round(10 * HIGH) + 1, 2):
        y, faint = up(tenths / 10), "" if tenths == 10 else ' stroke-opacity="0.35"'
        lines.append(f'<path d="M{LEFT} {y:.1f}H{RIGHT}" class="line"{faint}/>')
        lines.append(f'<text x="{LEFT - 10}" y="{y + 5:.1f}" class="soft end">{tenths / 10:.1f}&#215;</text>')
    for nodes in range(0, MOST + 1, 4):
        lines.append(f'<text x="{across(nodes):.1f}" y="{BOTTOM + 20}" class="soft middle">{nodes}</text>')
    middle = (LEFT + RIGHT) / 2
    lines.append(f'<text x="{middle:.0f}" y="{BOTTOM + 44}" class="soft middle">B: verified nodes of all rows</text>')
    return lines


def drawn(case: Case) -> list[str]:
    """A curve, the chosen number of nodes, and what they are."""
    speeds, shares = curve(case.rows)
    points = "L".join(f"{across(nodes):.1f} {up(speed):.1f}" for nodes, speed in enumerate(speeds))
    chosen, x = sum(shares), RIGHT + 14
    split = f" = {' + '.join(map(str, shares))}" if len(shares) > 1 and chosen else ""
    y = up(speeds[-1]) - 4
    return [
        f'<path d="M{points}" class="thick" stroke="var(--{case.style})"/>',
        f'<circle cx="{across(chosen):.1f}" cy="{up(speeds[chosen]):.1f}" r="7" class="{case.style}" '
        'stroke-dasharray="none"/>',
        f'<text x="{x}" y="{y:.1f}" class="soft in-{case.style}">{case.label}</text>',
        f'<text x="{x}" y="{y + 17:.1f}" class="soft in-{case.style}">B = {chosen}{split}</text>',
    ]


def picture() -> str:
    """The whole file; its style is that of the other pictures."""
    style = (FOLDER / "depth.svg").read_text(encoding="utf-8").partition("  <style>")[2].partition("</style>")[0]
    lines = [
        "<title>What a round is expected to bring, by the nodes that it verifies</title>",
        f"<style>{style}</style>",
        '<text x="16" y="22" class="strong">Expected speed against plain decoding of as many rows</text>',
        *axes(),
        *(line for case in CASES for line in drawn(case)),
        f'<text x="{RIGHT + 14}" y="{TOP + 5}" class="soft">○ what the policy takes</text>',
    ]
    whole = "\n".join(f"  {line}" for line in lines)
    return f'<svg class="picture" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 730 366">\n{whole}\n</svg>\n'


if __name__ == "__main__":
    (FOLDER / "rate.svg").write_text(picture(), encoding="utf-8")
