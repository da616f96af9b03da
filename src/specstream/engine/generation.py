"""One batch on its way through the loop: prompts to tokens, tokens to text."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from threading import Lock
from typing import Any

from specstream.config import GenerationConfig
from specstream.core.decode import Reading, decode
from specstream.core.policy.policy import Speculation
from specstream.core.ports import Drafter, DrafterChoice, Target
from specstream.core.prefix_cache import PrefixCache
from specstream.core.rows import Round, Row, start_rows
from specstream.core.sampling import Sampling
from specstream.core.stats import Timings
from specstream.core.stopping import Stopping
from specstream.drafters.none import NoDrafter
from specstream.engine.memory import CONTEXT, Memory
from specstream.engine.results import GenerationResult
from specstream.engine.text import TextStream, final_text, stop_check, valid
from specstream.errors import UsageError, has, must_be, reason_of
from specstream.models.architecture.checkpoint import CheckpointRules

CALIBRATION_TOKENS = 16
"""Tokens of plain decoding, per row, that a measured ``speedup`` is against."""

# A caller's processor may keep state and is shown the tokens of the output only.
_CALIBRATION = {
    "max_new_tokens": CALIBRATION_TOKENS,
    "ignore_eos": True,
    "stop": [],
    "stop_token_ids": [],
    "logits_processor": [],
}

LEAST_TOKENS = 16
"""A shorter text tells a router nothing: its first rounds, in which prices are tried, are most of it."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What an engine generates with.

    Attributes:
        eos_token_ids: tokens that end a text.
        heads: the folder of the drafter's heads, if it has some.
        checkpoint: the rules of the model's own generation configuration.
        vocab_size: rows of the model's embedding; None if that is not known.
        left_out: what could draft, or was asked to, and does not, and why; None if there is nothing of the kind.
        revision: of the target's model, as ``HuggingFaceTarget.refresh`` counts.
        memory: of answers that drafts are copied from; None where there is none, or nobody copies.
        prefixes: keys and values of earlier texts; None where every prompt is read anew.
    """

    target: Target
    drafter: Drafter
    tokenizer: Any
    eos_token_ids: frozenset[int]
    speculation: Speculation
    heads: str | None = None
    checkpoint: CheckpointRules = field(default_factory=CheckpointRules)
    vocab_size: int | None = None
    left_out: str | None = None
    revision: int = 0
    memory: Memory | None = None
    prefixes: PrefixCache | None = None

    def __post_init__(self) -> None:
        must_be(has(self.drafter, "begin"), "drafter", self.drafter, "an object of a class of Drafter")

    def sampling(self, config: GenerationConfig) -> Sampling:
        """How tokens are chosen: as the configuration says, and where nothing was given, as the checkpoint does."""
        return self.checkpoint.applied(config.sampling(), config.model_fields_set)

    def with_drafter(self, drafter: Drafter) -> Parts:
        """The same with another drafter, whose rounds teach this one's controller nothing."""
        return replace(self, drafter=drafter, speculation=replace(self.speculation, controller=None))


class Generation:
    """One batch.

    Args:
        parts: what to generate with.
        prompts: token ids of each.
        config: how.

    Attributes:
        chats: of each prompt, whether it went through the chat template; for the report.
        remembered: whether it uses what earlier ones have left, and leaves its own: measurements do not.

    Raises:
        UsageError: an empty prompt, one longer than the model's context, a token beyond its vocabulary.
    """

    def __init__(self, parts: Parts, prompts: Sequence[Sequence[int]], config: GenerationConfig) -> None:
        check_tokens(parts.vocab_size, prompts, config.stop_token_ids, parts.tokenizer)
        self.parts = parts
        self.config = config
        self.prompts = prompts
        self.timings = Timings()
        self.chats = [False] * len(prompts)
        self.remembered = False
        self._streams: dict[int, TextStream] = {}  # of the rows whose pieces somebody wants
        seed = secrets.randbits(62) if config.seed is None else config.seed
        seeds = range(seed, seed + len(prompts))
        stopping = Stopping(
            max_new_tokens=config.max_new_tokens,
            eos_token_ids=self._ends(),
            check=stop_check(parts.tokenizer, config.stop_strings, skip_special=config.skip_special_tokens),
        )
        self.rows = start_rows(
            prompts, seeds, parts.target.context_length, sampling=parts.sampling(config), stopping=stopping
        )
        for row in self.rows:
            # The depth of a tree decides how chance is spent, and a seed has to repeat.
            row.repeats = config.seed is not None and config.temperature > 0
        if (predicted := self._predicted()) is not None:
            for row in self.rows:
                row.expected = [*row.tokens[-CONTEXT:], *predicted]

    def _predicted(self) -> Sequence[int] | None:
        """Tokens of the prediction, as many as there may be in a text."""
        given = self.config.prediction
        if isinstance(given, str):
            given = self.parts.tokenizer(valid(given), add_special_tokens=False)["input_ids"]
        return given and given[: self.parts.target.context_length]

    def rounds(self) -> Iterator[list[Round]]:
        """Decode, yielding after each pass what every row emitted."""
        parts = self.parts
        yield from decode(
            *(parts.target, parts.drafter, self.rows),
            speculation=parts.speculation,
            timings=self.timings,
            prefixes=parts.prefixes if self.remembered else None,
        )
        if self.remembered:
            self.remember()

    def remember(self) -> None:
        """Keep the answers, which have ended, for later drafts, where there is a memory."""
        if self.parts.memory is not None:
            self.parts.memory.learn(self.rows)

    def reading(self) -> Reading:
        """The same to be joined with others: to read the prompts is the caller's, and so are the rounds.

        Raises:
            UsageError: a drafter that chooses for each prompt, such as the router: rows of one batch have one drafter.
        """
        parts = self.parts
        if not parts.drafter.joinable:
            raise UsageError(
                f"drafter is {parts.drafter.name!r}, which chooses for each prompt; rows that join need one drafter"
            )
        return Reading(
            *(parts.target, parts.drafter, self.rows),
            speculation=parts.speculation,
            timings=self.timings,
            prefixes=parts.prefixes,
        )

    def _ends(self) -> frozenset[int]:
        ends = frozenset(self.config.stop_token_ids)
        return ends if self.config.ignore_eos else ends | self.parts.eos_token_ids

    @property
    def choice(self) -> DrafterChoice | None:
        """Which drafter was chosen, once decoding has begun; None where there was no choice."""
        return next((row.choice for row in self.rows), None)

    @property
    def speed(self) -> float:
        """Tokens per second, the prompt not counted and the choice of a drafter counted."""
        return self.new_tokens / (self.timings.decode + (self.choice.seconds if self.choice else 0.0))

    def teach(self, plain: float | None) -> None:
        """Tell a router what became of its choice.

        It learns of what its table is about: the greedy continuation of one prompt, long enough to be measured.

        Args:
            plain: tokens per second of plain decoding in this process, None if that could not be measured.
        """
        if self.choice is None or plain is None:
            return
        if len(self.rows) == 1 and self.config.temperature == 0 and self.new_tokens >= LEAST_TOKENS:
            self.choice.learn(self.new_tokens / self.timings.decode, plain=plain)

    def run(self) -> Generation:
        """Decode to the end."""
        for _ in self.rounds():
            pass
        return self

    def text(self, row: Row) -> str:
        """The row's new text, without special tokens and what ended it unless those are wanted."""
        config, emitted = self.config, row.emitted
        read = partial(
            final_text,
            stop_strings=config.stop_strings,
            skip_special=config.skip_special_tokens,
            include_stop=config.include_stop_str_in_output,
        )
        texts = [read(self.parts.tokenizer, emitted)]
        if not config.include_stop_str_in_output and row.finish_reason == "stop" and emitted[-1] in self._ends():
            # The same token may complete a stop string, which is more than the token.
            texts.append(read(self.parts.tokenizer, emitted[:-1]))
        return min(texts, key=len)

    def piece(self, round_: Round) -> str:
        """The text that a round of a row completes, where it is given all of them, in order."""
        row = round_.row
        if row.index not in self._streams:
            hold = max(map(len, self.config.stop_strings), default=0)
            skip = self.config.skip_special_tokens
            self._streams[row.index] = TextStream(self.parts.tokenizer, hold=hold, skip_special=skip)
        if row.finish_reason is None:
            return self._streams[row.index].push(round_.tokens)
        # The last tokens may hold a stop string: what is left of them comes with the whole text.
        return self._streams[row.index].finish(self.text(row))

    @property
    def tokens_per_pass(self) -> float:
        return self.new_tokens / max(1, sum(row.stats.target_passes for row in self.rows))

    @property
    def new_tokens(self) -> int:
        return sum(row.stats.new_tokens for row in self.rows)


MOST_GAIN = 1.05
"""Times its tokens per pass that a generation may seem faster than plain: no pass costs less than a plain one."""


def known_baseline(generation: Generation) -> dict[str, Any]:
    """Plain decoding's speed as far as it is known without another pass: what ``speedup`` is against.

    Returns:
        ``method`` and ``tokens_per_second``; ``error`` in its place where the policy timed no plain pass, or timed them
        while the machine was so much slower that the speedup could not be.
    """
    rows = len(generation.rows)
    if isinstance(generation.parts.drafter, NoDrafter):
        return {"method": "this was plain decoding itself", "tokens_per_second": generation.speed}
    about = {"method": "estimated from what a plain pass costs; same model, runtime, process and batch size"}
    seconds = generation.parts.speculation.plain_seconds(rows)
    if seconds is None:
        reason = f"fewer than two plain passes of batch size {rows} were timed"
        return {**about, "error": f"{reason}; measure_baseline=True measures some"}
    if generation.speed * seconds / rows > MOST_GAIN * generation.tokens_per_pass:
        reason = "plain passes were timed while this machine was slower"
        return {**about, "error": f"{reason}; measure_baseline=True measures some now"}
    return {**about, "tokens_per_second": rows / seconds}


def plain_baseline(generation: Generation) -> dict[str, Any]:
    """Plain decoding of the same prompts with the same model, runtime and process: what ``speedup`` is against.

    Where that fails, there is an ``error`` and no speed: the text is there already, and may need what is left out here.
    """
    about = {"method": "plain decoding, same model, runtime, process and batch size; prefill not counted"}
    try:
        plain = Generation(
            generation.parts.with_drafter(NoDrafter()),
            generation.prompts,
            generation.config.model_copy(update=_CALIBRATION),
        ).run()
    except Exception as error:
        return {**about, "error": reason_of(error)}
    return {**about, "tokens": plain.new_tokens, "tokens_per_second": plain.new_tokens / plain.timings.decode}


class Baselines:
    """What speedups are against: what the policy knows, or plain decoding measured once for each batch size."""

    def __init__(self) -> None:
        self._measured: dict[tuple[int, bool], dict[str, Any]] = {}

    def speedup(self, generation: Generation, *, measure: bool) -> tuple[float | None, dict[str, Any]]:
        """The speed of a generation that has run over its baseline, None where that is unknown; and tell a router."""
        baseline = self.of(generation, measure=measure)
        plain = baseline.get("tokens_per_second")
        generation.teach(plain)
        return None if plain is None else generation.speed / plain, baseline

    def of(self, generation: Generation, *, measure: bool) -> dict[str, Any]:
        """The baseline of a generation that has run; greedy ones and others are measured apart."""
        if not measure:
            return known_baseline(generation)
        key = (len(generation.rows), generation.config.temperature == 0)
        baseline = self._measured.get(key) or plain_baseline(generation)
        if "error" not in baseline:
            self._measured[key] = baseline
        return baseline

    def clear(self) -> None:
        """Forget what was measured of a model that has changed since."""
        self._measured.clear()


class TextPieces:
    """The pieces of one streamed text, in order, each of them once; ``result`` once they are exhausted.

    Args:
        generation: a batch of one row that has not started. Its rounds may be read in place of the pieces: they say who
            drafted.
        report: makes its result, called once.
    """

    def __init__(self, generation: Generation, report: Callable[[Generation], list[GenerationResult]]) -> None:
        self.generation = generation
        self._report = report
        self._result: GenerationResult | None = None
        self._pieces = self._read()
        self._reading = Lock()

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise UsageError("a stream cannot be pickled or copied: it is being read; send its pieces, or its result")

    def __iter__(self) -> Iterator[str]:
        """Itself: another loop goes on where the one before stopped."""
        return self

    def __next__(self) -> str:
        """The next piece.

        Raises:
            UsageError: another thread reads one now.
        """
        if not self._reading.acquire(blocking=False):
            raise UsageError("the stream is read by another thread; read one stream in one thread")
        try:
            return next(self._pieces)
        finally:
            self._reading.release()

    def _read(self) -> Iterator[str]:
        for (round_,) in self.generation.rounds():
            if piece := self.generation.piece(round_):
                yield piece

    @property
    def result(self) -> GenerationResult:
        """The whole result. With ``measure_baseline`` the first call may measure plain decoding.

        Raises:
            UsageError: the pieces were not read to the end.
        """
        if self._result is None:
            if any(row.finish_reason is None for row in self.generation.rows):
                raise UsageError("the stream has not ended; read all its pieces before its result")
            (self._result,) = self._report(self.generation)
        return self._result


def check_tokens(
    size: int | None, prompts: Sequence[Sequence[int]], stops: Sequence[int], tokenizer: Any = None
) -> None:
    """Refuse ids that the model's embedding has no row for.

    Raises:
        UsageError: the first of them.
    """
    for name, tokens in (*(("the prompt", prompt) for prompt in prompts), ("stop_token_ids", stops)):
        strange = [token for token in tokens if size is not None and not 0 <= token < size]
        if strange:
            known = len(tokenizer) if hasattr(tokenizer, "__len__") else 0
            whose = f", and the tokenizer has {known} tokens: it is another model's, give this one's own"
            foreign = whose if 0 <= strange[0] < known else ""
            raise UsageError(f"{name} has the token {strange[0]}; the vocabulary is 0 to {(size or 0) - 1}{foreign}")
