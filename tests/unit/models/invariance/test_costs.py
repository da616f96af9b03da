"""What is measured of passes and drafts, once, and what nobody learns of it. The clock is a number."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field

import pytest

from specstream.core.policy.prices import PriceList
from specstream.core.sampling import Finder
from specstream.drafters.draft_model import DraftModelDrafter
from specstream.drafters.lookahead import LookaheadDrafter
from specstream.drafters.lookup import LookupDrafter
from specstream.drafters.medusa import MedusaDrafter
from specstream.drafters.mixed import MixedDrafter
from specstream.drafters.none import NoDrafter
from specstream.drafters.streams import StreamsDrafter
from specstream.errors import DeviceMemoryError
from specstream.models.invariance import costs
from specstream.models.invariance.costs import (
    DEPTHS,
    FAR,
    NEAR,
    forget_prices,
    measure_drafting,
    measure_passes,
    prices_of,
    rungs,
)
from specstream.models.invariance.selftest_cache import SelfTestCache
from tests.lossless.table_model import TableHeads, TableModel, TableSession, TableStreams

TABLE = TableModel.random(3, vocab=10, memory=2, scale=3.0)
STEP = 0.003


@dataclass
class Clock:
    seconds: float = 0.0

    def __call__(self) -> float:
        return self.seconds


@dataclass(frozen=True, eq=False)
class Timed(TableModel):
    """A target whose passes advance a clock.

    Attributes:
        clock: that one.
        cost: seconds of a pass, by rows, nodes of all rows and tokens of context.
        passes: those that were made.
        measured: as a MeasuredTarget's.
    """

    clock: Clock = field(default_factory=Clock)
    cost: object = None
    passes: list[tuple[int, int, int]] = field(default_factory=list)
    measured: SelfTestCache = field(default_factory=lambda: SelfTestCache(None))
    num_parameters = 7
    nbytes = 28

    @property
    def model(self):
        return self

    def begin(self, prefixes):
        return Session(self, prefixes)

    def begin_reading(self, prefixes):
        session = Session(self, [[] for _ in prefixes])
        session.unread = [list(prefix) for prefix in prefixes]
        return session


class Session(TableSession):
    def score(self, trees):
        shape = (len(trees), sum(map(len, trees)), len(self.committed[0]))
        self.model.passes.append(shape)
        self.model.clock.seconds += self.model.cost(*shape)
        return super().score(trees)


def linear(rows, nodes, context):
    return 0.01 + 0.001 * nodes + 1e-5 * rows * context


def timed(cost=linear, context_length=None, clock=None, **options):
    return Timed(TABLE.table, TABLE.memory, context_length, clock=clock or Clock(), cost=cost, **options)


def drafts(clock):
    """Each drafter that takes steps."""
    return {
        "draft_model": DraftModelDrafter(timed(lambda *shape: STEP, clock=clock)),
        "streams": StreamsDrafter(TableStreams(TABLE)),
        "medusa": MedusaDrafter(TableHeads(TABLE)),
    }


@pytest.mark.parametrize("rows", [1, 2, 4, 8, 16, 64])
def test_passes_cost_what_the_clock_says(rows):
    target = timed()
    found = measure_passes(target, rows, now=target.clock)
    most = 32 if rows == 1 else min(8, 64 // rows)
    nodes = {rows * each for each in (1, 2, 4, 8, 16, 32) if each <= most}
    far = min(FAR, (1 << 14) // rows)
    assert set(found) == {(rows, each, context) for each in nodes for context in (NEAR, far)}
    assert found == {shape: pytest.approx(linear(*shape)) for shape in found}
    assert set(target.passes) == set(found), "every pass stands behind the context that it counts for"


def test_finding_tokens_as_rounds_find_them_is_part_of_a_pass(monkeypatch):
    target = timed()

    class Slow(Finder):
        def choices(self, logits):
            target.clock.seconds += 0.02
            return super().choices(logits)

    monkeypatch.setattr(Session, "finder", Slow())
    found = measure_passes(target, 1, nodes=4, now=target.clock)
    assert found == {shape: pytest.approx(linear(*shape) + 0.02) for shape in found}


def test_no_tree_is_larger_than_what_is_asked_for():
    target = timed()
    assert {nodes for _, nodes, _ in measure_passes(target, 1, nodes=6, now=target.clock)} == {1, 2, 4}
    assert {nodes for _, nodes, _ in measure_passes(target, 4, nodes=3, now=target.clock)} == {4, 8}


@pytest.mark.parametrize(
    ("limit", "contexts"), [(5000, {64, 1024}), (200, {64, 168}), (100, {64}), (50, {18}), (32, set())]
)
def test_the_context_of_the_model_is_kept_to(limit, contexts):
    target = timed(context_length=limit)
    assert {context for _, _, context in measure_passes(target, 1, nodes=8, now=target.clock)} == contexts


def test_what_is_known_is_not_measured_again():
    target = timed()
    known = {(1, nodes, NEAR) for nodes in (1, 2, 4, 8, 16)}
    found = measure_passes(target, 1, known=known, now=target.clock)
    assert not known & set(found) and not known & set(target.passes)
    assert (1, 32, NEAR) in found


def test_neither_a_first_pass_nor_a_disturbed_one_counts():
    seen = []

    def disturbed(*shape):
        seen.append(shape)
        return linear(*shape) / 10 * {1: 3, 3: 5}.get(seen.count(shape), 1)

    target = timed(disturbed)
    found = measure_passes(target, 2, now=target.clock)
    assert found == {shape: pytest.approx(linear(*shape) / 10) for shape in found}
    turns = [target.passes[at : at + len(found)] for at in range(0, len(target.passes), len(found))]
    assert len(turns) == 4 and all(turn == turns[0] for turn in turns), "a slow spell hits every shape"


@pytest.mark.parametrize("seconds", [0.2, 0.6, 3.0, 60.0])
def test_passes_that_take_too_long_are_left_out(seconds):
    target = timed(lambda rows, nodes, context: seconds)
    found = measure_passes(target, 1, now=target.clock)
    assert (1, 1, NEAR) in found, "a plain pass is always known"
    assert len(found) < len(costs._shapes(None, 1, 32))
    assert target.clock.seconds < costs.PASS_SECONDS + seconds + 1e-6, "the clock is read before every pass"


def test_a_shape_for_which_time_sufficed_once_is_left_out_as_first_runs_are_slow():
    typical, seen = {1: 0.06, 2: 0.07, 4: 0.09, 8: 0.2}, set()

    def cold(rows, nodes, context):
        first = (nodes, context) not in seen
        seen.add((nodes, context))
        return typical[nodes] * (2.6 if first else 1)

    target = timed(cold)
    found = measure_passes(target, 1, now=target.clock)
    assert (8, NEAR) in seen
    assert found == {(1, nodes, each): pytest.approx(typical[nodes]) for nodes, each in seen - {(8, NEAR)}}


def test_where_passes_are_slow_there_are_fewer_runs_and_not_fewer_shapes():
    target = timed(lambda rows, nodes, context: 0.1)
    found = measure_passes(target, 1, now=target.clock)
    assert {nodes for _, nodes, _ in found} == {1, 2, 4, 8, 16}
    assert len(target.passes) < 4 * len(found)


def test_what_the_device_has_no_room_for_is_left_out():
    def full(rows, nodes, context):
        if context > NEAR:
            raise DeviceMemoryError("no room")
        return linear(rows, nodes, context)

    target = timed(full)
    found = measure_passes(target, 1, now=target.clock)
    assert found and {context for _, _, context in found} == {NEAR}


@pytest.mark.parametrize("rows", [1, 4])
def test_a_draft_model_costs_its_steps(rows):
    target = timed()
    drafter = drafts(target.clock)["draft_model"]
    expected = {(rows, depth): pytest.approx(depth * STEP) for depth in DEPTHS}
    assert measure_drafting(target, drafter, rows, now=target.clock) == {"draft_model": expected}
    again = measure_drafting(target, drafter, rows, known={"draft_model": {(rows, 1)}}, deepest=2, now=target.clock)
    assert again == {"draft_model": {(rows, 2): pytest.approx(2 * STEP)}}


def test_what_a_draft_does_once_is_not_in_its_price():
    target, once = timed(), [2.0]
    draft = timed(lambda *shape: STEP + (once.pop() if once else 0), clock=target.clock)
    found = measure_drafting(target, DraftModelDrafter(draft), 1, now=target.clock)
    assert found == {"draft_model": {(1, depth): pytest.approx(depth * STEP) for depth in DEPTHS}}


@pytest.mark.parametrize("name", ["draft_model", "streams", "medusa"])
def test_depths_are_those_that_are_offered(name):
    target = timed()
    shallow = DraftModelDrafter(timed(lambda *shape: STEP, clock=target.clock), gamma=3)
    drafter = {**drafts(target.clock), "draft_model": shallow}[name]
    found = measure_drafting(target, drafter, 2, now=target.clock)
    assert {name: set(table) for name, table in found.items()} == {name: {(2, 1), (2, 2)}}


@pytest.mark.parametrize("drafter", [NoDrafter(), LookupDrafter(), LookaheadDrafter()], ids=["none", "lookup", "ahead"])
def test_what_takes_no_step_costs_nothing(drafter):
    target = timed()
    assert measure_drafting(target, drafter, 2, now=target.clock) == {}


def test_a_mixture_is_measured_one_by_one():
    target = timed()
    own = drafts(target.clock)
    mixed = MixedDrafter(LookupDrafter(), MixedDrafter(own["streams"], own["draft_model"]))
    found = measure_drafting(target, mixed, 1, now=target.clock)
    assert set(found) == {"streams", "draft_model"}
    assert found["draft_model"] == {(1, depth): pytest.approx(depth * STEP) for depth in DEPTHS}
    assert set(found["streams"].values()) == {0.0}, "its own steps, and not those of others"


def learned(drafter):
    """All that a drafter has learned for the texts to come."""
    known = {name: getattr(drafter, name) for name in ("learned", "doubts") if hasattr(drafter, name)}
    assert known
    parts = ((name, part, own) for name, value in known.items() for part, own in vars(value).items())
    return {(name, part): deepcopy(own) for name, part, own in parts if part != "_offers"}  # those follow from the rest


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("name", ["draft_model", "streams", "medusa"])
def test_junk_teaches_nothing(name, rows):
    target = timed()
    drafter = drafts(target.clock)[name]
    before = learned(drafter)
    assert measure_drafting(target, drafter, rows, now=target.clock)
    assert learned(drafter) == before


def passes_of(target):
    """The passes since one last asked."""
    made = list(target.passes)
    target.passes.clear()
    return made


@pytest.fixture
def stopped(monkeypatch):
    """The clock of all measurements, which stands still but for passes."""
    clock = Clock()
    monkeypatch.setattr(costs, "measure_passes", lambda *of, **how: measure_passes(*of, **how, now=clock))
    monkeypatch.setattr(costs, "measure_drafting", lambda *of, **how: measure_drafting(*of, **how, now=clock))
    return clock


def test_who_starts_again_has_the_same_list_without_a_pass(tmp_path, stopped):
    path = tmp_path / "known.json"
    draft = timed(lambda *shape: STEP, clock=stopped)
    first = timed(clock=stopped, measured=SelfTestCache(path))
    found = prices_of(first, MixedDrafter(LookupDrafter(), DraftModelDrafter(draft)), 4, 17)
    assert found.passes == {shape: pytest.approx(linear(*shape)) for shape in found.passes}
    assert {rows for rows, _, _ in found.passes} == {1, 4}
    expected = {(rows, depth): pytest.approx(depth * STEP) for rows in (1, 4) for depth in DEPTHS}
    assert found.drafts == {"draft_model": expected}

    assert passes_of(draft) and passes_of(first)
    again = timed(clock=stopped, measured=SelfTestCache(path))
    assert prices_of(again, MixedDrafter(LookupDrafter(), DraftModelDrafter(draft)), 4, 17) == found
    assert prices_of(again, MixedDrafter(LookupDrafter(), DraftModelDrafter(draft)), 3, 9) == found
    assert prices_of(again, LookupDrafter(), 1, 17).passes == found.passes
    assert not (passes_of(draft) or [each for each in passes_of(again) if each[1] > 1])


@pytest.mark.parametrize(("slower", "kept"), [(1.3, True), (2.0, False)])
def test_what_other_work_disturbed_is_measured_again_by_the_next_start(slower, kept, tmp_path, stopped):
    path, seen = tmp_path / "known.json", []

    def disturbed(*shape):
        seen.append(shape)
        return linear(*shape) * (slower if seen.count(shape) == 3 else 1)

    first = timed(disturbed, clock=stopped, measured=SelfTestCache(path))
    found = prices_of(first, NoDrafter(), 1, 9)
    assert found.passes and found.passes == {shape: pytest.approx(linear(*shape)) for shape in found.passes}
    passes_of(first)
    assert prices_of(first, NoDrafter(), 1, 9) == found and not passes_of(first)
    again = timed(clock=stopped, measured=SelfTestCache(path))
    assert prices_of(again, NoDrafter(), 1, 9).passes
    assert bool([shape for shape in passes_of(again) if shape[1] > 1]) == (not kept)


def test_what_is_forgotten_is_measured_again_by_whoever_asks_next(tmp_path, stopped):
    path = tmp_path / "known.json"
    busy = timed(lambda *shape: 3 * linear(*shape), clock=stopped, measured=SelfTestCache(path))
    busy.measured.keep("width 4", 1)
    prices_of(busy, NoDrafter(), 2, 9)
    busy.measured.keep_seconds("seconds of passes", {(9, 9, 9): 1.0}, lasting=False)
    forget_prices(busy)
    for each in (busy.measured, SelfTestCache(path)):
        assert not each.seconds("seconds of passes") and each.get("width 4") == 1
    quiet = timed(clock=stopped, measured=SelfTestCache(path))
    found = prices_of(quiet, NoDrafter(), 2, 9).passes
    assert found and found == {shape: pytest.approx(linear(*shape)) for shape in found}


def test_only_what_is_missing_is_measured(stopped):
    target = timed(clock=stopped)
    prices_of(target, NoDrafter(), 1, 5)
    assert {nodes for _, nodes, _ in passes_of(target)} == {1, 2, 4}
    found = prices_of(target, NoDrafter(), 1, 17)
    assert {nodes for _, nodes, _ in passes_of(target) if nodes > 1} == {8, 16}
    assert {nodes for _, nodes, _ in found.passes} == {1, 2, 4, 8, 16}
    prices_of(target, NoDrafter(), 6, 17)
    assert {rows for rows, _, _ in passes_of(target)} == {8}
    prices_of(target, NoDrafter(), 500, 17)
    assert {rows for rows, _, _ in passes_of(target)} == {64}


def test_drafters_of_other_sizes_have_lists_of_their_own(stopped):
    target = timed(clock=stopped)
    small, large = (timed(lambda *shape, own=own: own, clock=stopped) for own in (0.001, 0.002))
    object.__setattr__(large, "nbytes", 56)
    expected = {(1, depth): pytest.approx(depth * 0.001) for depth in DEPTHS}
    assert prices_of(target, DraftModelDrafter(small), 1, 17).drafts["draft_model"] == expected
    found = prices_of(target, DraftModelDrafter(large), 1, 17)
    assert found.drafts["draft_model"] == {key: pytest.approx(2 * took.expected) for key, took in expected.items()}


def test_rows_are_measured_on_a_ladder():
    assert [rungs(rows)[-1] for rows in (1, 2, 3, 4, 5, 8, 9, 64, 65, 900)] == [1, 2, 4, 4, 8, 8, 16, 64, 64, 64]
    assert rungs(9) == [1, 2, 4, 8, 16]


def test_lists_are_merged():
    one = PriceList({(1, 1, 64): 1.0, (1, 2, 64): 2.0}, {"a": {(1, 1): 1.0}, "b": {(1, 1): 2.0}})
    other = PriceList({(1, 1, 64): 3.0}, {"b": {(1, 2): 4.0}})
    merged = PriceList({(1, 1, 64): 3.0, (1, 2, 64): 2.0}, {"a": {(1, 1): 1.0}, "b": {(1, 1): 2.0, (1, 2): 4.0}})
    assert one.merged(other) == merged
    assert PriceList().merged(one) == one
