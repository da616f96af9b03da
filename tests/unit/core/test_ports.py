from __future__ import annotations

from types import SimpleNamespace

import pytest

from specstream.core.ports import Components, DraftSession, hidden_states_of
from specstream.core.sampling import Sampling
from specstream.drafters.draft_model import DraftModelDrafter
from specstream.drafters.lookahead import LookaheadDrafter
from specstream.drafters.lookup import LookupDrafter
from specstream.drafters.medusa import MedusaDrafter
from specstream.drafters.none import NoDrafter
from specstream.drafters.streams import StreamsDrafter
from specstream.errors import UsageError
from tests.lossless.table_model import TableHeads, TableModel, TableStreams

MODEL = TableModel.random(3)


class Bare:
    """A session that shows no hidden states."""

    hidden_states = None


@pytest.mark.parametrize("drafter", [MedusaDrafter(TableHeads(MODEL)), StreamsDrafter(TableStreams(MODEL))])
def test_a_target_without_hidden_states_is_refused_by_name(drafter):
    with pytest.raises(UsageError, match=f"drafter is '{drafter.name}', which needs the target's hidden states"):
        drafter.begin([[1]], [None], Bare())


def test_hidden_states_are_the_sessions_own():
    session = MODEL.begin([[1]])
    assert hidden_states_of(session, "any") is session


@pytest.mark.parametrize(
    ("drafter", "available"),
    [(NoDrafter(), False), (LookupDrafter(), False), (LookaheadDrafter(), True), (DraftModelDrafter(MODEL), True)],
    ids=lambda each: getattr(each, "name", str(each)),
)
def test_a_drafter_that_waits_for_its_chance_is_asked_in_every_round(drafter, available):
    session = drafter.begin([[1, 2]], [Sampling()], MODEL.begin([[1]]))
    assert session.always_available is available


def test_components_that_several_drafters_share_count_once():
    head, draft, other = SimpleNamespace(), SimpleNamespace(), SimpleNamespace()
    union = Components.union(
        [Components(models=(draft,)), Components(heads=(head,), models=(draft, other)), Components(heads=(head,))]
    )
    assert (union.heads, union.models) == ((head,), (draft, other))


def test_a_session_that_misses_a_method_is_not_made():
    class Unfinished(DraftSession):
        def offers(self, requests):
            return []

    with pytest.raises(TypeError, match="abstract"):
        Unfinished()
