"""The peer's side: OpenAI GPT of `transformers` on PyTorch, with random weights and ids."""

import contextlib
import os
import time
from collections.abc import Mapping
from typing import Any

import torch  # pyright: ignore[reportMissingImports] - an optional extra
import transformers  # pyright: ignore[reportMissingImports]

from benchmarks.compare import Turn, after_another
from benchmarks.lengths import draw_examples
from gpt.config import ModelConfig

transformers.logging.set_verbosity_error()
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def training(
    batch: int, length: int, model: Mapping[str, Any], compiled: bool = False, bf16: bool = False, fused: bool = False
) -> Turn:
    """Forward, backward, clipping by global norm 1, fused AdamW; seconds of one.

    `fused` asks for PyTorch's fused attention, where this model of `transformers` has it.
    """
    attention = {"attn_implementation": "sdpa"} if fused else {}
    peer = _place(transformers.OpenAIGPTLMHeadModel._from_config(_config(model), **attention)).train()
    optimizer = _optimizer(peer)
    forward = torch.compile(peer) if compiled else peer
    tokens = torch.randint(peer.config.vocab_size, (batch, length), device=DEVICE)

    def turn() -> dict[str, float]:
        start = time.perf_counter()
        with torch.autocast(DEVICE, torch.bfloat16) if bf16 else contextlib.nullcontext():
            loss = forward(input_ids=tokens, labels=tokens).loss
        _update(peer, optimizer, loss)
        _wait()
        return {"seconds": time.perf_counter() - start}

    return after_another(turn)


def finetuning(task: str, examples: int, batch: int, batches: int, model: Mapping[str, Any]) -> Turn:
    """The first random batches of an epoch, each padded to its longest; seconds of all."""
    peer = _place(transformers.OpenAIGPTForSequenceClassification(_config({**model, "num_special_tokens": 3})))
    peer.config.pad_token_id = 0
    optimizer = _optimizer(peer.train())
    sequences = [torch.tensor(ids) for ids in draw_examples(task, examples, peer.config.vocab_size)]
    labels = torch.arange(examples) % 2

    def turn(num_batches: int = batches) -> dict[str, float]:
        start = time.perf_counter()
        for rows in torch.randperm(examples).split(batch)[:num_batches]:
            tokens = torch.nn.utils.rnn.pad_sequence([sequences[row] for row in rows], batch_first=True)
            _update(peer, optimizer, peer(input_ids=tokens.to(DEVICE), labels=labels[rows].to(DEVICE)).loss)
        _wait()
        return {"seconds": time.perf_counter() - start}

    turn(3)  # as often as ours, which compiles three lengths
    return after_another(turn, lambda: turn(1))


def scoring(batch: int, length: int, model: Mapping[str, Any]) -> Turn:
    """The log-probability of every token; seconds of all."""
    peer = _place(transformers.OpenAIGPTLMHeadModel(_config(model))).eval()
    tokens = torch.randint(peer.config.vocab_size, (batch, length), device=DEVICE)

    @torch.inference_mode()
    def turn() -> dict[str, float]:
        start = time.perf_counter()
        for rows in tokens.split(8):
            log_probs = peer(input_ids=rows).logits[:, :-1].log_softmax(-1)
            log_probs.gather(-1, rows[:, 1:, None])[..., 0].tolist()
        return {"seconds": time.perf_counter() - start}

    return after_another(turn)


def generation(batch: int, prompt: int, new: int, model: Mapping[str, Any]) -> Turn:
    """The likeliest tokens after each prompt, by `generate`; seconds of all."""
    peer = _place(transformers.OpenAIGPTLMHeadModel(_config(model))).eval()
    tokens = torch.randint(1, peer.config.vocab_size, (batch, prompt), device=DEVICE)
    attention_mask = torch.ones_like(tokens)

    def turn(new: int = new) -> dict[str, float]:
        start = time.perf_counter()
        peer.generate(tokens, attention_mask=attention_mask, max_new_tokens=new, do_sample=False, pad_token_id=0)
        _wait()
        return {"seconds": time.perf_counter() - start}

    turn(1)
    return turn


def _config(model: Mapping[str, Any]) -> transformers.OpenAIGPTConfig:
    """What our `ModelConfig(**model)` describes; PyTorch starts from the same weights each time."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    config = ModelConfig(**model)
    return transformers.OpenAIGPTConfig(
        vocab_size=config.num_embeddings,
        n_positions=config.context_length,
        n_embd=config.embed_dim,
        n_layer=config.num_layers,
        n_head=config.num_heads,
    )


def _place(peer: Any) -> Any:
    return peer.to(DEVICE)


def _optimizer(peer: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(peer.parameters(), lr=6.25e-5, weight_decay=0.01, fused=True)


def _update(peer: torch.nn.Module, optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    loss.backward()
    torch.nn.utils.clip_grad_norm_(peer.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def _wait() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()
