"""Figures of ours beside other systems, each in a process of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import options
from benchmarks.prompts import CHATS, CODE_EDITS, Item, batches, encoded
from benchmarks.report import ratios, rows, say, table
from benchmarks.rounds import Measured, Plan, measure
from benchmarks.systems import parse_system
from specstream.errors import UsageError
from specstream.files.prompts import load_prompts

GENERATE, ASSISTED = "transformers:generate", "transformers:assisted"
FASTER = (GENERATE, f"{GENERATE}+dtype=float32")
"""Which is faster depends on the processor: without bfloat16 instructions it is float32."""

VLLM = tuple(f"vllm:draft_model@{k}" for k in (2, 3, 4, 5))
BATCH = 8


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the commands are given; models are folders, ``""`` where none was given.

    Attributes:
        target: of most figures.
        draft: its draft.
        heads: a folder of heads trained for it.
        smollm2: of the figures that are about it.
        data: a folder with ``humaneval/HumanEval.jsonl`` and ``summarization-t0/*.jsonl``.
        ours: our system, in place of the figure's own.
        rounds: counted rounds.
        max_new_tokens: of every prompt.
        limit: most prompts (of each kind).
        dtype: of every system.
        pythons: interpreters of peers.
        alive: most systems in memory at once.
        drafters: only these; empty for all that there are.
        batch_sizes: prompts decoded at once; empty for the figure's own.
    """

    target: str
    draft: str = ""
    heads: str = ""
    smollm2: str = ""
    data: str = ""
    ours: str = ""
    rounds: int = 3
    max_new_tokens: int = 64
    limit: int = 4
    dtype: str = "bfloat16"
    pythons: dict[str, str] = field(default_factory=dict)
    alive: int = 2
    drafters: tuple[str, ...] = ()
    batch_sizes: tuple[int, ...] = ()

    def with_draft(self) -> str:
        """The draft.

        Raises:
            UsageError: there is none.
        """
        if not self.draft:
            raise UsageError("this figure needs a draft model; give --draft")
        return self.draft

    def data_file(self, *names: str) -> Path:
        """A file or folder of the data.

        Raises:
            UsageError: there is no data folder, or it does not hold this.
        """
        path = Path(self.data, *names)
        if not self.data or not path.exists():
            raise UsageError(f"data is {self.data!r} and has no {'/'.join(names)}; give --data with a folder that does")
        return path


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A figure.

    Attributes:
        value: to be compared with the goal.
        text: what is printed above the verdict.
        details: what is written beside it.
    """

    value: float
    text: str
    details: dict[str, Any]


def plain(settings: Settings, model: str) -> Outcome:
    """Plain decoding against ``generate`` in its faster dtype: whole calls, median of the paired ratios."""
    return _against(settings, model, "specstream:none", FASTER, _chats(settings, model))


def with_draft(settings: Settings, others: Sequence[str]) -> Outcome:
    """Target with draft on HumanEval prompts against other systems, the one that is hardest for us."""
    settings.with_draft()
    texts = load_prompts(settings.data_file("humaneval", "HumanEval.jsonl"))[: settings.limit]
    items = encoded(options.load_tokenizer(settings.target), texts, name="HumanEval")
    return _against(settings, settings.target, "specstream:draft_model", others, items)


def batch(settings: Settings) -> Outcome:
    """Eight prompts of different lengths in one call, tokens of all rows over the time of the call."""
    tokenizer = options.load_tokenizer(settings.target)
    texts = [text for both in zip(CHATS, [*CODE_EDITS, *CHATS], strict=False) for text in both][:BATCH]
    return _against(
        settings, settings.target, "specstream:lookup", [GENERATE], batches(encoded(tokenizer, texts), BATCH)
    )


def memory(settings: Settings) -> Outcome:
    """Peak resident memory after the same generations, over that of ``generate``: loading included."""
    plan = _plan(settings, settings.target, "specstream:none", [GENERATE], _chats(settings, settings.target))
    measured = measure(plan, say)
    peaks = {row.system: row.peak_mib for row in rows(measured, GENERATE)}
    return Outcome(
        value=peaks[plan.systems[0].name] / peaks[GENERATE],
        text=table(measured, GENERATE),
        details={"peak_mib": peaks, **measured.as_json()},
    )


def _chats(settings: Settings, folder: str) -> list[Item]:
    return encoded(options.load_tokenizer(folder), CHATS[: settings.limit], name="chat")


def _against(settings: Settings, target: str, ours: str, others: Sequence[str], items: list[Item]) -> Outcome:
    plan = _plan(settings, target, ours, others, items)
    measured = measure(plan, say)
    value, best = smallest_ratio(measured, plan.reference, others)
    text = f"{table(measured, plan.reference)}\n{plan.reference} over {best}: {value:.3f} (median of pairs)"
    return Outcome(value=value, text=text, details={"against": best, **measured.as_json()})


def smallest_ratio(measured: Measured, ours: str, others: Sequence[str]) -> tuple[float, str]:
    """The median ratio of our speed to the other system's that is hardest for us, and that system."""
    medians = {other: median(ratios(measured.samples, ours, other)) for other in others}
    best = min(medians, key=medians.__getitem__)
    return medians[best], best


def _plan(settings: Settings, target: str, ours: str, others: Sequence[str], items: list[Item]) -> Plan:
    """Ours and the others, in groups of ``alive``; all of them must be there."""
    names = [settings.ours or ours, *others]
    systems = [parse_system(name) for name in names]
    draft = settings.with_draft() if any(system.needs_draft for system in systems) else ""
    return Plan(
        systems=systems,
        reference=names[0],
        models=options.models(target, draft, dtype=settings.dtype, items=items, limit=settings.max_new_tokens),
        items=items,
        rounds=settings.rounds,
        limit=settings.max_new_tokens,
        required=frozenset(names),
        pythons=settings.pythons,
        alive=settings.alive,
    )
