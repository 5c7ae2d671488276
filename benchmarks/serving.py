"""`gpt serve` under load: many clients against one at a time, every answer against that of its prompt alone.

    benchmarks/serving.py [--model DIR] [--clients 50] [--seconds 60] [--slots 16]

Prints a JSON line for each part: one client; many, with the ratio of tokens per second; many while the server is
killed and started again. Without --model a small one with random weights is made. Exits with 1 if an answer is wrong.
"""

import argparse
import asyncio
import functools
import itertools
import json
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import jax
import numpy as np

from gpt.config import ModelConfig
from gpt.data.stdlib import read_corpus
from gpt.interop.weights import Model
from gpt.model.gpt import init_params
from gpt.text.training import train_bpe
from gpt.training.model_dir import convert

NUM_PROMPTS = 40
NEW_TOKENS = 32


class Answer(NamedTuple):
    """What a client got."""

    prompt: str
    text: str | None  # None: no answer
    seconds: float


def paragraphs() -> list[str]:
    """Texts that every Python carries."""
    return [text for document in read_corpus().train for text in document.paragraphs]


def make_model(directory: Path) -> Path:
    """A model of the size of configs/model/tiny.gin with random weights."""
    tokenizer = train_bpe(paragraphs()[:2000], 3000)
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size, context_length=128, num_layers=4, num_heads=4, embed_dim=128, mlp_dim=512,
        init_std=0.2,
    )  # fmt: skip
    params = jax.device_get(init_params(config, jax.random.key(0)))
    convert(Model(config, params, tokenizer), directory / "model", "run")
    return directory / "model"


def start(model: Path, port: int, slots: int) -> tuple[subprocess.Popen[str], str]:
    """The server and its address, once it answers."""
    flags = ["--model", str(model), "--port", str(port), "--slots", str(slots), "--queue", "256"]
    command = [sys.executable, "-m", "gpt", "serve", *flags, "--requests_per_minute", "1000000"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, json.loads(process.stdout.readline())["url"]


async def ask(client: httpx2.AsyncClient, prompt: str) -> Answer:
    """The greedy answer to a prompt, or none when the server is not there."""
    began = time.monotonic()
    body = {"prompt": prompt, "max_tokens": NEW_TOKENS, "temperature": 0}
    try:
        response = await client.post("/v1/completions", json=body)
        text = response.json()["choices"][0]["text"] if response.status_code == 200 else None
    except httpx2.TransportError:
        await asyncio.sleep(0.1)
        text = None
    return Answer(prompt, text, time.monotonic() - began)


async def load(url: str, prompts: list[str], num_clients: int, seconds: float) -> list[Answer]:
    """What so many clients got that asked one thing after another for so long."""
    end = time.monotonic() + seconds
    limits = httpx2.Limits(max_connections=num_clients)
    async with httpx2.AsyncClient(base_url=url, timeout=120, limits=limits) as client:

        async def one(number: int) -> list[Answer]:
            order = random.Random(number).sample(prompts, len(prompts))
            answers = []
            for prompt in itertools.cycle(order):
                if time.monotonic() >= end:
                    break
                answers.append(await ask(client, prompt))
            return answers

        found = await asyncio.gather(*map(one, range(num_clients)))
    return [answer for answers in found for answer in answers]


def describe(mode: str, answers: list[Answer], seconds: float, expected: dict[str, str | None]) -> dict[str, Any]:
    """The figures of one part."""
    given = [answer for answer in answers if answer.text is not None]
    p50, p95 = np.percentile([answer.seconds for answer in given], [50, 95])
    return {
        "benchmark": "serving",
        "mode": mode,
        "requests": len(given),
        "unanswered": len(answers) - len(given),
        "wrong": sum(answer.text != expected[answer.prompt] for answer in given),
        "tokens_per_second": round(len(given) * NEW_TOKENS / seconds, 1),
        "p50_seconds": round(float(p50), 3),
        "p95_seconds": round(float(p95), 3),
    }


async def each_alone(url: str, prompts: list[str]) -> dict[str, str | None]:
    """The answer to each prompt when the server does nothing else."""
    async with httpx2.AsyncClient(base_url=url, timeout=120) as client:
        return {prompt: (await ask(client, prompt)).text for prompt in prompts}


async def load_through_a_crash(
    server: subprocess.Popen[str], restart: Callable[[], subprocess.Popen[str]], load: Coroutine[Any, Any, list[Answer]]
) -> tuple[subprocess.Popen[str], list[Answer]]:
    """The server that was started again, and what the clients got before and after."""
    clients = asyncio.create_task(load)
    await asyncio.sleep(5)
    server.kill()
    server.wait()
    server = await asyncio.to_thread(restart)
    return server, await clients


def main() -> int:
    """Runs the parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--slots", type=int, default=16)
    args = parser.parse_args()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    prompts = [" ".join(text.split()[: 4 + number % 20]) for number, text in enumerate(paragraphs()[:NUM_PROMPTS])]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as directory:
        model = args.model or make_model(Path(directory))
        server, url = start(model, port, args.slots)
        expected = asyncio.run(each_alone(url, prompts))
        assert None not in expected.values()
        for mode, clients in (("one at a time", 1), (f"{args.clients} clients", args.clients)):
            began = time.monotonic()
            answers = asyncio.run(load(url, prompts, clients, args.seconds))
            rows.append(describe(mode, answers, time.monotonic() - began, expected))
        rows[1]["ratio"] = round(rows[1]["tokens_per_second"] / rows[0]["tokens_per_second"], 2)
        began = time.monotonic()
        lasting = load(url, prompts, args.clients, args.seconds)
        restart = functools.partial(start, model, port, args.slots)
        server, answers = asyncio.run(load_through_a_crash(server, lambda: restart()[0], lasting))
        rows.append(describe("killed and started again", answers, time.monotonic() - began, expected))
        server.send_signal(signal.SIGTERM)
        rows[2]["exit_code"] = server.wait()
    for row in rows:
        print(json.dumps(row), flush=True)
    return int(any(row["wrong"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
