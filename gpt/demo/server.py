"""A model directory behind an address: what `gpt serve` runs."""

import asyncio
import dataclasses
import json
import signal
import socket
from pathlib import Path
from typing import Any

import jax
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from gpt.demo.app import Service, make_app
from gpt.demo.classify import Classifier
from gpt.demo.engine import Engine
from gpt.errors import ConfigError, DataError
from gpt.interop.weights import Model
from gpt.training.model_dir import detect_format
from gpt.training.problem import find_objective
from gpt.training.run_dir import load_config

MAX_CONNECTIONS = 512
HEADER_SECONDS = 10.0
"""How long the first request of a connection may take to begin."""
GRACE_SECONDS = 20
"""How long a text may still be written after SIGTERM."""


class Protocol(H11Protocol):
    """HTTP that does not wait for ever for a client that says nothing."""

    def connection_made(self, transport: Any) -> None:
        """Closes the connection unless a request has begun in time."""
        super().connection_made(transport)
        self.loop.call_later(HEADER_SECONDS, lambda: self.cycle or transport.close())


class _Server(uvicorn.Server):
    """Tells its address when it is ready, and stops when its engine has failed."""

    def __init__(self, config: uvicorn.Config, engine: Engine, ready: dict[str, Any]) -> None:
        super().__init__(config)
        self._engine, self._ready = engine, ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listens, and says so in one JSON line."""
        await super().startup(sockets)
        print(json.dumps(self._ready), flush=True)

    async def on_tick(self, counter: int) -> bool:
        """Whether to stop."""
        return await super().on_tick(counter) or self._engine.failure is not None


def bind(host: str, port: int) -> socket.socket:
    """A socket with the address, before anything slow is done; ConfigError when it cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen()
    except (OSError, OverflowError) as error:
        listener.close()
        raise ConfigError(
            f"--host {host} --port {port} cannot be listened on: {error}; "
            "choose another --port, or 0 for any that is free"
        ) from None
    return listener


def make_service(directory: Path, model: Model, num_slots: int, max_waiting: int, **settings: Any) -> Service:
    """The model of the directory, compiled and ready.

    Raises:
      DataError: it has no tokenizer.
    """
    if model.tokenizer is None:
        raise DataError(f"{directory}: no tokenizer in it, and texts need one: give it with --tokenizer DIR")
    params = jax.device_put(model.params)
    engine = Engine(model.config, params, num_slots, max_waiting)
    engine.warm_up()
    classifier = None
    if "head" in params and detect_format(directory) == "run":
        config = load_config(directory)
        if config.task.name is not None:
            _, task = find_objective(config)
            assert task is not None
            classifier = Classifier(dataclasses.replace(config, model=model.config), task, params, model.tokenizer)
            classifier.warm_up()
    return Service(engine=engine, tokenizer=model.tokenizer, classifier=classifier, **settings)


def serve(service: Service, listener: socket.socket, host: str) -> None:
    """Answers until SIGTERM or Ctrl-C; what is being written then is ended first, within some seconds."""
    port = listener.getsockname()[1]
    address = f"[{host}]" if ":" in host else host
    ready = {"url": f"http://{address}:{port}", "model": service.name}
    config = uvicorn.Config(
        make_app(service),
        http=Protocol,
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    # uvicorn raises the signal again once it has stopped; then it has been obeyed.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    try:
        asyncio.run(_Server(config, service.engine, ready).serve([listener]))
    finally:
        service.engine.stop()
    if service.engine.failure is not None:
        raise RuntimeError("the engine has failed") from service.engine.failure
