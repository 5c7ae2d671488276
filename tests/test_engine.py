"""The engine of the server: what it writes for many at once is what each would get alone."""

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from typing import Any

import jax
import numpy as np
import pytest

from gpt.config import ModelConfig
from gpt.demo import slots
from gpt.demo.engine import Busy, Engine, Job, Stopped
from gpt.evaluation.token_scores import token_log_probs
from gpt.generation.settings import Decoding
from gpt.generation.texts import continue_texts
from gpt.model.gpt import init_params

CONFIG = ModelConfig(
    vocab_size=20, context_length=24, num_layers=2, num_heads=2, embed_dim=16, mlp_dim=32, lstm_dim=16, init_std=0.3
)
PROMPTS = [[5, 3, 9, 1], [7, 2, 2, 4, 11, 6, 1, 8, 3], [4], [12, 4, 4], [1, 2, 3, 4, 5, 6, 7, 8], [9, 9]]
GREEDY = Decoding(max_new_tokens=12, temperature=0.0)


@pytest.fixture(scope="module", params=["transformer", "lstm"])
def engine(request: pytest.FixtureRequest) -> Engine:
    """An engine that is ready, and not started."""
    config = dataclasses.replace(CONFIG, architecture=request.param)
    engine = Engine(config, init_params(config, jax.random.key(0)), num_slots=3, max_waiting=20)
    engine.warm_up()
    return engine


def run(engine: Engine, use: Callable[[], Awaitable[Any]]) -> Any:
    """What `use` gives while the engine runs."""

    async def main() -> Any:
        engine.start()
        try:
            return await asyncio.wait_for(use(), 60)
        finally:
            engine.stop()

    return asyncio.run(main())


async def texts_of(
    engine: Engine, asked: list[tuple[list[int], Decoding]], *, wants_top: bool = False
) -> list[list[list[Any]]]:
    """The tokens of each sample of each prompt, all asked for at once."""
    news: asyncio.Queue[Any] = asyncio.Queue()
    jobs = [Job(prompt, decoding, news, wants_top=wants_top) for prompt, decoding in asked]
    found = {job: [[] for _ in range(job.decoding.num_samples)] for job in jobs}
    engine.submit(jobs)
    for _ in range(sum(decoding.max_new_tokens * decoding.num_samples for _, decoding in asked)):
        job, sample, token = await news.get()
        found[job][sample].append(token)
    return [found[job] for job in jobs]


def alone(engine: Engine, prompt: list[int], decoding: Decoding) -> list[list[int]]:
    return [text.ids for text in continue_texts(engine.config, engine.params, [prompt], decoding)[0]]


def ids_of(samples: list[list[Any]]) -> list[list[int]]:
    return [[token.id for token in sample] for sample in samples]


def test_texts_that_join_and_leave_are_those_that_each_would_be_alone(engine: Engine) -> None:
    asked = [
        (prompt, dataclasses.replace(GREEDY, max_new_tokens=3 + 2 * place)) for place, prompt in enumerate(PROMPTS)
    ]
    found = run(engine, lambda: texts_of(engine, asked))
    for (prompt, decoding), samples in zip(asked, found, strict=True):
        (expected,) = continue_texts(engine.config, engine.params, [prompt], decoding)[0]
        assert ids_of(samples) == [expected.ids]
        np.testing.assert_allclose([token.log_prob for token in samples[0]], expected.log_probs, atol=1e-4)
    assert len({tuple(ids_of(samples)[0][:3]) for samples in found}) > 2, "equal texts would prove little"


def test_every_text_has_settings_and_a_seed_of_its_own(engine: Engine) -> None:
    asked = [
        (PROMPTS[0], Decoding(max_new_tokens=8, temperature=0.9, top_p=0.8, num_samples=2, seed=2**32 - 1)),
        (PROMPTS[1], Decoding(max_new_tokens=8, temperature=1.2, top_k=4, repetition_penalty=1.5, seed=3)),
        (PROMPTS[2], dataclasses.replace(GREEDY, max_new_tokens=8)),
        (PROMPTS[2], Decoding(max_new_tokens=8, typical_p=0.6)),
    ]
    found = run(engine, lambda: texts_of(engine, asked))
    assert [ids_of(samples) for samples in found] == [alone(engine, *one) for one in asked]
    assert ids_of(found[0])[0] != ids_of(found[0])[1]


def test_a_text_may_fill_the_context(engine: Engine) -> None:
    asked = [(PROMPTS[4], dataclasses.replace(GREEDY, max_new_tokens=16))] * 2
    found = run(engine, lambda: texts_of(engine, asked))
    assert ids_of(found[0]) == ids_of(found[1]) == alone(engine, *asked[0])


def test_no_request_compiles_anything(engine: Engine) -> None:
    programs: list[Any] = [slots._read, slots.score, slots._seat, slots.write]
    before = [program._cache_size() for program in programs]
    asked = [([1] * length, Decoding(max_new_tokens=2, num_samples=2, top_p=0.5)) for length in (1, 15, 16, 17, 22)]
    run(engine, lambda: texts_of(engine, asked, wants_top=True))
    run(engine, lambda: engine.score([1, 2, 3]))
    assert [program._cache_size() for program in programs] == before


def test_a_job_that_is_given_up_frees_its_slots_for_those_that_wait(engine: Engine) -> None:
    async def use() -> list[Any]:
        news: asyncio.Queue[Any] = asyncio.Queue()
        long = Job([1], Decoding(max_new_tokens=23, num_samples=4), news)
        short = Job([2], Decoding(max_new_tokens=1), news)
        engine.submit([long, short])
        assert engine.num_waiting == 5 - engine.num_busy
        told = [await news.get()]
        long.leave()
        while told[-1][0] is not short:
            told.append(await news.get())
        return told

    told = run(engine, use)
    assert len(told) < 3 * 23, "the job went on after it was given up"


def test_more_texts_than_may_wait_are_refused_all_or_none(engine: Engine) -> None:
    async def use() -> None:
        news: asyncio.Queue[Any] = asyncio.Queue()
        with pytest.raises(Busy):
            engine.submit([Job([1], Decoding(num_samples=20), news), Job([1], Decoding(), news)])
        assert engine.num_waiting == 0

    run(engine, use)


def test_whoever_waits_when_the_engine_stops_is_told(engine: Engine) -> None:
    async def main() -> list[Any]:
        news: asyncio.Queue[Any] = asyncio.Queue()
        engine.start()
        engine.submit([Job([1], Decoding(max_new_tokens=23, num_samples=4), news)])
        await news.get()
        engine.stop()
        with pytest.raises(Stopped):
            engine.submit([Job([1], Decoding(), news)])
        await asyncio.sleep(0)
        return [news.get_nowait() for _ in range(news.qsize())]

    assert asyncio.run(main())[-1][1:] == (None, None)


def test_the_likeliest_tokens_and_the_prompt_are_scored_on_request(engine: Engine) -> None:
    async def use() -> tuple[Any, Any]:
        news: asyncio.Queue[Any] = asyncio.Queue()
        engine.submit([Job(PROMPTS[0], dataclasses.replace(GREEDY, max_new_tokens=1), news, True, True)])
        return await news.get(), await news.get()

    (_, _, scores), (_, _, token) = run(engine, use)
    (expected,) = token_log_probs(engine.config, engine.params, [PROMPTS[0]])
    assert [score.id for score in scores] == PROMPTS[0][1:]
    assert [score.log_prob for score in scores] == pytest.approx(expected[1:], abs=1e-4)
    assert len(token.top) == slots.NUM_TOP
    assert token.top[0] == (token.id, pytest.approx(token.log_prob))


def test_a_call_that_fails_fails_alone(engine: Engine) -> None:
    async def use() -> Any:
        with pytest.raises(ZeroDivisionError):
            await engine.call(lambda: 1 // 0)
        return await engine.call(lambda: 7)

    assert run(engine, use) == 7


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_when_the_engine_fails_everybody_is_told(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise MemoryError("the device is full")

    async def use() -> tuple[Any, ...]:
        news: asyncio.Queue[Any] = asyncio.Queue()
        engine.submit([Job([1], Decoding(max_new_tokens=5), news)])
        return await news.get()

    with monkeypatch.context() as patched:
        patched.setattr(engine, "_step", fail)
        assert run(engine, use)[1:] == (None, None)
    assert isinstance(engine.failure, MemoryError)
    assert not engine.is_running
