"""Continuous batching: a thread that computes, and the jobs that the event loop gives it.

Between two tokens jobs join, as soon as a slot is free, and leave, as soon as they are done or given up. At most one
prompt is read between two tokens, so that texts in the making do not stand still while many begin.
"""

import asyncio
import collections
import dataclasses
from collections.abc import Callable
from threading import Condition, Thread
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

import gpt.demo.slots as slots
from gpt.config import ModelConfig
from gpt.data.batches import length_buckets
from gpt.generation.settings import Decoding
from gpt.model.gpt import Params

Result = TypeVar("Result")


class Token(NamedTuple):
    """A token, the natural logarithm of its probability, and the likeliest in its place with theirs if wanted."""

    id: int
    log_prob: float
    top: list[tuple[int, float]]


News = tuple["Job", int | None, Token | list[Token] | None]


class Busy(Exception):
    """As many texts wait as may."""


class Stopped(Exception):
    """The engine does nothing any more: the server shuts down, or it has failed."""


@dataclasses.dataclass(eq=False)
class Job:
    """A prompt and what to write after it.

    `news` gets (job, sample, Token) for each token, and (job, None, None) when there will be no more than so far,
    because the engine stops. A job that wants the prompt's scores begins with (job, None, its tokens but the first).
    """

    prompt: list[int]
    decoding: Decoding
    news: "asyncio.Queue[News]"
    scores_prompt: bool = False
    wants_top: bool = False
    reading: slots.Reading | None = None
    num_seated: int = 0
    left: set[int] = dataclasses.field(default_factory=set)

    def leave(self, *samples: int) -> None:
        """No more of these continuations is wanted; without a number, of none."""
        self.left.update(samples or range(self.decoding.num_samples))


class _Seat(NamedTuple):
    """Who writes in a slot."""

    job: Job
    sample: int


class Engine:
    """Writes the texts of many jobs at once, begun in the order in which they came."""

    def __init__(self, config: ModelConfig, params: Params, num_slots: int, max_waiting: int):
        self.config, self.num_slots, self.max_waiting = config, num_slots, max_waiting
        self.failure: BaseException | None = None
        """What it died of."""
        self._weights = slots.make_weights(config, params)
        self._slots = slots.empty_slots(config, self._weights, num_slots)
        self._seats: dict[int, _Seat] = {}
        self._num_left = np.zeros(num_slots, int)  # tokens to write
        self._jobs: collections.deque[Job] = collections.deque()
        self._calls: collections.deque[tuple[Callable[[], Any], asyncio.Future[Any]]] = collections.deque()
        self._changed = Condition()
        self._is_stopping = False
        self._thread: Thread | None = None

    @property
    def params(self) -> Params:
        """The parameters, on the device."""
        return self._weights.params

    @property
    def is_running(self) -> bool:
        """Whether jobs are taken."""
        return self._thread is not None and not self._is_stopping

    @property
    def num_busy(self) -> int:
        """Slots in which a text is written."""
        return len(self._seats)

    @property
    def num_waiting(self) -> int:
        """Texts that wait for a slot, and calls."""
        # A copy, because the other thread takes from it.
        return sum(job.decoding.num_samples - job.num_seated for job in list(self._jobs)) + len(self._calls)

    def warm_up(self) -> None:
        """Compiles everything, so that no request has to wait for it."""
        readings = [slots.read(self.config, self._weights, [0] * n) for n in length_buckets(self.config.context_length)]
        for reading in readings:
            self._score(reading)
        self._slots = slots.seat(self.config, self._slots, 0, readings[0], Decoding(), 0)
        self._step(wants_top=False)

    def start(self) -> None:
        """Begins to compute; called by the event loop that jobs will come from."""
        assert self._thread is None, "it runs already"
        self._loop, self._is_stopping = asyncio.get_running_loop(), False
        self._thread = Thread(target=self._run, name="engine")
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread; whoever still waits gets Stopped."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()
        self._thread = None

    def submit(self, jobs: list[Job]) -> None:
        """Takes jobs, all or none.

        Raises:
          Busy: too many texts would wait.
          Stopped: the engine does nothing any more.
        """
        self._add(self._jobs, jobs, sum(job.decoding.num_samples for job in jobs))

    async def call(self, function: Callable[[], Result]) -> Result:
        """What `function` gives, computed between two tokens; raises as `submit`."""
        future: asyncio.Future[Result] = self._loop.create_future()
        self._add(self._calls, [(function, future)], 1)
        return await future

    async def score(self, ids: list[int]) -> list[Token]:
        """The tokens of a text but the first, given those before them; raises as `submit`."""
        return await self.call(lambda: self._score(slots.read(self.config, self._weights, ids)))

    def _add(self, queue: "collections.deque[Any]", items: list[Any], size: int) -> None:
        with self._changed:
            if self._is_stopping:
                raise Stopped
            if self.num_waiting + size > self.max_waiting:
                raise Busy
            queue.extend(items)
            self._changed.notify()

    def _run(self) -> None:
        try:
            while self._wait():
                self._call()
                self._admit()
                self._write()
        except BaseException as error:
            self.failure = error
            raise
        finally:
            with self._changed:
                self._is_stopping = True
            self._post([(job, None, None) for job in {*self._jobs, *(seat.job for seat in self._seats.values())}])
            for _, future in self._calls:
                self._loop.call_soon_threadsafe(_settle, future, None, Stopped())
            for left in (self._jobs, self._seats, self._calls):
                left.clear()

    def _wait(self) -> bool:
        """Waits for something to do; False when it shall stop."""
        with self._changed:
            self._changed.wait_for(lambda: self._seats or self._jobs or self._calls or self._is_stopping)
            return not self._is_stopping

    def _call(self) -> None:
        if self._calls:
            function, future = self._calls.popleft()
            result, error = None, None
            try:
                result = function()
            except Exception as raised:
                error = raised
            self._loop.call_soon_threadsafe(_settle, future, result, error)

    def _admit(self) -> None:
        """Takes jobs from the queue while there are free slots, up to the first whose prompt has to be read."""
        free = [slot for slot in range(self.num_slots) if slot not in self._seats]
        while self._jobs and free:
            job = self._jobs[0]
            must_read = job.reading is None
            while job.num_seated < job.decoding.num_samples and free:
                if job.num_seated not in job.left:
                    self._seat(free.pop(0), job, job.num_seated)
                job.num_seated += 1
            if job.num_seated == job.decoding.num_samples:
                self._jobs.popleft()
                job.reading = None
            if must_read:
                return

    def _seat(self, slot: int, job: Job, sample: int) -> None:
        if job.reading is None:
            job.reading = slots.read(self.config, self._weights, job.prompt)
            if job.scores_prompt:
                self._post([(job, None, self._score(job.reading))])
        self._slots = slots.seat(self.config, self._slots, slot, job.reading, job.decoding, sample)
        self._seats[slot], self._num_left[slot] = _Seat(job, sample), job.decoding.max_new_tokens

    def _write(self) -> None:
        """One token more in every slot that is busy, and the news of it."""
        for slot, seat in list(self._seats.items()):
            if seat.sample in seat.job.left or self._num_left[slot] == 0:
                del self._seats[slot]
        if self._seats:
            tokens = self._step(any(seat.job.wants_top for seat in self._seats.values()))
            self._post([(seat.job, seat.sample, tokens[slot]) for slot, seat in self._seats.items()])

    def _step(self, wants_top: bool) -> list[Token]:
        is_busy = np.array([slot in self._seats for slot in range(self.num_slots)])
        self._num_left -= is_busy
        self._slots, scores = slots.write(self.config, self._weights, self._slots, is_busy, np.bool_(wants_top))
        return _tokens(scores)

    def _score(self, reading: slots.Reading) -> list[Token]:
        return _tokens(slots.score(self.config, self._weights, reading))[: int(reading.length) - 1]

    def _post(self, news: list[News]) -> None:
        if news:
            self._loop.call_soon_threadsafe(lambda: [item[0].news.put_nowait(item) for item in news])


def _tokens(scores: slots.Scores) -> list[Token]:
    ids, log_probs, top_ids, top_log_probs = (array.tolist() for array in jax.device_get(scores))
    tops = (list(zip(*top, strict=True)) for top in zip(top_ids, top_log_probs, strict=True))
    return [Token(*token) for token in zip(ids, log_probs, tops, strict=True)]


def _settle(future: "asyncio.Future[Any]", result: Any, error: BaseException | None) -> None:
    if future.done():  # given up
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
