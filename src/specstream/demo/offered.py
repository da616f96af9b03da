"""The models and drafters that the page offers: loaded when first asked for, and run on one thread."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar, cast, get_args

from specstream.config import (
    DrafterName,
    EngineConfig,
    EngineSettings,
    GenerationConfig,
    engine_config,
    generation_config,
)
from specstream.demo.race import Race
from specstream.engine.build import SharedDrafts, build_parts
from specstream.engine.choices import check_choice
from specstream.engine.engine import SpeculativeEngine
from specstream.engine.generation import Generation, Parts
from specstream.engine.inventory import announce_left_out, prepare
from specstream.engine.text import Chat, asked, encode
from specstream.errors import HeadMismatchError, UsageError, must_be
from specstream.heads.folder import check_base_name
from specstream.heads.shipped import shipped_for
from specstream.models.hub.catalog import check, on_disk
from specstream.models.hub.load import config_in
from specstream.routing.router import Router

WARM_UP = "The sea is"
WARM_UP_TOKENS = 8

_ENGINE_ONLY = ("device", "dtype", "runtime")

_Item = TypeVar("_Item")


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked on the page.

    Attributes:
        prompt: a user's turn where the model has a chat template, else a text to go on with.
        model: one of those that are offered.
        drafter: one of those that the model has.
        max_new_tokens: of each output.
        temperature: 0 is greedy decoding.
        seed: of the draws; None takes a fresh one.
        always: draft in every round, whether it pays or not.
    """

    prompt: str
    model: str
    drafter: str
    max_new_tokens: int = 100
    temperature: float = 0.0
    seed: int | None = None
    always: bool = False


class OfferedModels:
    """Models with their drafters; the one that ran last stays in memory.

    Args:
        models: what is offered: catalog names, folders, hub ids.
        draft: as ``SpeculativeEngine`` takes it, for each of them.
        **settings: likewise: ``drafter`` to begin with, ``heads``, ``router``, ``gamma``, ``device``, ``dtype``,
            ``runtime``.

    Raises:
        UsageError: no model, or settings that do not go together.
    """

    def __init__(self, models: Sequence[str], draft: str | None = None, **settings: Any) -> None:
        if not models:
            raise UsageError("there is no model; give at least one")
        self.models = list(dict.fromkeys(models))
        if len(self.models) > 1 and (heads := settings.get("heads")) is not None:
            raise UsageError(f"heads is {heads!r}, of one model, and there are {len(self.models)}; give one")
        self._draft, self._settings = draft, settings
        self.drafter = self._config(settings.get("drafter", "auto")).drafter
        self._engine: SpeculativeEngine | None = None
        self._drafts: SharedDrafts | None = None
        self._parts: dict[str, Parts] = {}
        self._drafters: list[str] = []  # that the model in memory has
        # Threads of a parallel region belong to the thread that opened it: with one, they are there once.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="demo")

    def begin(self) -> list[str]:
        """Have the first model ready, with what is drafted with to begin with.

        Returns:
            Its drafters.

        Raises:
            SpecStreamError: one of the models is not there, or the first cannot be loaded or drafted for like this.
        """
        for model in self.models:
            check(model)
            if (folder := on_disk(model)) is not None:
                config_in(str(folder), model)  # refuses what holds something else
            if (heads := self._settings.get("heads")) is not None:
                check_base_name(heads, model)
        drafters = self.load(self.models[0])
        # What is wrong with it is said now, not when the page is used.
        self._thread.submit(self._drafting, self.drafter).result()
        return drafters

    def load(self, model: str) -> list[str]:
        """Have a model ready.

        Returns:
            Its drafters.

        Raises:
            UsageError: one that is not offered.
            SpecStreamError: it cannot be loaded.
        """
        return self._thread.submit(self._load, model).result()

    def race(self, question: Question, every: float) -> Iterator[Race]:
        """Decode with and without drafts; as ``Race.run``. Between two items nothing runs.

        Raises:
            UsageError: a prompt that is empty or too long, a setting out of range, a drafter that the model has not.
        """
        race = self._thread.submit(self._start, question).result()
        return self._from_thread(race.run(every))

    def chat(self, question: Question, turns: Chat, every: float) -> Iterator[str]:
        """Answer the turns of a conversation: its text so far, at most once in so many seconds, and at the end.

        Args:
            question: how; its prompt is not read.
            turns: roles and contents, the newest last. What an earlier answer has read of them is not read again.
            every: seconds.

        Raises:
            UsageError: a model without a chat template, a conversation that is too long, a setting out of range.
        """
        generation = self._thread.submit(self._answer, question, turns).result()
        return self._from_thread(_texts(generation, every))

    def close(self) -> None:
        """Let go of the thread, when what it does is done."""
        self._thread.shutdown()

    def _from_thread(self, items: Iterator[_Item]) -> Iterator[_Item]:
        ended = object()
        while (item := self._thread.submit(next, items, ended).result()) is not ended:
            yield cast(_Item, item)

    def _load(self, model: str) -> list[str]:
        if model not in self.models:
            raise UsageError(f"model is {model!r}, which is not offered; give one of {', '.join(self.models)}")
        if self._engine is None or self._engine.model_name != model:
            self._engine, self._drafts = None, None  # before the next one takes its memory
            self._parts.clear()
            own = {name: value for name, value in self._settings.items() if name in _ENGINE_ONLY}
            self._engine = SpeculativeEngine(model, drafter="none", **own)
            self._drafts = SharedDrafts(self._engine.target, self._engine.tokenizer)
            _warm_up(self._engine.parts)
            self._drafters = [name for name in get_args(DrafterName) if self._has(name)]
        return list(self._drafters)

    def _has(self, drafter: str) -> bool:
        """Whether the model at hand can be drafted for like this."""
        assert self._engine is not None
        if drafter == "none":
            return False
        try:
            config = self._config(drafter)
            if config.router is not None:
                Router.from_config({"router": config.router}).bind(self._engine.model, self._engine.tokenizer)
        except (UsageError, HeadMismatchError):
            return False
        return drafter != "streams" or config.heads is not None or bool(shipped_for(self._engine.model, "streams"))

    def _config(self, drafter: str) -> EngineConfig:
        router = self._settings.get("router") if drafter == "router" else None
        config = engine_config(cast(EngineSettings, {**self._settings, "drafter": drafter, "router": router}))
        check_choice(config, self._draft)
        return config

    def _start(self, question: Question) -> Race:
        must_be(isinstance(question.prompt, str), "prompt", question.prompt, "a text")
        plain, parts, config = self._chosen(question)
        prompt = encode(plain.tokenizer, asked(plain.tokenizer, question.prompt) if question.prompt.strip() else "")
        return Race(*(Generation(each, [prompt], config) for each in (plain, parts)))

    def _answer(self, question: Question, turns: Chat) -> Generation:
        _, parts, config = self._chosen(question)
        generation = Generation(parts, [encode(parts.tokenizer, turns)], config)
        generation.remembered = True
        return generation

    def _chosen(self, question: Question) -> tuple[Parts, Parts, GenerationConfig]:
        """What decodes plainly, what drafts, and how."""
        must_be(isinstance(question.always, bool), "always", question.always, "true or false")
        drafters = self._load(question.model)
        if question.drafter not in drafters:
            raise UsageError(f"drafter is {question.drafter!r}; {question.model} has {', '.join(drafters)}")
        assert self._engine is not None
        parts = self._drafting(question.drafter)
        if question.always:
            parts = parts.with_drafter(parts.drafter)
        config = generation_config(
            GenerationConfig(),
            {"max_new_tokens": question.max_new_tokens, "temperature": question.temperature, "seed": question.seed},
        )
        return self._engine.parts, parts, config

    def _drafting(self, drafter: str) -> Parts:
        """What drafts like this, made once."""
        assert self._engine is not None
        assert self._drafts is not None
        if drafter not in self._parts:
            config, target, draft = self._config(drafter), self._engine.target, None
            if self._draft is not None:
                same = self._draft == self._engine.model_name
                draft = self._drafts.get(self._draft, config, target.model if same else None)
            parts = build_parts(target, self._engine.tokenizer, draft, config)
            announce_left_out(parts, drafter)
            _warm_up(parts)
            self._parts[drafter] = parts
        return self._parts[drafter]


def _texts(generation: Generation, every: float) -> Iterator[str]:
    text, shown = "", time.monotonic()
    for (round_,) in generation.rounds():
        text += generation.piece(round_)
        if time.monotonic() - shown >= every:
            yield text
            shown = time.monotonic()
    yield text


def _warm_up(parts: Parts) -> None:
    """Let everything happen that happens once, before a race is timed with it."""
    prepare(parts, 1)
    config = GenerationConfig(max_new_tokens=WARM_UP_TOKENS, ignore_eos=True)
    Generation(parts, [encode(parts.tokenizer, WARM_UP)], config).run()
