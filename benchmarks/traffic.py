"""What a crowd asks a server, and the clients that ask it: OpenAI's HTTP, whoever answers it."""

from __future__ import annotations

import json
import math
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import httpx

from benchmarks.prompts import CHATS, CODE_EDITS, long_text

PATIENCE = 1800.0
"""Seconds without a byte after which an answer is taken for lost."""

MOST_PATIENCE = 30.0
"""Longest obedience to one ``Retry-After``, in seconds."""

MOST_REFUSALS = 200
"""A request that was sent away so often has failed."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked, however it is asked.

    Attributes:
        chat: the messages, or None.
        text: to go on with, where it is no chat.
        max_tokens: most new tokens.
    """

    chat: tuple[tuple[str, str], ...] | None
    text: str
    max_tokens: int

    @property
    def prompt(self) -> Any:
        """As an engine takes it."""
        return [{"role": role, "content": content} for role, content in self.chat] if self.chat else self.text

    def body(self, model: str, stream: bool) -> dict[str, Any]:
        """As a server takes it."""
        asked = {"messages": self.prompt} if self.chat else {"prompt": self.text}
        streaming = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
        return {"model": model, "temperature": 0, "max_tokens": self.max_tokens, **asked, **streaming}

    @property
    def path(self) -> str:
        return "chat/completions" if self.chat else "completions"


@dataclass(frozen=True, kw_only=True)
class Request:
    """One question, asked once.

    Attributes:
        question: its place among the questions.
        stream: as server-sent events, or whole.
        leaves: the client goes away after so many pieces of a stream, or so many tenths of a second of waiting.
    """

    question: int
    stream: bool
    leaves: int | None = None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a request.

    Attributes:
        request: which.
        text: of the answer, as far as it was read.
        tokens: new ones, as the server counted them; 0 where it did not come to that.
        reason: why the answer ended.
        seconds: from the first attempt to the end.
        first_seconds: from the attempt that was taken to the first text.
        refusals: 429s before it was taken.
        error: what went wrong; empty if nothing did.
        left: the client went away, as it was told to.
    """

    request: Request
    text: str = ""
    tokens: int = 0
    reason: str | None = None
    seconds: float = 0.0
    first_seconds: float = 0.0
    refusals: int = 0
    error: str = ""
    left: bool = False


def questions(count: int, *, longest: int, seed: int) -> list[Question]:
    """Questions of mixed lengths, the same for the same seed: chats, code, and long texts to go on with."""
    chance = random.Random(seed)
    found = []
    for at in range(count):
        length = max(1, round(longest * chance.choice((0.05, 0.1, 0.25, 0.5, 0.75, 1.0))))
        if at % 4 == 3:
            words = chance.choice((20, 60, 150, 400))
            found.append(Question(chat=None, text=long_text(words, seed=at), max_tokens=length))
        else:
            text = CODE_EDITS[at % len(CODE_EDITS)] if at % 8 == 1 else CHATS[at % len(CHATS)]
            asked = f"{text} (Request {at}.)"
            found.append(Question(chat=(("user", asked),), text="", max_tokens=length))
    return found


def requests(count: int, asked: int, *, leaving: float, seed: int) -> list[Request]:
    """So many requests of ``asked`` questions in a random order; every second one streams.

    Args:
        count: of requests.
        asked: questions there are.
        leaving: the share of clients that go away before the end.
        seed: of all chance.
    """
    chance = random.Random(seed)
    order = [at % asked for at in range(count)]
    chance.shuffle(order)
    return [
        Request(
            question=question,
            stream=chance.random() < 0.5,
            leaves=chance.randrange(1, 5) if chance.random() < leaving else None,
        )
        for question in order
    ]


class Crowd:
    """Clients that ask side by side, each one request after the other.

    Args:
        url: of the server, without ``/v1``.
        model: as it is called there.
        asked: the questions.
        extra: fields of every request that only this server has.
        usage: it counts the tokens of a stream; else they stay 0.
    """

    def __init__(
        self,
        url: str,
        model: str,
        asked: Sequence[Question],
        *,
        extra: Mapping[str, Any] = MappingProxyType({}),
        usage: bool = True,
    ) -> None:
        self._url, self._model, self._questions = url.rstrip("/"), model, asked
        self._extra, self._usage = extra, usage

    def ask(
        self,
        asking: Iterable[Request],
        clients: int,
        done: Callable[[Outcome], object],
        *,
        seconds: float = math.inf,
    ) -> float:
        """Ask everything; each client has its own connection.

        Args:
            asking: what; it may be endless.
            clients: how many ask at the same time.
            done: told of every outcome, one at a time.
            seconds: after which nothing more is asked; what was asked is waited for.

        Returns:
            Seconds until all had ended.
        """
        limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
        source, alone = iter(asking), threading.Lock()

        def client_of(client: httpx.Client) -> None:
            while time.monotonic() - started < seconds:
                with alone:
                    request = next(source, None)
                if request is None:
                    return
                outcome = self._persist(client, request)
                with alone:
                    done(outcome)

        with (
            httpx.Client(base_url=f"{self._url}/v1/", timeout=PATIENCE, limits=limits) as client,
            ThreadPoolExecutor(clients) as pool,
        ):
            started = time.monotonic()
            for each in [pool.submit(client_of, client) for _ in range(clients)]:
                each.result()
        return time.monotonic() - started

    def _persist(self, client: httpx.Client, request: Request) -> Outcome:
        """Come again as often as the server says so."""
        started = time.monotonic()
        for refusals in range(MOST_REFUSALS):
            attempt = time.monotonic()
            try:
                outcome = self._attempt(client, request)
            except Refused as refused:
                if refused.problem:
                    return Outcome(request=request, refusals=refusals, error=refused.problem)
                time.sleep(min(MOST_PATIENCE, refused.seconds))
                continue
            except (httpx.HTTPError, ValueError, KeyError, IndexError) as error:
                outcome = Outcome(request=request, error=f"{type(error).__name__}: {error}")
            found = vars(outcome) | {"refusals": refusals, "seconds": time.monotonic() - started}
            if outcome.first_seconds:
                found["first_seconds"] = outcome.first_seconds - attempt
            return Outcome(**found)
        return Outcome(request=request, refusals=MOST_REFUSALS, error="it was never taken")

    def _attempt(self, client: httpx.Client, request: Request) -> Outcome:
        question = self._questions[request.question]
        body = {**question.body(self._model, request.stream), **self._extra}
        if request.stream:
            with client.stream("POST", question.path, json=body) as response:
                if response.status_code != 200:
                    response.read()
                    return self._refused(request, response)
                return _read(request, response, question, usage=self._usage)
        timeout = PATIENCE if request.leaves is None else request.leaves / 10
        try:
            response = client.post(question.path, json=body, timeout=httpx.Timeout(PATIENCE, read=timeout))
        except httpx.ReadTimeout:
            if request.leaves is None:
                raise
            return Outcome(request=request, left=True)
        if response.status_code != 200:
            return self._refused(request, response)
        answer = response.json()
        choice = answer["choices"][0]
        return Outcome(
            request=request,
            text=choice["message"]["content"] if question.chat else choice["text"],
            tokens=answer["usage"]["completion_tokens"],
            reason=choice["finish_reason"],
        )

    def _refused(self, request: Request, response: httpx.Response) -> Outcome:
        """A full queue is no error, if it says so and when to come again.

        Raises:
            Refused: come again.
        """
        if response.status_code == 429:
            raise Refused(response)
        return Outcome(request=request, error=f"{response.status_code}: {response.text[:300]}")


class Refused(Exception):
    """429: ``seconds`` to wait, or the ``problem`` with how it was said."""

    def __init__(self, response: httpx.Response) -> None:
        waiting = response.headers.get("retry-after", "")
        code = response.json().get("error", {}).get("code")
        self.seconds = float(waiting) if waiting.isdecimal() else 0.0
        self.problem = "" if self.seconds >= 1 and code == "queue_full" else f"429 with {waiting!r} and {code!r}"


def _read(request: Request, response: httpx.Response, question: Question, *, usage: bool) -> Outcome:
    text, tokens, reason, first, pieces = "", 0, None, 0.0, 0
    for chunk in _events(response):
        if "error" in chunk:
            return Outcome(request=request, text=text, error=str(chunk["error"])[:300])
        for choice in chunk["choices"]:
            piece = choice["delta"].get("content") if question.chat else choice["text"]
            reason = choice["finish_reason"] or reason
            if piece:
                first = first or time.monotonic()
                text, pieces = text + piece, pieces + 1
        tokens = (chunk.get("usage") or {}).get("completion_tokens", tokens)
        if request.leaves is not None and pieces >= request.leaves:
            return Outcome(request=request, text=text, first_seconds=first, left=True)
    error = "" if reason and (tokens or not usage) else "the stream ended before the answer did"
    return Outcome(request=request, text=text, tokens=tokens, reason=reason, first_seconds=first, error=error)


def _events(response: httpx.Response) -> Iterator[dict[str, Any]]:
    """The chunks up to ``[DONE]``.

    Raises:
        ValueError: the stream ended without it, or holds what is no JSON.
    """
    for line in response.iter_lines():
        if line.startswith("data: "):
            if line == "data: [DONE]":
                return
            yield json.loads(line.removeprefix("data: "))
    raise ValueError("the stream ended without [DONE]")
