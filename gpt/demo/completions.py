"""/v1/completions: prompts become jobs of the engine, and its tokens become text."""

import asyncio
import math
import secrets
import time
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

from starlette.exceptions import HTTPException

from gpt.demo.bodies import CompletionBody, in_api_words
from gpt.demo.engine import Engine, Job, News, Token
from gpt.demo.prompts import Prompt, read_prompt, spell_all
from gpt.errors import ConfigError
from gpt.generation.settings import check_lengths
from gpt.generation.stream import TextStream, check_stops
from gpt.text.tokenizer import Tokenizer


class _Told(NamedTuple):
    """A token as `logprobs` has it."""

    name: str
    log_prob: float | None
    top: dict[str, float] | None
    offset: int


class Choice:
    """One answer to a request: its text as far as it is written, told piece by piece."""

    def __init__(self, index: int, prompt: Prompt, body: CompletionBody, tokenizer: Tokenizer):
        self.index, self.finish_reason = index, None
        self.tokens: list[Token] = []
        self._prompt, self._body, self._tokenizer = prompt, body, tokenizer
        self._stream = TextStream(tokenizer, prompt.ids, body.stops)
        self._base = len(prompt.text) if body.echo else 0
        self._num_told, self._num_characters, self._end = 0, 0, 0

    def begin(self, scores: list[Token] | None) -> dict[str, Any]:
        """The prompt, with its scores if it has any."""
        told = []
        if scores is not None:
            names = spell_all(self._prompt.ids, self._tokenizer)
            for name, score, offset in zip(names, [None, *scores], self._prompt.offsets, strict=True):
                told.append(self._describe(name, score, offset))
        if self._body.max_tokens == 0:
            self.finish_reason = "length"
        return self._tell(self._prompt.text, told)

    def push(self, token: Token) -> dict[str, Any] | None:
        """What one more token settles; None when that is nothing."""
        self.tokens.append(token)
        text = self._stream.push([token.id])
        if len(self.tokens) == self._body.max_tokens and not self._stream.is_stopped:
            text += self._stream.finish()
            self.finish_reason = "length"
        if self._stream.is_stopped:
            self.finish_reason = "stop"
        self._num_characters += len(text)
        return self._tell(text, self._settled()) if text or self.finish_reason else None

    def _settled(self) -> list[_Told]:
        """The tokens of the text that was given out since the last call."""
        if self._body.logprobs is None:
            return []
        told = []
        new = self.tokens[self._num_told : self._stream.num_ids]
        for name, token in zip(spell_all([token.id for token in new], self._tokenizer), new, strict=True):
            word = name.removesuffix(" ")
            start = max(self._stream.text.find(word, self._end), self._end)
            if start >= self._num_characters and self.finish_reason is None:
                break
            self._num_told, self._end = self._num_told + 1, start + len(word)
            told.append(self._describe(name, token, self._base + start))
        return told

    def _describe(self, name: str, token: Token | None, offset: int) -> _Told:
        if token is None:
            return _Told(name, None, None, offset)
        if not math.isfinite(token.log_prob):
            raise HTTPException(500, "the model gives probabilities that are no numbers: are there NaN in its weights?")
        top = {ident: score for ident, score in token.top[: self._body.logprobs or 0] if score > -math.inf}
        names = spell_all(list(top), self._tokenizer)
        return _Told(name, token.log_prob, dict(zip(names, top.values(), strict=True)) or None, offset)

    def _tell(self, text: str, told: list[_Told]) -> dict[str, Any]:
        logprobs = None
        if self._body.logprobs is not None:
            names = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
            logprobs = {name: [token[place] for token in told] for place, name in enumerate(names)}
        return {"index": self.index, "text": text, "logprobs": logprobs, "finish_reason": self.finish_reason}


class Completion:
    """The answer to one request, from its body to the last word."""

    def __init__(self, body: CompletionBody, name: str, engine: Engine, tokenizer: Tokenizer):
        self._body, self._engine = body, engine
        self._header = {"id": f"cmpl-{secrets.token_hex(12)}", "object": "text_completion"}
        self._header |= {"created": int(time.time()), "model": name}
        self._prompts = [read_prompt(one, tokenizer).last(body.truncate_prompt_tokens) for one in body.prompts]
        num_samples = body.n if body.max_tokens else 1
        self._check(num_samples)
        self._news: asyncio.Queue[News] = asyncio.Queue()
        self._jobs = self._make_jobs() if body.max_tokens else []
        prompts = [prompt for prompt in self._prompts for _ in range(num_samples)]
        self._choices = [Choice(index, prompt, body, tokenizer) for index, prompt in enumerate(prompts)]
        self._scores: list[list[Token] | None] = [None] * len(prompts)

    def _check(self, num_samples: int) -> None:
        """HTTPException 400 for what one field alone does not show."""
        body, limit, context_length = self._body, self._engine.max_waiting, self._engine.config.context_length
        for holds, message in (
            (self._prompts, "`prompt` is an empty list: it needs at least one text"),
            (body.max_tokens or body.echo, "`max_tokens` is 0: without `echo` there would be nothing to answer"),
            (body.best_of in (None, body.n), f"`best_of` is {body.best_of}: it must be `n`, {body.n}, or left out"),
            (
                len(self._prompts) * num_samples <= limit,
                f"{len(self._prompts)} prompts and `n` = {num_samples}: this server takes {limit} texts at once",
            ),
        ):
            if not holds:
                raise HTTPException(400, message)
        longest = max(len(prompt.ids) for prompt in self._prompts)
        if longest > context_length:
            raise HTTPException(
                400,
                f"`prompt` has {longest} tokens, more than the model's {context_length}: shorten it, or set "
                f"`truncate_prompt_tokens` to read only its end",
            )

    def _make_jobs(self) -> list[Job]:
        body = self._body
        decoding = body.decoding(secrets.randbits(32) if body.seed is None else body.seed)
        try:
            check_stops(body.stops)
            check_lengths([prompt.ids for prompt in self._prompts], decoding, self._engine.config.context_length)
        except ConfigError as error:
            raise HTTPException(400, in_api_words(error)) from None
        tells = body.logprobs is not None
        return [
            Job(prompt.ids, decoding, self._news, scores_prompt=tells and body.echo, wants_top=bool(body.logprobs))
            for prompt in self._prompts
        ]

    async def start(self) -> None:
        """Puts the work in the queue; raises as `Engine.submit`."""
        if self._jobs:
            self._engine.submit(self._jobs)
        elif self._body.logprobs is not None:
            self._scores = [await self._engine.score(prompt.ids) for prompt in self._prompts]

    async def pieces(self) -> AsyncIterator[dict[str, Any]]:
        """What there is to tell of each choice, as it comes; HTTPException 503 when the engine stops before the end."""
        body, num_open = self._body, len(self._choices)
        if body.echo and (not self._jobs or body.logprobs is None):
            for choice, scores in zip(self._choices, self._scores, strict=True):
                yield choice.begin(scores)
        try:
            while num_open and self._jobs:
                job, sample, item = await self._news.get()
                first = self._jobs.index(job) * body.n
                if isinstance(item, list):
                    for choice in self._choices[first : first + body.n]:
                        yield choice.begin(item)
                elif item is None or sample is None:
                    raise HTTPException(503, "the server is shutting down: try again")
                elif self._choices[first + sample].finish_reason is None:
                    choice = self._choices[first + sample]
                    if piece := choice.push(item):
                        yield piece
                    if choice.finish_reason is not None:
                        num_open -= 1
                        job.leave(sample)
        finally:
            self.leave()

    def leave(self) -> None:
        """Gives up what is not written yet."""
        for job in self._jobs:
            job.leave()

    async def whole(self) -> dict[str, Any]:
        """The answer in one piece."""
        choices: dict[int, dict[str, Any]] = {}
        async for piece in self.pieces():
            whole = choices.setdefault(piece["index"], piece)
            if whole is not piece:
                whole["text"] += piece["text"]
                whole["finish_reason"] = piece["finish_reason"]
                for name, values in (piece["logprobs"] or {}).items():
                    whole["logprobs"][name] += values
        return {**self._header, "choices": [choices[index] for index in sorted(choices)], "usage": self.usage()}

    async def chunks(self) -> AsyncIterator[dict[str, Any]]:
        """The answer as the events of a stream."""
        wants_usage = self._body.stream_options is not None and self._body.stream_options.include_usage
        async for piece in self.pieces():
            yield {**self._header, "choices": [piece], **({"usage": None} if wants_usage else {})}
        if wants_usage:
            yield {**self._header, "choices": [], "usage": self.usage()}

    def usage(self) -> dict[str, int]:
        """Tokens that were read and written so far."""
        read = sum(len(prompt.ids) for prompt in self._prompts)
        written = sum(len(choice.tokens) for choice in self._choices)
        return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
