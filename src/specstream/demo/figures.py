"""The figures beside the texts, and whether both are equal, in words."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from specstream.demo.race import Race, Side

Figure = tuple[str, str, str]
"""Its value, its name, and what it means."""

NONE = "-"


def plain_figures(race: Race) -> list[Figure]:
    """Of plain decoding."""
    return [_speed(race.plain), _tokens(race.plain)]


def speculative_figures(race: Race) -> list[Figure]:
    """Of speculative decoding."""
    side, stats = race.speculative, race.speculative.row.stats
    faster = NONE if race.speedup is None else f"{race.speedup:.2f}x"
    return [
        _speed(side),
        _tokens(side),
        (faster, "speedup", "its tokens per second over plain decoding's, measured here; prompts not counted"),
        (
            f"{stats.mean_accepted_length:.2f}" if stats.target_passes else NONE,
            "tokens a pass",
            "mean accepted length: tokens for each pass of the model, its own included; 1.00 is plain decoding",
        ),
        (
            f"{stats.acceptance_rate:.0%}" if stats.drafted else NONE,
            "accepted",
            f"of the drafted tokens: {stats.accepted} of {stats.drafted}",
        ),
        *_choice(side),
    ]


def as_html(figures: Sequence[Figure]) -> str:
    """A row of figures."""
    cells = (
        f'<div class="figure" title="{escape(meaning)}"><b>{escape(value)}</b><span>{escape(name)}</span></div>'
        for value, name, meaning in figures
    )
    return f'<div class="figures">{"".join(cells)}</div>'


def verdict(race: Race) -> str:
    """Whether both outputs are equal, in a sentence."""
    if not race.greedy:
        return (
            f"Sampled at temperature {race.speculative.generation.config.temperature:g}: two draws from the same "
            "distribution, the model's own, and draws differ. At temperature 0 both outputs are equal."
        )
    if not race.finished:
        both = f"both outputs are the same so far ({race.agreed} tokens compared)"
        return (
            f"Running: {both}." if race.agreed == race.compared else f"Running: they part at token {race.agreed + 1}."
        )
    if race.equal:
        return f"Equal: both outputs are the same {race.agreed} tokens, token for token."
    return f"Not equal: they part at token {race.agreed + 1}. {_reason(race)}"


def verdict_html(race: Race) -> str:
    """The same with its colour."""
    ended = "bad" if race.greedy and not race.equal else "good"
    return line(verdict(race), ended if race.finished else "running")


def line(text: str, state: str) -> str:
    """A sentence as HTML: ``running``, ``good`` or ``bad``."""
    return f'<p class="verdict {state}" role="status">{escape(text)}</p>'


def _reason(race: Race) -> str:
    if {race.plain.row.exact, race.speculative.row.exact} == {"bits"}:
        return "That must not be; specstream audit shows where and by how much."
    return "Passes of different widths round differently on this machine; specstream audit shows by how much."


def _speed(side: Side) -> Figure:
    return (f"{side.speed:.1f}" if side.speed else NONE, "tokens/s", "of this output; the prompt is not counted")


def _choice(side: Side) -> list[Figure]:
    """What a router took, where one chose."""
    choice = side.generation.choice
    if choice is None:
        return []
    expected = ", ".join(f"{name} {worth:.2f}" for name, worth in choice.expected.items())
    took = f"chosen in {choice.seconds * 1e3:.1f} ms; expected, in speeds of plain decoding: {expected}"
    return [(choice.drafter, "the router's choice", took)]


def _tokens(side: Side) -> Figure:
    return (str(len(side.row.emitted)), "tokens", f"in {side.row.stats.target_passes} passes of the model")
