"""The bodies of requests, checked. The API's description is made from these classes too (`gpt.demo.openapi`)."""

from typing import Annotated, Any, Literal, TypeVar

import pydantic
from pydantic import Field
from starlette.exceptions import HTTPException

from gpt.errors import ConfigError
from gpt.files import did_you_mean
from gpt.generation.settings import Decoding

Text = Annotated[str, Field(max_length=100_000)]


class Body(pydantic.BaseModel):
    """What every body has in common: no unknown fields, and no string taken for a number."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)

    model: str | None = None
    """Name of the model, as /v1/models tells it; without it, the one that is there."""


class StreamOptions(pydantic.BaseModel):
    """What a stream tells beside the text."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)

    include_usage: bool = False
    """Send the count of tokens in a last event of its own."""


class CompletionBody(Body):
    """A request to continue texts."""

    prompt: Text | list[Text] | list[int] | list[list[int]]
    """The text to continue, or its token ids; or several of them."""
    max_tokens: int = Field(16, ge=0)
    """New tokens; 0 only with `echo`."""
    temperature: float = 1.0
    """Logits are divided by it; 0 takes the likeliest token."""
    top_p: float = 1.0
    """Draw from the fewest likeliest tokens that have this probability together."""
    n: int = 1
    """Continuations of each prompt."""
    stop: Text | list[Text] | None = None
    """Texts that end a continuation, and are no part of it."""
    seed: int | None = None
    """Two requests with the same seed get the same answer; without it every answer is another."""
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    """Tell the log-probability of every token, and so many of the likeliest in its place."""
    echo: bool = False
    """Repeat the prompt in front of the text."""
    stream: bool = False
    """Send the text as it is written, by server-sent events."""
    stream_options: StreamOptions | None = None
    """What a stream tells beside the text."""
    top_k: int | None = None
    """Draw from so many of the likeliest tokens. Beyond OpenAI's API."""
    typical_p: float = 1.0
    """Draw from tokens whose surprise is nearest to the expected one. Beyond OpenAI's API."""
    repetition_penalty: float = 1.0
    """Logits of tokens that the text has are divided by it. Beyond OpenAI's API."""
    truncate_prompt_tokens: int | None = Field(None, ge=1)
    """Read only so many of the prompt's last tokens. Beyond OpenAI's API."""
    user: str | None = None
    """Not used."""
    best_of: int | None = None
    """Must be `n`: the server writes no more than it returns."""
    suffix: Literal[None] = None
    """Must be null: the model reads from left to right alone."""
    frequency_penalty: Literal[0] | None = 0
    """Must be 0; there is `repetition_penalty`."""
    presence_penalty: Literal[0] | None = 0
    """Must be 0; there is `repetition_penalty`."""
    logit_bias: dict[str, float] | None = Field(None, max_length=0)
    """Must be empty."""

    def decoding(self, seed: int) -> Decoding:
        """The settings of `gpt.generation` for `max_tokens` above 0; HTTPException 400 for values without meaning."""
        try:
            return Decoding(
                max_new_tokens=self.max_tokens,
                temperature=self.temperature,
                top_k=self.top_k,
                top_p=self.top_p,
                typical_p=self.typical_p,
                repetition_penalty=self.repetition_penalty,
                num_samples=self.n,
                seed=seed,
            )
        except ConfigError as error:
            raise HTTPException(400, in_api_words(error)) from None

    @property
    def prompts(self) -> list[Any]:
        """The prompts one by one, texts or lists of ids."""
        prompt: Any = self.prompt
        is_one = isinstance(prompt, str) or (prompt and isinstance(prompt[0], int))
        return [prompt] if is_one else list(prompt)

    @property
    def stops(self) -> list[str]:
        """The texts that end a continuation."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []


Row = dict[str, Any]


class ClassifyBody(Body):
    """A request to classify texts by the head of a fine-tuned run."""

    input: Text | Row | list[Text | Row]
    """A text, or an object with the columns of the task such as `text_a` and `text_b`; or several of them."""

    @property
    def rows(self) -> list[Row]:
        """The inputs as rows of a data set."""
        inputs = self.input if isinstance(self.input, list) else [self.input]
        return [{"text": row} if isinstance(row, str) else row for row in inputs]


SomeBody = TypeVar("SomeBody", bound=Body)


def parse(kind: type[SomeBody], content: bytes) -> SomeBody:
    """The body; HTTPException 400 that names the first field that is wrong, and says what it takes."""
    try:
        return kind.model_validate_json(content)
    except pydantic.ValidationError as error:
        raise HTTPException(400, _describe(kind, error)) from None


def _describe(kind: type[Body], error: pydantic.ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    place, problem = first["loc"], first["msg"]
    if not place:
        return f"the body is no JSON object: {problem}"
    name = str(place[0])
    if name not in kind.model_fields:
        return f"`{name}` is no field of this request{did_you_mean(name, kind.model_fields) or '.'}"
    if first["type"] == "missing":
        return f"`{name}` is missing: {kind.model_fields[name].description}"
    meaning = kind.model_fields[name].description
    if len({other["loc"][1:2] for other in error.errors() if other["loc"][0] == name}) > 1:  # none of several types
        return f"`{name}` does not fit: {meaning}"
    where = ".".join(map(str, place))
    return f"`{where}` is {first['input']!r:.60}: {problem}. {meaning}"


def in_api_words(error: ConfigError) -> str:
    """The text of an error about `Decoding`, with the names of the API."""
    return str(error).replace("max_new_tokens", "max_tokens").replace("num_samples", "n")
