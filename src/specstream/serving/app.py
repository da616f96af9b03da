"""The routes."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

import specstream
from specstream.errors import MissingPackageError, UsageError
from specstream.serving.complaints import malformed
from specstream.serving.deployment import DeploymentConfig
from specstream.serving.description import (
    Card,
    Cards,
    ChatCompletion,
    Completion,
    Responded,
    Text,
    Tokens,
    Version,
    answered,
    generated,
    well,
)
from specstream.serving.faults import FieldError, fault
from specstream.serving.gateway import Answers, ContextError
from specstream.serving.jobs import Job, LateError, Piece, TokenChance
from specstream.serving.metrics import ServerMetrics
from specstream.serving.middleware import PROBES, Access, Guard, JsonResponse, refusal
from specstream.serving.models import Models, UnknownModelError
from specstream.serving.requests import Body, ChatBody, CompletionBody, DetokenizeBody, TokenizeBody
from specstream.serving.responses import ChunkEvents, Shape, best, usage
from specstream.serving.responses_api import CHAT_FIELDS, ResponseEvents, ResponsesBody
from specstream.serving.run import Loaded
from specstream.serving.scheduler import QueueFullError, StoppingError

_log = logging.getLogger("specstream.serving")

CLIENT_GONE = 499
"""nginx's status for a client that did not wait; nobody reads it."""


_Form = ChunkEvents | ResponseEvents
CHUNKS = ChunkEvents()


class Server:
    """Models behind HTTP; their schedulers run while ``app``, the application, does.

    Args:
        loaded: what answers; from the start of the application on its schedulers' alone. Requests that name no model
            are for the first.
        config: the limits of the whole.
        replica: the name that every answer says, where there are several servers.
    """

    def __init__(self, loaded: Sequence[Loaded], config: DeploymentConfig, replica: str | None = None) -> None:
        self.config, self.meters = config, ServerMetrics()
        self.models = Models(loaded, self.meters)
        self._created = int(time.time())
        self.app = self._routes(replica)

    def _routes(self, replica: str | None) -> FastAPI:
        # A redirect would name the host that the client sent.
        app = FastAPI(
            title="SpecStream", lifespan=self._lifespan, docs_url=None, redoc_url=None, redirect_slashes=False
        )
        key = self.config.api_key
        app.add_middleware(
            Guard,
            api_key=None if key is None else key.get_secret_value(),
            max_body_bytes=self.config.max_body_bytes,
            refused=self.meters.refused,
            failed=self._refuse,
        )
        if self.config.cors_origins:  # before the key is asked for: a browser asks first without it
            app.add_middleware(
                CORSMiddleware,
                allow_origins=self.config.cors_origins,
                allow_methods=["GET", "POST"],
                allow_headers=["*"],
                expose_headers=["x-request-id", "retry-after"],
            )
        app.add_middleware(Access, replica=replica)
        app.add_exception_handler(RequestValidationError, self._malformed)  # type: ignore[arg-type]
        kinds: list[type[Exception]] = [HTTPException, *_KINDS]
        for kind in kinds:
            app.add_exception_handler(kind, self._failed)
        self._add_routes(app)
        return app

    def _add_routes(self, app: FastAPI) -> None:
        chat, text = generated(ChatCompletion), generated(Completion)
        app.post("/v1/chat/completions", response_model=None, responses=chat)(self.chat)
        app.post("/v1/completions", response_model=None, responses=text)(self.complete)
        app.post("/v1/responses", response_model=None, responses=generated(Responded))(self.respond)
        app.get("/v1/models", response_model=None, responses=answered(Cards, [401]))(self.cards)
        app.get("/v1/models/{name:path}", response_model=None, responses=answered(Card, [401, 404]))(self.card)
        app.post("/tokenize", response_model=None, responses=answered(Tokens, [400, 401, 404]))(self.tokenize)
        app.post("/detokenize", response_model=None, responses=answered(Text, [400, 401, 404]))(self.detokenize)
        app.get("/version", response_model=None, responses=answered(Version, [401]))(self.version)
        app.get("/health", response_model=None, responses=well())(self.health)
        app.get("/ready", response_model=None, responses=well())(self.ready)
        app.get("/metrics", response_model=None, response_class=PlainTextResponse)(self.metrics)
        for path, probe in zip(PROBES, (self.health, self.ready, self.metrics), strict=True):
            app.head(path, response_model=None, include_in_schema=False)(probe)  # as load balancers ask

    @asynccontextmanager
    async def _lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        self.models.start()
        yield
        await self.models.stop(self.config.grace_seconds)

    async def chat(self, body: ChatBody, request: Request) -> Response:
        """Answer a chat."""
        return await self._answer(body, request)

    async def complete(self, body: CompletionBody, request: Request) -> Response:
        """Go on with a text."""
        return await self._answer(body, request)

    async def respond(self, body: ResponsesBody, request: Request) -> Response:
        """Answer a chat, as the Responses API has it."""
        try:
            return await self._answer(body.chat, request, ResponseEvents(body))
        except FieldError as error:
            error.param = CHAT_FIELDS.get(error.param, error.param)
            raise

    async def cards(self) -> Response:
        """The models that are served."""
        return JsonResponse({"object": "list", "data": [each.card(self._created) for each in self.models]})

    async def card(self, name: str) -> Response:
        """One of them."""
        return JsonResponse(self.models.named(name).card(self._created))

    async def tokenize(self, body: TokenizeBody) -> Response:
        """The tokens of a text or a chat."""
        gateway = self.models.named(body.model).gateway
        tokens = await asyncio.to_thread(gateway.tokenized, body)
        return JsonResponse({"tokens": tokens, "count": len(tokens), "max_model_len": gateway.context})

    async def detokenize(self, body: DetokenizeBody) -> Response:
        """The text of tokens."""
        gateway = self.models.named(body.model).gateway
        return JsonResponse({"prompt": await asyncio.to_thread(gateway.detokenized, body)})

    async def version(self) -> Response:
        """Of this package."""
        return JsonResponse({"version": specstream.__version__})

    async def health(self) -> Response:
        """Whether the process works: 503 asks for a restart."""
        dead = self.models.dead
        said = f"the scheduler of {' and of '.join(dead)} has died" if dead else "ok"
        return JsonResponse({"status": said}, status_code=503 if dead else 200)

    async def ready(self) -> Response:
        """Whether it takes requests: 503 asks for no more of them."""
        ready = self.models.ready
        return JsonResponse({"status": "ready" if ready else "stopping"}, status_code=200 if ready else 503)

    async def metrics(self) -> Response:
        """Counters, for Prometheus."""
        return Response(self.meters.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def _answer(self, body: ChatBody | CompletionBody, request: Request, form: _Form = CHUNKS) -> Response:
        arrived, served = time.monotonic(), self.models.named(body.model)
        gateway = served.gateway
        served.scheduler.check(gateway.answers(body))
        # Apart from the event loop: a long prompt takes a while to encode.
        prompts = await asyncio.to_thread(gateway.prompts, body)
        opened = gateway.thought_opened(body, prompts)
        shape = Shape(
            chat=isinstance(body, ChatBody),
            model=served.name,
            tokenizer=gateway.tokenizer,
            lossless=served.lossless,
            left_out=served.left_out,
            tools=[tool.function.name for tool in body.tools_given],
            opened=opened,
        )
        shape.skip_special = body.skip_special_tokens is not False
        client = f"{request.client.host if request.client else ''} {body.user or ''}"
        jobs = await asyncio.to_thread(gateway.jobs, body, prompts, client, arrived, opened)
        if self.config.log_prompts:
            _log.info("%s asks: %s", shape.id, [gateway.tokenizer.decode(prompt) for prompt in prompts])
        clamped = gateway.clamped(body, prompts)
        answers = Answers(served.scheduler, jobs)
        if body.stream:
            include_usage = body.stream_options is not None and bool(body.stream_options.include_usage)
            chunks = self._chunks(shape, answers, include_usage, clamped, request)
            return _EventStream(self._stream(form, shape.envelope([]), chunks, answers), answers)
        whole = await self._whole(shape, answers, request, body)
        return Response(status_code=CLIENT_GONE) if whole is None else JsonResponse(form.whole({**whole, **clamped}))

    async def _whole(self, shape: Shape, answers: Answers, request: Request, body: Body) -> dict[str, Any] | None:
        """Everything at once; None if the client goes away before."""
        collecting = asyncio.ensure_future(_collect(answers))
        leaving = asyncio.ensure_future(_leaves(request))
        try:
            await asyncio.wait({collecting, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not collecting.done():
                return None
            texts, chances = collecting.result()
            request.state.note = _note(shape, answers.jobs)
            # Apart from the event loop: thousands of chances take a while to say.
            kept = best(answers.jobs, body.kept, body.drawn)
            return await asyncio.to_thread(shape.whole, texts, chances, answers.jobs, kept)
        finally:
            for task in (collecting, leaving):
                task.cancel()
            answers.cancel()

    async def _stream(
        self, form: _Form, head: Any, chunks: AsyncGenerator[Any, None], answers: Answers
    ) -> AsyncIterator[bytes]:
        """Server-sent events of the parts of a stream."""
        try:
            for event in form.begin(head):
                yield event
            async with aclosing(chunks):
                async for chunk in chunks:
                    for event in form.feed(chunk):
                        yield event
            for event in form.end():
                yield event
        except (asyncio.CancelledError, GeneratorExit):
            raise
        except BaseException as error:  # the head of the response has been sent: it can only be told in the stream
            refused = self._refuse(error)
            for event in form.failed(refused.status_code, json.loads(bytes(refused.body))["error"]):
                yield event
        finally:
            answers.cancel()

    async def _chunks(
        self, shape: Shape, answers: Answers, include_usage: bool, clamped: dict[str, Any], request: Request
    ) -> AsyncGenerator[Any, None]:
        """The parts of a stream, as tokens are accepted."""
        more: dict[str, Any] = {"usage": None} if include_usage else {}
        left = len(answers.jobs)
        if shape.chat:
            for index in range(left):
                yield shape.chunk(index, None, **more)
        async with aclosing(answers.events()) as events:
            async for index, event in events:
                if isinstance(event, Piece):
                    chances = event.chances if answers.jobs[index].top_logprobs is not None else None
                    for chunk in shape.chunks(index, event.text, chances, **more):
                        yield chunk
                    continue
                for chunk in shape.chunks(index, **more):
                    yield chunk
                left -= 1
                last = {} if left else {"speculation": shape.speculation(answers.jobs), **clamped}
                yield shape.chunk(index, None, None, shape.end(index, answers.jobs[index]), **more, **last)
        if include_usage:
            yield shape.envelope([], usage=await asyncio.to_thread(shape.usage, answers.jobs))
        request.state.note = _note(shape, answers.jobs)

    async def _failed(self, request: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException) and error.status_code == 404:
            error.detail = request.url.path[:100]
        return self._refuse(error)

    async def _malformed(self, request: Request, error: RequestValidationError) -> Response:
        answer = malformed(error, request.headers.get("content-type", ""), request.url.path)
        self.meters.refused(answer.status_code)
        return answer

    def _refuse(self, error: BaseException) -> Response:
        answer = _refusal(error)
        self.meters.refused(answer.status_code)
        if answer.status_code >= 500 and not isinstance(error, (StoppingError, LateError)):
            _log.error("a request failed: %s", fault(error))
        return answer


_KINDS: dict[type[Exception], tuple[int, str, str]] = {
    QueueFullError: (429, "rate_limit_error", "queue_full"),
    StoppingError: (503, "server_error", "stopping"),
    LateError: (504, "server_error", "timeout"),
    UnknownModelError: (404, "invalid_request_error", "model_not_found"),
    ContextError: (400, "invalid_request_error", "context_length_exceeded"),
    UsageError: (400, "invalid_request_error", "invalid_value"),
    MissingPackageError: (501, "server_error", "not_installed"),
}
"""Errors whose message is for whoever asked: status, type and code."""


_WORDS = {
    400: "the body cannot be read; send JSON in UTF-8, not compressed and not nested deeply",
    404: "nothing is served at {detail}: {like}",
    405: "the method is not one of this path's; send {Allow}",
}
"""What the web framework refuses by itself, before anything of ours is asked."""


_PATHS = (
    *("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/models"),
    *("/tokenize", "/detokenize", "/version", "/health", "/ready", "/metrics"),
)


def _send_to(path: str) -> str:
    """Where to send what was sent to another path: to the one that it ends like, such as /health for /v1/health."""
    given = path.rstrip("/")
    like = next((each for each in _PATHS if given and (each.endswith(given) or given.endswith(each))), None)
    if like is not None:
        return f"send to {like}"
    return "the model writes text; send to /v1/chat/completions or /v1/completions, or as /openapi.json lists"


def _note(shape: Shape, jobs: Sequence[Job]) -> str:
    """What the log says of an answer."""
    counts = usage(jobs)
    ends = ", ".join(job.outcome for job in jobs)
    return f"{shape.id}: {counts['prompt_tokens']} tokens of a prompt, {counts['completion_tokens']} of answers, {ends}"


def _refusal(error: BaseException) -> Response:
    if isinstance(error, HTTPException):
        headers = dict(error.headers or {})
        like = _send_to(str(error.detail))
        words = _WORDS.get(error.status_code, "{detail}").format(detail=error.detail, like=like, **headers)
        return refusal(error.status_code, words, headers=headers)
    for kind, (status, type_, code) in _KINDS.items():
        if isinstance(error, kind):
            headers = {"retry-after": str(error.retry_after)} if isinstance(error, QueueFullError) else {}
            if kind is LateError:  # it would be late again
                headers = {"x-should-retry": "false"}
            message = str(error)
            if kind is MissingPackageError:  # which one, and how to install it, is for the log
                message = "the server lacks a package for this; its log says which"
            param = getattr(error, "param", None)
            return refusal(status, message, kind=type_, code=code, param=param, headers=headers)
    return refusal(500, f"the answer failed ({type(error).__name__}); see the server's log", kind="server_error")


async def _collect(answers: Answers) -> tuple[list[str], list[list[TokenChance]]]:
    texts, chances = [""] * len(answers.jobs), [list[TokenChance]() for _ in answers.jobs]
    async with aclosing(answers.events()) as events:
        async for index, event in events:
            if isinstance(event, Piece):
                texts[index] += event.text
                chances[index].extend(event.chances)
    return texts, chances


class _EventStream(StreamingResponse):
    """Lets go of the answers however it ends, also where the client had gone before the first event was asked for."""

    def __init__(self, events: AsyncIterator[bytes], answers: Answers) -> None:
        unbuffered = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=unbuffered)
        self._answers = answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._answers.cancel()


async def _leaves(request: Request) -> None:
    """Until the client has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
