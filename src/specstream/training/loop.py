"""The one training loop. It knows a ``Trainee``, batches by position, and a step number from which all else follows.

A step's batches, its learning rate and its chance (dropout) are functions of the seed and of the step. So weights and
optimizer are all the state there is, and a run that goes on from a checkpoint ends in the same bits.
"""

from __future__ import annotations

import hashlib
import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from specstream.errors import TrainingError, UsageError
from specstream.models.hub.load import pick_device
from specstream.reporting import announce
from specstream.training.checkpoints import Checkpoints
from specstream.training.config import TrainingSection
from specstream.training.data import Batch, Examples, Order
from specstream.training.run_log import RunLog
from specstream.training.trainee import Trainee


@dataclass(kw_only=True)
class Progress:
    """How far a run is.

    Attributes:
        step: optimizer steps done.
        tokens: tokens seen, of all processes, padding not counted.
        seconds: time spent, of all sessions together.
        best: the best figure so far, None before an evaluation.
        best_step: its step.
        figures: those of the last evaluation.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best: float | None = None
    best_step: int = 0
    figures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run ended.

    Attributes:
        progress: how far it came.
        finished: whether all steps are done; if not, the time was up and the same call goes on.
    """

    progress: Progress
    finished: bool


class Loop:
    """Trains one trainee on the first of two sets of examples, and judges it on the second.

    Where there are no ``checkpoints`` nothing is saved; ``record`` is written with each, besides the figures.
    """

    def __init__(
        self,
        trainee: Trainee,
        data: tuple[Examples, Examples],
        config: TrainingSection,
        *,
        accelerator: Any,
        run_log: RunLog,
        checkpoints: Checkpoints | None = None,
        record: dict[str, Any] | None = None,
    ) -> None:
        self.trainee, self.config, self.progress = trainee, config, Progress()
        self._examples, self._held_out = data
        self._order = Order(self._examples.lengths, config.per_device_batch_size, config.seed)
        self._passes = math.inf  # of all steps, at most
        self._journal, self._checkpoints, self._record = run_log, checkpoints, record or {}
        self._parameters = list(trainee.parameters())
        optimizer = torch.optim.AdamW(
            self._parameters,
            lr=config.learning_rate,
            betas=(config.adam_beta1, config.adam_beta2),
            weight_decay=config.weight_decay,
        )
        self._accelerator = accelerator
        self._step, self._optimizer = accelerator.prepare(_Step(trainee, self._parameters), optimizer)
        self._values: dict[str, list[Tensor]] = {}  # since the last line of the log
        self._tokens, self._seconds = 0, 0.0  # likewise

    def run(self, epochs: int | None = None) -> Outcome:
        """Train to the end, or until the time is up.

        Args:
            epochs: times that every example is seen, over all steps: the last batch of an epoch and the last step may
                be smaller. None takes full batches only.

        Raises:
            KeyboardInterrupt: the process was told to stop; a checkpoint of the last whole step is written first.
            TrainingError: out of memory, or the loss is no number.
        """
        config, device, started = self.config, self._accelerator.device, time.perf_counter()
        if epochs is not None:
            self._order = Order(self._examples.lengths, config.per_device_batch_size, config.seed, every=True)
            self._passes = self._order.per_epoch * epochs
        self._resume()
        self._journal.begin(self.progress.step, config.num_train_steps)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), _interrupts() as told:
            if self.progress.step == 0:
                self._evaluate()
            while self.progress.step < config.num_train_steps:
                self._advance()
                out_of_time = config.max_seconds is not None and time.perf_counter() - started >= config.max_seconds
                stop = self._any(told.is_set() or out_of_time)
                self._after_step(stop)
                if stop:
                    break
        if told.is_set():
            raise KeyboardInterrupt
        return Outcome(progress=self.progress, finished=self.progress.step >= config.num_train_steps)

    def epoch_of(self, step: int) -> int:
        """The epoch in which a step begins; both are counted from 1."""
        return (step - 1) * self.config.gradient_accumulation_steps // self._order.per_epoch + 1

    def _advance(self) -> None:
        """One optimizer step."""
        started, config, accelerator = time.perf_counter(), self.config, self._accelerator
        step = self.progress.step
        begun = step * config.gradient_accumulation_steps
        parts_of_step = range(int(min(config.gradient_accumulation_steps, self._passes - begun)))
        torch.manual_seed(_seed(config.seed, step, accelerator.process_index))
        tokens = 0
        try:
            for part in parts_of_step:
                batch = self._batch(begun + part)
                tokens += batch.size
                last = part == parts_of_step[-1]
                with nullcontext() if last else accelerator.no_sync(self._step):
                    loss, parts = self._step(batch)
                    accelerator.backward(loss / len(parts_of_step))
                self._count({"loss": loss, **{f"loss/{name}": value for name, value in parts.items()}})
            norm = accelerator.clip_grad_norm_(self._parameters, config.max_grad_norm)
            self._check(norm)
            for group in self._optimizer.param_groups:
                group["lr"] = learning_rate(config, step)
            self._optimizer.step()
            self._optimizer.zero_grad()
        except (RuntimeError, MemoryError) as error:
            self._optimizer.zero_grad()
            raise _memory_error(error) or error from None
        self._count({"grad_norm": norm})
        tokens, seconds = tokens * accelerator.num_processes, time.perf_counter() - started
        self.progress.step += 1
        self.progress.tokens += tokens
        self.progress.seconds += seconds
        self._tokens, self._seconds = self._tokens + tokens, self._seconds + seconds

    def _batch(self, part: int) -> Batch:
        accelerator = self._accelerator
        position = part * accelerator.num_processes + accelerator.process_index
        return self._examples.batch(self._order.indices(position)).to(accelerator.device)

    def _count(self, values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            self._values.setdefault(name, []).append(value.detach().float())

    def _check(self, norm: Tensor) -> None:
        """In fp16 the scaler skips a step whose gradients overflow; elsewhere they never recover."""
        if self.config.mixed_precision != "fp16" and not bool(torch.isfinite(norm)):
            raise TrainingError(
                f"the gradients' norm is {float(norm)} at step {self.progress.step}; "
                "lower training.learning_rate, or set training.mixed_precision to no"
            )

    def _any(self, flag: bool) -> bool:
        """Whether any process says so."""
        if self._accelerator.num_processes == 1:
            return flag
        told = torch.tensor(float(flag), device=self._accelerator.device)
        return float(self._accelerator.reduce(told, "sum")) > 0

    def _after_step(self, stop: bool) -> None:
        config, step = self.config, self.progress.step
        last = step >= config.num_train_steps
        self._journal.advance(step)
        if step % config.logging_steps == 0 or last or stop:
            self._log()
        if step % config.eval_steps == 0 or last:
            self._evaluate()
        if step % config.save_steps == 0 or last or stop:
            self._save()

    def _log(self) -> None:
        values = {name: torch.stack(each).mean() for name, each in self._values.items()}
        if self._accelerator.num_processes > 1:
            values = self._accelerator.reduce(values, "mean")
        progress = self.progress
        self._journal.add(
            {
                "step": progress.step,
                "tokens": progress.tokens,
                "seconds": round(progress.seconds, 3),
                "learning_rate": learning_rate(self.config, progress.step - 1),
                **{name: float(value) for name, value in values.items()},
                "tokens_per_second": self._tokens / max(self._seconds, 1e-9),
            }
        )
        self._values, self._tokens, self._seconds = {}, 0, 0.0

    def _evaluate(self) -> None:
        """On the main process; the others wait."""
        progress, goal = self.progress, self.trainee.goal
        if len(self._held_out) and self._accelerator.is_main_process:
            started = time.perf_counter()
            device, size = self._accelerator.device, self.config.per_device_batch_size
            with torch.no_grad():
                batches = (batch.to(device) for batch in self._held_out.batches(size))
                progress.figures = self.trainee.evaluate(batches)
            progress.seconds += time.perf_counter() - started
            named = {f"eval/{name}": value for name, value in progress.figures.items()}
            at = {"step": progress.step, "tokens": progress.tokens, "seconds": round(progress.seconds, 3)}
            self._journal.add({**at, **named})
            if goal.better(progress.figures[goal.figure], progress.best):
                progress.best, progress.best_step = progress.figures[goal.figure], progress.step
                if self._checkpoints is not None:
                    self._checkpoints.save_best(self._described(), self.trainee.save)
        self._accelerator.wait_for_everyone()

    def _save(self) -> None:
        if self._checkpoints is not None and self._accelerator.is_main_process:
            state = {
                "progress": asdict(self.progress),
                "parameters": [parameter.detach().cpu() for parameter in self._parameters],
                "optimizer": self._optimizer.state_dict(),
                "scaler": self._accelerator.scaler.state_dict() if self._accelerator.scaler is not None else {},
                "data": self._examples.fingerprint,
            }
            self._checkpoints.save(self.progress.step, state, self._described(), self.trainee.save)
        self._accelerator.wait_for_everyone()

    def _described(self) -> dict[str, Any]:
        return {**self._record, "progress": asdict(self.progress), "data_sha256": self._examples.fingerprint}

    def _resume(self) -> None:
        """Go on from the last checkpoint, if there is one."""
        steps = self._checkpoints.steps() if self._checkpoints is not None else []
        if self._checkpoints is None or not steps:
            return
        state, _ = self._checkpoints.load(steps[-1])
        if state["data"] != self._examples.fingerprint:
            raise UsageError(
                f"the data differs from what {self._checkpoints.root} was trained on; give the same, "
                "or --no-resume to begin anew"
            )
        with torch.no_grad():
            for parameter, saved in zip(self._parameters, state["parameters"], strict=True):
                parameter.copy_(saved)
        self._optimizer.load_state_dict(state["optimizer"])
        if self._accelerator.scaler is not None:
            self._accelerator.scaler.load_state_dict(state["scaler"])
        self.progress = Progress(**state["progress"])
        self._journal.say(f"going on from step {self.progress.step}")


class _Step(nn.Module):
    """The trainee's loss as a module's ``forward``, where data-parallel training and autocast expect it.

    The trainee is no submodule, as its frozen parts are nobody's to synchronise.
    """

    def __init__(self, trainee: Trainee, parameters: list[nn.Parameter]) -> None:
        super().__init__()
        self._loss = trainee.loss
        self.trainable = nn.ParameterList(parameters)

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return self._loss(batch)


def make_accelerator(config: TrainingSection, *, cpu: bool) -> Any:
    """An ``Accelerator`` for these settings; one of earlier settings in this process gives way.

    Raises:
        UsageError: fp16 on a CPU, where accelerate would train in float32 without a word.
    """
    if config.mixed_precision == "fp16" and (cpu or pick_device("auto").type == "cpu"):
        raise UsageError("mixed_precision is 'fp16', in which a CPU does not train; give bf16, or no")
    from accelerate import Accelerator  # type: ignore[import-untyped]
    from accelerate.state import AcceleratorState  # type: ignore[import-untyped]

    AcceleratorState._reset_state()
    return Accelerator(cpu=cpu, mixed_precision=config.mixed_precision)


def announce_warm_up(config: TrainingSection, section: str = "") -> None:
    """Say that the learning rate never reaches its peak, if it does not.

    Args:
        config: of the run.
        section: of the file that it stands in, with a dot.
    """
    if config.warmup_steps >= config.num_train_steps:
        announce(
            f"{section}warmup_steps is {config.warmup_steps} and {section}num_train_steps is {config.num_train_steps}: "
            "the learning rate never reaches its peak; give fewer steps of warm-up"
        )


def learning_rate(config: TrainingSection, step: int) -> float:
    """Of the step with this number, the first being 0: a linear rise, then the fall that was asked for."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, config.num_train_steps - config.warmup_steps)
    factors = {"cosine": 0.5 * (1 + math.cos(math.pi * done)), "linear": 1 - done, "constant": 1.0}
    return config.learning_rate * factors[config.lr_scheduler_type]


def _seed(seed: int, step: int, process: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{step}/{process}".encode()).digest()[:7], "big")


def _memory_error(error: BaseException) -> TrainingError | None:
    known = ("out of memory", "not enough memory", "can't allocate memory")
    if not isinstance(error, MemoryError) and not any(words in str(error) for words in known):
        return None
    return TrainingError(
        "out of memory in a training step: lower training.per_device_batch_size (and raise "
        "training.gradient_accumulation_steps by the same factor), or lower data.max_length"
    )


@contextmanager
def _interrupts() -> Iterator[threading.Event]:
    """Inside, the first interrupt or termination sets the event, and the second one interrupts at once."""
    told = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield told
        return

    def tell(number: int, frame: object) -> None:
        if told.is_set():
            raise KeyboardInterrupt
        told.set()

    before = {number: signal.signal(number, tell) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
