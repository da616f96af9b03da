from __future__ import annotations

import json
import os
import signal

import pytest
import torch

from specstream.errors import TrainingError, UsageError
from specstream.training.checkpoints import Checkpoints
from specstream.training.config import LoggingSection, TrainingSection
from specstream.training.loop import learning_rate
from specstream.training.run_log import RunLog
from specstream.training.trainee import token_loss
from tests.unit.training.bigram import Bigram, counting, loop

SAVING = {"save_steps": 4, "eval_steps": 6, "logging_steps": 2}


def weights(trainee: Bigram) -> bytes:
    return trainee.table.detach().numpy().tobytes()


@pytest.fixture
def uninterrupted() -> bytes:
    trainee = Bigram()
    loop(trainee, **SAVING).run()
    return weights(trainee)


def test_the_loss_falls():
    trainee = Bigram()
    with RunLog(None, LoggingSection(), {}, quiet=True) as run_log:
        outcome = loop(trainee, run_log=run_log, num_train_steps=60, logging_steps=1).run()
    losses = [row["loss"] for row in run_log.rows if "loss" in row]
    assert outcome.finished
    assert outcome.progress.step == len(losses) == 60
    assert losses[-1] < 0.5 * losses[0]
    evaluations = [row["eval/loss"] for row in run_log.rows if "eval/loss" in row]
    assert evaluations[-1] < 0.5 * evaluations[0]
    assert outcome.progress.best == min(evaluations)


@pytest.mark.parametrize("stop_at", [1, 2, 3, 4, 5, 11, 23])
def test_a_run_stopped_at_any_step_ends_in_the_same_bits(stop_at, tmp_path, uninterrupted):
    """Killed, that is: what it had beyond its last checkpoint is done again, exactly."""

    class Killed(Bigram):
        def loss(self, batch):
            if self.steps == stop_at:
                raise SystemExit
            return super().loss(batch)

    checkpoints = Checkpoints(tmp_path, keep=2)
    with pytest.raises(SystemExit):
        loop(Killed(), checkpoints, **SAVING).run()
    assert checkpoints.steps() == [step for step in (4, 8, 12, 16, 20) if step <= stop_at][-2:]
    torch.manual_seed(stop_at)  # whatever the second process has drawn before
    again = Bigram()
    outcome = loop(again, Checkpoints(tmp_path, keep=2), **SAVING).run()
    assert outcome.finished
    assert weights(again) == uninterrupted
    assert again.steps == 24 - 4 * (stop_at // 4)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_finishes_its_step_and_saves_it(number, tmp_path, uninterrupted):
    class Interrupted(Bigram):
        def loss(self, batch):
            if self.steps == 6:
                os.kill(os.getpid(), number)
            return super().loss(batch)

    before = signal.getsignal(number)
    checkpoints = Checkpoints(tmp_path, keep=1)
    with pytest.raises(KeyboardInterrupt):
        loop(Interrupted(), checkpoints, **SAVING).run()
    assert checkpoints.steps() == [7]
    assert signal.getsignal(number) is before
    again = Bigram()
    loop(again, checkpoints, **SAVING).run()
    assert weights(again) == uninterrupted


def test_the_time_limit_saves_and_the_same_call_goes_on(tmp_path, uninterrupted):
    checkpoints, trainee, calls = Checkpoints(tmp_path, keep=1), Bigram(), 0
    while True:
        outcome = loop(trainee, checkpoints, max_seconds=1e-9, **SAVING).run()
        calls += 1
        assert outcome.progress.step == calls
        if outcome.finished:
            break
        trainee = Bigram()
    assert calls == 24
    assert weights(trainee) == uninterrupted


def test_accumulated_passes_are_one_larger_batch():
    """Of examples of one length, as the mean over passes is that over tokens only then."""
    results = []
    for size, accumulate in ((4, 1), (2, 2), (1, 4)):
        trainee = Bigram()
        trainee.loss = lambda batch, trainee=trainee: (token_loss(trainee.table[batch.tokens], batch), {})
        run = loop(trainee, num_train_steps=1, per_device_batch_size=size, gradient_accumulation_steps=accumulate)
        run._order.indices = lambda position, size=size: [
            4 * at for at in range(position * size, (position + 1) * size)
        ]
        run.run()
        results.append(trainee.table.detach())
    torch.testing.assert_close(results[1], results[0])
    torch.testing.assert_close(results[2], results[0])


def test_the_log_is_whole_after_an_interrupt(tmp_path):
    class Killed(Bigram):
        def loss(self, batch):
            if self.steps == 11:
                raise SystemExit
            return super().loss(batch)

    checkpoints = Checkpoints(tmp_path, keep=1)
    with pytest.raises(SystemExit), RunLog(tmp_path, LoggingSection(), {}, quiet=True) as run_log:
        loop(Killed(), checkpoints, run_log, **SAVING).run()
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 12, "los')
    with RunLog(tmp_path, LoggingSection(), {}, quiet=True) as run_log:
        loop(Bigram(), checkpoints, run_log, **SAVING).run()
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == list(range(2, 25, 2))
    assert [row["step"] for row in rows if "eval/loss" in row] == [0, 6, 12, 18, 24]
    header, *lines = (tmp_path / "log.csv").read_text().splitlines()
    assert len(lines) == len(rows)
    for name in ("step", "tokens", "loss", "loss/main", "learning_rate", "grad_norm", "tokens_per_second", "eval/loss"):
        assert name in header.split(",")


def test_the_best_checkpoint_is_by_held_out_figures(tmp_path):
    figures = iter([5.0, 3.0, 4.0, 2.0, 6.0])

    class Told(Bigram):
        def evaluate(self, batches):
            list(batches)
            return {"loss": next(figures)}

    checkpoints = Checkpoints(tmp_path, keep=2)
    outcome = loop(Told(), checkpoints, **SAVING).run()
    assert (outcome.progress.best, outcome.progress.best_step) == (2.0, 18)
    assert json.loads((checkpoints.best / "training_record.json").read_text())["progress"]["step"] == 18
    assert (checkpoints.best / "bigram.safetensors").exists()


def test_other_data_is_refused(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    loop(Bigram(), checkpoints, num_train_steps=4).run()
    other = loop(Bigram(), checkpoints)
    other._examples = counting(21)
    with pytest.raises(UsageError, match="the data differs"):
        other.run()


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory"), MemoryError()]
)
def test_out_of_memory_names_what_to_lower(error):
    trainee = Bigram()
    trainee.loss = lambda batch: (_ for _ in ()).throw(error)
    with pytest.raises(TrainingError, match=r"per_device_batch_size.*gradient_accumulation_steps.*max_length"):
        loop(trainee).run()


def test_another_error_stays_what_it_is():
    trainee = Bigram()
    trainee.loss = lambda batch: (_ for _ in ()).throw(RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        loop(trainee).run()


def test_a_loss_that_is_no_number_stops_the_run():
    trainee = Bigram()
    trainee.loss = lambda batch: (trainee.table.sum() * float("nan"), {})
    with pytest.raises(TrainingError, match="learning_rate"):
        loop(trainee).run()


def test_mixed_precision_runs_under_autocast_and_keeps_float32_weights():
    trainee, seen = Bigram(), []

    def loss(batch):
        product = trainee.table @ trainee.table
        seen.append(product.dtype)
        return product.float().square().mean(), {}

    trainee.loss = loss
    loop(trainee, num_train_steps=1, mixed_precision="bf16").run()
    assert seen == [torch.bfloat16]
    assert trainee.table.dtype == torch.float32


def test_the_callers_chance_is_left_alone():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    loop(Bigram(), num_train_steps=3).run()
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("kind", "rates"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]),
        ("cosine", [0.5, 1.0, 1.0, 0.8536, 0.5, 0.1464]),
    ],
)
def test_learning_rates(kind, rates):
    config = TrainingSection(num_train_steps=6, warmup_steps=2, learning_rate=1.0, lr_scheduler_type=kind)
    assert [learning_rate(config, step) for step in range(6)] == pytest.approx(rates, abs=1e-4)
