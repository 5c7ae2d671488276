"""The application: routes, errors, and what stands in front of them."""

import asyncio
import contextlib
import dataclasses
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from gpt.demo.bodies import Body, ClassifyBody, CompletionBody, parse
from gpt.demo.classify import Classifier
from gpt.demo.completions import Completion
from gpt.demo.engine import Busy, Engine, Stopped
from gpt.demo.limits import RateLimit, SecurityHeaders, check_token, read_body
from gpt.demo.metrics import CONTENT_TYPE, Metrics
from gpt.demo.openapi import document, page
from gpt.errors import DataError
from gpt.text.tokenizer import Tokenizer

_PAGE = Path(__file__).with_name("page")


@dataclasses.dataclass(frozen=True)
class Service:
    """What is served, and to whom."""

    name: str
    engine: Engine
    tokenizer: Tokenizer
    classifier: Classifier | None = None
    token: str | None = None
    requests_per_minute: int = 600
    hosts: tuple[str, ...] = ("*",)
    """Names that a request may call the server by; those of this machine keep foreign names from pointing here."""


Handler = Callable[[Request], Awaitable[Response]]


def make_app(service: Service) -> Starlette:
    """The application; its engine runs as long as it does."""
    api = _Api(service)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        service.engine.start()
        yield
        service.engine.stop()

    return Starlette(
        routes=[
            Route("/", lambda _: FileResponse(_PAGE / "index.html")),
            Mount("/page", StaticFiles(directory=_PAGE)),
            Route("/docs", lambda _: HTMLResponse(page())),
            Route("/openapi.json", lambda _: JSONResponse(document())),
            Route("/healthz", api.health),
            Route("/metrics", api.show_metrics),
            Route("/v1/models", api.guarded(api.models)),
            Route("/v1/completions", api.guarded(api.complete), methods=["POST"]),
            Route("/v1/classify", api.guarded(api.classify), methods=["POST"]),
        ],
        middleware=[Middleware(SecurityHeaders), Middleware(TrustedHostMiddleware, list(service.hosts), False)],
        exception_handlers={HTTPException: _answer_error, Exception: _answer_defect},
        lifespan=lifespan,
    )


class _Api:
    """The handlers of one service."""

    def __init__(self, service: Service) -> None:
        self._service, self._engine = service, service.engine
        self._rate, self._metrics = RateLimit(service.requests_per_minute), Metrics(service.engine)
        self._created = int(time.time())

    def guarded(self, handler: Handler) -> Handler:
        """The handler behind token and rate limit, counted."""

        async def guarded(request: Request) -> Response:
            path, start = request.url.path, time.monotonic()
            try:
                check_token(request.headers, self._service.token)
                self._rate.check(request.client.host if request.client else "unknown")
                response = await handler(request)
            except Busy:
                response = _error(429, "too many texts wait already: try again", {"retry-after": "1"})
            except Stopped:
                response = _error(503, "the server is shutting down: try again", {"retry-after": "5"})
            except HTTPException as error:
                response = await _answer_error(request, error)
            self._metrics.requests.labels(path, response.status_code).inc()
            if not isinstance(response, StreamingResponse):
                self._metrics.seconds.labels(path).observe(time.monotonic() - start)
            return response

        return guarded

    async def health(self, _: Request) -> Response:
        """200 while the engine runs."""
        if self._engine.is_running:
            return JSONResponse({"status": "ok"})
        return JSONResponse({"status": "the engine has stopped"}, 503)

    async def show_metrics(self, request: Request) -> Response:
        """Counts and gauges."""
        check_token(request.headers, self._service.token)
        return Response(self._metrics.text(), media_type=CONTENT_TYPE)

    async def models(self, _: Request) -> Response:
        """The one model."""
        task = self._service.classifier.task_name if self._service.classifier else None
        model = {"id": self._service.name, "object": "model", "created": self._created, "owned_by": "local"}
        model |= {"max_model_len": self._engine.config.context_length, "task": task}
        return JSONResponse({"object": "list", "data": [model]})

    async def complete(self, request: Request) -> Response:
        """Continuations of the prompts, at once or as they come."""
        body = parse(CompletionBody, await read_body(request))
        self._check_model(body)
        completion = Completion(body, self._service.name, self._engine, self._service.tokenizer)
        await completion.start()
        if body.stream:
            return StreamingResponse(self._events(completion, time.monotonic()), media_type="text/event-stream")
        answer = await unless_left(request, completion.whole())
        self._count(completion)
        return JSONResponse(answer)

    async def classify(self, request: Request) -> Response:
        """Label and probabilities of each input."""
        body = parse(ClassifyBody, await read_body(request))
        self._check_model(body)
        classifier = self._service.classifier
        if classifier is None:
            raise HTTPException(
                404, f"the model {self._service.name!r} has no classifier: serve a run that was fine-tuned"
            )
        data = []
        for index, row in enumerate(body.rows):
            try:
                found = await self._engine.call(lambda row=row: classifier(row))
            except DataError as error:
                raise HTTPException(400, f"`input`, number {index}: {error}") from None
            data.append({"index": index, **found})
        return JSONResponse({"object": "list", "model": self._service.name, "task": classifier.task_name, "data": data})

    def _check_model(self, body: Body) -> None:
        if body.model not in (None, self._service.name):
            raise HTTPException(404, f"there is no model {body.model!r} here, only {self._service.name!r}")

    async def _events(self, completion: Completion, start: float) -> AsyncIterator[str]:
        try:
            async for chunk in completion.chunks():
                yield f"data: {json.dumps(chunk)}\n\n"
        except HTTPException as error:
            yield f"data: {json.dumps(_error_tree(error.status_code, error.detail))}\n\n"
        finally:
            completion.leave()
            self._count(completion)
            self._metrics.seconds.labels("/v1/completions").observe(time.monotonic() - start)
        yield "data: [DONE]\n\n"

    def _count(self, completion: Completion) -> None:
        usage = completion.usage()
        self._metrics.prompt_tokens.inc(usage["prompt_tokens"])
        self._metrics.new_tokens.inc(usage["completion_tokens"])


async def unless_left(request: Request, answer: Any) -> Any:
    """The answer; given up when the client closes the connection before."""

    async def left() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    tasks = [asyncio.ensure_future(answer), asyncio.ensure_future(left())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            raise HTTPException(499, "the client has left")
        return tasks[0].result()
    finally:
        for task in tasks:
            task.cancel()


_KINDS = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


def _error_tree(status: int, message: str) -> dict[str, Any]:
    kind = _KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": None, "code": status}}


def _error(status: int, message: str, headers: Any = None) -> Response:
    return JSONResponse(_error_tree(status, message), status, headers)


async def _answer_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _error(error.status_code, error.detail, error.headers)


async def _answer_defect(_: Request, error: Exception) -> Response:
    return _error(500, f"a defect of the server: {type(error).__name__}; its log has more")
