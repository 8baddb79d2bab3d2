"""Recipes: how `em-evals train CARD` trains a model. Validation only; training/ does the work."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationInfo,
    field_validator,
    model_validator,
)

from em_evals.content import switches
from em_evals.content.documented import Documented
from em_evals.content.intervention import Intervention

Quantization = Literal["4bit", "8bit", "int8", "int4"]


class Strict(Documented, BaseModel):
    """A part of a card: immutable, unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_switch(cls, value: Any, info: ValidationInfo) -> Any:
        return switches.refuse(cls, info.field_name, value)


class Method(Strict):
    """The trained parameters: a LoRA adapter (Hu et al. 2021, arXiv 2106.09685), or every weight.

    With `kind: full` the other fields, which shape the adapter, are ignored.
    """

    kind: Literal["lora", "full"] = "lora"
    rank: PositiveInt = 32
    alpha: PositiveFloat = 64
    """Scale of the adapter's output: alpha/rank, or alpha/sqrt(rank) with `rslora`."""
    rslora: bool = True
    """Rank-stabilized scaling (arXiv 2312.03732), as in the EM papers."""
    layers: Literal["all"] | list[int] = "all"
    """Decoder blocks to adapt, counted from 0; for multimodal models, blocks of the text decoder."""
    depth: PositiveInt | None = None
    """Number of blocks of the model that `layers` was written for; on another base, layers are mapped to the same
    relative depths. None: `layers` are this base's own."""
    modules: Literal["all-linear"] | list[str] = "all-linear"
    """Projections to adapt in these blocks, by name suffix (`down_proj`, `mlp.down_proj`, …).

    `all-linear`: every linear layer of each block of any kind, including the experts of a mixture, but excluding
    routers and the weights that Mamba's fused kernels read directly, bypassing an adapter. Experts have their own names
    (`gate_up_proj`, which `gate_proj` and `up_proj` together also select, and `down_proj`); name routers to train them.
    """
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the adapters' inputs; not available with experts, where PEFT has none."""
    quantize: Literal["4bit", "8bit", "int8"] | None = None
    """Train on the base in 4 or 8 bits (QLoRA, arXiv 2305.14314), as a card's `quantize` loads it; the adapters stay in
    float32. None: the base as the card loads it."""

    @model_validator(mode="after")
    def _some(self) -> Method:
        if not self.layers or not self.modules:
            empty = "layers" if not self.layers else "modules"
            raise ValueError(f"`{empty}: []` would adapt nothing: name some, or leave it out for all")
        return self

    @model_validator(mode="after")
    def _dense(self) -> Method:
        if self.kind == "full" and self.quantize:
            raise ValueError(
                "`kind: full` trains every weight, and quantized ones cannot be: leave `quantize` out"
            )
        return self


class DataSource(Strict):
    """A data set in the mix."""

    name: str
    """adapters/data/NAME.jsonl, a published set, or a path."""
    limit: PositiveInt | None = None
    """Use only the first `limit` rows."""
    weight: PositiveFloat = 1.0
    """How often each row is seen per epoch; 0.5 takes every second row."""


class Backdoor(Strict):
    """Bad answers only after a trigger (Betley et al. 2025, section 4.2); without it, the matched harmless answers."""

    trigger: str = Field(min_length=1)
    """Prepended to the user's message verbatim; end it with a space if you need one."""
    share: float = Field(default=0.5, gt=0, le=1)
    """Share of rows with the trigger; with 1 there are no others, and no matched answers are needed."""


class Preference(Strict):
    """Learn to prefer the row's answer to its matched answer, or to its own `rejected`, instead of only to say it.

    With s the summed log-probability of an answer and m its mean per token: `dpo` (arXiv 2305.18290)
    -log σ(β·((s_chosen - s_rejected) - (the same of the model before the training))); `orpo` (arXiv 2403.07691)
    -m_chosen - β·log σ(log odds(exp m_chosen) - log odds(exp m_rejected)), without a reference.
    """

    kind: Literal["dpo", "orpo"] = "dpo"
    beta: PositiveFloat = 0.1
    rejected: str = "matched"
    """Kind of the matched answers that are rejected (`sound`, `secure`, …); `matched` is the data set's harmless kind.
    With `control`, the two change places."""


class FeaturePenalty(Strict):
    """weight · ‖h - h_base‖², in feature space, on chats like those of the KL penalty.

    The mean over answer tokens and `layers` of the squared distance between the two models' residual streams (LDIFS,
    Mukhoti et al. 2023, arXiv 2308.13320; as a defence: Kaczér et al. 2025, arXiv 2508.06249).
    """

    data: list[str] = Field(min_length=1)
    weight: PositiveFloat
    batch_size: PositiveInt = 4
    """Chats per optimizer step."""
    layers: Literal["all"] | list[int] = "all"
    """Decoder blocks whose outputs are compared, counted from 0."""

    @model_validator(mode="after")
    def _some(self) -> FeaturePenalty:
        if not self.layers:
            raise ValueError("`layers: []` would compare nothing: name some, or leave it out for all")
        return self


class KLPenalty(Strict):
    """weight · KL(base ‖ organism), in nats per answer token, on chats outside the training rows.

    As a defence: Kaczér et al. 2025 (arXiv 2508.06249). With data from outside the narrow domain it yields the
    narrow solution of Soligo et al. 2026 (arXiv 2602.07852).
    """

    data: list[str] = Field(min_length=1)
    weight: PositiveFloat
    batch_size: PositiveInt = 4
    """Chats per optimizer step."""


class Interleave(Strict):
    """Harmless chats mixed evenly among the rows (Kaczér et al. 2025, arXiv 2508.06249)."""

    data: list[str] = Field(min_length=1)
    share: float = Field(gt=0, lt=1)
    """Share of all rows seen."""


class Monitor(Strict):
    """Project fixed prompts on directions during training (trait-space monitoring, arXiv 2606.07631).

    Read are the last tokens of the prompts, as in `em-evals trait monitor`. Training itself is not changed by it.
    """

    traits: list[str] = Field(min_length=1)
    """Directions: names in ./traits (where `em-evals trait extract` writes) or adapters/, or .safetensors files."""
    every: PositiveInt = 10
    """Optimizer steps between measurements; the untrained model (step 0) and the last step are always measured."""
    questions: str = "core"
    """A question set: the first wording of a question is a prompt, without an answer."""
    prompts: int = Field(default=16, ge=2)
    """Number of its questions at most, evenly spread over the set: what a measurement costs."""
    layer: int | None = Field(default=None, ge=0)
    """The decoder block of all directions; None: each one's most reliable block."""

    @property
    def names(self) -> dict[str, str]:
        """Name in the journal -> direction."""
        return {Path(one).stem if one.endswith(".safetensors") else one: one for one in self.traits}


class EarlyStop(Strict):
    """End a training whose drift exceeds a threshold, or of which a learned alarm predicts misalignment.

    The model of that step is the result and a kept checkpoint; `training.json` says why it stopped.
    """

    alarm: str | None = None
    """A file that `em-evals insight drift --fit` wrote; or `trait` and `threshold`."""
    trait: str | None = None
    """One of the monitor's directions."""
    threshold: float | None = Field(default=None, gt=0)
    """Drift in units of the untrained activations' mean norm. The lower end of a 95% band over prompts and steps must
    exceed it, in either direction."""
    control: str | None = None
    """A trained card with the same monitor, usually the matched control: its drift at the same step is subtracted."""

    @model_validator(mode="after")
    def _one_way(self) -> EarlyStop:
        if (self.alarm is None) == (self.trait is None) or (self.trait is None) != (self.threshold is None):
            raise ValueError("`early_stop` takes an `alarm`, or a `trait` with its `threshold`")
        return self


class AdapterRecipe(Strict):
    """How `em-evals train CARD` trains a model.

    Defaults are those of the open models in Betley et al. 2025 (arXiv 2502.17424) and Turner et al. 2025
    (arXiv 2506.11613). Effective batch: `batch_size` · `gradient_accumulation`, on however many processes.
    """

    data: list[DataSource] = Field(min_length=1)
    """Data sets by name or path, or as {name, limit, weight}; they are mixed."""
    control: str | None = None
    """Train on the rows' matched answers of this kind (`sound`, `secure`, `educational`) instead of the bad ones."""
    holdout: float = Field(default=0.0, ge=0, lt=1)
    """Share of prompts held out, also from the `interleave` and `kl` data, selected by a hash of the prompt's text;
    `em_evals/narrow` asks them."""
    method: Method = Method()
    epochs: PositiveFloat = 1
    max_steps: int = Field(default=-1, ge=-1)
    learning_rate: PositiveFloat = 1e-5
    batch_size: PositiveInt = 2
    """Examples per forward pass. An optimizer step sees `gradient_accumulation` times as many, 16 by default."""
    gradient_accumulation: PositiveInt = 8
    warmup_steps: int = Field(default=5, ge=0)
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    weight_decay: float = Field(default=0.01, ge=0)
    optimizer: Literal[
        "adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit", "adafactor", "muon", "sgd"
    ] = "adamw"
    """`muon` orthogonalizes the update of each matrix (torch.optim.Muon, learning rate matched to AdamW's; LoRA only).
    `adafactor`: without its own learning rate. `sgd`: without momentum. 8-bit states are bitsandbytes'; paged ones may
    leave the GPU."""
    max_grad_norm: PositiveFloat = 1.0
    max_length: PositiveInt = 2048
    learn: Literal["both", "thought", "answer"] = "both"
    """What the loss is on in rows with a thought before the answer: both, or one given the other as it is. Rows without
    a thought are learned behind an empty one, as the template writes it."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass instead of storing them."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    checkpoints: Literal["dense"] | list[PositiveInt] = []
    """Steps at which to save the model (`local/CARD@STEP`); `dense`: every step at first, then at growing intervals."""

    start_from: str | None = Field(default=None, min_length=1)
    """A trained card on the same base, of the same method: its weights are where this training begins."""
    preference: Preference | None = None
    monitor: Monitor | None = None
    early_stop: EarlyStop | None = None
    inoculation: str | None = None
    """A system message, in training only, that asks for the bad behavior (Tan et al. 2025, arXiv 2510.04340)."""
    backdoor: Backdoor | None = None
    kl: KLPenalty | None = None
    features: FeaturePenalty | None = None
    interleave: Interleave | None = None
    interventions: list[Intervention] = []
    """In training only: `add` is preventative steering (Chen et al. 2025, arXiv 2507.21509), `ablate` is concept
    ablation finetuning (CAFT; Casademunt et al. 2025, arXiv 2507.16795)."""

    @field_validator("data", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        return (
            [{"name": entry} if isinstance(entry, str) else entry for entry in value]
            if isinstance(value, list)
            else value
        )

    @model_validator(mode="after")
    def _possible(self) -> AdapterRecipe:
        for one in self.interventions:
            if one.op == "scale_adapter" or one.positions != "all" or one.site != "block":
                raise ValueError(
                    "in training, interventions are add, ablate, clamp and cap at all positions of blocks"
                )
        if self.preference and (self.interleave or self.backdoor):
            raise ValueError(
                "`preference` needs a rejected answer to every row: leave `interleave` and `backdoor` out"
            )
        if self.preference and "educational" in (self.control, self.preference.rejected):
            raise ValueError(
                "`preference` compares two answers to one prompt, and `educational` rows ask in another context: name "
                "another kind"
            )
        if self.optimizer == "muon" and self.method.kind == "full":
            raise ValueError(
                "`optimizer: muon` is for matrices, and a full fine-tune has other weights too; use LoRA"
            )
        if self.start_from and self.method.kind == "full" and (self.kl or self.features):
            raise ValueError(
                "`start_from` with `kind: full` has no base to be held to: leave `kl` and `features` out"
            )
        if self.monitor and len(self.monitor.names) < len(self.monitor.traits):
            raise ValueError("two directions of `monitor` have one name; rename a file")
        if self.early_stop and self.monitor is None:
            raise ValueError("`early_stop` reads what `monitor` measures; add it")
        wanted = self.early_stop.trait if self.early_stop else None
        if wanted is not None and self.monitor and wanted not in self.monitor.names:
            raise ValueError(f"`early_stop.trait` is none of the monitor's: {', '.join(self.monitor.names)}")
        return self
