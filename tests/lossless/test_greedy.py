"""Temperature 0: every drafter's output is the model's chain of favourites, token for token."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import NoRepeatNGramLogitsProcessor

from specstream.core.decode import decode
from specstream.core.device import deferred
from specstream.core.policy.policy import Speculation
from specstream.core.rows import start_rows
from specstream.core.sampling import Sampling
from specstream.core.stats import Timings
from specstream.core.stopping import Stopping
from specstream.core.suffix_index import SEPARATOR, SuffixIndex
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
from tests.lossless.drafters import Branching, FunctionDrafter, oracle
from tests.lossless.exact import generates_list
from tests.lossless.table_model import TableBlock, TableDFlash, TableEagle, TableHeads, TableModel, TableStreams

# A long memory: a node scored with one wrong ancestor, or a row with one wrong token committed, goes astray.
TARGET = TableModel.random(11, vocab=5, memory=4)
NEAR = TARGET.disturbed(12, 1.0)
WRONG = TableModel.random(13, vocab=5, memory=3)
PROMPTS = [[0, 1, 2, 3, 4], [4], [2, 2, 1, 0, 3, 2, 2, 1]]
LENGTH = 40

# Of a table's favourites few are new: after some tokens they repeat, which lookup lives on.
# Made anew for each test: some keep what they learned.
DRAFTERS = {
    "none": lambda: NoDrafter(),
    "lookup chain": lambda: LookupDrafter(min_ngram=1, max_ngram=4),
    "lookup tree": lambda: LookupDrafter(min_ngram=1, max_ngram=4, branches=3),
    "lookup, answers of before": lambda: LookupDrafter(min_ngram=2, memory=before()),
    "recycling": lambda: RecyclingDrafter(),
    "recycling behind a lookup": lambda: MixedDrafter(LookupDrafter(), RecyclingDrafter(successors=2)),
    "lookahead": lambda: LookaheadDrafter(),
    "lookahead, the window alone": lambda: LookaheadDrafter(window=3, ngram=3, from_text=False),
    "medusa": lambda: MedusaDrafter(TableHeads(NEAR)),
    "medusa, heads that are wrong": lambda: MedusaDrafter(TableHeads(TARGET.disturbed(15, 3.0)), nodes=6, ranks=2),
    "block": lambda: BlockDrafter(TableBlock(NEAR)),
    "dflash": lambda: DFlashDrafter(TableDFlash(NEAR)),
    "eagle3": lambda: EagleDrafter(TableEagle(NEAR)),
    "eagle3, a head that is wrong": lambda: EagleDrafter(TableEagle(TARGET.disturbed(15, 3.0)), nodes=6, ranks=2),
    "block, a head that is wrong": lambda: BlockDrafter(TableBlock(TARGET.disturbed(15, 3.0)), nodes=6, ranks=2),
    "streams": lambda: StreamsDrafter(TableStreams(NEAR)),
    "streams that know the token before": lambda: StreamsDrafter(TableStreams(NEAR, chained=True)),
    "streams that are wrong": lambda: StreamsDrafter(TableStreams(TARGET.disturbed(15, 3.0)), nodes=6, most=6, ranks=2),
    "streams, pruned": lambda: StreamsDrafter(TableStreams(NEAR, exit=NEAR), nodes=15, most=15, pruning=0.2),
    "draft chain, near": lambda: DraftModelDrafter(NEAR),
    "draft chain, wrong": lambda: DraftModelDrafter(WRONG, gamma=2),
    "draft chain, never says some tokens": lambda: DraftModelDrafter(TARGET.without(14, 2)),
    "draft chain, short context": lambda: DraftModelDrafter(NEAR.limited(20)),
    "draft tree of 2, near": lambda: DraftModelDrafter(NEAR, branches=2),
    "draft tree of 3, wrong": lambda: DraftModelDrafter(WRONG, gamma=3, branches=3),
    "mixed chain, near": lambda: MixedDrafter(LookupDrafter(min_ngram=2), DraftModelDrafter(NEAR)),
    "mixed chain, short context": lambda: MixedDrafter(LookupDrafter(min_ngram=3), DraftModelDrafter(NEAR.limited(20))),
    "mixed tree, wrong": lambda: MixedDrafter(LookupDrafter(branches=2), DraftModelDrafter(WRONG, gamma=3, branches=2)),
    "mixed with streams": lambda: MixedDrafter(LookupDrafter(min_ngram=2), StreamsDrafter(TableStreams(NEAR))),
    "full tree, chosen": lambda: FunctionDrafter(Branching(NEAR, 2, 3, drawn_to=0)),
    "full tree, drawn": lambda: FunctionDrafter(Branching(NEAR, 2, 3)),
    "oracle": lambda: oracle(TARGET),
}


def before():
    """An index of what the target says to one of the prompts, and of something else."""
    index = SuffixIndex(2, 8, capacity=64)
    for text in ([3, 1, 4, 1, 0, 2, 0, 4, 3] * 3, [*PROMPTS[0], *by_definition(Sampling(), PROMPTS[0], LENGTH)]):
        index.extend([*text, SEPARATOR])
    return index


SAMPLINGS = {
    "plain": Sampling(),
    "penalty and processor": Sampling(repetition_penalty=1.7, processors=(NoRepeatNGramLogitsProcessor(3),)),
}


def by_definition(sampling, prompt, length):
    tokens, processors = list(prompt), generates_list(replace(sampling, temperature=1.0))
    for _ in range(length):
        scores = processors(torch.tensor([tokens]), TARGET.logits(tokens)[None].clone())
        tokens.append(int(scores.argmax()))
    return tokens[len(prompt) :]


def generate(drafter, prompts, sampling):
    rows = start_rows(prompts, range(len(prompts)), None, sampling=sampling, stopping=Stopping(max_new_tokens=LENGTH))
    rounds = decode(
        TARGET,
        drafter,
        rows,
        speculation=Speculation(max_depth=5),
        timings=Timings(),
    )
    for _ in rounds:
        pass
    return rows


@pytest.fixture(params=["host", "device"])
def place(request, monkeypatch):
    """Drafted token by token, or as on a GPU, where a chain is drafted without a word to the host."""
    monkeypatch.setattr(deferred, "asynchronous", lambda device: request.param == "device")


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
@pytest.mark.parametrize("prompts", [PROMPTS[:1], PROMPTS], ids=["batch 1", "batch 3"])
@pytest.mark.parametrize("drafter", DRAFTERS.values(), ids=DRAFTERS)
def test_the_tokens_are_the_models_own(drafter, prompts, sampling):
    rows = generate(drafter(), prompts, sampling)
    for row, prompt in zip(rows, prompts, strict=True):
        assert row.emitted == by_definition(sampling, prompt, LENGTH)


@pytest.mark.parametrize("name", [name for name in DRAFTERS if name not in ("none", "oracle")])
def test_the_prompts_force_rejections_and_acceptances(name):
    rows = generate(DRAFTERS[name](), PROMPTS, Sampling())
    assert 0 < sum(row.stats.accepted for row in rows) < sum(row.stats.drafted for row in rows)
    assert len({len(row.stats.emitted) for row in rows}) > 1, "rows advance each at their own pace"


def test_nothing_of_the_oracle_is_rejected():
    for row in generate(DRAFTERS["oracle"](), PROMPTS, Sampling()):
        assert row.stats.acceptance_rate == 1.0
        assert row.stats.emitted == [6] * 6 + [4]
