"""The loop as it runs on a GPU: captured passes, chains that are drafted and verified there, one question per round.

Here the CPU plays the GPU: a tape stands for a CUDA graph, and whatever would wait for the device is refused. The tests
at the end are the same on a GPU; they are skipped where there is none.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import pytest
import torch
from torch import Tensor

from specstream.core.decode import decode
from specstream.core.device import deferred
from specstream.core.policy.policy import Speculation
from specstream.core.ports import Drafter, DraftRequest
from specstream.core.rows import Row, start_rows
from specstream.core.sampling import Sampling
from specstream.core.stats import Timings
from specstream.core.stopping import Stopping
from specstream.core.tree import TokenTree
from specstream.drafters.draft_model import DraftModelDrafter
from specstream.drafters.lookahead import LookaheadDrafter
from specstream.drafters.lookup import LookupDrafter
from specstream.drafters.medusa import MedusaDrafter
from specstream.drafters.mixed import MixedDrafter
from specstream.drafters.none import NoDrafter
from specstream.errors import DeviceMemoryError
from specstream.heads.medusa import MedusaHeads
from specstream.models.cache import STEP
from specstream.models.runtime.capabilities import RuntimeName
from specstream.models.target.graphs import CudaCapture
from specstream.models.target.hf import HuggingFaceTarget
from tests.lossless.decoding import Recorded
from tests.lossless.families import FAMILIES, build, prompt
from tests.lossless.test_bits import Plain, differences
from tests.tape import NoReads, TapeCapture

PROMPTS = (prompt(21), prompt(5, seed=1), prompt(12, seed=2))
NEW_TOKENS = 24
GAMMA = 3
SAMPLED = Sampling(temperature=0.8, top_k=40, top_p=0.95, min_p=0.01)

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


def run(
    target: Any,
    drafter: Drafter,
    prompts: Sequence[Sequence[int]] = PROMPTS,
    *,
    sampling: Sampling | None = None,
    new_tokens: int = NEW_TOKENS,
) -> list[Row]:
    rows = start_rows(
        prompts,
        range(len(prompts)),
        target.context_length,
        sampling=sampling or Sampling(),
        stopping=Stopping(max_new_tokens=new_tokens),
    )
    for _ in decode(
        target,
        drafter,
        rows,
        speculation=Speculation(max_depth=GAMMA),
        timings=Timings(),
    ):
        pass
    return rows


def taped(family: str, *, exact: bool = False, **options: Any) -> HuggingFaceTarget:
    """A target that runs as on a GPU."""
    target = HuggingFaceTarget(build(family, **options), runtime="static", exact=exact)
    assert target.passes is not None
    target.passes.capture = TapeCapture()
    return target


def drafters(draft: HuggingFaceTarget) -> dict[str, Drafter]:
    return {
        "none": NoDrafter(),
        "lookup": LookupDrafter(min_ngram=1),
        "lookahead": LookaheadDrafter(window=3, ngram=3),
        "medusa": MedusaDrafter(MedusaHeads(draft.model, num_heads=GAMMA)),
        "draft_model": DraftModelDrafter(draft, gamma=GAMMA),
        "mixed": MixedDrafter(LookupDrafter(min_ngram=1), DraftModelDrafter(draft, gamma=GAMMA)),
    }


@pytest.fixture
def on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deferred, "asynchronous", lambda device: True)


@pytest.mark.usefixtures("on_the_device")
@pytest.mark.parametrize("family", FAMILIES)
def test_replayed_passes_and_deferred_drafts_give_the_models_own_tokens(family: str) -> None:
    expected = run(HuggingFaceTarget(build(family), runtime="eager"), NoDrafter())
    target = taped(family)
    for name, drafter in drafters(taped(family, noise=0.03)).items():
        rows = run(target, drafter)
        assert [row.emitted for row in rows] == [row.emitted for row in expected]
        if name in ("draft_model", "mixed"):
            assert 0 < sum(row.stats.accepted for row in rows) < sum(row.stats.drafted for row in rows)


@pytest.mark.usefixtures("on_the_device")
def test_a_row_is_sampled_as_it_would_be_alone() -> None:
    """Replays, neighbours and the growth of the cache leave no trace in a seeded row."""
    prompts = [prompt(STEP - 8), *PROMPTS[1:]]
    target, drafter = taped("llama"), DraftModelDrafter(taped("llama", noise=0.01), gamma=GAMMA)
    together = run(target, drafter, prompts, sampling=SAMPLED)
    for index, row in enumerate(together):
        (alone,) = start_rows(
            [prompts[index]], [index], None, sampling=SAMPLED, stopping=Stopping(max_new_tokens=NEW_TOKENS)
        )
        for _ in decode(
            target,
            drafter,
            [alone],
            speculation=Speculation(max_depth=GAMMA),
            timings=Timings(),
        ):
            pass
        assert alone.emitted == row.emitted
    assert sum(row.stats.accepted for row in together) > 0


@pytest.mark.usefixtures("on_the_device")
@pytest.mark.parametrize("one_width", [False, True], ids=["a class of widths", "one width"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", ["llama", "gemma3", "bloom"])
def test_what_is_called_bits_is_equal_to_the_bit(
    family: str, dtype: torch.dtype, one_width: bool, record_property: Callable[[str, object], None]
) -> None:
    target = taped(family, exact=True, dtype=dtype)
    assert target.exactness is not None
    if one_width:
        target.exactness._widths = []
    target.prepare(rows=1, nodes=GAMMA + 1)
    assert target.exactness.base == (8 if one_width else target.exactness.base)
    prompts = [prompt(STEP - 10), prompt(30, seed=1)]
    plain = Plain(target, prompts, NEW_TOKENS)
    drafter = DraftModelDrafter(taped(family, dtype=dtype, noise=0.01), gamma=GAMMA)
    for first, batch in enumerate([prompts[:1], prompts[1:], prompts]):
        recorded, at = Recorded(target), first % 2
        rows = run(recorded, drafter, batch)
        if any(row.exact != "bits" for row in rows):
            record_property("rounding", f"{family} {dtype} tape, {len(rows)} rows from {at}")
        elif all(exact == "bits" for exact in plain.exact):
            assert differences(plain, rows, recorded.logits, at) == []
        if family == "llama" and len(batch) == 1 and target.exactness.base is not None:
            assert rows[0].exact == "bits"


@pytest.mark.parametrize("asynchronous", [False, True], ids=["on the host", "on the device"])
def test_a_draft_says_that_it_ends_early_only_where_it_does(
    asynchronous: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chain that is drafted on the device takes all its steps, and the controller has to price them."""
    monkeypatch.setattr(deferred, "asynchronous", lambda device: asynchronous)
    drafter = DraftModelDrafter(taped("llama", noise=0.01), gamma=GAMMA)
    request = DraftRequest(tokens=PROMPTS[0], depth=GAMMA, generator=torch.Generator(), threshold=1.0)
    ((offer,),) = (session := drafter.begin([PROMPTS[0]], [Sampling()])).offers([request])
    (tree,) = session.propose([request])
    assert offer.cuts == (tree.drafted < GAMMA) == (not asynchronous)


def of_unequal_lengths(target: HuggingFaceTarget) -> list[list[int]]:
    """What eight rows say that end one after another, in passes of eight rows, then four, two and one."""
    target.prepare(rows=8, nodes=1)
    rows = [
        start_rows([prompt(9, seed=row)], [row], None, sampling=Sampling(), stopping=Stopping(max_new_tokens=length))[0]
        for row, length in enumerate(range(4, 20, 2))
    ]
    for _ in decode(target, NoDrafter(), rows, speculation=Speculation(max_depth=GAMMA), timings=Timings()):
        pass
    return [row.emitted for row in rows]


@pytest.mark.usefixtures("on_the_device")
@pytest.mark.parametrize("exact", [False, True], ids=["unpadded", "exact"])
def test_a_batch_captures_few_shapes_while_its_rows_end(exact: bool) -> None:
    target = taped("llama", exact=exact)
    assert of_unequal_lengths(target) == of_unequal_lengths(HuggingFaceTarget(build("llama"), runtime="eager"))
    assert exact or target.passes.capture.count == 1 + 4, "the self-test's tree, and four numbers of rows"
    if exact and target.exactness.base is not None:
        assert {rows for rows, _, _ in target.exactness._certified} == {8, 4, 2, 1}, "what runs is what was tested"


class Questions(NoReads):
    """Counts the transfers of tokens to the host and refuses to look at the device in any other way."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.count = 0
        tolist = torch.Tensor.tolist

        def counted(tensor: Tensor) -> Any:
            # Chance is drawn on the CPU; its numbers were never on a device.
            self.count += not tensor.is_floating_point()
            return tolist(tensor)

        monkeypatch.setattr(torch.Tensor, "tolist", counted)


@pytest.mark.usefixtures("on_the_device")
@pytest.mark.parametrize("sampling", [Sampling(), SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("name", ["none", "lookup", "draft_model"])
def test_a_round_asks_the_device_one_question(name: str, sampling: Sampling, monkeypatch: pytest.MonkeyPatch) -> None:
    target, draft = taped("llama"), taped("llama", noise=0.01)
    drafter = drafters(draft)[name]
    for each in (target, draft):
        each.prepare()
    run(target, drafter, sampling=sampling)  # every graph captured, and the first one checked
    questions = Questions(monkeypatch)
    with questions:
        rows = run(target, drafter, sampling=sampling)
    assert questions.count == max(row.stats.target_passes for row in rows)


@needs_gpu
class TestOnTheGpu:
    """Nothing here has an equal on the CPU but the device: capture, replay, streams and waits are real."""

    @staticmethod
    def target(
        family: str = "llama", dtype: torch.dtype = torch.float32, runtime: RuntimeName = "auto", **options: Any
    ) -> HuggingFaceTarget:
        noise = {"noise": options.pop("noise")} if "noise" in options else {}
        return HuggingFaceTarget(build(family, dtype, **noise).to("cuda"), runtime=runtime, **options)

    @pytest.fixture(autouse=True)
    def _back(self) -> Iterator[None]:
        """The models are shared with tests on the CPU."""
        yield
        for family in FAMILIES:
            for dtype in (torch.float32, torch.bfloat16):
                build(family, dtype).to("cpu")
                build(family, dtype, noise=0.01).to("cpu")

    @pytest.mark.parametrize("family", FAMILIES)
    def test_every_family_is_captured_and_keeps_its_tokens(self, family: str) -> None:
        expected = run(self.target(family, runtime="eager", exact=False), NoDrafter())
        target, draft = self.target(family), self.target(family, noise=0.01, exact=False)
        for drafter in drafters(draft).values():
            assert [row.emitted for row in run(target, drafter)] == [row.emitted for row in expected]
        assert target.runtime.name == draft.runtime.name == "graphs"
        assert isinstance(target.passes.capture, CudaCapture)  # it was not given up

    def test_a_batch_captures_few_shapes_while_its_rows_end(self) -> None:
        target, captured = self.target(exact=False), []
        capture = target.passes.capture
        assert isinstance(capture, CudaCapture)
        target.passes.capture = lambda run: captured.append(run) or capture(run)
        assert of_unequal_lengths(target) == of_unequal_lengths(self.target(runtime="eager", exact=False))
        assert len(captured) == 1 + 4, "the self-test's tree, and four numbers of rows"

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_a_replay_has_the_bits_of_the_pass(self, dtype: torch.dtype) -> None:
        graphs, static = (self.target("llama", dtype, name, exact=False) for name in ("graphs", "static"))
        recorded = [Recorded(graphs), Recorded(static)]
        for each in recorded:
            run(each, LookupDrafter(min_ngram=1), [prompt(STEP - 8), prompt(9)])
        for ours, theirs in zip(recorded[0].logits, recorded[1].logits, strict=True):
            assert torch.equal(torch.stack(list(ours)), torch.stack(list(theirs)))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_what_is_called_bits_is_equal_to_the_bit(self, dtype: torch.dtype, record_property: Any) -> None:
        target, draft = self.target("llama", dtype), self.target("llama", dtype, noise=0.01, exact=False)
        target.prepare(rows=1, nodes=GAMMA + 1)
        plain, ours = Recorded(target), Recorded(target)
        (expected,) = run(plain, NoDrafter(), PROMPTS[:1])
        (row,) = run(ours, DraftModelDrafter(draft, gamma=GAMMA), PROMPTS[:1])
        if row.exact != "bits":
            record_property("rounding", f"llama {dtype} {target.runtime.name} on {torch.cuda.get_device_name()}")
            return
        assert row.emitted == expected.emitted
        count = min(len(plain.logits[0]), len(ours.logits[0]))
        assert all(torch.equal(*each) for each in zip(plain.logits[0][:count], ours.logits[0][:count], strict=True))

    @pytest.mark.parametrize("sampling", [Sampling(), SAMPLED], ids=["greedy", "sampled"])
    @pytest.mark.parametrize("name", ["none", "lookup", "draft_model"])
    def test_a_round_waits_for_the_device_once(
        self, name: str, sampling: Sampling, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        target, draft = self.target(exact=False), self.target(noise=0.01, exact=False)
        drafter = drafters(draft)[name]
        run(target, drafter, PROMPTS[:1], sampling=sampling)  # every graph captured
        waits = []
        tolist = torch.Tensor.tolist

        def allowed(tensor: Tensor) -> Any:
            if not tensor.is_cuda:
                return tolist(tensor)
            waits.append(tensor.shape)
            with _sync_debug("default"):
                return tolist(tensor)

        monkeypatch.setattr(torch.Tensor, "tolist", allowed)
        (row,) = start_rows(PROMPTS[:1], [0], None, sampling=sampling, stopping=Stopping(max_new_tokens=NEW_TOKENS))
        rounds = decode(
            target,
            drafter,
            [row],
            speculation=Speculation(max_depth=GAMMA),
            timings=Timings(),
        )
        next(rounds)  # the prompt is read with as many waits as it takes
        waits.clear()
        with _sync_debug("error"):
            for _ in rounds:
                pass
        assert len(waits) == row.stats.target_passes - 1

    def test_a_model_that_looks_at_its_values_is_not_captured_and_keeps_its_tokens(self) -> None:
        expected = run(self.target(runtime="eager", exact=False), NoDrafter())
        target, stream = self.target(exact=False), torch.cuda.current_stream()
        hook = target.model.lm_head.register_forward_hook(lambda module, given, made: made * int(made.isfinite().all()))
        try:
            with pytest.warns(UserWarning, match="cannot be captured"):
                rows = run(target, NoDrafter())
        finally:
            hook.remove()
        assert [row.emitted for row in rows] == [row.emitted for row in expected]
        assert target.runtime.name == "eager"
        assert torch.cuda.current_stream() == stream
        again = self.target(exact=False)  # a failed capture leaves nothing behind that another model meets
        assert [row.emitted for row in run(again, NoDrafter())] == [row.emitted for row in expected]
        assert again.runtime.name == "graphs"

    def test_running_out_of_memory_is_said_and_the_next_run_works(self) -> None:
        expected = run(self.target(runtime="eager", exact=False), NoDrafter(), PROMPTS[:1])
        target = self.target(exact=False)
        target.prepare()
        session = target.begin([prompt(STEP // 2)])
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties("cuda").total_memory
        torch.cuda.set_per_process_memory_fraction(torch.cuda.memory_reserved() / total)
        held = list[Tensor]()  # what is left of the memory that is reserved
        for size in (1 << 20, 1 << 16, 1 << 12):
            with suppress(torch.OutOfMemoryError):
                while True:
                    held.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
        try:
            with pytest.raises(DeviceMemoryError, match=r"^cuda:0 has no room to capture a pass of 1 x 128 tokens"):
                session.score([TokenTree.chain(prompt(128))])
        finally:
            held.clear()
            torch.cuda.set_per_process_memory_fraction(1.0)
        assert [row.emitted for row in run(target, NoDrafter(), PROMPTS[:1])] == [row.emitted for row in expected]
        assert target.runtime.name == "graphs"

    def test_graphs_that_are_collected_do_not_spoil_a_capture(self) -> None:
        expected = run(self.target(runtime="eager", exact=False), NoDrafter())
        old = self.target(exact=False)
        run(old, NoDrafter())
        cycle = [old]
        cycle.append(cycle)
        before = gc.get_threshold()
        target = self.target(exact=False)
        assert isinstance(target.passes.capture, CudaCapture)
        del old, cycle  # from here on only a collection frees it, and its graphs
        gc.set_threshold(1)
        try:
            rows = run(target, NoDrafter())
        finally:
            gc.set_threshold(*before)
        assert [row.emitted for row in rows] == [row.emitted for row in expected]
        assert target.runtime.name == "graphs"

    def test_times_add_up(self) -> None:
        timings = Timings()
        rows = start_rows(PROMPTS, [0, 1, 2], None, sampling=Sampling(), stopping=Stopping(max_new_tokens=NEW_TOKENS))
        target, draft = self.target(exact=False), self.target(noise=0.01, exact=False)
        for _ in decode(
            target,
            DraftModelDrafter(draft, gamma=GAMMA),
            rows,
            speculation=Speculation(max_depth=GAMMA),
            timings=timings,
        ):
            pass
        assert min(timings.prefill, timings.propose, timings.score) > 0
        assert timings.propose + timings.score <= 1.1 * timings.decode


@contextmanager
def _sync_debug(mode: str) -> Iterator[None]:
    before = torch.cuda.get_sync_debug_mode()
    _set_sync_debug(mode)
    try:
        yield
    finally:
        _set_sync_debug(before)


def _set_sync_debug(mode: int | str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "a prototype feature", and warnings are errors here
        torch.cuda.set_sync_debug_mode(mode)
