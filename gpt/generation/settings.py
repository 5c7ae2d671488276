"""How to choose the next token: what a caller asks for, checked."""

import dataclasses
from collections.abc import Sequence

from gpt.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoding:
    """One way to continue a text. Neutral values by default: tokens are drawn from the model as it is."""

    max_new_tokens: int = 128
    temperature: float = 1.0
    """Logits are divided by it; 0 takes the likeliest token."""
    top_k: int | None = None
    """Draw from so many of the likeliest tokens (Fan et al. 2018)."""
    top_p: float = 1.0
    """Draw from the fewest likeliest tokens that have this probability together (Holtzman et al. 2020)."""
    typical_p: float = 1.0
    """The same with tokens whose surprise is nearest to the expected one (Meister et al. 2022)."""
    repetition_penalty: float = 1.0
    """Logits of tokens that the text has are divided by it, or multiplied below 0 (Keskar et al. 2019)."""
    no_repeat_ngram: int | None = None
    """No sequence of so many tokens comes twice."""
    banned: tuple[tuple[int, ...], ...] = ()
    """Token sequences that never come."""
    num_samples: int = 1
    """Continuations a prompt."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "num_samples"):
            self._require(getattr(self, name) >= 1, name, "must be 1 or more")
        self._require(0 <= self.temperature < float("inf"), "temperature", "must be 0 (take the likeliest) or more")
        self._require(self.top_k is None or self.top_k >= 1, "top_k", "must be 1 or more")
        for name in ("top_p", "typical_p"):
            self._require(0 < getattr(self, name) <= 1, name, "must be above 0 and at most 1")
        self._require(0 < self.repetition_penalty < float("inf"), "repetition_penalty", "must be above 0; 1 is neutral")
        self._require(self.no_repeat_ngram is None or self.no_repeat_ngram >= 1, "no_repeat_ngram", "must be 1 or more")
        self._require(all(self.banned), "banned", "an empty sequence would ban everything")
        self._require(0 <= self.seed < 2**32, "seed", "must be from 0 to 2**32 - 1")
        self._require(
            self.temperature > 0 or self.num_samples == 1,
            "num_samples",
            "at temperature 0 all samples would be the same; set a temperature above 0",
        )

    def _require(self, holds: bool, name: str, message: str) -> None:
        if not holds:
            raise ConfigError(f"{name} = {getattr(self, name)!r}: {message}")


def check_lengths(prompts: Sequence[Sequence[int]], decoding: Decoding, context_length: int) -> None:
    """Raises ConfigError for the first prompt that is empty or leaves no room for `max_new_tokens`."""
    for number, ids in enumerate(prompts, 1):
        which = f"prompt {number}" if len(prompts) > 1 else "the prompt"
        if not ids:
            raise ConfigError(f"{which} is empty: it needs at least one token to continue from")
        if len(ids) + decoding.max_new_tokens > context_length:
            raise ConfigError(
                f"{which} has {len(ids)} tokens and max_new_tokens = {decoding.max_new_tokens}: together more than "
                f"ModelConfig.context_length = {context_length}; ask for fewer, or shorten the prompt"
            )
