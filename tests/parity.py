"""The same inputs through Hugging Face's OpenAI GPT and through ours; each gives a dict of named arrays.

`huggingface_outputs` needs `transformers` and `torch`. `python tests/parity.py` writes what it gives for
`CASE` to golden/huggingface.npz, so that the other tests need neither.
"""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gpt.config import ModelConfig
from gpt.model.gpt import GPT, bind, param_shapes
from gpt.model.heads import last_token
from gpt.objectives import classification_losses, multi_label_losses, regression_losses, token_losses

GOLDEN = Path(__file__).parent / "golden" / "huggingface.npz"
LM_COEF = 0.5


class Case(NamedTuple):
    """A model and a batch: [B, C, T] candidates, of which the first of each example is the text elsewhere."""

    config: ModelConfig
    num_outputs: int
    seed: int
    batch: int = 3
    candidates: int = 3
    side: str = "right"

    def params(self, num_outputs: int) -> Any:
        """Parameters away from their initial values, so that none can be forgotten."""
        generator = np.random.default_rng(self.seed)

        def draw(path: Any, leaf: Any) -> np.ndarray:
            return generator.normal(path[-1].key == "scale", 0.3, leaf.shape).astype(np.float32)

        return jax.tree.map_with_path(draw, param_shapes(self.config, num_outputs))

    def tokens_and_mask(self) -> tuple[np.ndarray, np.ndarray]:
        """Ids of 1 and above, 0 as padding on `side`; each sequence has a length of its own, the same on both sides."""
        generator = np.random.default_rng(self.seed + 1)
        shape = (self.batch, self.candidates, self.config.context_length - 2)
        lengths = generator.integers(3, shape[-1] + 1, shape[:2])
        lengths[0, 0] = shape[-1]
        real = lengths[..., None] > np.arange(shape[-1])
        mask = real if self.side == "right" else real[..., ::-1]
        tokens = np.zeros(shape, np.int64)
        tokens[mask] = generator.integers(1, self.config.vocab_size, shape)[real]
        return tokens, mask


CASE = Case(
    ModelConfig(vocab_size=23, context_length=9, num_layers=2, num_heads=2, embed_dim=8, mlp_dim=32), num_outputs=4,
    seed=11,
)  # fmt: skip


def _labels(case: Case, tokens: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(case.seed + 2)
    # The first real token has nothing real before it, on whichever side the padding is.
    is_target = mask & (np.cumsum(mask, -1) > 1)
    return {
        "lm": np.where(is_target, tokens, -100),
        "choice": generator.integers(case.candidates, size=case.batch),
        "class": generator.integers(case.num_outputs, size=case.batch),
        "multi": generator.integers(2, size=(case.batch, case.num_outputs)).astype(np.float32),
        "targets": generator.normal(size=(case.batch, case.num_outputs)).astype(np.float32),
        "segments": generator.integers(case.config.vocab_size, size=tokens[:, 0].shape),
    }


def _positions(mask: np.ndarray) -> np.ndarray:
    return np.maximum(np.cumsum(mask, -1) - 1, 0)


# Theirs


def state_dict(params: Any, head: str = "") -> dict[str, np.ndarray]:
    """Our parameters under Hugging Face's names, without prefix; `head` is `summary` or `score`."""
    transformer = params["transformer"]
    arrays = {
        "tokens_embed.weight": transformer["token_embedding"],
        "positions_embed.weight": transformer["position_embedding"],
    }
    blocks = transformer["blocks"]
    names = {
        "attn.c_attn": blocks["attention"]["qkv"], "attn.c_proj": blocks["attention"]["out"],
        "mlp.c_fc": blocks["mlp"]["up"], "mlp.c_proj": blocks["mlp"]["down"],
        "ln_1": blocks["attention_norm"], "ln_2": blocks["mlp_norm"],
    }  # fmt: skip
    for name, module in names.items():
        for layer, weight in enumerate(module["scale" if "scale" in module else "kernel"]):
            arrays[f"h.{layer}.{name}.weight"] = weight
            arrays[f"h.{layer}.{name}.bias"] = module["bias"][layer]
    if head:
        arrays = {f"transformer.{name}": array for name, array in arrays.items()}
    if head == "summary":
        arrays["multiple_choice_head.summary.weight"] = params["head"]["kernel"].T
        arrays["multiple_choice_head.summary.bias"] = params["head"]["bias"]
    elif head == "score":
        arrays["score.weight"] = params["head"]["kernel"].T
    return arrays


def build_huggingface(case: Case, kind: str, params: Any, head: str, **settings: Any) -> Any:
    """Their model of class `kind` with our parameters, dropout off."""
    import torch  # pyright: ignore[reportMissingImports]
    import transformers  # pyright: ignore[reportMissingImports]

    config = case.config
    model = getattr(transformers, kind)(
        transformers.OpenAIGPTConfig(
            vocab_size=config.vocab_size, n_positions=config.context_length, n_embd=config.embed_dim,
            n_layer=config.num_layers, n_head=config.num_heads, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
            summary_first_dropout=0.0, **settings,
        )
    )  # fmt: skip
    arrays = state_dict(params, head)
    if head in ("lm", "summary"):
        arrays["lm_head.weight"] = arrays["transformer.tokens_embed.weight"]
    result = model.load_state_dict({name: torch.tensor(np.array(array)) for name, array in arrays.items()}, strict=True)
    assert not result.missing_keys, result
    return model.eval()


def _gradients(model: Any, loss: Any) -> dict[str, np.ndarray]:
    model.zero_grad()
    loss.backward()
    named = {name.removeprefix("transformer."): p.grad for name, p in model.named_parameters()}
    return {name: grad.numpy() for name, grad in named.items() if grad is not None}


def huggingface_outputs(case: Case) -> dict[str, np.ndarray]:
    """What `transformers` computes in float32."""
    import torch  # pyright: ignore[reportMissingImports]

    tokens, mask = case.tokens_and_mask()
    labels = {name: torch.tensor(array) for name, array in _labels(case, tokens, mask).items()}
    ids, attention_mask, positions = torch.tensor(tokens), torch.tensor(mask.astype(np.int64)), _positions(mask)
    position_ids = torch.tensor(positions)
    first = {"attention_mask": attention_mask[:, 0], "position_ids": position_ids[:, 0]}
    outputs: dict[str, Any] = {}

    params = case.params(1)
    base = build_huggingface(case, "OpenAIGPTModel", params, "", attn_implementation="eager")
    out = base(ids[:, 0], **first, token_type_ids=labels["segments"], output_hidden_states=True, output_attentions=True)
    outputs["hidden"], outputs["attentions"] = torch.stack(out.hidden_states), torch.stack(out.attentions)
    embeddings = base.tokens_embed(labels["segments"])
    outputs["from_embeddings"] = base(inputs_embeds=embeddings, **first).last_hidden_state

    lm = build_huggingface(case, "OpenAIGPTLMHeadModel", params, "lm")
    out = lm(ids[:, 0], **first, labels=labels["lm"][:, 0])
    outputs |= {"logits": out.logits, "lm_loss": out.loss}
    gradients = {f"lm_gradient {name}": grad for name, grad in _gradients(lm, out.loss).items()}

    double = build_huggingface(case, "OpenAIGPTDoubleHeadsModel", params, "summary")
    extract = torch.tensor(np.asarray(last_token(jnp.asarray(mask))))
    flat = {"attention_mask": attention_mask.flatten(0, 1), "position_ids": position_ids.flatten(0, 1)}
    out = double(ids, **flat, mc_token_ids=extract, labels=labels["lm"], mc_labels=labels["choice"])
    outputs |= {"choice_logits": out.mc_logits, "choice_loss": out.mc_loss, "choice_lm_loss": out.loss}
    combined = out.mc_loss + LM_COEF * out.loss
    gradients |= {f"combined_gradient {name}": grad for name, grad in _gradients(double, combined).items()}

    params = case.params(case.num_outputs)
    kinds = {"single_label_classification": "class", "multi_label_classification": "multi", "regression": "targets"}
    for kind, target in kinds.items():
        model = build_huggingface(
            case, "OpenAIGPTForSequenceClassification", params, "score", num_labels=case.num_outputs, pad_token_id=0,
            problem_type=kind,
        )  # fmt: skip
        out = model(ids[:, 0], **first, labels=labels[target])
        outputs |= {f"{kind}_logits": out.logits, f"{kind}_loss": out.loss}
        gradients |= {f"{kind}_gradient {name}": grad for name, grad in _gradients(model, out.loss).items()}
    return {name: np.asarray(value.detach()) for name, value in outputs.items()} | gradients


# Ours


def our_outputs(case: Case) -> dict[str, np.ndarray]:
    """What this project computes, under the same names; parameters' gradients under Hugging Face's."""
    tokens, mask = map(jnp.asarray, case.tokens_and_mask())
    labels = {name: jnp.asarray(array) for name, array in _labels(case, np.asarray(tokens), np.asarray(mask)).items()}
    config = case.config
    first, first_mask = tokens[:, 0], mask[:, 0]

    def lm_loss(model: GPT, hidden: Any, targets: Any) -> Any:
        weights = targets[:, 1:] >= 0
        losses = token_losses(model.transformer.logits(hidden)[:, :-1], jnp.maximum(targets[:, 1:], 0))
        return (losses * weights).sum() / weights.sum()

    def language_model(params: Any) -> Any:
        model = bind(config, params)
        activations = model.transformer.activations(first, mask=first_mask, segments=labels["segments"])
        embeddings = params["transformer"]["token_embedding"][labels["segments"]]
        hidden = model.transformer(first, mask=first_mask)
        loss = lm_loss(model, hidden, labels["lm"][:, 0])
        return loss, {
            "hidden": activations.hidden,
            "attentions": activations.attentions,
            "from_embeddings": model.transformer(embeddings, mask=first_mask),
            "logits": model.transformer.logits(hidden),
            "lm_loss": loss,
        }

    def double_heads(params: Any) -> Any:
        model = bind(config, params)
        assert model.head is not None
        shape = tokens.shape
        hidden = model.transformer(tokens.reshape(-1, shape[-1]), mask=mask.reshape(-1, shape[-1]))
        scores = model.head(hidden.reshape(*shape, -1), last_token(mask))[..., 0]
        choice = classification_losses(scores, labels["choice"]).mean()
        lm = lm_loss(model, hidden, labels["lm"].reshape(-1, shape[-1]))
        return choice + LM_COEF * lm, {"choice_logits": scores, "choice_loss": choice, "choice_lm_loss": lm}

    def classification(kind: str, losses: Any, target: str) -> Any:
        def run(params: Any) -> Any:
            params = {**params, "head": {**params["head"], "bias": jnp.zeros(case.num_outputs)}}  # theirs has none
            model = bind(config, params)
            assert model.head is not None
            hidden = model.transformer(first, mask=first_mask)
            scores = model.head(hidden[:, None], last_token(first_mask)[:, None])[:, 0]
            loss = losses(scores, labels[target]).mean()
            return loss, {f"{kind}_logits": scores, f"{kind}_loss": loss}

        return run

    runs = {
        "lm": (language_model, case.params(1), ""),
        "combined": (double_heads, case.params(1), "summary"),
        **{
            kind: (classification(kind, losses, target), case.params(case.num_outputs), "score")
            for kind, losses, target in (
                ("single_label_classification", classification_losses, "class"),
                ("multi_label_classification", multi_label_losses, "multi"),
                ("regression", regression_losses, "targets"),
            )
        },
    }
    outputs: dict[str, Any] = {}
    for name, (run, params, head) in runs.items():
        gradients, values = jax.jit(jax.grad(run, has_aux=True))(params)
        outputs |= values
        renamed = {key.removeprefix("transformer."): grad for key, grad in state_dict(gradients, head).items()}
        outputs |= {f"{name}_gradient {key}": grad for key, grad in renamed.items()}
    return {name: np.asarray(value) for name, value in outputs.items()}


def compare(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray], case: Case, tolerance: float) -> None:
    """Asserts that they are equal wherever a token is real."""
    mask = case.tokens_and_mask()[1][:, 0]
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        found = ours[name]
        assert found.shape == expected.shape, name
        real = {
            "hidden": mask[None, ..., None],
            "from_embeddings": mask[..., None],
            "logits": mask[..., None],
            "attentions": mask[None, :, None, :, None],
        }.get(name, True)
        np.testing.assert_allclose(found * real, expected * real, rtol=0, atol=tolerance, err_msg=name)


if __name__ == "__main__":
    np.savez_compressed(GOLDEN, **huggingface_outputs(CASE))  # pyright: ignore[reportArgumentType]
