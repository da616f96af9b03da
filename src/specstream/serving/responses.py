"""The shapes of answers, as in OpenAI's API, with one field more: ``speculation``."""

from __future__ import annotations

import json
import secrets
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from specstream.core.rows import Row
from specstream.drafters.lookup import PREDICTION
from specstream.engine.results import Totals
from specstream.engine.text import TextStream
from specstream.engine.tokens import TokenTexts
from specstream.serving.jobs import Job, TokenChance
from specstream.serving.reasoning import ThoughtReader, thought_length
from specstream.serving.tool_calls import Delta, ToolReader

LEAST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON does not have."""


class Shape:
    """One request's answers.

    Args:
        chat: of which of the two endpoints.
        model: as clients call it.
        tokenizer: says what tokens are.
        lossless: False under typical acceptance.
        left_out: what could draft, or was asked to, and does not, and why.
        tools: names of those that the answers may call.
        opened: whether the prompt opens the thought; None where thoughts are not told from answers.

    Attributes:
        skip_special: whether the texts are without special tokens.
    """

    skip_special = True

    def __init__(
        self,
        *,
        chat: bool,
        model: str,
        tokenizer: Any,
        lossless: bool,
        left_out: str | None = None,
        tools: Sequence[str] = (),
        opened: bool | None = None,
    ) -> None:
        self.chat, self._tokenizer, self._lossless, self._left_out = chat, tokenizer, lossless, left_out
        self._tools, self._readers = tools, dict[int, ToolReader]()
        self._opened, self._thoughts = opened, dict[int, ThoughtReader]()
        self._kind = "chat.completion" if chat else "text_completion"
        self._head = {
            "id": ("chatcmpl-" if chat else "cmpl-") + secrets.token_hex(12),
            "created": int(time.time()),
            "model": model,
        }
        self._texts = TokenTexts(tokenizer)
        self._told: dict[int, TextStream] = {}  # of each answer, the tokens whose chances were told

    @property
    def id(self) -> str:
        return str(self._head["id"])

    def whole(
        self,
        texts: Sequence[str],
        chances: Sequence[Sequence[TokenChance]],
        jobs: Sequence[Job],
        kept: Sequence[int],
    ) -> Any:
        """All of it at once.

        Args:
            texts: of every answer.
            chances: of its tokens.
            jobs: which have ended.
            kept: the places of those that are told.
        """
        choices = []
        drawn = {id(job.prompt): self._prompt_logprobs(job) for job in jobs if job.prompt_logprobs is not None}
        for index, at in enumerate(kept):
            logprobs = self._logprobs(index, chances[at]) if jobs[at].top_logprobs is not None else None
            message = self._message(index, texts[at]) if self.chat else {}
            choice: dict[str, Any] = {"index": index, "finish_reason": self.end(index, jobs[at]), "logprobs": logprobs}
            if self.chat:
                choice["message"] = message
            else:
                choice["text"] = texts[at]
                choice |= {"prompt_logprobs": drawn[id(jobs[at].prompt)]} if drawn else {}
            choices.append(choice)
        return {
            **self._head,
            "object": self._kind,
            "choices": choices,
            "usage": self.usage(jobs),
            "speculation": self.speculation(jobs),
            **({"prompt_logprobs": drawn[id(jobs[0].prompt)]} if drawn and self.chat else {}),
        }

    def _prompt_logprobs(self, job: Job) -> list[dict[str, Any] | None]:
        """As vLLM has them: of each token of the prompt it and the likeliest in its place; of the first nothing."""
        found: list[dict[str, Any] | None] = []
        for each in job.prompt_chances:
            if each.logprob is None:
                found.append(None)
                continue
            own = (each.token, each.logprob, each.rank)
            ranked = (
                (token, logprob, rank) for rank, (token, logprob) in enumerate(each.top[: job.prompt_logprobs], 1)
            )
            told: dict[str, Any] = {}
            for token, logprob, rank in (own, *ranked):
                said = self._texts.say(token, first=False)
                told.setdefault(str(token), {"logprob": _finite(logprob), "rank": rank, "decoded_token": said})
            found.append(told)
        return found

    def _message(self, index: int, text: str) -> dict[str, Any]:
        """What the assistant said, its thought before and the calls among it."""
        deltas = [*self.read(index, text), *self.read(index)]
        said = "".join(delta.content for delta in deltas)
        message: dict[str, Any] = {"role": "assistant", "content": said, "refusal": None}
        if thought := "".join(delta.reasoning for delta in deltas):
            message |= {"content": said or None, "reasoning_content": thought}
        calls = [delta.to_dict()["tool_calls"][0] for delta in deltas if delta.name is not None]
        for call in calls:
            at = call.pop("index")
            call["function"]["arguments"] = "".join(delta.arguments for delta in deltas if delta.index == at)
        if calls:
            message |= {"content": said.strip() or None, "tool_calls": calls}
        return message

    def read(self, index: int, piece: str | None = None) -> list[Delta]:
        """What a piece of an answer says, or, without one, what is left behind the last."""
        thought, said = "", piece or ""
        if self._opened is not None:
            thoughts = self._thoughts.setdefault(index, ThoughtReader(opened=self._opened))
            thought, said = thoughts.finish() if piece is None else thoughts.feed(piece)
        deltas = [Delta(reasoning=thought)] if thought else []
        if not self._tools:
            return [*deltas, Delta(content=said)] if said else deltas
        reader = self._readers.setdefault(index, ToolReader(self._tools))
        return [*deltas, *reader.feed(said), *(reader.finish() if piece is None else [])]

    def usage(self, jobs: Sequence[Job]) -> dict[str, Any]:
        """Tokens, and how many of them are thought."""
        thought = 0
        if self._opened is not None:
            rows = _rows(jobs)
            thought = sum(thought_length(self._tokenizer, row.emitted, opened=self._opened) for row in rows)
        found = usage(jobs)
        found["completion_tokens_details"]["reasoning_tokens"] = thought
        return found

    def end(self, index: int, job: Job) -> str:
        """Why an answer ended; one that stopped with calls wants their results."""
        called = index in self._readers and self._readers[index].calls
        return "tool_calls" if called and job.outcome == "stop" else job.outcome

    def chunks(
        self, index: int, piece: str | None = None, chances: Sequence[TokenChance] | None = None, **more: Any
    ) -> Iterator[Any]:
        """The parts of a stream that a piece of an answer makes, or, without one, what is left behind the last."""
        said = self.read(index, piece)
        for delta in said or ([Delta()] if chances else []):
            yield self.chunk(index, delta, chances, **more)
            chances = None if chances is None else ()

    def chunk(
        self,
        index: int,
        text: str | Delta | None,
        chances: Sequence[TokenChance] | None = None,
        finish_reason: str | None = None,
        **more: Any,
    ) -> Any:
        """A part of one answer; no text opens a chat's, or ends either's."""
        logprobs = None if chances is None else self._logprobs(index, chances)
        choice: dict[str, Any] = {"index": index, "finish_reason": finish_reason, "logprobs": logprobs}
        if not self.chat:
            choice["text"] = (text.content if isinstance(text, Delta) else text) or ""
        elif isinstance(text, Delta):
            choice["delta"] = text.to_dict()
        elif text is not None:
            choice["delta"] = {"content": text}
        else:
            choice["delta"] = {"role": "assistant", "content": ""} if finish_reason is None else {}
        return self.envelope([choice], **more)

    def envelope(self, choices: list[Any], **more: Any) -> Any:
        """A part of a stream."""
        return {**self._head, "object": self._kind + (".chunk" if self.chat else ""), "choices": choices, **more}

    def speculation(self, jobs: Sequence[Job]) -> dict[str, Any]:
        """How the answers were decoded, all of them together."""
        rows, totals, drafts = _rows(jobs), Totals(), Counter[str]()
        totals.add(rows, 0.0)
        for row in rows:
            drafts.update(row.stats.drafts)
        return {
            "target_passes": totals.target_passes,
            "drafted_tokens": totals.drafted,
            "accepted_tokens": totals.accepted,
            **totals.figures("acceptance_rate", "mean_accepted_length"),
            "drafts": drafts,
            "exact": "bits" if all(row.exact == "bits" for row in rows) else "rounding",
            "lossless": self._lossless or all(row.sampling.greedy for row in rows),
            "left_out": self._left_out,
        }

    def _logprobs(self, index: int, chances: Sequence[TokenChance]) -> Any:
        if not self.chat:
            return self._old_logprobs(index, chances)
        content = []
        for each in chances:
            first, _ = self._place(index, each.token)
            top = [self._token(*other, first) for other in each.top]
            content.append({**self._token(each.token, each.logprob, first), "top_logprobs": top})
        return {"content": content, "refusal": None}

    def _old_logprobs(self, index: int, chances: Sequence[TokenChance]) -> dict[str, list[Any]]:
        """As completions have them: the sampled token is among the likeliest, one more than was asked for or not."""
        found: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for each in chances:
            first, offset = self._place(index, each.token)
            likely = dict[str, float | None]()
            for token, logprob in (*each.top, (each.token, each.logprob)):
                likely.setdefault(self._texts.say(token, first=first, mark="bytes:"), _finite(logprob))
            found["tokens"].append(self._texts.say(each.token, first=first, mark="bytes:"))
            found["token_logprobs"].append(_finite(each.logprob))
            found["top_logprobs"].append(None if each.logprob is None else likely)
            found["text_offset"].append(offset)
        return found

    def _place(self, index: int, token: int) -> tuple[bool, int]:
        """Whether a token is the first of its answer, and how many whole characters are before it."""
        first, told = (
            index not in self._told,
            self._told.setdefault(index, TextStream(self._tokenizer, skip_special=self.skip_special)),
        )
        offset = len(told.text)
        told.push([token])
        new, own = told.text[offset:], self._texts.say(token, first=first)
        # Bytes before it may have been no character at all, or whole ones that only now are known to be.
        return first, offset + (len(new) - len(own) if new.endswith(own) else 0)

    def _token(self, token: int, logprob: float | None, first: bool) -> dict[str, Any]:
        raw = self._texts.bytes_of(token, first=first)
        said = self._texts.say(token, first=first)
        return {"token": said, "logprob": _finite(logprob), "bytes": list(raw)}


def _finite(logprob: float | None) -> float | None:
    return None if logprob is None else max(LEAST_LOGPROB, logprob)


def best(jobs: Sequence[Job], kept: int, drawn: int) -> list[int]:
    """The places of the likeliest ``kept`` of each ``drawn`` answers, in their order where all are kept."""
    if kept == drawn:
        return list(range(len(jobs)))
    groups = (range(start, start + drawn) for start in range(0, len(jobs), drawn))
    return [at for group in groups for at in sorted(group, key=lambda at: -jobs[at].logprob)[:kept]]


class ChunkEvents:
    """Sends an answer as it is shaped: whole, or the parts of its stream."""

    def whole(self, completion: dict[str, Any]) -> dict[str, Any]:
        """All of it at once."""
        return completion

    def begin(self, head: Mapping[str, Any]) -> Iterator[bytes]:
        """Nothing: every part has the head."""
        return iter(())

    def feed(self, chunk: Mapping[str, Any]) -> Iterator[bytes]:
        """The event of a part."""
        yield b"data: " + json.dumps(chunk, allow_nan=False, separators=(",", ":")).encode() + b"\n\n"

    def end(self) -> Iterator[bytes]:
        """The last event."""
        yield b"data: [DONE]\n\n"

    def failed(self, status: int, error: Mapping[str, Any]) -> Iterator[bytes]:
        """The last event of an answer that failed."""
        return self.feed({"error": error})


def usage(jobs: Sequence[Job]) -> dict[str, Any]:
    """Tokens; a prompt with several answers is counted once, as what was reused of it when it was first read."""
    prompts = {id(job.prompt): len(job.prompt) for job in jobs}
    cached = {id(job.prompt): 0 if job.row is None else job.row.cached for job in reversed(jobs)}
    answered = sum(row.stats.new_tokens for row in _rows(jobs))
    read = sum(prompts.values())
    drafted, copied = (
        sum(getattr(row.stats, by)[PREDICTION] for row in _rows(jobs)) for by in ("drafted_by", "accepted_by")
    )
    return {
        "prompt_tokens": read,
        "completion_tokens": answered,
        "total_tokens": read + answered,
        "prompt_tokens_details": {"cached_tokens": sum(cached.values())},
        "completion_tokens_details": {
            "accepted_prediction_tokens": copied,
            "rejected_prediction_tokens": drafted - copied,
        },
    }


def _rows(jobs: Sequence[Job]) -> list[Row]:
    return [job.row for job in jobs if job.row is not None]
