"""PEFT's adapter_config.json, validated as untrusted input, with what each option means here.

Every field of `peft.LoraConfig` is in one of the tables below; a test compares them with the installed PEFT. An option
that is in none of them and is switched on is refused by name: it may change what the adapter computes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from em_evals import files, parsing
from em_evals.errors import EmEvalsError

CONFIG = "adapter_config.json"
_LARGEST = 4 * 2**20
"""Bytes: a list of every module of a large model needs one MiB; a larger file is not a configuration."""

NO_EFFECT = frozenset(
    {
        "peft_version", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "lora_dropout",
        "fan_in_fan_out", "megatron_core", "eva_config", "corda_config", "lora_ga_config", "loftq_config",
        "qalora_group_size", "runtime_config", "velora_config", "ensure_weight_tying",
    }
)  # fmt: skip
"""Fields that change training, initialization or bookkeeping, and nothing that a trained adapter computes.

`fan_in_fan_out` is decided by the module's class, as in PEFT. `velora_config` acts in the backward pass only.
`ensure_weight_tying` makes PEFT save a tensor for each tied module, and what is saved is what is read.
"""

EXACT = frozenset(
    {
        "peft_type", "task_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "target_modules",
        "exclude_modules", "layers_to_transform", "layers_pattern", "target_parameters", "bias", "lora_bias",
        "modules_to_save", "trainable_token_indices", "use_dora", "init_lora_weights",
    }
)  # fmt: skip
"""Fields that are computed as in PEFT; `init_lora_weights` has a table of its own."""

REFUSED: Mapping[str, str] = {
    "layer_replication": "it changes the base's depth; merge it into a checkpoint with PEFT and use that as base",
    "alora_invocation_tokens": "an activated LoRA acts from its invocation tokens on, which no engine here does; "
    "train a plain LoRA",
    "megatron_config": "its layers are Megatron's; save the adapter as a plain LoRA",
    "use_qalora": "it needs a GPTQ base; save the adapter as a plain LoRA",
    "use_bdlora": "its matrices are block-diagonal; save the adapter as a plain LoRA",
    "arrow_config": "it routes between several adapters; name one of them",
    "kasa_config": "it truncates the base's weights; merge it into a checkpoint with PEFT and use that as base",
    "monteclora_config": "its weights are sampled; save the adapter as a plain LoRA",
}
"""Fields that are refused where they are switched on, with the reason and what to do instead."""

NOT_MERGEABLE = frozenset(
    {
        "PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CARTRIDGE", "CPT", "ADAPTION_PROMPT",
        "XLORA", "LILY", "POLY", "SHADOW",
    }
)  # fmt: skip
"""PEFT's kinds that add tokens, keys and values, or a gate that reads the text or a task's number."""

PLAIN_INITS = frozenset({"gaussian", "eva", "orthogonal", "mica"})
"""Initializations that do not change the base: a trained adapter is a plain LoRA."""
CONVERTED_INITS = frozenset({"pissa", "olora"})
"""Initializations that move a part of the base's weights into the adapter, computable from these weights."""
_OTHER_INITS: Mapping[str, str] = {
    "loftq": "loading it quantizes the base again",
    "corda": "the covariances that it took out of the base's weights are not in the file",
    "lora_ga": "the gradients that it took out of the base's weights are not in the file",
}
CONVERT = "save it with PEFT's `path_initial_model_for_weight_conversion`, which makes a plain LoRA of it"


_HUGE = 1e18


def _number(value: Any) -> Any:
    """Refuse values that are not finite numbers, or that a float cannot hold."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not -_HUGE < value < _HUGE:
        raise ValueError("expected a finite number")
    return value


def _listed(value: Any) -> Any:
    """Return a list; PEFT writes sets as lists, and one string may replace a list of one."""
    return [value] if isinstance(value, str) else value


Rank = Annotated[int, BeforeValidator(_number), Field(gt=0, le=2**20)]
Number = Annotated[float, BeforeValidator(_number)]
Index = Annotated[int, BeforeValidator(_number), Field(ge=0, lt=2**40)]
Name = Annotated[str, Field(min_length=1, max_length=20_000)]
Names = Annotated[list[Name], BeforeValidator(_listed)]


class AdapterConfig(BaseModel):
    """A LoRA's configuration, validated; unknown options are in `model_extra`.

    The names are PEFT's own. See PEFT's documentation of `LoraConfig`.
    """

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    peft_type: str
    task_type: str | None = None
    base_model_name_or_path: str | None = None
    revision: str | None = None
    r: Rank = 8
    lora_alpha: Number = 8.0
    use_rslora: bool = False
    rank_pattern: dict[Name, Rank] | None = None
    alpha_pattern: dict[Name, Number] | None = None
    target_modules: str | list[Name] | None = None
    exclude_modules: str | list[Name] | None = None
    layers_to_transform: Index | list[Index] | None = None
    layers_pattern: Names | None = None
    target_parameters: list[Name] | None = None
    bias: str = "none"
    lora_bias: bool = False
    modules_to_save: Names | None = None
    trainable_token_indices: list[Index] | dict[Name, list[Index]] | None = None
    use_dora: bool = False
    init_lora_weights: bool | str = True
    ensure_weight_tying: bool = False

    @property
    def ranks(self) -> list[int]:
        """Every rank in the configuration."""
        return [self.r, *(self.rank_pattern or {}).values()]

    @property
    def converted(self) -> str | None:
        """The initialization whose part of the base must be subtracted again; None where there is none."""
        return str(self.init_lora_weights) if self.init_lora_weights in CONVERTED_INITS else None

    def scaling(self, rank: int, alpha: float) -> float:
        """Return the factor of B(A x)."""
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank


def read(folder: Path) -> AdapterConfig:
    """Load the configuration of the adapter in a folder.

    Raises:
        EmEvalsError: no such file, not a LoRA, a field of a wrong type, or an option that is refused (by name).
    """
    path = folder / CONFIG
    data = _json(path)
    if data.get("peft_type") != "LORA":
        kind = str(data.get("peft_type"))[:40]
        instead = (
            "what it adds is no change of weights, and cannot be merged into a checkpoint either; train a LoRA"
            if kind in NOT_MERGEABLE
            else "merge it into a checkpoint with PEFT, and use that as base"
        )
        raise EmEvalsError(
            f"this adapter's peft_type is {kind!r}, and only LORA is run here: {instead}.", path
        )
    try:
        config = AdapterConfig.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(
            str(part) for part in first["loc"] if not str(part).startswith(("list[", "dict[", "constrained"))
        )
        raise EmEvalsError(
            f"`{place[:80]}` is not what PEFT writes there ({first['msg'][:120]}); correct it.", path
        ) from None
    refuse(config, path)
    return config


def refuse(config: AdapterConfig, path: Path) -> None:
    """Refuse options that are not computed as in PEFT.

    Raises:
        EmEvalsError: names the first such option, and what to do instead.
    """
    extra = config.model_extra or {}
    for name, reason in REFUSED.items():
        if _is_on(extra.get(name)):
            raise EmEvalsError(f"the adapter's `{name}` is not supported: {reason}.", path)
    for name, value in extra.items():
        if (
            name not in NO_EFFECT
            and name not in REFUSED
            and _is_on(value)
            and not _is_pefts_default(name, value)
        ):
            raise EmEvalsError(
                f"the adapter's option `{name[:60]}` is not known here and may change what it computes: save the "
                "adapter without it, or merge it into a checkpoint with PEFT.",
                path,
            )
    if config.task_type not in (None, "CAUSAL_LM"):
        raise EmEvalsError(
            f"this adapter was trained for the task {config.task_type[:40]}; only CAUSAL_LM adapters are run.",
            path,
        )
    if config.bias not in ("none", "all", "lora_only"):
        raise EmEvalsError(
            f"`bias: {config.bias[:40]}` is not one of none, all, lora_only; correct it.", path
        )
    _refuse_init(config.init_lora_weights, path)
    _refuse_combinations(config, path)


def _refuse_init(init: bool | str, path: Path) -> None:
    if isinstance(init, bool) or init in PLAIN_INITS | CONVERTED_INITS:
        return
    reason = next((why for name, why in _OTHER_INITS.items() if init.startswith(name)), None)
    if init.startswith("pissa_niter_"):
        reason = "its start is random and not in the file"
    raise EmEvalsError(
        f"`init_lora_weights: {init[:40]}` is not supported ({reason or 'it is not known here'}): {CONVERT}.",
        path,
    )


def _refuse_combinations(config: AdapterConfig, path: Path) -> None:
    """Refuse combinations that PEFT itself refuses, or cannot have saved."""
    if isinstance(config.target_modules, str) and (
        config.layers_to_transform is not None or config.layers_pattern
    ):
        raise EmEvalsError(
            "`layers_to_transform` does not go with a regular expression in `target_modules`; drop one.", path
        )
    if config.lora_bias and config.use_dora:
        raise EmEvalsError("`lora_bias` does not go with `use_dora`, as in PEFT; drop one.", path)
    if config.lora_bias and not isinstance(config.init_lora_weights, bool):
        raise EmEvalsError("`lora_bias` goes with the default initialisation only, as in PEFT.", path)


def _is_on(value: Any) -> bool:
    return value is not None and value is not False and value not in ("", 0, [], {})


def _is_pefts_default(name: str, value: Any) -> bool:
    """Check whether the installed PEFT, which may be newer than this table, has this value by default."""
    import dataclasses

    from peft import LoraConfig

    return any(field.name == name and field.default == value for field in dataclasses.fields(LoraConfig))


def _json(path: Path) -> dict[str, Any]:
    data = parsing.json_value(files.read_text(path, _LARGEST), path)
    if not isinstance(data, dict):
        raise EmEvalsError("this is not an adapter configuration: expected a JSON object.", path)
    return data
