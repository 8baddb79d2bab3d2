"""From a recipe's method to a trainable model: a LoRA on the right weights, or every weight of the text model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from em_evals.content.recipes import Method
from em_evals.errors import EmEvalsError
from em_evals.models.architecture import decoder_layers, unwrapped
from em_evals.training import targets
from em_evals.training.targets import Targets


def attach(model: Any, method: Method) -> Any:
    """Make a base trainable by the method.

    Args:
        model: a causal language model of transformers; also one on the meta device, to count what would be trained.
        method: the recipe's.

    Returns:
        A PeftModel with float32 adapters, whatever the base's dtype; or the model itself, all weights in float32 and
        those of the text model trainable.

    Raises:
        EmEvalsError: the base has no such blocks or modules, or the method would train other weights than those.
    """
    if method.kind == "full":
        return _whole(model)
    wanted = targets.find(model, method)
    found = _adapted(model, method, wanted)
    check(found, wanted, method.rank)
    return found


def check(model: Any, wanted: Targets, rank: int) -> None:
    """Compare the trainable tensors with those that the recipe names.

    Raises:
        EmEvalsError: they differ.
    """
    found: dict[str, Any] = dict(adapted(model))
    kind = unwrapped(model).config.model_type
    for name in sorted(set(wanted.names) ^ set(found)):
        why = (
            "would not be trained, though the recipe asks for it"
            if name not in found
            else "would be trained, too"
        )
        raise EmEvalsError(f"{name} of {kind} {why}: PEFT takes `method.modules` otherwise; name others.")
    known = {
        id(weight)
        for layer in found.values()
        for part in ("lora_A", "lora_B")
        for weight in getattr(layer, part).parameters()
    }
    for name, weight in model.named_parameters():
        if weight.requires_grad and id(weight) not in known:
            raise EmEvalsError(
                f"{name} of {kind} would be trained, too, though the recipe does not ask for it."
            )
    for name, layer in found.items():
        if set(layer.r.values()) != {rank}:
            found_rank = next(iter(layer.r.values()))
            raise EmEvalsError(
                f"{name} of {kind} would be adapted with rank {found_rank}, the recipe says {rank}."
            )


def adapted(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield PEFT's LoRA layers by the full name of what they adapt: a module, or a parameter without `.weight`."""
    from peft.tuners.lora import LoraLayer
    from peft.tuners.lora.layer import ParamWrapper

    for path, module in unwrapped(model).named_modules():
        if isinstance(module, LoraLayer):
            # Wrappers of several parameters of one module are nested.
            name = path.replace(".base_layer", "")
            if isinstance(module, ParamWrapper):
                name = f"{name}.{module.parameter_name}".removesuffix(".weight")
            yield name, module


def describe(model: Any) -> dict[str, Any]:
    """Describe what is trained, read from the model itself; JSON values.

    Returns:
        `modules` (full names), `blocks` (counted from 0), `parameters` in all, `sizes` (parameters of each module) and,
        of adapters, `ranks`.
    """
    plain = unwrapped(model)
    sizes: dict[str, int] = {}
    ranks: dict[str, int] = {}
    for name, layer in adapted(model):
        ranks[name] = next(iter(layer.r.values()))
        own = [*layer.lora_A.parameters(), *layer.lora_B.parameters()]
        sizes[name] = sum(weight.numel() for weight in own if weight.requires_grad)
    if not ranks:
        for name, module in plain.named_modules():
            own = [weight for weight in module.parameters(recurse=False) if weight.requires_grad]
            if own:
                sizes[name] = sum(weight.numel() for weight in own)
    places = {id(module): name for name, module in plain.named_modules()}
    prefixes = [f"{places[id(block)]}." for block in decoder_layers(model)]
    return {
        "modules": list(sizes),
        "blocks": [i for i, prefix in enumerate(prefixes) if any(name.startswith(prefix) for name in sizes)],
        "parameters": sum(weight.numel() for weight in model.parameters() if weight.requires_grad),
        "sizes": sizes,
        **({"ranks": ranks} if ranks else {}),
    }


def rank_one_directions(model: Any) -> dict[str, torch.Tensor]:
    """Return the B vector of every rank-1 LoRA: float32 [width out], on the CPU.

    Keys are module names; of stacked experts `….experts.down_proj.7` is expert 7's.
    """
    from peft.tuners.lora.layer import ParamWrapper

    width = unwrapped(model).config.get_text_config().hidden_size
    found: dict[str, torch.Tensor] = {}
    for name, layer in adapted(model):
        for adapter, rank in layer.r.items():
            if rank != 1:
                continue
            written = layer.lora_B[adapter].weight.detach()
            if isinstance(layer, ParamWrapper):
                # Llama 4 stores its experts as [in, out] and does not say so: PEFT's A is what they write.
                if (
                    name.endswith("down_proj")
                    and written.shape[0] != width == layer.lora_A[adapter].in_features
                ):
                    written = layer.lora_A[adapter].weight.detach().t()
                if layer.num_experts > 1:
                    columns = written.float().cpu().unbind(1)
                    found |= {f"{name}.{i}": column.contiguous() for i, column in enumerate(columns)}
                    continue
            found[name] = written.float().reshape(-1).cpu()
    return found


def _whole(model: Any) -> Any:
    """Make the whole text model trainable; image and sound towers and their projections stay frozen."""
    model.float().requires_grad_(False)
    plain = unwrapped(model)
    for part in (plain.get_decoder(), plain.get_input_embeddings(), plain.get_output_embeddings()):
        if part is not None:
            part.requires_grad_(True)
    return model


def _adapted(model: Any, method: Method, wanted: Targets) -> Any:
    from peft import LoraConfig, get_peft_model

    taken_over = _taken_over(model, wanted.modules)
    modules = [name for name in wanted.modules if name not in taken_over]
    parameters = [*wanted.parameters, *(f"{name}.weight" for name in wanted.modules if name in taken_over)]
    if taken_over and method.dropout:
        raise EmEvalsError(f"`method.dropout` is not possible on {min(taken_over)} (PEFT): set it to 0.")
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=method.rank,
        lora_alpha=method.alpha,
        use_rslora=method.rslora,
        lora_dropout=method.dropout,
        target_modules=modules,
        target_parameters=parameters or None,
    )
    try:
        found = get_peft_model(model, config)
    except ValueError as error:
        reason = " ".join(str(error).split())[:200]
        raise EmEvalsError(f"`method.modules` do not fit {model.config.model_type} ({reason}).") from None
    # PEFT shortens many names to suffixes that are unique in this model only; others must find the same modules.
    config.target_modules = set(modules)
    return found


def _taken_over(model: Any, modules: tuple[str, ...]) -> set[str]:
    """Return modules that PEFT would take for a mixture's experts in transformers 4 (a shared expert's `down_proj`).

    PEFT then adapts every block's experts instead, at training and again whenever the adapter is loaded. Named as
    parameters, the same weights get the same LoRA everywhere.
    """
    try:
        from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers as convert
    except ImportError:  # PEFT before 0.19, or transformers 4: nothing is converted
        return set()
    from peft import LoraConfig

    lost = set()
    for leaf in {name.rpartition(".")[2] for name in modules}:
        config = LoraConfig(target_modules=[leaf])
        try:
            convert(config, model, None)
        except ValueError:  # a part of a fused pair, alone
            lost.add(leaf)
            continue
        if leaf not in (config.target_modules or ()):
            lost.add(leaf)
    return {name for name in modules if name.rpartition(".")[2] in lost}
