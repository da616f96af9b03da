from __future__ import annotations

from typing import Any

import pytest

from specstream.core.decode import Reading
from specstream.core.policy.policy import Speculation
from specstream.core.rows import start_rows
from specstream.core.sampling import Sampling
from specstream.core.stats import Timings
from specstream.core.stopping import Stopping
from specstream.drafters.draft_model import DraftModelDrafter
from specstream.drafters.none import NoDrafter
from specstream.models.target.hf import HuggingFaceTarget
from specstream.models.target.uncached import UncachedTarget
from tests.lossless.decoding import run
from tests.lossless.table_model import TableModel
from tests.tiny import tiny_model

MODEL = TableModel.random(11, vocab=5, memory=3)
PROMPT = [0, 1, 2, 3, 4, 3, 2]
STEPS = {1: 6, 4: 2, 6: 1, 100: 1}


def reading(target: Any, drafter: Any, timings: Timings) -> Reading:
    rules: Any = {
        "speculation": Speculation(max_depth=3),
        "timings": timings,
    }
    return Reading(
        target,
        drafter,
        start_rows([PROMPT], [0], None, sampling=Sampling(), stopping=Stopping(max_new_tokens=9)),
        **rules,
    )


@pytest.mark.parametrize("most", STEPS)
@pytest.mark.parametrize("drafter", [NoDrafter(), DraftModelDrafter(MODEL, gamma=3)], ids=lambda each: each.name)
def test_a_batch_is_there_when_everything_is_read(drafter: Any, most: int) -> None:
    timings = Timings()
    prompt, steps = reading(MODEL, drafter, timings), 1
    while (batch := prompt.step(most)) is None:
        steps += 1
    chunks = STEPS[most]  # the draft's first chunk is read with the target's last
    assert steps == (chunks if drafter.name == "none" else 2 * chunks - 1)
    (row,) = batch.rows
    while batch.rows:
        batch.step()
    assert row.emitted == MODEL.favourites(PROMPT, 9)
    assert timings.prefill > 0


def test_a_target_without_a_cache_has_nothing_to_read() -> None:
    target = HuggingFaceTarget(tiny_model(), exact=False)
    batch = reading(UncachedTarget(target), NoDrafter(), Timings()).step(1)
    assert batch is not None
    (row,) = batch.rows
    while batch.rows:
        batch.step()
    assert row.emitted == run(target, NoDrafter(), [PROMPT], 9)[0].emitted
