"""From a request's body to jobs, and from their events back to the event loop."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from specstream.config import generation_config
from specstream.core.rows import Known
from specstream.engine.engine import SpeculativeEngine
from specstream.engine.generation import check_tokens
from specstream.engine.text import encode, token_ids, valid
from specstream.errors import UsageError
from specstream.serving.deployment import DeploymentConfig
from specstream.serving.faults import FieldError
from specstream.serving.jobs import Done, Event, Failed, Job
from specstream.serving.reasoning import ThinkingBudget, are_told, behind_a_thought, opened_by
from specstream.serving.requests import (
    Body,
    ChatBody,
    CompletionBody,
    DetokenizeBody,
    Message,
    TokenizeBody,
    Tool,
)
from specstream.serving.scheduler import Scheduler
from specstream.serving.scores import Adjustment
from specstream.serving.structured import JsonMask, Schemas
from specstream.serving.tool_calls import format_of, grammar, rendered


class ContextError(FieldError):
    """A prompt that is longer than what may be read."""


class Gateway:
    """Checks requests against the limits and makes jobs of them.

    Args:
        engine: what answers.
        config: the limits.
    """

    def __init__(self, engine: SpeculativeEngine, config: DeploymentConfig) -> None:
        self._engine, self._config = engine, config
        self.tokenizer = copy.deepcopy(engine.tokenizer)  # the scheduler's thread uses the other
        self.tokenizer("a")  # forgets here, not in several threads at once, how its file would have it truncate
        self._schemas = Schemas(self.tokenizer, engine.parts.eos_token_ids)
        self._tools = format_of(getattr(self.tokenizer, "chat_template", None), config.tool_call_parser)
        self._thinks = are_told(self.tokenizer, config.reasoning_parser)
        # Plain decoding stays plain; and an early exit begins passes over the trees of the drafters, and no others.
        self._drafts = engine.config.drafter != "none" and engine.config.pruning is None
        self._most_answers = min(config.max_choices, config.max_rows + config.max_queue)
        limits = (config.max_context, engine.target.context_length)
        self._longest = max((len(token.encode()) for token in self.tokenizer.get_vocab()), default=1)
        self.context = min((limit for limit in limits if limit is not None), default=None)

    def answers(self, body: ChatBody | CompletionBody) -> int:
        """How many answers a request asks for.

        Raises:
            FieldError: more answers than there is ever room for.
        """
        answers = (1 if isinstance(body, ChatBody) else len(body.prompts)) * body.drawn
        if answers > self._most_answers:
            many = "best_of" if body.drawn > body.kept else "n" if body.kept > 1 else "prompt"
            raise FieldError(f"the request asks for {answers} answers; ask for {self._most_answers} at most", many)
        return answers

    def tokenized(self, body: TokenizeBody) -> list[int]:
        """Token ids of a text or a chat.

        Raises:
            FieldError: one that cannot be read.
        """
        field = "messages" if body.messages else "prompt"
        self._check_size(sum(_bytes(turn.text) for turn in body.messages or ()) + _bytes(body.prompt or ""), field)
        try:
            if body.messages is None:
                text, special = valid(body.prompt or ""), body.add_special_tokens is not False
                return list(token_ids(self.tokenizer, text, add_special_tokens=special))
            template = {
                **(body.chat_template_kwargs or {}),
                "add_generation_prompt": body.add_generation_prompt is not False,
            }
            return self._chat(body.messages, body.tools or [], template)
        except UsageError as error:
            raise FieldError(str(error), field) from error

    def detokenized(self, body: DetokenizeBody) -> str:
        """The text of tokens.

        Raises:
            FieldError: a token that is none.
        """
        try:
            check_tokens(self._engine.target.vocab_size, [body.tokens], ())
        except UsageError as error:
            raise FieldError(str(error), "tokens") from error
        return str(self.tokenizer.decode(body.tokens))

    def prompts(self, body: ChatBody | CompletionBody) -> list[list[int]]:
        """Token ids of every prompt.

        Raises:
            FieldError: a prompt that is empty or too long, a token that is none.
        """
        field, size = _field(body), self._engine.target.vocab_size
        for number in _sizes(body):
            self._check_size(number, field)
        for place, given in _token_lists(body):
            for at, token in enumerate(given):
                if not 0 <= token < size:
                    what = "the prompt" if place.startswith("prompt") else place
                    raise FieldError(
                        f"{what} has the token {token}; the vocabulary is 0 to {size - 1}", f"{place}.{at}"
                    )
        try:
            if isinstance(body, ChatBody):
                found = [self._chat(body.messages, body.tools_given, body.template)]
            else:
                found = [encode(self.tokenizer, each) if isinstance(each, str) else each for each in body.prompts]
            check_tokens(size, found, ())
        except UsageError as error:
            raise FieldError(str(error), field) from error
        for tokens in found:
            if self.context is not None and len(tokens) >= self.context:
                raise ContextError(
                    f"the prompt has {len(tokens)} tokens and {self.context} have to hold it and its answer; "
                    "shorten it",
                    field,
                )
        return found

    def jobs(
        self,
        body: ChatBody | CompletionBody,
        prompts: Sequence[list[int]],
        client: str,
        arrived: float,
        opened: bool | None = None,
    ) -> list[Job]:
        """A job for each answer that is drawn: those of the first prompt, of the next, and so on. Nobody listens yet.

        What was done for the request since it arrived counts as its wait. ``opened`` is what ``thought_opened`` says.

        Raises:
            FieldError: a schema that cannot be followed, a budget for thoughts of a model that has none.
        """
        jobs: list[Job] = []
        mask = self._mask(body, opened)
        for place, prompt in enumerate(prompts):
            room = self._room(body, prompt)
            echo = self._echo(body, place) if isinstance(body, CompletionBody) and body.echo else None
            for number in range(body.drawn):
                settings = {**_sampling(body), "max_new_tokens": max(1, room)}
                if isinstance(body, ChatBody) and body.predicted:
                    settings["prediction"] = body.predicted
                if body.seed is not None:
                    settings["seed"] = (body.seed + len(jobs)) % 2**62
                rules: list[ThinkingBudget | JsonMask] = [
                    *self._budgets(body, len(prompt), opened),
                    *([mask.behind(len(prompt))] if mask else []),
                ]
                adjustment = self._adjustment(body, len(prompt))
                processors = [*([adjustment] if adjustment else []), *rules]
                if processors:
                    settings["logits_processor"] = processors
                config = generation_config(self._engine.config.generation, settings)  # type: ignore[arg-type]
                jobs.append(
                    Job(
                        prompt=prompt,
                        config=config,
                        client=client,
                        deliver=_unheard,
                        arrived=arrived,
                        deadline=arrived + self._config.request_seconds,
                        top_logprobs=body.wanted_logprobs,
                        prompt_logprobs=None if number else body.prompt_logprobs,  # the others' are the same
                        ranked=body.drawn > body.kept,
                        echo=echo,
                        prompt_only=room == 0,
                        known=_known(rules) if rules and self._drafts else None,
                    )
                )
        return jobs

    def _echo(self, body: CompletionBody, place: int) -> str:
        """The text of a prompt, as it was given."""
        given = body.prompts[place]
        return given if isinstance(given, str) else str(self.tokenizer.decode(given, skip_special_tokens=True))

    def thought_opened(self, body: ChatBody | CompletionBody, prompts: Sequence[list[int]]) -> bool | None:
        """Whether the prompt of a chat opens a thought; None where thoughts are not told from answers."""
        return opened_by(self.tokenizer, prompts[0]) if isinstance(body, ChatBody) and self._thinks else None

    def _budgets(
        self, body: ChatBody | CompletionBody, prompt_length: int, opened: bool | None
    ) -> list[ThinkingBudget]:
        most = body.thinking_token_budget if isinstance(body, ChatBody) else None
        if isinstance(body, ChatBody) and body.reasoning_effort == "none" and opened is not None:
            most = 0
        if most is None:
            return []
        if opened is None:
            raise FieldError(
                "thinking_token_budget is given and the thoughts of this model are not told from its answers; "
                "leave it out",
                "thinking_token_budget",
            )
        return [ThinkingBudget(self.tokenizer, most, opened=opened, prompt_length=prompt_length)]

    def _mask(self, body: ChatBody | CompletionBody, opened: bool | None) -> JsonMask | None:
        """What the answers are held to, behind their thoughts; None for any text."""
        behind = None if opened is None else partial(behind_a_thought, self.tokenizer, opened=opened)
        if isinstance(body, ChatBody) and (tools := body.tools_to_call):
            functions = [tool.to_dict()["function"] for tool in tools]
            calls = partial(
                grammar, self.tokenizer, self._tools, functions, several=body.parallel_tool_calls is not False
            )
            return self._schemas.held_to(calls if behind is None else lambda: behind(calls()), "tools")
        return None if body.schema_to_follow is None else self._schemas.mask(body.schema_to_follow, 0, behind)

    def _adjustment(self, body: Body, prompt_length: int) -> Adjustment:
        size = self._engine.target.vocab_size
        bias = {int(token): value for token, value in (body.logit_bias or {}).items()}
        if strange := next((token for token in bias if token >= size), None):
            raise FieldError(f"logit_bias has the token {strange}; the vocabulary is 0 to {size - 1}", "logit_bias")
        return Adjustment(
            presence=body.presence_penalty or 0.0,
            frequency=body.frequency_penalty or 0.0,
            bias=bias,
            least=body.min_tokens or 0,
            ends=sorted({*self._engine.parts.eos_token_ids, *(body.stop_token_ids or ())}),
            prompt_length=prompt_length,
        )

    def _check_size(self, size: int, field: str) -> None:
        """Refuse a text that no tokens of the vocabulary make short enough, before it is encoded."""
        if self.context is not None and size > self.context * self._longest:
            raise ContextError(
                f"the prompt has {size} bytes, and {self.context} tokens, which have to hold it and its answer, "
                f"hold {self.context * self._longest} at most; shorten it",
                field,
            )

    def clamped(self, body: ChatBody | CompletionBody, prompts: Sequence[list[int]]) -> dict[str, Any]:
        """What an answer says where a request asked for more tokens than there is room for; else nothing."""
        room = min(self._room(body, prompt) for prompt in prompts)
        return {"clamped": {"max_tokens": room}} if room < (body.most_tokens or 0) else {}

    def _room(self, body: ChatBody | CompletionBody, prompt: Sequence[int]) -> int:
        """Most tokens of an answer: what is asked for, within the server's limit and the context."""
        asked = self._config.max_tokens if body.most_tokens is None else body.most_tokens
        most = min(asked, self._config.max_tokens)
        return most if self.context is None else min(most, self.context - len(prompt))

    def _chat(self, messages: Sequence[Message], given: Sequence[Tool], template: Mapping[str, Any]) -> list[int]:
        if getattr(self.tokenizer, "chat_template", None) is None:
            raise UsageError("the model has no chat template; send the text to /v1/completions")
        turns, tools = [turn.to_dict() for turn in messages], [tool.to_dict() for tool in given]
        if not self._tools.templated:
            return encode(self.tokenizer, rendered(turns, tools, self._tools), template)
        return encode(self.tokenizer, turns, {**template, "tools": tools} if tools else template)


class Answers:
    """The events of a request's jobs, in the order in which they come; made on the event loop.

    Args:
        scheduler: where the jobs are handed in.
        jobs: of one request.
    """

    def __init__(self, scheduler: Scheduler, jobs: Sequence[Job]) -> None:
        self._scheduler, self.jobs = scheduler, jobs
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        for index, job in enumerate(jobs):
            job.deliver = partial(self._hear, index)
        scheduler.submit(jobs)

    def _hear(self, index: int, event: Event) -> None:
        """On the scheduler's thread."""
        self._loop.call_soon_threadsafe(self._events.put_nowait, (index, event))

    async def events(self) -> AsyncGenerator[tuple[int, Event], None]:
        """Which job, and what; to the end of all. Whoever stops before lets go of the jobs.

        Raises:
            Exception: a job's error.
        """
        left = len(self.jobs)
        try:
            while left:
                index, event = await self._events.get()
                if isinstance(event, Failed):
                    raise event.error
                left -= isinstance(event, Done)
                yield index, event
        finally:
            self.cancel()

    def cancel(self) -> None:
        """Let go of what is not done."""
        if unfinished := [job for job in self.jobs if not job.outcome]:
            self._scheduler.cancel(unfinished)


def _known(rules: Sequence[ThinkingBudget | JsonMask]) -> Known:
    """What the first rule that leaves no choice says."""
    return lambda tokens: next((found for rule in rules if (found := rule.known(tokens))), [])


def _field(body: ChatBody | CompletionBody) -> str:
    """What is read, as a field."""
    return "messages" if isinstance(body, ChatBody) else "prompt"


def _token_lists(body: ChatBody | CompletionBody) -> Iterator[tuple[str, Sequence[int]]]:
    """The token ids that a client sends, by their field."""
    if isinstance(body, CompletionBody):
        several = isinstance(body.prompt, list) and not isinstance(body.prompt[0], int)
        for number, prompt in enumerate(body.prompts):
            if not isinstance(prompt, str):
                yield f"prompt.{number}" if several else "prompt", prompt
    yield "stop_token_ids", body.stop_token_ids or ()


def _sizes(body: ChatBody | CompletionBody) -> Iterator[int]:
    """Bytes of each prompt that is a text."""
    if isinstance(body, ChatBody):
        yield sum(_bytes(turn.text) for turn in body.messages)
        return
    yield from (_bytes(prompt) for prompt in body.prompts if isinstance(prompt, str))


def _bytes(text: str) -> int:
    return len(text.encode(errors="surrogatepass"))


def _sampling(body: Body) -> dict[str, Any]:
    names = (
        *("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "stop_token_ids", "ignore_eos"),
        *("include_stop_str_in_output", "skip_special_tokens"),
    )
    given = {name: value for name in names if (value := getattr(body, name)) is not None}
    return {**given, "stop": body.stop_strings, "seed": None}


def _unheard(event: Event) -> None:
    """What a job tells before anyone asked."""
