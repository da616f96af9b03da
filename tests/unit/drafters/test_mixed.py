"""Two drafters in one: whose offer is taken, and that the model stays in step while it is not used."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from specstream.core.decode import decode
from specstream.core.policy.policy import Speculation
from specstream.core.ports import DraftRequest, DraftSession
from specstream.core.rows import start_rows
from specstream.core.sampling import Sampling
from specstream.core.stats import Timings
from specstream.core.stopping import Stopping
from specstream.drafters.draft_model import DraftModelDrafter
from specstream.drafters.lookup import LookupDrafter
from specstream.drafters.mixed import MixedDrafter
from tests.lossless.table_model import TableModel

TARGET = TableModel.random(50, vocab=6, memory=5)
DRAFT = TARGET.disturbed(51, 0.6)
REPEATS, NEW = [3, 4, 5, 1, 3, 4], [0, 1, 2, 3, 4]


def request(tokens, depth=4, offer=None):
    return DraftRequest(tokens=tokens, depth=depth, generator=torch.Generator().manual_seed(0), offer=offer)


def begin(prompts, sampling=None):
    return MixedDrafter(LookupDrafter(), DraftModelDrafter(DRAFT)).begin(
        prompts, [sampling or Sampling()] * len(prompts), None
    )


def test_the_lookup_comes_first_where_it_matches():
    offers = begin([REPEATS, NEW]).offers([request(REPEATS), request(NEW)])
    assert [[offer.source for offer in row] for row in offers] == [["lookup/2", "draft_model"], ["draft_model"]]


def test_each_row_gets_the_tree_whose_offer_was_taken():
    session = begin([REPEATS, NEW, REPEATS, NEW])
    rows = [REPEATS, NEW, REPEATS, NEW]
    offers = session.offers([request(row) for row in rows])
    taken = [offers[0][0], offers[1][0], offers[2][1], None]
    depths = [3, 2, 1, 0]
    trees = session.propose([request(*each) for each in zip(rows, depths, taken, strict=True)])
    assert trees[0].tokens == (4, 5, 1, 3)
    assert trees[1].tokens == (4, *DRAFT.favourites(NEW, 2))
    assert trees[2].tokens == (4, *DRAFT.favourites(REPEATS, 1))
    assert trees[3].tokens == (4,)


def test_the_model_does_not_run_where_only_lookups_are_taken():
    session = begin([REPEATS])
    ((lookup, _),) = session.offers([request(REPEATS)])
    session.propose([request(REPEATS, 2, lookup)])
    assert session._sessions[1]._session.passes == 0


class Fickle:
    """In the controller's place: takes offers in turn, whatever they promise."""

    def __init__(self):
        self.round = 0

    def renew(self, rows):
        pass

    def pauses(self, rows):
        return False

    def choose(self, requests, offers, left=None, *, ragged):
        self.round += 1
        return [
            replace(asked, offer=own[(self.round + row) % len(own)] if own else None, depth=self.depth if own else 0)
            for row, (asked, own) in enumerate(zip(requests, offers, strict=True))
        ]

    @property
    def depth(self):
        return 1 + self.round % 2

    def cut(self, trees):
        return trees

    def observe(self, *of_the_round, deciding, ragged):
        pass


class InStep(MixedDrafter, DraftSession):
    """Compares every draft of the model with that of a model that starts from scratch."""

    def begin(self, prompts, samplings, session):
        self.sampling, self.taken = samplings[0], []
        self.session = super().begin(prompts, samplings, session)
        return self

    def offers(self, requests):
        return self.session.offers(requests)

    def propose(self, requests):
        again = [request(list(each.tokens), each.depth) for each in requests]
        for each, fresh in zip(requests, again, strict=True):
            fresh.generator.set_state(each.generator.get_state())
        trees = self.session.propose(requests)
        for each, fresh, tree in zip(requests, again, trees, strict=True):
            self.taken.append(each.offer.source.partition("/")[0] if each.offer else None)
            if self.taken[-1] == "draft_model":
                (expected,) = self.drafters[1].begin([fresh.tokens], [self.sampling]).propose([fresh])
                assert (tree.tokens, tree.parents) == (expected.tokens, expected.parents)
        return trees

    def observe(self, verdicts):
        self.session.observe(verdicts)

    def keep(self, rows):
        self.session.keep(rows)

    def join(self, other):
        self.session.join(other.session)


@pytest.mark.parametrize("branches", [1, 2])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.0)])
def test_the_models_drafts_are_those_of_one_from_scratch_whoever_drafted_before(sampling, branches):
    drafter = InStep(LookupDrafter(min_ngram=1), DraftModelDrafter(DRAFT, branches=branches))
    prompts = [REPEATS, NEW, [2], REPEATS * 3]
    rows = start_rows(
        prompts,
        range(4),
        None,
        sampling=sampling,
        stopping=Stopping(
            max_new_tokens=40, check=lambda emitted, new: 20 if len(emitted) > 19 and emitted[0] else None
        ),
    )
    for _ in decode(
        TARGET,
        drafter,
        rows,
        speculation=Speculation(max_depth=5, controller=Fickle()),
        timings=Timings(),
    ):
        pass
    assert min(drafter.taken.count(source) for source in ("lookup", "draft_model")) > 5
    if sampling.greedy:
        for row, prompt in zip(rows, prompts, strict=True):
            chain = TARGET.favourites(prompt, 40)
            assert row.emitted == (chain[:20] if chain[0] else chain)
