from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from specstream.core.ports import Components, DraftSession, TargetSession, hidden_states_of
from specstream.drafters.medusa import MedusaDrafter
from specstream.drafters.streams import StreamsDrafter
from specstream.errors import UsageError
from tests.lossless.table_model import TableHeads, TableModel, TableStreams

MODEL = TableModel.random(3)


class Bare(TargetSession):
    """A session that shows no hidden states."""

    device = torch.device("cpu")


@pytest.mark.parametrize("drafter", [MedusaDrafter(TableHeads(MODEL)), StreamsDrafter(TableStreams(MODEL))])
def test_a_target_without_hidden_states_is_refused_by_name(drafter):
    with pytest.raises(UsageError, match=f"drafter is '{drafter.name}', which needs the target's hidden states"):
        drafter.begin([[1]], [None], Bare())


def test_hidden_states_are_the_sessions_own():
    session = MODEL.begin([[1]])
    assert hidden_states_of(session, "any") is session


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
