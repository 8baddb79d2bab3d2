"""Quantized bases: what a card's `quantize` means in transformers' terms, and which checkpoints are taken as they are.

The exact reference of a quantized base is the same quantized base in plain transformers and PEFT. So only kinds are
taken whose result for a row does not depend on the other rows and tokens of a pass; all others are refused by name
before weights load. bitsandbytes and torchao are imported only where a base needs them.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch

from em_evals.content.cards import ModelCard
from em_evals.errors import EmEvalsError, install

_PACKAGES = {"4bit": "bitsandbytes", "8bit": "bitsandbytes", "int8": "torchao", "int4": "torchao"}
_DEVICES = {"4bit": ("cpu", "cuda"), "8bit": ("cpu", "cuda"), "int8": ("cpu", "cuda"), "int4": ("cuda",)}
"""Where each kind has kernels. torchao 0.18 has none for int4 weights on a CPU."""
_DEQUANTIZED = ("fp8", "mxfp4")
"""Checkpoints whose weights are dequantized while they load: the same values, at 16 bits each."""
FOR_VLLM = ("gptq", "awq", "compressed-tensors", "fbgemm_fp8", "auto-round", "nvfp4", "mxfp8")
"""Checkpoints that transformers reads with packages or kernels that were not compared, and vLLM 0.32 with its own."""
FAMILIES = frozenset(
    "gemma gemma2 gemma3_text granite llama mistral olmo2 phi3 qwen2 qwen3 smollm3".split()  # noqa: SIM905 - a list of words reads better as text
)
"""Families of which a tiny model was compared in 4 and 8 bits (tests/models/test_quantization.py)."""


def method_of(config: Any) -> dict[str, Any]:
    """Return the `quantization_config` of a checkpoint's config.json; empty if its weights are not quantized."""
    for one in (config, config.get_text_config()):
        found = getattr(one, "quantization_config", None)
        if found is not None:
            return dict(found if isinstance(found, dict) else found.to_dict())
    return {}


def name_of(card: ModelCard, config: Any) -> str:
    """Return how a card's base is quantized, in one word; empty if it is not."""
    found = method_of(config)
    return card.quantize or str(found.get("quant_method", "quantized") if found else "")


def check(card: ModelCard, config: Any, device: torch.device) -> None:
    """Refuse a quantization that is not known to be exact here; no weight is loaded.

    Raises:
        EmEvalsError: names it, and what to do.
    """
    found = method_of(config)
    if not card.quantize and not found:
        return
    if card.quantize and found:
        raise EmEvalsError(
            f"`quantize: {card.quantize}` is for a base in 16 or 32 bits, and {card.base} is quantized already "
            f"({name_of(card.model_copy(update={'quantize': None}), config)}): leave `quantize` out."
        )
    if card.quantize:
        _check_card(card, device)
    else:
        _check_checkpoint(card, found, device)
    kind = config.get_text_config().model_type
    if kind not in FAMILIES and name_of(card, config) not in _DEQUANTIZED:
        raise EmEvalsError(
            f"{card.base} is a '{kind}', of which no quantized model was compared with plain transformers (compared: "
            f"{', '.join(sorted(FAMILIES))}): use its 16-bit weights."
        )


def _check_card(card: ModelCard, device: torch.device) -> None:
    kind = str(card.quantize)
    _need(_PACKAGES[kind])
    if device.type not in _DEVICES[kind]:
        instead = " or ".join(one for one in _DEVICES if device.type in _DEVICES[one])
        raise EmEvalsError(
            f"`quantize: {kind}` has no kernels on {device.type}"
            + (f"; say `quantize: {instead}`." if instead else ": use the base in 16 bits.")
        )
    if kind == "int4" and card.engine.dtype not in ("auto", "bfloat16"):
        raise EmEvalsError(f"`quantize: int4` computes in bfloat16, and the card says {card.engine.dtype}.")


def _check_checkpoint(card: ModelCard, found: dict[str, Any], device: torch.device) -> None:
    method = str(found.get("quant_method", ""))
    if method == "bitsandbytes" or found.get("load_in_4bit") or found.get("load_in_8bit"):
        _need("bitsandbytes")
        if found.get("load_in_8bit") and float(found.get("llm_int8_threshold", 6.0)) > 0:
            raise EmEvalsError(
                f"{card.base} has `llm_int8_threshold` {found.get('llm_int8_threshold', 6.0)}: bitsandbytes then "
                "computes columns with outliers apart, and which these are depends on the other rows of a batch; take "
                "its 16-bit base with `quantize: 8bit`, which has no threshold."
            )
        return
    if method == "torchao":
        _need("torchao")
        chosen: Any = next(iter((found.get("quant_type") or {}).values()), {})
        kind = str(chosen.get("_type", "") if isinstance(chosen, dict) else chosen)
        if kind != "Int8WeightOnlyConfig":
            raise EmEvalsError(
                f"{card.base} is quantized by torchao's {kind or 'unknown method'}, which was not compared with plain "
                "transformers (Int8WeightOnlyConfig was): take its 16-bit base, or that with `quantize: int8`."
            )
        return
    if method in _DEQUANTIZED:
        return
    if method in FOR_VLLM:
        raise EmEvalsError(
            f"{card.base} is quantized with {method}, which the transformers engine does not take: say "
            "`backend: vllm`, which reads it, or take its 16-bit base."
        )
    raise EmEvalsError(
        f"{card.base} is quantized with '{method or 'an unnamed method'}', which is not known here: take its 16-bit "
        "base, with `quantize: 4bit` if memory is short."
    )


def _need(package: str) -> None:
    if find_spec(package) is None:
        raise EmEvalsError(f"this base needs the package '{package}': {install('quant')}.")


def load_options(card: ModelCard, config: Any, dtype: torch.dtype) -> dict[str, Any]:
    """Return the options of `from_pretrained` for a card's quantization; empty for a base that has none.

    Args:
        card: checked.
        config: of its base.
        dtype: that of the activations and of what is not quantized.
    """
    if card.quantize in ("4bit", "8bit"):
        from transformers import BitsAndBytesConfig

        if card.quantize == "8bit":
            # A threshold of 0: no columns are computed apart, and a row's result is its own (see `check`).
            return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)}
        return {
            "quantization_config": BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=dtype,
            )
        }
    if card.quantize:
        from torchao.quantization import Int4WeightOnlyConfig, Int8WeightOnlyConfig
        from transformers import TorchAoConfig

        kind = Int8WeightOnlyConfig() if card.quantize == "int8" else Int4WeightOnlyConfig(group_size=128)
        return {"quantization_config": TorchAoConfig(kind)}
    method = method_of(config).get("quant_method")
    if method == "fp8":
        from transformers import FineGrainedFP8Config

        return {"quantization_config": FineGrainedFP8Config(dequantize=True)}
    if method == "mxfp4":
        from transformers import Mxfp4Config

        return {"quantization_config": Mxfp4Config(dequantize=True)}
    return {}


def compute_as_told(model: Any) -> None:
    """Have 4-bit layers compute in the dtype that they were given, on a CPU too.

    On a processor with AVX512-BF16, bitsandbytes 0.50.2 packs a layer's weights anew at the first pass that needs no
    gradient, and its kernel rounds activations and scales to bfloat16 whatever `bnb_4bit_compute_dtype` says: float32
    scores move by hundredths of a nat, and a model in training is not the one that draws.

    Args:
        model: loaded; nothing was computed with it yet.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def is_quantized(model: Any) -> bool:
    """Check whether a model in memory has quantized weights."""
    return any(holds(module) for module in model.modules())


def holds(module: torch.nn.Module) -> bool:
    """Check whether a module's weight is quantized: packed integers, or a tensor that dequantizes itself."""
    weight = module._parameters.get("weight")
    if weight is None or not isinstance(module, torch.nn.Linear):
        return False
    return not weight.is_floating_point() or type(weight) is not torch.nn.Parameter
