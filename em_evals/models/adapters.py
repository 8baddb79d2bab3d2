"""PEFT adapters on a base in memory: plain LoRAs, safetensors only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from em_evals.errors import EmEvalsError
from em_evals.intervention import Intervention
from em_evals.models import lora
from em_evals.models.interventions import scale_adapter


def with_adapter(model: Any, source: str, name: str, scales: Sequence[Intervention] = ()) -> Any:
    """The model with one more adapter attached, safetensors only; as it was where that fails.

    Args:
        model: a causal language model of transformers, or a PeftModel around one.
        source: the adapter's folder or hub id.
        name: what PEFT calls it; one that was never used in this model.
        scales: each `scale_adapter` that it is changed by.

    Raises:
        EmEvalsError: not a LoRA, pickled, of the wrong shape for this base, or without a part that is to be scaled.
    """
    from peft import PeftModel
    from safetensors import SafetensorError

    # By its files: PEFT itself falls back to pickled weights for a hub id.
    folder = str(lora.locate(source))
    try:
        if isinstance(model, PeftModel):
            model.load_adapter(folder, adapter_name=name, use_safetensors=True)
            attached = model
        else:
            attached = PeftModel.from_pretrained(model, folder, adapter_name=name, use_safetensors=True)
        scale_adapter(attached, name, scales)
        return attached.eval()
    except EmEvalsError:
        detach(model, name)
        raise
    except (RuntimeError, ValueError, KeyError, TypeError, OSError, SafetensorError) as error:
        detach(model, name)
        reason = " ".join(str(error).split())[:300]
        raise EmEvalsError(f"the adapter {source} does not fit this base ({reason}).") from None


def detach(model: Any, name: str) -> None:
    """Take off an adapter, or the part of it that PEFT has loaded: in a bare base that part would act on every row."""
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer

    if isinstance(model, PeftModel):
        if name in model.peft_config:
            if model.active_adapter == name:  # PEFT asks the first layer for another one, which may have none
                model.set_adapter(next(one for one in model.peft_config if one != name))
            model.delete_adapter(name)
        return
    for place, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            parent, _, last = place.rpartition(".")
            setattr(model.get_submodule(parent), last, module.get_base_layer())
    vars(model).pop("peft_config", None)
