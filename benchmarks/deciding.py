"""What the policy costs: the time of its choices, and of learning from what became of them, of the time of a round."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count, cycle
from typing import Any

from benchmarks.beside import Outcome, Settings
from benchmarks.prompts import CHATS, CODE_EDITS, Item, batches, encoded
from benchmarks.report import aligned, say
from specstream.cli.loading import load_engine
from specstream.config import GenerationConfig
from specstream.engine.contestants import in_turn
from specstream.engine.generation import Generation, Parts
from specstream.engine.inventory import prepare
from specstream.evaluation.profile import Instrument

SIZES = (1, 4, 16)
CHOOSING, LEARNING = "choosing", "learning"


@dataclass(frozen=True, kw_only=True)
class Spent:
    """Seconds of one generation: of choosing, of learning and of everything, and the rounds that there were."""

    choosing: float
    learning: float
    decode: float
    rounds: int


def deciding(settings: Settings) -> Outcome:
    """The largest share of a round that the policy takes, over the sizes of batches."""
    cells, shares, details = [["at once", "rounds", "round ms", "choosing ms", "learning ms", "share"]], [], {}
    for size in settings.batch_sizes or SIZES:
        engine = load_engine(
            settings.smollm2, None, {"dtype": settings.dtype, "drafter": _drafter(settings), "memory": False}
        )
        prepare(engine.parts, size)
        items = batches(encoded(engine.tokenizer, _texts(settings.limit * size)), size)
        way = {"own": lambda item, parts=engine.parts: spent(parts, item, settings.max_new_tokens)}
        found = [entry.value for entry in in_turn(way, items, rounds=settings.rounds)]
        rounds, decode = sum(each.rounds for each in found), sum(each.decode for each in found)
        choosing, learning = sum(each.choosing for each in found), sum(each.learning for each in found)
        shares.append((choosing + learning) / decode)
        each_round = [f"{1000 * seconds / rounds:.3f}" for seconds in (decode, choosing, learning)]
        cells.append([str(size), str(rounds), *each_round, f"{shares[-1]:.2%}"])
        details[str(size)] = [vars(each) for each in found]
        say(f"{size} at once: {shares[-1]:.2%}")
    return Outcome(value=max(shares), text=aligned(cells), details=details)


def spent(parts: Parts, item: Item, limit: int) -> Spent:
    """Generate with the policy's two steps timed."""
    instrument, config = Instrument(), GenerationConfig(max_new_tokens=limit, ignore_eos=True)
    controller: Any = instrument.around(parts.speculation.controller, {"observe": LEARNING})
    steps = dict.fromkeys(("pauses", "choose", "cut"), CHOOSING)
    speculation: Any = instrument.around(replace(parts.speculation, controller=controller), steps)
    generation = Generation(replace(parts, speculation=speculation), item.prompts, config)
    rounds = sum(1 for _ in generation.rounds())
    seconds: dict[str, float] = defaultdict(float)
    for span in instrument.spans:
        seconds[span.part] += span.end - span.start
    return Spent(
        choosing=seconds[CHOOSING], learning=seconds[LEARNING], decode=generation.timings.decode, rounds=rounds
    )


def _drafter(settings: Settings) -> str:
    return settings.drafters[0] if settings.drafters else "auto"


def _texts(many: int) -> Iterator[str]:
    asked = zip(cycle([*CHATS, *CODE_EDITS]), count())
    return (f"{text} (Request {at}.)" for text, at in (next(asked) for _ in range(many)))
