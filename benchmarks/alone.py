"""Figures of ours against ours: lookup, never slower, predicted, long contexts. See ``inprocess.py`` for the ruler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from statistics import median
from typing import Any, get_args

from benchmarks import options
from benchmarks.beside import Outcome, Settings
from benchmarks.inprocess import Amount, Pair, adversarial, alternate, in_step, predict, unlearned
from benchmarks.prompts import CODE_EDITS, Item, encoded, long_text, random_prompts
from benchmarks.report import Spread, aligned, say
from specstream.cli.loading import load_engine
from specstream.config import DrafterName
from specstream.engine.engine import SpeculativeEngine
from specstream.errors import NumericalError
from specstream.evaluation.quality import Estimate
from specstream.evaluation.statistics import median_of
from specstream.files.prompts import load_prompts
from specstream.heads.folder import KINDS, kind_of

MATCHING = 0.2
"""A prompt counts as one where lookup matches if so large a share of its passes had an accepted draft."""

CONTEXTS = (1000, 2000, 4000, 7500)
RANDOM_LENGTH = 64


def lookup(settings: Settings) -> Outcome:
    """Lookup over plain decoding, on summaries and code edits.

    Every prompt is reported. The figure is the median of the prompts' medians over those where it matches: prompts
    with an accepted draft in at least ``MATCHING`` of their passes.
    """
    files = sorted(settings.data_file("summarization-t0").glob("*.jsonl"))
    tokenizer = options.load_tokenizer(settings.target)
    items: list[Item] = []
    for file in files:
        each = max(1, settings.limit // len(files))
        items += encoded(tokenizer, load_prompts(file)[:each], name=file.stem[:24])
    items += encoded(tokenizer, CODE_EDITS[: settings.limit], name="code edit")
    engine = _engine(settings, settings.target, "lookup")
    pairs = alternate(engine.parts, items, _amount(settings))
    value, text = matching(pairs)
    return Outcome(value=value, text=text, details=_details(engine, {"pairs": pairs}))


def matching(pairs: Sequence[Pair]) -> tuple[float, str]:
    """The median ratio where lookup matches (0 if it matches nowhere), and the table of all prompts."""
    cells, counted = [["prompt", "decoding min median max", "whole call", "passes that match", "tokens", "equal"]], []
    for name, own in _by_item(pairs).items():
        ratio, share = Spread.of([pair.ratio for pair in own]), median(pair.matching_passes for pair in own)
        if share >= MATCHING:
            counted.append(ratio.middle)
        whole = median(pair.whole_ratio for pair in own)
        cells.append([name, ratio.ratio(), f"{whole:.2f}", f"{share:.0%}", str(_tokens(own)), _equal(own)])
    value = median(counted) if counted else 0.0
    return value, f"{aligned(cells)}\nlookup matches on {len(counted)} of {len(cells) - 1} prompts"


def never_slower(settings: Settings) -> Outcome:
    """Every drafter over plain decoding on prompts of random tokens; the worst median is the figure.

    What a model writes after random tokens may repeat itself, and then drafts are accepted after all. So each drafter
    is measured a second time with adversarial drafts: it does all its work and has nothing accepted. Both sides of a
    pair generate pass by pass in turn: the worst of many medians is soon only the machine's worst moment.
    """
    found: dict[str, Estimate] = {}
    details: dict[str, Any] = {}
    cells = [
        ["drafter", "at once", "decoding min median max", "95 % from", "whole call", "drafted", "accepted", "equal"]
    ]
    for drafter in settings.drafters or drafters(settings.draft, settings.heads):
        engine = _engine(settings, settings.target, drafter)
        sides = {drafter: engine.parts, f"{drafter}, adversarial": adversarial(engine)}
        sizes = settings.batch_sizes or (1, 4)
        ways = [(size, name, unlearned(parts)) for size in sizes for name, parts in sides.items()]
        for size, name, parts in ways:
            say(f"{name}, {size} at once")
            items = random_prompts(
                len(engine.tokenizer), count=settings.limit * size, length=RANDOM_LENGTH, seed=1, at_once=size
            )
            pairs = in_step(parts, items, _amount(settings, ignore_eos=True))
            found[f"{name} @{size}"] = ratio = median_of([pair.ratio for pair in pairs])
            spread, whole = Spread.of([pair.ratio for pair in pairs]), median(pair.whole_ratio for pair in pairs)
            drafted, accepted = (sum(getattr(pair.own, key) for pair in pairs) for key in ("drafted", "accepted"))
            counts = [f"{whole:.2f}", str(drafted), str(accepted), _equal(pairs)]
            cells.append([name, str(size), spread.ratio(3), f"{ratio.low:.3f}", *counts])
            details[f"{name} @{size}"] = {**_details(engine, {"pairs": pairs}), "median": asdict(ratio)}
        del engine, sides, ways, parts
    return Outcome(value=min(each.value for each in found.values()), text=aligned(cells), details=details)


def drafters(draft: str, heads: str) -> list[str]:
    """Every drafter that proposes something, with the model and the heads at hand.

    Those that need heads come first: heads of another model are refused before minutes of measuring.
    """
    kind = kind_of(heads) if heads else ""
    needing = {"draft_model": draft, "mixed": draft or heads, **{each: heads if each == kind else "" for each in KINDS}}
    names = [name for name in get_args(DrafterName) if name not in ("auto", "none", "router")]
    return sorted((name for name in names if needing.get(name, name)), key=lambda name: name not in KINDS)


def predicted(settings: Settings) -> Outcome:
    """Measured decoding speed over the speed that pass costs and acceptance predict, with a draft model.

    In the same process: what a pass of each width costs, of the target and of the draft, at the context in the middle
    of the output. Predicted seconds are the sum of those over the passes that the run made; the figure is the median
    of predicted over measured seconds.
    """
    settings.with_draft()
    texts = load_prompts(settings.data_file("humaneval", "HumanEval.jsonl"))[: settings.limit]
    items = encoded(options.load_tokenizer(settings.target), texts, name="HumanEval")
    engine = _engine(settings, settings.target, "draft_model")
    cells, results = [["prompt", "predicted / measured min median max", "target passes", "draft passes"]], []
    for item in items:
        result = predict(engine, item, _amount(settings))
        results.append(result)
        made = [" ".join(f"{width}:{n}" for width, n in result.passes[side].items()) for side in ("target", "draft")]
        cells.append([item.name, Spread.of(result.ratios).ratio(), *made])
    value = median(ratio for result in results for ratio in result.ratios)
    text = f"{aligned(cells)}\npasses: width:how many, in the last run"
    return Outcome(value=value, text=text, details=_details(engine, {"predictions": results}))


def long_context(settings: Settings) -> Outcome:
    """What a token costs after 1k to 7.5k tokens of context with SmolLM2, plain and with lookup.

    Raises:
        NumericalError: the two differ although every pass was said to be exact.
    """
    engine = _engine(settings, settings.smollm2, "lookup")
    ids = engine.tokenizer(long_text(max(CONTEXTS)))["input_ids"]
    cells = [["context", "prompt s", "plain ms/token", "lookup ms/token", "ratio", "accepted", "equal"]]
    all_pairs: list[Pair] = []
    for length in CONTEXTS[: settings.limit]:
        say(f"context {length}")
        item = Item(name=f"{length} tokens", prompts=[ids[:length]])
        pairs = alternate(engine.parts, [item], _amount(settings, ignore_eos=True))
        all_pairs += pairs
        per_token = [
            median(1000 * run.decode / run.new_tokens for run in runs)
            for runs in ([pair.plain for pair in pairs], [pair.own for pair in pairs])
        ]
        read = median(pair.plain.total - pair.plain.decode for pair in pairs)
        accepted = f"{pairs[-1].own.accepted} of {pairs[-1].own.drafted}"
        costs = [f"{read:.2f}", *(f"{each:.1f}" for each in per_token), f"{median(p.ratio for p in pairs):.2f}"]
        cells.append([str(length), *costs, accepted, _equal(pairs)])
    broken = [pair.item for pair in all_pairs if pair.own.exact == "bits" and pair.own.tokens != pair.plain.tokens]
    if broken:
        raise NumericalError(f"lookup and plain decoding differ after {broken[0]}, and both were said to be exact")
    worst = max(1000 * pair.plain.decode / len(pair.plain.tokens) for pair in all_pairs)
    return Outcome(value=worst, text=aligned(cells), details=_details(engine, {"pairs": all_pairs}))


def _engine(settings: Settings, target: str, drafter: str) -> Any:
    mixed = drafter == "mixed"
    draft = settings.draft if drafter == "draft_model" or mixed else ""
    heads = settings.heads if drafter in KINDS or (mixed and not draft) else ""
    return load_engine(
        target, draft or None, {"drafter": drafter, "heads": heads or None, "dtype": settings.dtype, "memory": False}
    )


def _amount(settings: Settings, *, ignore_eos: bool = False) -> Amount:
    return Amount(rounds=settings.rounds, limit=settings.max_new_tokens, ignore_eos=ignore_eos)


def _by_item(pairs: Sequence[Pair]) -> dict[str, list[Pair]]:
    grouped: dict[str, list[Pair]] = {}
    for pair in pairs:
        grouped.setdefault(pair.item, []).append(pair)
    return grouped


def _tokens(pairs: Sequence[Pair]) -> int:
    return sum(pair.own.new_tokens for pair in pairs)


def _equal(pairs: Sequence[Pair]) -> str:
    outputs = [each for pair in pairs for each in zip(pair.own.tokens, pair.plain.tokens, strict=True)]
    return f"{sum(own == plain for own, plain in outputs)} of {len(outputs)}"


def _details(engine: SpeculativeEngine, results: dict[str, Sequence[Any]]) -> dict[str, Any]:
    listed = {name: [asdict(each) for each in values] for name, values in results.items()}
    return {"engine": {key: str(value) for key, value in engine.provenance().items()}, **listed}
