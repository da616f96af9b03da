from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from specstream.config import GenerationConfig
from specstream.core.policy.controller import Controller
from specstream.core.policy.policy import Speculation
from specstream.core.suffix_index import SEPARATOR
from specstream.drafters.draft_model import DraftModelDrafter
from specstream.drafters.lookup import LookupDrafter
from specstream.drafters.mixed import MixedDrafter
from specstream.engine.generation import Parts
from specstream.engine.memory import Memory
from specstream.serving.jobs import Done, Event, Failed, FairQueue, Job, LateError, Piece
from specstream.serving.scheduler import QueueFullError, Scheduler, StoppingError, Turns, answer_seconds
from tests.lossless.table_model import TableModel, TableSession

MODEL = TableModel.random(11, vocab=5, memory=3)
PATIENCE = 60.0
CHUNK = 4


class Letters:
    """A tokenizer: five letters."""

    def decode(self, tokens: Sequence[int], skip_special_tokens: bool = False) -> str:
        return "".join("abcde"[token] for token in tokens)


class Gate:
    """A target whose passes wait until they are let through, and fail when they are told to."""

    context_length = None
    rereads_at = None

    def __init__(self) -> None:
        self.passes = threading.Semaphore(0)
        self.failing: BaseException | None = None
        self.unreadable: set[int] = set()
        self.asked_to_read, self.reading = threading.Event(), threading.Event()
        self.reading.set()
        self.read = 0  # chunks of prompts

    def begin_reading(self, prefixes: Sequence[Sequence[int]]) -> TableSession:
        gate = self

        class Session(TableSession):
            def read(self, most: int) -> bool:
                if any(gate.unreadable.intersection(prefix) for prefix in prefixes):
                    raise RuntimeError("this prompt cannot be read")
                gate.asked_to_read.set()
                assert gate.reading.wait(PATIENCE)
                gate.read += any(self.unread)
                return super().read(most)

            def score(self, trees: Any) -> Any:
                assert gate.passes.acquire(timeout=PATIENCE)
                if gate.failing is not None:
                    error, gate.failing = gate.failing, None
                    raise error
                return super().score(trees)

        session = Session(MODEL, [[] for _ in prefixes])
        session.unread = [list(prefix) for prefix in prefixes]
        return session


class Asker:
    """A job, and what it was told."""

    def __init__(self, prompt: Sequence[int], length: int = 6, client: str = "", **more: Any) -> None:
        self.events: list[Event] = []
        self.ended = threading.Event()
        config = GenerationConfig(max_new_tokens=length, **more.pop("config", {}))
        self.job = Job(prompt=prompt, config=config, client=client, deliver=self._hear, **more)

    def _hear(self, event: Event) -> None:
        self.events.append(event)
        if not isinstance(event, Piece):
            self.ended.set()

    def end(self) -> Event:
        assert self.ended.wait(PATIENCE)
        return self.events[-1]

    def text(self) -> str:
        assert isinstance(self.end(), Done)
        return "".join(event.text for event in self.events if isinstance(event, Piece))


def expected(prompt: Sequence[int], length: int = 6) -> str:
    return Letters().decode(MODEL.favourites(prompt, length))


@contextmanager
def scheduling(
    gate: Gate, max_rows: int = 2, max_queue: int = 8, drafter: Any = None, memory: Memory | None = None
) -> Iterator[tuple[Scheduler, list[Job]]]:
    parts = Parts(
        target=gate,
        drafter=drafter or LookupDrafter(min_ngram=1),
        tokenizer=Letters(),
        eos_token_ids=frozenset(),
        speculation=Speculation(max_depth=3, controller=Controller()),
        memory=memory,
    )
    finished: list[Job] = []
    scheduler = Scheduler(parts, max_rows=max_rows, max_queue=max_queue, chunk=CHUNK, finished=finished.append)
    scheduler.start()
    try:
        yield scheduler, finished
    finally:
        gate.passes.release(1000)
        scheduler.stop(PATIENCE)


def wait_for(condition: Callable[[], bool]) -> None:
    for _ in range(6000):
        if condition():
            return
        threading.Event().wait(0.01)
    raise AssertionError("it did not happen")


def test_clients_take_turns() -> None:
    queue = FairQueue()
    for client in "aaabca":
        queue.push(Asker([0], client=client).job)
    assert len(queue) == 6
    assert [queue.pop().client for _ in range(6)] == list("abcaaa")


def test_those_who_are_gone_leave_the_queue() -> None:
    queue = FairQueue()
    for client in "aab":
        queue.push(Asker([0], client=client).job)
    assert len(queue.remove(lambda job: job.client == "a")) == 2
    assert queue.pop().client == "b"
    assert not len(queue)


def test_all_are_answered_whoever_is_beside_them() -> None:
    gate = Gate()
    with scheduling(gate) as (scheduler, finished):
        askers = [Asker([at % 5, 1, 2], length=3 + at) for at in range(7)]
        scheduler.submit([asker.job for asker in askers])
        gate.passes.release(1000)
        for at, asker in enumerate(askers):
            assert asker.text() == expected([at % 5, 1, 2], 3 + at)
        wait_for(lambda: len(finished) == 7)
        assert {job.outcome for job in finished} == {"length"}


def test_answers_are_remembered_where_there_is_a_memory() -> None:
    gate, memory = Gate(), Memory(None, None, 5)
    with scheduling(gate, memory=memory) as (scheduler, _):
        asker = Asker([0, 1, 2], length=6)
        scheduler.submit([asker.job])
        gate.passes.release(1000)
        asker.end()
        assert memory.index.tokens().tolist() == [0, 1, 2, *MODEL.favourites([0, 1, 2], 6), SEPARATOR]


def test_a_pass_that_fails_takes_its_rows_and_no_other() -> None:
    gate = Gate()
    with scheduling(gate) as (scheduler, _):
        first, second, third = (Asker([at, 1]) for at in range(3))
        scheduler.submit([each.job for each in (first, second, third)])
        wait_for(lambda: scheduler.running == 1)
        gate.passes.release(1)  # after it the second joins
        wait_for(lambda: scheduler.running == 2)
        gate.failing = RuntimeError("out of memory")
        gate.passes.release(1)
        for asker in (first, second):
            end = asker.end()
            assert isinstance(end, Failed)
            assert str(end.error) == "out of memory"
        gate.passes.release(100)
        assert third.text() == expected([2, 1])
        assert scheduler.ready


def test_a_prompt_that_cannot_be_read_is_its_own_affair() -> None:
    gate = Gate()
    gate.unreadable = {4}
    with scheduling(gate) as (scheduler, finished):
        good, bad = Asker([0, 1]), Asker([4, 1])
        scheduler.submit([good.job, bad.job])
        gate.passes.release(100)
        assert good.text() == expected([0, 1])
        assert isinstance(bad.end(), Failed)
        wait_for(lambda: {job.outcome for job in finished} == {"length", "failed"})


def test_one_whose_answer_cannot_be_delivered_harms_no_other() -> None:
    def gone(event: Event) -> None:
        raise RuntimeError("the loop is closed")

    gate = Gate()
    with scheduling(gate) as (scheduler, finished):
        good, bad = Asker([0, 1]), Asker([3, 1])
        bad.job.deliver = gone
        scheduler.submit([bad.job, good.job])
        gate.passes.release(100)
        assert good.text() == expected([0, 1])
        wait_for(lambda: len(finished) == 2)
        assert bad.job.outcome == "failed"


def test_the_cancelled_leave_between_rounds() -> None:
    gate = Gate()
    with scheduling(gate, max_rows=1) as (scheduler, finished):
        running, waiting, last = (Asker([at, 1], length=50) for at in range(3))
        scheduler.submit([each.job for each in (running, waiting, last)])
        wait_for(lambda: scheduler.running == 1)
        scheduler.cancel([running.job, waiting.job])
        gate.passes.release(1000)
        assert last.text() == expected([2, 1], 50)
        assert not running.ended.is_set()
        assert not waiting.ended.is_set()
        assert [job.outcome for job in finished[:2]] == ["cancelled", "cancelled"]


class Panic(BaseException):
    """What a library in Rust raises."""


def test_a_panic_does_not_end_the_thread() -> None:
    gate = Gate()
    with scheduling(gate) as (scheduler, _):
        asker, next_one = Asker([0, 1]), Asker([1, 1])
        gate.failing = Panic("index out of bounds")
        scheduler.submit([asker.job])
        gate.passes.release(1)
        end = asker.end()
        assert isinstance(end, Failed)
        assert isinstance(end.error, Exception)
        assert str(end.error).startswith("a pass ended with Panic in ")
        assert "index out of bounds" not in str(end.error)
        scheduler.submit([next_one.job])
        gate.passes.release(100)
        assert next_one.text() == expected([1, 1])


def test_who_is_being_read_has_a_row_already() -> None:
    gate = Gate()
    gate.reading.clear()
    with scheduling(gate, max_rows=1, max_queue=0) as (scheduler, _):
        scheduler.submit([Asker([0, 1]).job])
        assert gate.asked_to_read.wait(PATIENCE)
        assert (scheduler.running, scheduler.waiting) == (1, 0)
        with pytest.raises(QueueFullError):
            scheduler.check(1)
        gate.reading.set()


def test_a_deadline_ends_what_waits_and_what_runs() -> None:
    gate = Gate()
    with scheduling(gate) as (scheduler, _):
        late = Asker([0, 1], length=50, deadline=0.0)
        scheduler.submit([late.job])
        end = late.end()
        assert isinstance(end, Failed)
        assert isinstance(end.error, LateError)


def late(asker: Asker) -> str:
    end = asker.end()
    assert isinstance(end, Failed)
    assert isinstance(end.error, LateError)
    return str(end.error)


def test_a_long_prompt_is_read_between_the_rounds_of_others() -> None:
    gate, long = Gate(), [0, 1, 2, 3] * 6
    with scheduling(gate) as (scheduler, _):
        running, newcomer = Asker([0, 1], length=200), Asker(long)
        scheduler.submit([running.job])
        wait_for(lambda: scheduler.running == 1)
        gate.read = 0
        scheduler.submit([newcomer.job])
        for done in range(1, 6):  # its row waits for a pass before each chunk
            gate.passes.release(1)
            wait_for(lambda: len(running.events) >= done)  # noqa: B023
            assert gate.read <= done
            assert newcomer.job.read is None
        gate.passes.release(1000)
        assert newcomer.text() == expected(long)
        assert running.text() == expected([0, 1], 200)
        assert gate.read == 6


def test_who_waits_hears_at_its_deadline_while_a_pass_runs() -> None:
    gate = Gate()
    with scheduling(gate, max_rows=1) as (scheduler, finished):
        running = Asker([0, 1], length=50)
        scheduler.submit([running.job])
        wait_for(lambda: scheduler.running == 1)
        waiting = Asker([1, 1], deadline=time.monotonic() + 0.2)
        scheduler.submit([waiting.job])
        message = late(waiting)  # and no pass has ended
        assert "0.0 s reading the prompt, 0.0 s writing; try again later" in message
        assert scheduler.waiting == 0
        assert [job.outcome for job in finished] == ["late"]
        gate.passes.release(1000)
        assert running.text() == expected([0, 1], 50)


def test_a_prompt_whose_time_is_up_is_read_no_further() -> None:
    gate = Gate()
    gate.reading.clear()
    with scheduling(gate) as (scheduler, finished):
        asker, next_one = Asker([0, 1, 2, 3] * 9, deadline=time.monotonic() + 0.2), Asker([1, 1])
        scheduler.submit([asker.job, next_one.job])
        assert "0.0 s writing; send a shorter prompt" in late(asker)  # its first chunk is still being read
        gate.reading.set()
        gate.passes.release(1000)
        assert next_one.text() == expected([1, 1])
        assert gate.read == 2, "one chunk of each"
        wait_for(lambda: len(finished) == 2)
        assert [job.outcome for job in finished] == ["late", "length"]


def test_who_writes_hears_at_its_deadline_while_a_pass_runs() -> None:
    gate = Gate()
    with scheduling(gate) as (scheduler, finished):
        asker = Asker([0, 1], length=50, deadline=time.monotonic() + 0.3)
        scheduler.submit([asker.job])
        assert "writing; ask for fewer tokens" in late(asker)
        assert finished == [], "its row is in a pass"
        gate.passes.release(1)
        wait_for(lambda: finished == [asker.job])
        assert asker.job.outcome == "late"
        assert scheduler.running == 0


def test_who_leaves_while_its_prompt_is_read_has_no_more_of_it_read() -> None:
    gate = Gate()
    gate.reading.clear()
    with scheduling(gate) as (scheduler, finished):
        asker, next_one = Asker([0, 1, 2, 3] * 9), Asker([1, 1])
        scheduler.submit([asker.job, next_one.job])
        assert gate.asked_to_read.wait(PATIENCE)
        scheduler.cancel([asker.job])
        gate.reading.set()
        gate.passes.release(1000)
        assert next_one.text() == expected([1, 1])
        assert gate.read == 2
        wait_for(lambda: len(finished) == 2)
        assert [job.outcome for job in finished] == ["cancelled", "length"]
        assert asker.events == []


def test_the_place_of_one_who_left_the_queue_is_free_at_once() -> None:
    gate = Gate()
    with scheduling(gate, max_rows=1, max_queue=1) as (scheduler, _):
        scheduler.submit([Asker([0, 1]).job])
        wait_for(lambda: scheduler.running == 1)
        waiting, another = Asker([1, 1]), Asker([2, 1])
        scheduler.submit([waiting.job])
        scheduler.cancel([waiting.job])
        scheduler.submit([another.job])  # while the same pass runs
        gate.passes.release(1000)
        assert another.text() == expected([2, 1])


def test_all_of_a_request_or_none() -> None:
    gate = Gate()
    with scheduling(gate, max_rows=1, max_queue=2) as (scheduler, _):
        scheduler.submit([Asker([0, 1]).job])
        wait_for(lambda: scheduler.running == 1)
        with pytest.raises(QueueFullError) as full:
            scheduler.submit([Asker([1, 1]).job for _ in range(3)])
        assert full.value.retry_after >= 1
        assert scheduler.waiting == 0
        scheduler.submit([Asker([1, 1]).job for _ in range(2)])
        assert scheduler.waiting == 2


def test_to_stop_is_to_finish_what_is_there() -> None:
    gate = Gate()
    asker = Asker([0, 1])
    with scheduling(gate) as (scheduler, _):
        scheduler.submit([asker.job])
    assert asker.text() == expected([0, 1])
    assert not scheduler.ready
    with pytest.raises(StoppingError):
        scheduler.submit([Asker([0]).job])


def test_told_twice_to_stop_it_gives_up_at_once() -> None:
    gate = Gate()
    asker = Asker([0, 1], length=500)
    with scheduling(gate) as (scheduler, _):
        scheduler.submit([asker.job])
        wait_for(lambda: scheduler.running == 1)
        first = threading.Thread(target=scheduler.stop, args=(PATIENCE,))
        first.start()
        wait_for(lambda: not scheduler.ready)
        threading.Timer(0.2, lambda: gate.passes.release(2)).start()
        scheduler.stop(PATIENCE)
        first.join()
    end = asker.end()
    assert isinstance(end, Failed)
    assert isinstance(end.error, StoppingError)


def test_after_its_grace_it_gives_up() -> None:
    gate = Gate()
    asker = Asker([0, 1], length=500)
    with scheduling(gate) as (scheduler, _):
        scheduler.submit([asker.job])
        wait_for(lambda: scheduler.running == 1)
        threading.Timer(0.2, lambda: gate.passes.release(2)).start()
        scheduler.stop(0.0)
    end = asker.end()
    assert isinstance(end, Failed)
    assert isinstance(end.error, StoppingError)


def test_chances_are_those_of_the_model_and_no_more_than_are_emitted() -> None:
    gate = Gate()
    with scheduling(gate) as (scheduler, _):
        asker = Asker([0, 1, 2, 0, 1], length=9, top_logprobs=2)
        scheduler.submit([asker.job])
        gate.passes.release(100)
        asker.end()
    chances = [chance for event in asker.events if isinstance(event, Piece) for chance in event.chances]
    tokens, context = MODEL.favourites([0, 1, 2, 0, 1], 9), [0, 1, 2, 0, 1]
    assert [chance.token for chance in chances] == tokens
    for chance in chances:
        shares = MODEL.logits(context).log_softmax(-1)
        assert chance.logprob == pytest.approx(float(shares.max()))
        assert [token for token, _ in chance.top] == shares.topk(2).indices.tolist()
        context.append(chance.token)


@pytest.mark.parametrize("mixed", [False, True])
def test_a_draft_model_reads_long_prompts_in_chunks_too(mixed: bool) -> None:
    target, draft, long = Gate(), Gate(), [0, 1, 2, 3] * 6
    own = DraftModelDrafter(draft, gamma=3)
    with scheduling(target, drafter=MixedDrafter(LookupDrafter(min_ngram=1), own) if mixed else own) as (scheduler, _):
        draft.passes.release(10_000)
        running, newcomer = Asker([0, 1], length=400), Asker(long)
        scheduler.submit([running.job])
        wait_for(lambda: scheduler.running == 1)
        target.read = draft.read = 0
        scheduler.submit([newcomer.job])
        target.passes.release(2)
        wait_for(lambda: len(running.events) == 2)
        assert draft.read == 0, "the target comes first"
        for done in range(3, 9):
            target.passes.release(1)
            wait_for(lambda: len(running.events) >= done)  # noqa: B023
            assert target.read + draft.read <= done + 1
        assert newcomer.job.read is None
        target.passes.release(1000)
        assert newcomer.text() == expected(long)
        assert running.text() == expected([0, 1], 400)
        assert (target.read, draft.read) == (6, 6)


def test_in_a_crowd_that_comes_leaves_and_is_late_each_is_told_and_counted_once() -> None:
    gate, chance = Gate(), random.Random(3)
    gate.passes.release(1_000_000)
    prompts = [[chance.randrange(5) for _ in range(chance.randint(1, 40))] for _ in range(150)]
    with scheduling(gate, max_rows=4, max_queue=200) as (scheduler, finished):
        askers = []
        for at, prompt in enumerate(prompts):
            patience = chance.choice([0.0001, 0.01, 0.1, PATIENCE])
            askers.append(Asker(prompt, chance.randint(1, 40), f"{at % 7}", deadline=time.monotonic() + patience))
            scheduler.submit([askers[-1].job])
            if chance.random() < 0.2:
                scheduler.cancel([chance.choice(askers).job])
        wait_for(lambda: len(finished) == len(askers))
    assert {id(job) for job in finished} == {id(asker.job) for asker in askers}
    for asker, prompt in zip(askers, prompts, strict=True):
        ends = [event for event in asker.events if not isinstance(event, Piece)]
        if asker.job.outcome == "length":
            assert asker.text() == expected(prompt, asker.job.config.max_new_tokens)
        elif asker.job.outcome == "late":
            assert isinstance(ends[0], Failed)
        else:
            assert asker.job.outcome == "cancelled"
    assert {"length", "late", "cancelled"} == {asker.job.outcome for asker in askers}


def test_before_an_answer_has_ended_those_that_run_say_how_long_they_take() -> None:
    assert answer_seconds([], []) == 1
    assert answer_seconds([], [12.0, 4.0]) == 12


def test_an_answer_takes_the_mean_of_the_last_ones_or_as_long_as_one_that_runs() -> None:
    assert answer_seconds([4.0, 8.0], [0.5]) == 6
    assert answer_seconds([0.5], [30.0]) == 30


def test_turns_are_taken_on_one_thread_in_the_order_of_asking() -> None:
    turns, order, threads, began = Turns(), list[int](), set[int](), threading.Event()

    def first() -> None:
        began.set()
        wait_for(lambda: turns._asked.qsize() == 3)
        order.append(0)
        threads.add(threading.get_ident())

    def other(number: int) -> None:
        order.append(number)
        threads.add(threading.get_ident())

    askers = [threading.Thread(target=turns.take, args=(first,))]
    askers[0].start()
    assert began.wait(PATIENCE)
    for number in (1, 2, 3):
        asker = threading.Thread(target=turns.take, args=(lambda number=number: other(number),))
        askers.append(asker)
        asker.start()
        wait_for(lambda number=number: turns._asked.qsize() == number)
    for asker in askers:
        asker.join(PATIENCE)
    assert order == [0, 1, 2, 3]
    assert len(threads) == 1
    turns.close()


def test_what_fails_in_its_turn_fails_for_who_asked_and_no_other() -> None:
    turns, done = Turns(), list[int]()

    def panics() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        turns.take(panics)
    turns.take(lambda: done.append(1))
    assert done == [1]
    turns.close()
