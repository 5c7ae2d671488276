"""What a client may do: how often, how much, how slowly, from where, and with which token."""

import asyncio
import hmac
import math
import time
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY_BYTES = 256 * 1024
"""A prompt of 512 tokens takes a few KiB."""

BODY_SECONDS = 10.0
"""How long the body of a request may take to arrive."""

_MAX_CLIENTS = 4096

# Nothing from anywhere else, nothing inline, no frame around it.
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


class SecurityHeaders:
    """Puts the headers that confine a page on every response."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._headers = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *self._headers]
            await send(message)

        await self._app(scope, receive, send_with_headers)


class RateLimit:
    """Requests a minute of each client: as many at once, and then as they become free again (token bucket)."""

    def __init__(self, requests_per_minute: int, now: Callable[[], float] = time.monotonic) -> None:
        self._limit, self._now = requests_per_minute, now
        self._free_at: dict[str, float] = {}  # when a client will have used nothing

    def check(self, client: str) -> None:
        """HTTPException 429 with the seconds to wait, for a client that has no request left."""
        now, cost = self._now(), 60 / self._limit
        free_at = max(self._free_at.get(client, now), now) + cost
        if free_at - now > 60 + 1e-6:
            raise HTTPException(
                429,
                f"more than {self._limit} requests a minute from {client}: wait, or start the server with a higher "
                "--requests_per_minute",
                {"retry-after": str(math.ceil(free_at - now - 60))},
            )
        self._free_at[client] = free_at
        if len(self._free_at) > _MAX_CLIENTS:
            self._free_at = {client: at for client, at in self._free_at.items() if at > now}


def check_token(headers: Headers, token: str | None) -> None:
    """HTTPException 401 unless the request has the bearer token; compared in time that does not depend on it."""
    if token is None:
        return
    scheme, _, given = headers.get("authorization", "").partition(" ")
    is_right = hmac.compare_digest(given.strip().encode(), token.encode())
    if scheme.lower() != "bearer" or not is_right:
        raise HTTPException(
            401,
            "this server wants its token, in the header `Authorization: Bearer TOKEN`",
            {"www-authenticate": "Bearer"},
        )


async def read_body(request: Request) -> bytes:
    """The body of a request with JSON.

    HTTPException 415 for another type, which a form of a foreign page could send; 413 for one that is too large, as
    soon as that is known; 408 for one that does not arrive.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise HTTPException(415, f"content-type is {kind!r}: expected application/json")
    too_large = HTTPException(413, f"the body is larger than {MAX_BODY_BYTES} bytes: shorten the prompt")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > MAX_BODY_BYTES:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_BODY_BYTES:
                    raise too_large
    except TimeoutError:
        raise HTTPException(408, f"the body did not arrive within {BODY_SECONDS:g} seconds") from None
    return bytes(body)
