"""Lossless sampling: the joint distribution of several generated tokens is the model's own, to the token.

Every case decodes thousands of rows with `decode()` and compares with the enumerated distribution; `exact.py` states
the bounds. Rules that are wrong on purpose must fail the same comparison.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count

import pytest
import torch
from transformers import NoRepeatNGramLogitsProcessor

from specstream.core import verify as rules
from specstream.core.decode import decode
from specstream.core.device import deferred, verification
from specstream.core.policy.policy import Speculation
from specstream.core.ports import Drafter
from specstream.core.rows import Known, Row, start_rows
from specstream.core.sampling import Sampling, draw
from specstream.core.stats import Timings
from specstream.core.stopping import Stopping
from specstream.core.suffix_index import SEPARATOR, SuffixIndex
from specstream.core.tree import TokenTree
from specstream.drafters.block import BlockDrafter
from specstream.drafters.dflash import DFlashDrafter
from specstream.drafters.draft_model import DraftModelDrafter
from specstream.drafters.eagle import EagleDrafter
from specstream.drafters.lookahead import LookaheadDrafter
from specstream.drafters.lookup import LookupDrafter
from specstream.drafters.medusa import MedusaDrafter
from specstream.drafters.mixed import MixedDrafter
from specstream.drafters.none import NoDrafter
from specstream.drafters.recycling import RecyclingDrafter
from specstream.drafters.streams import StreamsDrafter
from tests.lossless.drafters import Branching, FunctionDrafter
from tests.lossless.exact import Comparison, compare, exact_next, frequencies, joint
from tests.lossless.table_model import Part, TableBlock, TableDFlash, TableEagle, TableHeads, TableModel, TableStreams

VOCAB = 4
LENGTH = 3
PROMPTS = ([0, 1], [2], [3, 1, 2, 3, 1])

TARGET = TableModel.random(1, vocab=VOCAB)
GAPPED = TARGET.without(2, 1)
NEAR = TARGET.disturbed(3, 0.5)
WRONG = TableModel.random(4, vocab=VOCAB)
PEAKED = WRONG.sharpened(8)
TRUNCATED = WRONG.without(5, 2)

PLAIN = Sampling(temperature=1.0)


@dataclass(frozen=True, kw_only=True)
class Case:
    drafter: Callable[[], Drafter]  # made anew for each judgement: some keep what they learned
    target: TableModel = TARGET
    sampling: Sampling = PLAIN
    prompts: Sequence[list[int]] = PROMPTS[:1]
    length: int = LENGTH
    runs: int = 800  # with which each of the wrong rules below is noticed
    batch: int = 500
    threshold: float | None = None
    ends: frozenset[int] = frozenset()
    known: Known | None = None


def generate(case: Case) -> list[Row]:
    """``runs`` rows of every prompt, in batches that mix the prompts."""
    prompts, drafter = list(case.prompts) * case.runs, case.drafter()
    finished: list[Row] = []
    for start in range(0, len(prompts), case.batch):
        batch = prompts[start : start + case.batch]
        rows = start_rows(
            batch,
            range(start, start + len(batch)),
            case.target.context_length,
            sampling=case.sampling,
            stopping=Stopping(max_new_tokens=case.length, eos_token_ids=case.ends),
        )
        for row in rows:
            row.known = case.known
        for _ in decode(
            case.target,
            drafter,
            rows,
            speculation=Speculation(max_depth=5, acceptance_threshold=case.threshold),
            timings=Timings(),
        ):
            pass
        finished.extend(rows)
    return finished


def judge(case: Case, rows: Sequence[Row] | None = None) -> list[Comparison]:
    """One comparison for every prompt."""
    rows = rows or generate(case)
    following = exact_next(case.target, case.sampling)
    own = [[row.emitted for row in rows[at :: len(case.prompts)]] for at in range(len(case.prompts))]
    return [
        compare(frequencies(samples), joint(following, prompt, case.length, case.ends))
        for samples, prompt in zip(own, case.prompts, strict=True)
    ]


def draft(model: TableModel, branches: int = 1) -> DraftModelDrafter:
    return DraftModelDrafter(model, gamma=3, branches=branches)


def part(model: TableModel, tokens: tuple[int, ...], branches: int = 1) -> DraftModelDrafter:
    """A draft that says these tokens only."""
    return DraftModelDrafter(
        Part(model, tokens), gamma=3, branches=branches, vocab_size=VOCAB, part=torch.tensor(tokens)
    )


def lookup(branches: int = 1) -> LookupDrafter:
    return LookupDrafter(min_ngram=1, max_ngram=3, branches=branches)


def before() -> SuffixIndex:
    index = SuffixIndex(1, 3, capacity=32)
    index.extend([1, 0, 3, 3, 0, 2, 0, 2, 1, 3, SEPARATOR])
    return index


def mixed(model: TableModel, branches: int = 1) -> MixedDrafter:
    return MixedDrafter(LookupDrafter(min_ngram=2, max_ngram=3, branches=branches), draft(model, branches))


def tree(model: TableModel, branches: int, depth: int = 2, **options) -> FunctionDrafter:
    return FunctionDrafter(Branching(model, branches, depth, **options))


LOOKUP_PROMPT = [0, 1, 2, 0, 3, 2, 0, 1, 1, 0]

LOSSLESS = {
    "plain": Case(drafter=lambda: NoDrafter()),
    "a rule of the row": Case(drafter=lambda: draft(NEAR), known=lambda tokens: [tokens[-1], 0][: len(tokens) % 3]),
    "chain, near": Case(drafter=lambda: draft(NEAR)),
    "chain, four tokens": Case(drafter=lambda: draft(NEAR), length=4),
    "chain, wrong": Case(drafter=lambda: draft(WRONG)),
    "chain, peaked": Case(drafter=lambda: draft(PEAKED)),
    "chain, zero where the target is not": Case(drafter=lambda: draft(TRUNCATED)),
    "chain, target zero where the draft is not": Case(drafter=lambda: draft(WRONG), target=GAPPED),
    "tree of 2, wrong": Case(drafter=lambda: draft(WRONG, 2)),
    "tree of 2, zero where the target is not": Case(drafter=lambda: draft(TRUNCATED, 2)),
    "tree of 3, near": Case(drafter=lambda: draft(NEAR, 3)),
    "tree of 3, peaked": Case(drafter=lambda: draft(PEAKED, 3)),
    "tree of 3, fewer candidates than branches": Case(drafter=lambda: draft(TRUNCATED, 3), target=GAPPED),
    "chain, a draft of fewer tokens": Case(
        drafter=lambda: DraftModelDrafter(TableModel.random(6, vocab=VOCAB - 1), gamma=3, vocab_size=VOCAB)
    ),
    "chain, a draft that says some tokens": Case(drafter=lambda: part(NEAR, (0, 2, 3)), prompts=PROMPTS, runs=600),
    "tree of 2, a draft that says some tokens, penalty": Case(
        drafter=lambda: part(WRONG, (1, 2, 3), 2), sampling=Sampling(temperature=1.0, repetition_penalty=1.4)
    ),
    "tree of 3, a draft that says two tokens, top-p": Case(
        drafter=lambda: part(NEAR, (1, 2), 3), sampling=Sampling(temperature=1.2, top_p=0.9)
    ),
    "tree of 2, rows that end early": Case(drafter=lambda: draft(NEAR, 2), ends=frozenset({1}), length=4),
    "lookup chain": Case(drafter=lambda: lookup(), prompts=[LOOKUP_PROMPT]),
    "lookup branches": Case(drafter=lambda: lookup(3), prompts=[LOOKUP_PROMPT]),
    "lookup, answers of before": Case(
        drafter=lambda: LookupDrafter(min_ngram=1, max_ngram=3, memory=before()), prompts=[LOOKUP_PROMPT]
    ),
    "recycling": Case(drafter=RecyclingDrafter, prompts=PROMPTS, runs=600, length=4),
    "recycling, top-k": Case(
        drafter=lambda: RecyclingDrafter(successors=3), sampling=Sampling(temperature=1.2, top_k=3), length=4
    ),
    "lookahead": Case(drafter=lambda: LookaheadDrafter(window=3, ngram=3), prompts=PROMPTS, runs=600, length=4),
    "lookahead, the window alone, top-k": Case(
        drafter=lambda: LookaheadDrafter(window=2, ngram=2, from_text=False),
        prompts=PROMPTS[2:],
        sampling=Sampling(temperature=1.2, top_k=3),
        length=4,
    ),
    "medusa": Case(drafter=lambda: MedusaDrafter(TableHeads(NEAR), nodes=6), prompts=PROMPTS, runs=600, length=4),
    "medusa, wrong heads, top-p, rows that end early": Case(
        drafter=lambda: MedusaDrafter(TableHeads(WRONG), nodes=9),
        sampling=Sampling(temperature=1.2, top_p=0.9),
        ends=frozenset({1}),
        length=4,
    ),
    "medusa, penalty": Case(
        drafter=lambda: MedusaDrafter(TableHeads(NEAR), nodes=4, ranks=2),
        prompts=PROMPTS[2:],
        sampling=Sampling(temperature=1.0, repetition_penalty=1.5),
        length=4,
    ),
    "block": Case(drafter=lambda: BlockDrafter(TableBlock(NEAR), nodes=6), prompts=PROMPTS, runs=600, length=4),
    "block, a wrong head, top-p, rows that end early": Case(
        drafter=lambda: BlockDrafter(TableBlock(WRONG), nodes=9),
        sampling=Sampling(temperature=1.2, top_p=0.9),
        ends=frozenset({1}),
        length=4,
    ),
    "dflash, top-p, rows that end early": Case(
        drafter=lambda: DFlashDrafter(TableDFlash(NEAR), nodes=9),
        sampling=Sampling(temperature=1.2, top_p=0.9),
        ends=frozenset({1}),
        length=4,
    ),
    "eagle3": Case(drafter=lambda: EagleDrafter(TableEagle(NEAR), nodes=6), prompts=PROMPTS, runs=600, length=4),
    "eagle3, a wrong head, top-p, rows that end early": Case(
        drafter=lambda: EagleDrafter(TableEagle(WRONG), nodes=9),
        sampling=Sampling(temperature=1.2, top_p=0.9),
        ends=frozenset({1}),
        length=4,
    ),
    "streams": Case(
        drafter=lambda: StreamsDrafter(TableStreams(NEAR), nodes=6, most=6), prompts=PROMPTS, runs=600, length=4
    ),
    "streams that know the token before": Case(
        drafter=lambda: StreamsDrafter(TableStreams(NEAR, chained=True), nodes=6, most=6),
        prompts=PROMPTS,
        runs=600,
        length=4,
    ),
    "streams, wrong, top-p, rows that end early": Case(
        drafter=lambda: StreamsDrafter(TableStreams(WRONG), nodes=9, most=9),
        sampling=Sampling(temperature=1.2, top_p=0.9),
        ends=frozenset({1}),
        length=4,
    ),
    "streams, pruned by the target's own favourites": Case(
        drafter=lambda: StreamsDrafter(TableStreams(WRONG, exit=TARGET), nodes=9, most=9, pruning=0.3), length=4
    ),
    "streams, pruned by others, in batches of 3": Case(
        drafter=lambda: StreamsDrafter(TableStreams(NEAR, exit=WRONG), nodes=9, most=9, pruning=0.2),
        prompts=PROMPTS,
        runs=600,
        batch=3,
        length=4,
    ),
    "mixed with streams": Case(
        drafter=lambda: MixedDrafter(lookup(), StreamsDrafter(TableStreams(NEAR), nodes=6, most=6)),
        prompts=[LOOKUP_PROMPT, [2]],
        runs=600,
        length=4,
    ),
    "mixed chain": Case(drafter=lambda: mixed(NEAR), prompts=[LOOKUP_PROMPT, [2]], runs=600),
    "mixed tree in batches of 3": Case(
        drafter=lambda: mixed(WRONG, 2), prompts=[LOOKUP_PROMPT, *PROMPTS[1:]], runs=600, batch=3
    ),
    "mixed chain, penalty and top-k": Case(
        drafter=lambda: mixed(NEAR),
        prompts=PROMPTS,
        runs=500,
        sampling=Sampling(temperature=1.0, top_k=3, repetition_penalty=1.4),
    ),
    "full tree of 2, wrong": Case(drafter=lambda: tree(WRONG, 2)),
    "full tree of 3, near": Case(drafter=lambda: tree(NEAR, 3), target=GAPPED),
    "full tree, drawn then chosen": Case(drafter=lambda: tree(WRONG, 2, drawn_to=1)),
    "full tree, chosen": Case(drafter=lambda: tree(WRONG, 3, drawn_to=0)),
    "temperature": Case(drafter=lambda: draft(NEAR, 2), sampling=Sampling(temperature=0.6)),
    "top-k, chain": Case(drafter=lambda: draft(WRONG), sampling=Sampling(temperature=1.0, top_k=2)),
    "top-p, tree": Case(drafter=lambda: draft(WRONG, 2), sampling=Sampling(temperature=1.0, top_p=0.8)),
    "min-p, full tree": Case(drafter=lambda: tree(WRONG, 2), sampling=Sampling(temperature=1.3, min_p=0.15)),
    "repetition penalty, chain": Case(
        drafter=lambda: draft(NEAR), sampling=Sampling(temperature=1.0, repetition_penalty=1.8)
    ),
    "repetition penalty, lookup branches": Case(
        drafter=lambda: lookup(2), prompts=[LOOKUP_PROMPT], sampling=Sampling(temperature=1.0, repetition_penalty=0.6)
    ),
    "everything at once, tree": Case(
        drafter=lambda: draft(WRONG, 2),
        sampling=Sampling(
            temperature=1.4,
            top_k=3,
            top_p=0.95,
            min_p=0.05,
            repetition_penalty=1.3,
            processors=(NoRepeatNGramLogitsProcessor(2),),
        ),
    ),
    "three prompts in batches of 3, tree": Case(drafter=lambda: draft(NEAR, 2), prompts=PROMPTS, runs=600, batch=3),
    "three prompts, lookup": Case(drafter=lambda: lookup(2), prompts=PROMPTS, runs=700, batch=300),
}


@pytest.mark.parametrize("case", LOSSLESS.values(), ids=LOSSLESS)
def test_the_distribution_is_the_models_own(case):
    rows = generate(case)
    for comparison in judge(case, rows):
        assert comparison.matches, comparison
        assert comparison.cells >= 6, "too few cells to say anything"
    accepted, drafted = sum(row.stats.accepted for row in rows), sum(row.stats.drafted for row in rows)
    # A drafter that is always right, or never, would prove nothing.
    assert drafted == 0 if isinstance(case.drafter(), NoDrafter) else 0.05 < accepted / drafted < 0.95


ON_THE_DEVICE = [
    "plain",
    "chain, near",
    "chain, four tokens",
    "chain, peaked",
    "chain, zero where the target is not",
    "chain, target zero where the draft is not",
    "chain, a draft of fewer tokens",
    "chain, a draft that says some tokens",
    "lookup chain",
    "temperature, chain",
    "top-k, chain",
    "top-p, chain",
    "min-p, chain",
    "chain, rows that end early",
    "three prompts in batches of 3, chain",
    "chain, short context",
]
CHAINS = {
    "temperature, chain": Case(drafter=lambda: draft(NEAR), sampling=Sampling(temperature=0.6)),
    "top-p, chain": Case(drafter=lambda: draft(WRONG), sampling=Sampling(temperature=1.0, top_p=0.8)),
    "min-p, chain": Case(drafter=lambda: draft(WRONG), sampling=Sampling(temperature=1.3, min_p=0.15)),
    "chain, rows that end early": Case(drafter=lambda: draft(NEAR), ends=frozenset({1}), length=4),
    "three prompts in batches of 3, chain": Case(drafter=lambda: draft(NEAR), prompts=PROMPTS, runs=600, batch=3),
    "chain, short context": Case(drafter=lambda: draft(NEAR.limited(6)), prompts=PROMPTS, runs=600, batch=3, length=4),
}


@pytest.fixture
def on_the_device(monkeypatch):
    """As on a GPU: chains are drafted and verified without a word to the host, here by the CPU's own tensors."""
    monkeypatch.setattr(deferred, "asynchronous", lambda device: True)


@pytest.mark.parametrize("name", ON_THE_DEVICE)
def test_it_is_so_on_the_device_too(name, on_the_device, monkeypatch):
    monkeypatch.setattr(rules, "verify_sampled", None)
    test_the_distribution_is_the_models_own((LOSSLESS | CHAINS)[name])


@pytest.mark.parametrize("name", [name for name in LOSSLESS if name.startswith("mixed")])
def test_so_are_drafts_of_the_device_beside_looked_up_ones(name, on_the_device):
    test_the_distribution_is_the_models_own(LOSSLESS[name])


# Wrong rules. Each replaces `_choose_child` and differs from it in one place.


def p_alone(tree, node, p, generator):
    """Accepts with p where a draw from q asks for p / q."""
    q = tree.proposals.get(node)  # None only where there is no child
    for child in tree.children[node]:
        if torch.rand((), generator=generator) < p[tree.tokens[child]]:
            return child, p
        p = normalise((p - q).clamp_min(0))
    return None, p


def p_alone_then_p(tree, node, p, generator):
    """Accepts with p, and after rejections draws from p."""
    for child in tree.children[node]:
        if torch.rand((), generator=generator) < p[tree.tokens[child]]:
            return child, p
    return None, p


def draw_from_p(tree, node, p, generator):
    """Does not subtract q from p after a rejection."""
    q = tree.proposals.get(node)  # None only where there is no child
    for child in tree.children[node]:
        if torch.rand((), generator=generator) * q[tree.tokens[child]] < p[tree.tokens[child]]:
            return child, p
        q = normalise(without(q, tree.tokens[child]))
    return None, p


def siblings(tree, node, p, generator, *, normalise_q=True, normalise_p=True):
    """The right rule, with parts of the step to the next sibling left out."""
    q = tree.proposals.get(node)  # None only where there is no child
    for child in tree.children[node]:
        token = tree.tokens[child]
        if torch.rand((), generator=generator) * q[token] < p[token]:
            return child, p
        p = (p - q).clamp_min(0)
        p = normalise(p) if normalise_p else p
        q = normalise(without(q, token)) if normalise_q else without(q, token)
    return None, normalise(p)


def q_not_renormalised(*given):
    return siblings(*given, normalise_q=False)


def p_not_renormalised(*given):
    return siblings(*given, normalise_p=False)


def normalise(weights):
    total = weights.sum()
    return weights / total if total > 0 else torch.full_like(weights, 1 / len(weights))


def without(weights, token):
    return torch.where(torch.arange(len(weights)) == token, 0, weights)


WRONG_RULES = {
    "p alone, chain": (p_alone, draft(WRONG)),
    "p alone, tree": (p_alone, draft(WRONG, 2)),
    "p alone, then p, chain": (p_alone_then_p, draft(WRONG)),
    "p alone, then p, tree": (p_alone_then_p, draft(WRONG, 3)),
    "residual not subtracted, chain": (draw_from_p, draft(WRONG)),
    "residual not subtracted, tree": (draw_from_p, draft(WRONG, 3)),
    "q not renormalised after a sibling": (q_not_renormalised, tree(WRONG, 3)),
    "p not renormalised after a sibling": (p_not_renormalised, tree(WRONG, 3)),
}


@pytest.mark.parametrize(("rule", "drafter"), WRONG_RULES.values(), ids=WRONG_RULES)
def test_a_wrong_rule_is_noticed(monkeypatch, rule, drafter):
    monkeypatch.setattr(rules, "_choose_child", rule)
    (comparison,) = judge(Case(drafter=lambda: drafter, runs=1000))
    assert not comparison.matches, comparison


def not_subtracted(target, proposals, tokens, weighs, accepted, rejected):
    return target[torch.arange(len(target)), accepted]


def bonus_from_the_rest(target, proposals, tokens, weighs, accepted, rejected):
    return LEFT(target, proposals, tokens, weighs, accepted, torch.ones_like(rejected))


def p_alone_in_a_row(distributions, tokens, turns=count()):  # noqa: B008  # asked for q and p in turn
    probability = chains_of(distributions, tokens)
    return torch.ones_like(probability) if next(turns) % 2 == 0 else probability


LEFT, chains_of = verification._left, verification._of
WRONG_ON_THE_DEVICE = {
    "residual not subtracted": ("_left", not_subtracted),
    "residual after full acceptance too": ("_left", bonus_from_the_rest),
    "accepted with p alone": ("_of", p_alone_in_a_row),
}


@pytest.mark.parametrize("name", WRONG_ON_THE_DEVICE)
def test_a_wrong_rule_on_the_device_is_noticed(monkeypatch, on_the_device, name):
    monkeypatch.setattr(verification, *WRONG_ON_THE_DEVICE[name])
    (comparison,) = judge(Case(drafter=lambda: draft(WRONG), runs=1000))
    assert not comparison.matches, comparison


def test_the_rule_that_wrong_ones_are_made_from_is_right(monkeypatch):
    """Nothing else about the wrong rules makes them fail."""
    monkeypatch.setattr(rules, "_choose_child", siblings)
    (comparison,) = judge(Case(drafter=lambda: tree(WRONG, 3)))
    assert comparison.matches, comparison


def test_another_lossless_rule_passes(monkeypatch):
    """Draw from the target and go on if the token happens to be a child: fewer are accepted, none wrongly."""

    def draw_first(tree, node, p, generator):
        token = draw(p, generator)
        child = next((child for child in tree.children[node] if tree.tokens[child] == token), None)
        return child, torch.nn.functional.one_hot(torch.tensor(token), VOCAB).double()

    monkeypatch.setattr(rules, "_choose_child", draw_first)
    (comparison,) = judge(Case(drafter=lambda: draft(WRONG, 2)))
    assert comparison.matches, comparison


@pytest.mark.parametrize("drafter", [draft(NEAR), draft(WRONG, 3), lookup(2)], ids=["chain", "tree", "lookup"])
def test_typical_acceptance_is_lossy(drafter):
    (comparison,) = judge(Case(drafter=lambda: drafter, threshold=0.1, prompts=[LOOKUP_PROMPT]))
    assert not comparison.matches, comparison


LIES = {
    "chosen, declared as drawn": Branching(WRONG, 1, 2, drawn_to=0),
    "declared flat": Branching(WRONG, 1, 2, declared=lambda q: torch.full_like(q, 1 / len(q))),
    "declared sharper": Branching(WRONG, 2, 2, declared=lambda q: normalise(q**2)),
}


@pytest.mark.parametrize("branching", LIES.values(), ids=LIES)
def test_a_drafter_that_declares_the_wrong_distribution_is_noticed(branching):
    def lie(request):
        honest = branching(request)
        if honest.proposals:
            return honest
        q = WRONG.logits(request.tokens).softmax(-1)
        return TokenTree(honest.tokens, honest.parents, {0: q} if honest.drafted else {})

    (comparison,) = judge(Case(drafter=lambda: FunctionDrafter(lie)))
    assert not comparison.matches, comparison


def test_the_comparison_itself():
    exact = {(0,): 0.5, (1,): 0.3, (2,): 0.2}
    assert compare({(0,): 500, (1,): 300, (2,): 200}, exact).matches
    assert compare({(0,): 510, (1,): 285, (2,): 205}, exact).matches
    assert not compare({(0,): 600, (1,): 220, (2,): 180}, exact).matches
    assert not compare({(0,): 499, (1,): 300, (2,): 200, (3,): 1}, exact).matches, "one impossible sample is enough"
