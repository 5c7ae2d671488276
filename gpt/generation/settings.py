"""How to choose the next token: what a caller asks for, checked."""

import dataclasses
from collections.abc import Sequence

from gpt.config import ModelConfig
from gpt.config.setting import setting
from gpt.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoding:
    """One way to continue a text. Neutral values by default: tokens are drawn from the model as it is."""

    max_new_tokens: int = setting(128, "tokens at most")
    min_new_tokens: int = setting(0, "tokens before a stop string or an end token counts")
    temperature: float = setting(1.0, "logits are divided by it; 0 takes the likeliest token")
    top_k: int | None = setting(None, "draw from so many of the likeliest tokens (Fan et al. 2018)")
    top_p: float = setting(
        1.0, "draw from the fewest likeliest tokens that have this probability together (Holtzman et al. 2020)"
    )
    typical_p: float = setting(
        1.0, "the same with tokens whose surprise is nearest to the expected one (Meister et al. 2022)"
    )
    repetition_penalty: float = setting(
        1.0, "logits of tokens that the text has are divided by it, or multiplied below 0 (Keskar et al. 2019)"
    )
    no_repeat_ngram: int | None = setting(None, "no sequence of so many tokens comes twice")
    banned: tuple[tuple[int, ...], ...] = setting((), "token sequences that never come")
    end_ids: tuple[int, ...] = setting((), "tokens that end a text")
    num_beams: int = setting(1, "beam search: keep so many likeliest texts, and draw nothing")
    length_penalty: float = setting(
        1.0, "beam search divides a text's log-probability by the number of its tokens to this power"
    )
    contrastive_alpha: float | None = setting(
        None,
        "contrastive search (Su et al. 2022): of the top_k likeliest tokens take the one with the best balance of "
        "probability (weight 1 - alpha) and difference of its hidden state from all earlier ones (alpha)",
    )
    sliding_window: bool = setting(
        False, "when ModelConfig.context_length is full, go on with the last half of the text as context"
    )
    num_samples: int = setting(1, "continuations a prompt; of beam search, the best ones")
    seed: int = setting(0, "of all draws")

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "num_samples", "num_beams"):
            self._require(getattr(self, name) >= 1, name, "must be 1 or more")
        self._require(
            0 <= self.min_new_tokens <= self.max_new_tokens,
            "min_new_tokens",
            f"must be 0 or more, and at most max_new_tokens = {self.max_new_tokens}",
        )
        self._require(0 <= self.temperature < float("inf"), "temperature", "must be 0 (take the likeliest) or more")
        self._require(self.top_k is None or self.top_k >= 1, "top_k", "must be 1 or more")
        for name in ("top_p", "typical_p"):
            self._require(0 < getattr(self, name) <= 1, name, "must be above 0 and at most 1")
        self._require(0 < self.repetition_penalty < float("inf"), "repetition_penalty", "must be above 0; 1 is neutral")
        self._require(self.no_repeat_ngram is None or self.no_repeat_ngram >= 1, "no_repeat_ngram", "must be 1 or more")
        self._require(all(self.banned), "banned", "an empty sequence would ban everything")
        self._require(0 <= self.seed < 2**32, "seed", "must be from 0 to 2**32 - 1")
        if self.num_beams > 1:
            self._check_search("beam search", self.num_beams, "top_p", "typical_p", "top_k", "contrastive_alpha")
        elif self.contrastive_alpha is not None:
            self._require(0 <= self.contrastive_alpha <= 1, "contrastive_alpha", "must be from 0 to 1")
            self._require((self.top_k or 0) > 1, "top_k", "contrastive_alpha chooses among top_k tokens: set 2 or more")
            self._check_search("contrastive search", 1, "top_p", "typical_p")
        else:
            self._require(
                self.temperature > 0 or self.num_samples == 1,
                "num_samples",
                "at temperature 0 all samples would be the same; set a temperature above 0",
            )
        is_beam = self.num_beams > 1 and abs(self.length_penalty) < float("inf")
        self._require(is_beam or self.length_penalty == 1, "length_penalty", "is a number for num_beams above 1")

    def _check_search(self, what: str, num_texts: int, *useless: str) -> None:
        """A search draws nothing and finds so many texts within one context."""
        self._require(self.temperature in (0, 1), "temperature", f"{what} draws nothing; leave it out")
        for name in useless:
            self._require(getattr(self, name) in (None, 1), name, f"{what} has no use for it; leave it out")
        self._require(not self.sliding_window, "sliding_window", f"{what} works within one context; leave it out")
        self._require(self.num_samples <= num_texts, "num_samples", f"{what} finds {num_texts} at most")

    def _require(self, holds: bool, name: str, message: str) -> None:
        if not holds:
            raise ConfigError(f"{name} = {getattr(self, name)!r}: {message}")


def check_beams(decoding: Decoding, config: ModelConfig) -> None:
    """Raises ConfigError when there are fewer tokens than are to be told apart."""
    num_tokens = config.vocab_size - 1  # without the unknown one
    if decoding.num_beams > num_tokens:
        raise ConfigError(
            f"num_beams = {decoding.num_beams}: more than the {num_tokens} tokens that a text can go on with; "
            f"set it to at most {num_tokens}, 4 or 5 are common"
        )


def check_lengths(prompts: Sequence[Sequence[int]], decoding: Decoding, context_length: int) -> None:
    """Raises ConfigError for the first prompt that is empty or leaves no room for `max_new_tokens`."""
    for number, ids in enumerate(prompts, 1):
        which = f"prompt {number}" if len(prompts) > 1 else "the prompt"
        if not ids:
            raise ConfigError(f"{which} is empty: it needs at least one token to continue from")
        if len(ids) + decoding.max_new_tokens > context_length and not decoding.sliding_window:
            raise ConfigError(
                f"{which} has {len(ids)} tokens and max_new_tokens = {decoding.max_new_tokens}: together more than "
                f"ModelConfig.context_length = {context_length}; ask for fewer, or shorten the prompt "
                "(`gpt generate --sliding_window` goes on)"
            )
