"""From a model to a trained head: its own answers, training on them, a test in decoding and a card.

The parts are those of ``distill-data``, ``train`` and ``benchmark heads``. A folder holds how far they are, so that the
same call goes on with it. Without ``hours`` the head is a function of the settings: a run that was killed ends in the
same bits. With them it depends on what the machine was fast enough for.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from specstream.engine.engine import SpeculativeEngine
from specstream.errors import UsageError
from specstream.evaluation.benchmark.prompts import Prompt
from specstream.evaluation.heads import FIXED, drafters_beside, measure_drafters
from specstream.files.atomic import changed, difference, read_lines, whole, write_json, write_whole
from specstream.heads.folder import SETTINGS
from specstream.heads.shipped import shipped_for
from specstream.models.architecture.compat import text_config
from specstream.reporting import announce, step
from specstream.training.answers import AnswerSettings, Tell, distill, encoded, files_sha256, read_questions
from specstream.training.cards import CARD, training_card
from specstream.training.checkpoints import check_replaceable
from specstream.training.config import TrainConfig, train_config
from specstream.training.data import Examples, load_examples
from specstream.training.head_plan import (
    ANSWER_BATCH,
    BATCH,
    EPOCHS,
    EVALUATIONS,
    LEAST,
    TEST_PROMPTS,
    TEST_TOKENS,
    Costs,
    answers_for,
    estimate,
    held_out,
    steps_for,
    steps_of,
)
from specstream.training.loop import Outcome
from specstream.training.run import train

STATE = "make_head.json"
"""How far a folder is; each run leaves one."""

RECORD = "training_record.json"

MOST_PROMPT = 512
"""Tokens of a prompt at most; longer ones are left out."""

NODES = 7
"""Drafted nodes of the fixed tree in the test."""

RECIPES: Mapping[str, dict[str, Any]] = {
    "streams": {
        "gamma": 4,
        "layers": 4,
        "rank": 16,
        "alpha": 32,
        "start": "linear",
        "chain_rank": 20,
        "vocabulary": 8192,
        "soften": 0.9,
    },
    "medusa": {"num_heads": 3, "vocabulary": 8192},
    "block": {"gamma": 4, "layers": 2, "window": 128, "chain_rank": 128, "vocabulary": 8192, "anchors": 48},
    "eagle3": {"gamma": 4, "vocabulary": 8192},
}
"""The settings of ``configs``, for any model."""

RATES = {"streams": 1e-3, "medusa": 1e-3, "block": 5e-4, "eagle3": 1e-3}
"""Learning rates, likewise."""

SAMPLE_STEPS = 3

Stage = Callable[[str], AbstractContextManager[Tell]]
"""A stage that begins, with what it is called; inside, it is told how far it is."""


def _silent(what: str) -> AbstractContextManager[Tell]:
    return nullcontext(lambda done, total, note: None)


@dataclass(frozen=True, kw_only=True)
class HeadSettings:
    """What head, of what.

    Attributes:
        model: the base; a catalog name, a folder or a hub id.
        kind: ``streams``, ``medusa``, ``block`` or ``eagle3``.
        prompts: files of prompts that it answers.
        exclude: files whose prompts must not be among them.
        tokens: of its answers; the batch that reaches them is the last. None for all prompts.
        hours: of a call, from its start: answers and steps are chosen to fit, and it stops in time. None is no limit.
        max_new_tokens: of an answer.
        dtype: as of ``ModelSection``.
        seed: of the order of prompts and examples, and of what a head begins with.
    """

    model: str
    kind: str
    prompts: tuple[str, ...]
    exclude: tuple[str, ...] = ()
    tokens: int | None = 300_000
    hours: float | None = None
    max_new_tokens: int = 128
    dtype: str = "auto"
    seed: int = 0

    def identity(self) -> dict[str, Any]:
        """What a folder goes on with only if it is the same."""
        hashes = {"prompts": files_sha256(self.prompts), "exclude": files_sha256(self.exclude)}
        return {name: value for name, value in {**asdict(self), **hashes}.items() if name != "hours"}


class HeadRun:
    """One head in the making.

    Args:
        folder: where it goes, and how far it is there.
        settings: of the head.
        device: as of ``ModelSection``.
        disk_gb: of hidden states that are kept at most.
        stage: shows how far a stage is.
        quiet: show nothing of training.
        clock: seconds, for ``hours``.

    Raises:
        UsageError: a folder that holds something else or a head of other settings, or too few prompts.
    """

    def __init__(
        self,
        folder: str | Path,
        settings: HeadSettings,
        *,
        device: str = "auto",
        disk_gb: float = 20.0,
        stage: Stage = _silent,
        quiet: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        check_replaceable(Path(folder), STATE, "output")
        self.folder, self.settings = Path(folder), settings
        self._device, self._disk, self._stage, self._quiet = device, disk_gb, stage, quiet
        self._clock, self._began = clock, clock()
        questions, _ = read_questions(self._asked())
        if len(questions) < LEAST:
            files = ", ".join(settings.prompts)
            raise UsageError(f"prompts is {files!r}, which holds {len(questions)} and a head needs {LEAST}; give more")
        self._state: dict[str, Any] = {"settings": settings.identity()}
        if (path := self.folder / STATE).is_file():
            before = json.loads(path.read_text(encoding="utf-8"))
            if (other := difference(before["settings"], self._state["settings"])) is not None:
                raise UsageError(
                    f"output is {str(folder)!r}, which holds a head with {changed(*other)}; "
                    "give the old value, or a new folder"
                )
            self._state = before

    def run(self) -> dict[str, Any]:
        """Do what is left.

        Returns:
            What the head is and reaches, as ``make_head.json`` holds it under ``result``.

        Raises:
            UsageError: too few hours, or answers.
            SpecStreamError: a model that cannot be loaded, or carries no such head.
            KeyboardInterrupt: the folder holds all that is done; the same call goes on.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self._save()
        if "result" not in self._state:
            if "costs" not in self._state:
                self._sample()
            if "steps" not in self._state:
                self._answer()
            if "trained" not in self._state:
                self._train()
            self._finish(self._test())
        for name in ("states", "training/checkpoints", "training/best", "sample"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        result: dict[str, Any] = self._state["result"]
        return result

    def _save(self, **more: Any) -> None:
        self._state |= more
        write_json(self.folder / STATE, self._state)

    def _left(self) -> float | None:
        """Seconds until the hours are over."""
        return None if self.settings.hours is None else self.settings.hours * 3600 - (self._clock() - self._began)

    def _engine(self) -> SpeculativeEngine:
        given, tokens = self.settings, self._test_tokens
        return SpeculativeEngine(
            given.model, drafter="none", dtype=given.dtype, device=self._device, max_new_tokens=tokens
        )

    @property
    def _test_tokens(self) -> int:
        return min(TEST_TOKENS, self.settings.max_new_tokens)

    def _asked(self) -> AnswerSettings:
        given = self.settings
        return AnswerSettings(
            model=given.model,
            prompts=given.prompts,
            exclude=given.exclude,
            batch_size=ANSWER_BATCH,
            max_new_tokens=given.max_new_tokens,
            max_prompt_tokens=MOST_PROMPT,
            seed=given.seed,
        )

    def _config(self, answers: Path, output: str, steps: int, held: int, **training: Any) -> TrainConfig:
        given, kind = self.settings, self.settings.kind
        section = {**RECIPES[kind], "live_prompts": 0, **self._state["begin"]}
        every = -(-steps // EVALUATIONS)
        return train_config(
            {
                "recipe": kind,
                "model": {
                    "target_model": given.model,
                    "dtype": given.dtype,
                    "device": self._device,
                    "states_dir": str(self.folder / "states"),
                    "states_gb": self._disk,
                },
                kind: section,
                "data": {
                    "files": [str(answers)],
                    "eval_examples": held,
                    "max_length": MOST_PROMPT + given.max_new_tokens,
                },
                "training": {
                    "num_train_steps": steps,
                    "per_device_batch_size": BATCH,
                    "learning_rate": RATES[kind],
                    "warmup_steps": min(30, steps // 10),
                    "seed": given.seed,
                    "output_dir": str(self.folder / output),
                    "save_steps": min(50, every),
                    "eval_steps": every,
                    **training,
                },
            }
        )

    def _sample(self) -> None:
        """Answer a batch of prompts and train some steps on it, to know what all will take."""
        folder = self.folder / "sample"
        shutil.rmtree(folder, ignore_errors=True)
        with step("a sample of answers and steps, to know how long it takes"):
            engine = self._engine()
            asked = self._asked()
            usable = encoded(engine.tokenizer, read_questions(asked)[0], None, MOST_PROMPT)
            made = distill(engine, asked, folder / "answers.jsonl", ANSWER_BATCH)
            alone = 1 / engine.generate(usable[0][0].prompt)["tokens_per_second"]
            self._state["begin"] = _beginning(self.settings.kind, engine.model)
            del engine  # training loads its own
            config = self._config(
                folder / "answers.jsonl", "sample/run", SAMPLE_STEPS, BATCH, logging_steps=1, eval_steps=SAMPLE_STEPS
            )
            started = time.perf_counter()
            outcome = train(config, quiet=True)
            setup = time.perf_counter() - started - outcome.progress.seconds
        found = _costs(folder, self.folder / "states", made, setup)
        costs = Costs(**found, alone=alone, available=len(usable))
        self._save(costs=asdict(costs), begin=self._state["begin"])

    def _planned(self, costs: Costs) -> int:
        """How many answers there is time for; says what all stages take."""
        answers, left = answers_for(costs, self.settings.tokens, self._left(), self._disk), self._left()
        steps = steps_of(answers, EPOCHS)
        if left is not None:
            steps = steps_for(costs, answers, left - answers * costs.answer_tokens * costs.answer, self._disk)
        found = estimate(costs, answers, steps, self._disk)
        tokens = answers * costs.answer_tokens
        for line in (
            f"answers: {answers}, about {tokens:.0f} tokens: {_time(found.answers)} at {1 / costs.answer:.0f} tokens/s",
            f"hidden states: {_time(found.states)}, {found.kept / 1e9:.2f} GB of at most {self._disk:g} GB",
            f"training: {steps} steps of {BATCH} answers: {_time(found.training)}",
            f"test in decoding: {_time(found.test)} at most",
            f"in all about {_time(found.seconds)}",
        ):
            announce(line)
        return answers

    def _answer(self) -> None:
        """Write the answers; then it is known how many steps there is time for."""
        costs = Costs(**self._state["costs"])
        limit = self._planned(costs)
        planned = limit * costs.answer_tokens * costs.answer
        left, wanted = self._left(), self.settings.tokens
        rest = estimate(costs, limit, steps_of(limit, EPOCHS), self._disk).seconds - planned
        until = math.inf if left is None else self._clock() + left - rest  # answers may be slower than the sample's

        def enough(tokens: int) -> bool:
            late = self._clock() >= until and tokens >= LEAST * costs.answer_tokens
            return late or (wanted is not None and tokens >= wanted)

        engine = self._engine()
        path = self.folder / "answers.jsonl"
        with self._stage("answers") as tell:
            # A sample says how many are about right; with hours it is a limit, else the tokens are.
            made = distill(engine, self._asked(), path, limit if left is not None else None, tell, enough)
        config = self._config(path, "training", 1, 0)
        count = len(load_examples(config.data, engine.tokenizer, self.settings.seed)[0])
        if count < LEAST // 2:
            raise UsageError(f"{count} of {made['prompts']} answers hold anything; give more prompts, or others")
        steps = steps_for(costs, count, self._left(), self._disk)
        self._save(steps=steps, held=held_out(count), answers=made["prompts"], answer_tokens=made["answer_tokens"])

    def _final_config(self, **training: Any) -> TrainConfig:
        return self._config(
            self.folder / "answers.jsonl", "training", self._state["steps"], self._state["held"], **training
        )

    def _train(self) -> None:
        costs, left = Costs(**self._state["costs"]), self._left()
        if left is not None:
            test = estimate(costs, self._state["answers"], self._state["steps"], self._disk).test
            left = max(1.0, left - test - costs.setup)
        announce(f"training: {self._state['steps']} steps")
        outcome: Outcome = train(self._final_config(max_seconds=left), quiet=self._quiet)
        if not outcome.finished:
            announce(f"the time is up after {outcome.progress.step} of {self._state['steps']} steps; the best is taken")
        self._save(trained={"step": outcome.progress.step, "finished": outcome.finished})

    def _test(self) -> dict[str, Any]:
        """Decoding of held-out prompts, plain and with the head, in turn."""
        kind, best = self.settings.kind, self.folder / "training" / "best"
        engine = self._engine()
        held = load_examples(self._final_config().data, engine.tokenizer, self.settings.seed)[1]
        prompts = [
            Prompt(category="held out", text=text, chat=None)
            for text in _texts(self.folder / "answers.jsonl", held)[:TEST_PROMPTS]
        ]
        settings = {"device": self._device, "dtype": self.settings.dtype, "max_new_tokens": self._test_tokens}
        contestants = drafters_beside([kind], {kind: str(best)}, settings, fixed=NODES, pruning=())
        with self._stage("test in decoding") as tell:
            found = measure_drafters(engine, contestants, prompts, 1, tell)
        return {
            "prompts": len(prompts),
            "tokens": self._test_tokens,
            "exact": found["samples"][0]["exact"],
            "base_parameters": int(engine.model.num_parameters()),
            "sides": found["all"],
        }

    def _finish(self, test: dict[str, Any]) -> None:
        """Put the head into the folder, its settings last: a reader finds it whole or not at all."""
        best = self.folder / "training" / "best"
        record = json.loads((best / RECORD).read_text(encoding="utf-8"))
        own = test["sides"][1]
        result = {
            "kind": self.settings.kind,
            "model": self.settings.model,
            "answers": self._state["answers"],
            "answer_tokens": self._state["answer_tokens"],
            "steps": self._state["trained"]["step"],
            "best_step": record["progress"]["best_step"],
            "figures": record["progress"]["figures"],
            "parameters": own["parameters"],
            "extra_percent": 100 * own["parameters"] / test["base_parameters"],
            "test": test,
        }
        names = sorted((each.name for each in best.iterdir() if each.name != CARD), key=lambda name: name == SETTINGS)
        write_whole(self.folder / CARD, training_card(record, _about(result, self.settings, self.folder)))
        for name in names:
            with whole(self.folder / name) as partial:
                shutil.copyfile(best / name, partial)
        self._save(result=result)


def _beginning(kind: str, model: Any) -> dict[str, Any]:
    """Of the recipe's section what depends on the model: how many layers, and whether shipped streams fit."""
    if kind == "medusa":
        return {}
    if kind == "eagle3":
        return {"vocabulary": min(RECIPES[kind]["vocabulary"], len(model.get_output_embeddings().weight))}
    layers = int(text_config(model).num_hidden_layers)
    begin: dict[str, Any] = {"layers": min(RECIPES[kind]["layers"], max(1, layers // 2))}
    if shipped_for(model, "streams") is not None:
        begin["start_from"] = "shipped"
    return begin


def _costs(folder: Path, states: Path, made: Mapping[str, Any], setup: float) -> dict[str, float]:
    """Of a sample in ``folder``; its log has how long the evaluations before and after took, and the steps."""
    lines = read_lines(folder / "run" / "log.jsonl")
    first, last = (each["seconds"] for each in lines if any(name.startswith("eval/") for name in each))
    steps = [each["seconds"] for each in lines if "loss" in each]
    answers = read_lines(folder / "answers.jsonl")
    lengths = [len(each["prompt_token_ids"]) + len(each["answer_token_ids"]) for each in answers]
    length = sum(lengths) / len(lengths)
    judged = len(answers) - BATCH
    cached = max(0.0, last - steps[-1])
    return {
        "answer": max(1e-9, made["seconds"] / made["answer_tokens"]),
        "states": max(0.0, first - cached) / (judged * length),
        "step": max(0.0, steps[-1] - steps[0]) / (len(steps) - 1),
        "evaluation": cached / judged,
        "setup": max(0.0, setup),
        "kept": sum(each.stat().st_size for each in states.iterdir()) / sum(lengths),
        "answer_tokens": made["answer_tokens"] / len(answers),
        "length": length,
    }


def _texts(answers: Path, held: Examples) -> list[str]:
    """The prompts of held-out examples as texts, in the file's order."""
    prompts = {each.tokens[: each.start] for each in held}
    return [line["prompt"] for line in read_lines(answers) if tuple(line["prompt_token_ids"]) in prompts]


def _about(result: Mapping[str, Any], settings: HeadSettings, folder: Path) -> list[str]:
    """What the card says besides that of a checkpoint."""
    test = result["test"]
    rows = [
        f"| {each['side'].replace(FIXED, f', {NODES} nodes always')} | {each['mean_accepted_length']:.2f} "
        f"| {each['ratio']:.2f} | {each['equal']} of {each['outputs']} |"
        for each in test["sides"]
    ]
    files = ", ".join(Path(file).name for file in settings.prompts)
    return [
        f"From {result['answers']} of the model's own greedy answers ({result['answer_tokens']} tokens) to {files}.",
        f"{result['parameters']} extra parameters, {result['extra_percent']:.1f} % of the base.",
        "",
        f"| {test['prompts']} held-out prompts, {test['tokens']} tokens | tokens a pass | times plain | equal to it |",
        "|---|---|---|---|",
        *rows,
        "",
        f"Exactness there: {test['exact']}. To use it:",
        "",
        f"    {use_line(settings.model, folder.name)}",
        "",
    ]


def use_line(model: str, folder: str) -> str:
    """The command that decodes with a head."""
    return f'specstream generate "Explain tides." --model {model} --heads {folder}'


def _time(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )
