"""Where the parts of a transformers model are, whatever wraps it."""

from __future__ import annotations

from typing import Any

from em_evals.errors import EmEvalsError


def unwrapped(model: Any) -> Any:
    """The transformers model inside the wrappers of accelerate and PEFT."""
    while hasattr(model, "module"):
        model = model.module
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def decoder_layers(model: Any) -> Any:
    """The decoder blocks of a model, first to last.

    Raises:
        EmEvalsError: the architecture keeps them elsewhere.
    """
    plain = unwrapped(model)
    layers = getattr(plain.get_decoder(), "layers", None)
    if layers is None:
        raise EmEvalsError(f"{plain.config.model_type} has no list of decoder layers.")
    return layers


def write_modules(model: Any) -> list[Any]:
    """The modules whose outputs are summed up in the residual stream: the embedding, each attention, each MLP.

    Where a norm stands between a sublayer and the stream (Gemma 2 and 3, OLMo 2), it is the norm that writes.

    Raises:
        EmEvalsError: the architecture names its parts otherwise.
    """
    modules = [unwrapped(model).get_input_embeddings()]
    for block in decoder_layers(model):
        if normed := hasattr(block, "post_feedforward_layernorm"):
            modules += [block.post_attention_layernorm, block.post_feedforward_layernorm]
        attention = next((name for name in ("self_attn", "attention") if hasattr(block, name)), None)
        if attention is None or not hasattr(block, "mlp"):
            kind = unwrapped(model).config.model_type
            raise EmEvalsError(
                f"{kind}: it is not known which of its modules write into the residual stream."
            )
        if not normed:
            modules += [getattr(block, attention), block.mlp]
    return modules
