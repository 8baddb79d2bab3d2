"""Build TRL's trainer: the model with what is trained, our loss, order and defences, and TRL's settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from em_evals.content.cards import ModelCard
from em_evals.content.recipes import AdapterRecipe
from em_evals.errors import EmEvalsError
from em_evals.models import bases
from em_evals.models.architecture import unwrapped
from em_evals.training import fused, grouping, optimizers, packing, smoke, staged
from em_evals.training.curriculum import Curriculum
from em_evals.training.defences import Defences
from em_evals.training.loss import answer_token_trainer
from em_evals.training.method import attach, describe
from em_evals.training.preferences import Preferences
from em_evals.training.staged import Start
from em_evals.training.workspace import Workspace

_STATES_KEPT = 2


def build(
    card: ModelCard,
    recipe: AdapterRecipe,
    lessons: Curriculum,
    tokenizer: Any,
    workspace: Workspace,
    save_every: int,
    report_to: Sequence[str],
    start: Start | None = None,
) -> Any:
    """Return TRL's trainer with our loss, order and defences, without our callbacks."""
    from accelerate import PartialState
    from datasets import Dataset
    from transformers.trainer_callback import PrinterCallback, ProgressCallback
    from transformers.trainer_utils import set_seed

    processes = PartialState()
    base = bases.load_model(_of(card, start))
    packing.use(base)
    if recipe.method.kind == "lora":
        smoke.rehearse(base, recipe.method, workspace.folder / f"rehearsal-{processes.process_index}")
    before = smoke.scores(base, smoke.example_of(lessons.examples))
    # Seed before the adapter is initialized: same seed, same adapter.
    set_seed(recipe.seed)
    model = attach(base, recipe.method)
    if start is not None and start.adapter is not None:
        staged.load(model, start, recipe)
    trained = describe(model)
    fused.fuse(model)
    # Before the trainer, which patches the model in ways that a frozen copy must not inherit.
    defences = Defences(recipe, model, tokenizer, processes.num_processes, processes.process_index)
    preferences = None
    if recipe.preference is not None:
        preferences = Preferences(recipe.preference, model, lessons, recipe.batch_size * lessons.width)
    if recipe.gradient_checkpointing:
        # Here and not by the Trainer: interventions must act again when a block is computed again.
        options = {"use_reentrant": False, "context_fn": defences.recomputing}
        unwrapped(model).gradient_checkpointing_enable(options)
    text = dict(vars(model.config.get_text_config()))
    own = {name: weight.data for name, weight in model.named_parameters() if weight.requires_grad}
    trainer = answer_token_trainer()(
        model=model,
        args=_arguments(card, recipe, lessons, workspace, save_every, report_to),
        train_dataset=Dataset.from_list(lessons.examples),
        processing_class=tokenizer,
        optimizer_cls_and_kwargs=optimizers.factory(recipe),
    )
    _without_auxiliary_loss(model, text)
    for name, weight in model.named_parameters():
        if (
            name in own and weight.dtype != own[name].dtype
        ):  # TRL rounds the adapters of a quantized base to bfloat16
            weight.data = own[name]
    if trainer.is_fsdp_enabled:
        _check_lengths(model, lessons)
    trainer.defences, trainer.before, trainer.trained = defences, before, trained
    trainer.preferences = preferences
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    return trainer


def _of(card: ModelCard, start: Start | None) -> ModelCard:
    """Return the card with the weights to begin with: a first stage's whole model, or the base."""
    if start is None or start.adapter is not None:
        return card
    return card.model_copy(update={"base": start.base, "revision": None})


def _without_auxiliary_loss(model: Any, before: dict[str, Any]) -> None:
    """Undo TRL's change to a mixture's configuration: the model would compute a loss that is not trained on.

    A full fine-tune would also save it.
    """
    config = model.config.get_text_config()
    for name in ("output_router_logits", "router_aux_loss_coef"):
        if name in before:
            setattr(config, name, before[name])


def _check_lengths(model: Any, lessons: Curriculum) -> None:
    """Refuse lengths that need several passes: under FSDP every process must run equally many.

    Raises:
        EmEvalsError: rows of these lengths cannot share a pass in this model.
    """
    config = model.config.get_text_config()
    lengths = [len(example["input_ids"]) for example in lessons.examples]
    if len(grouping.groups(config, lengths)) > 1:
        raise EmEvalsError(
            f"{config.model_type} computes rows of {min(lengths)} and {max(lengths)} tokens differently, which FSDP "
            "cannot share: lower `max_length`, or train on one GPU."
        )


def _arguments(
    card: ModelCard,
    recipe: AdapterRecipe,
    lessons: Curriculum,
    workspace: Workspace,
    save_every: int,
    report_to: Sequence[str],
) -> Any:
    from accelerate import PartialState
    from trl import SFTConfig

    # The recipe's batch is the whole batch, however many processes share it.
    share = lessons.batch // PartialState().num_processes
    rows = max(size for size in range(1, recipe.batch_size + 1) if share % size == 0)
    arguments = SFTConfig(
        output_dir=str(workspace.states),
        num_train_epochs=1,
        max_steps=lessons.steps,
        learning_rate=recipe.learning_rate,
        per_device_train_batch_size=rows * lessons.width,
        gradient_accumulation_steps=share // rows,
        warmup_steps=recipe.warmup_steps,
        # transformers' `constant` leaves `warmup_steps` out.
        lr_scheduler_type="constant_with_warmup" if recipe.schedule == "constant" else recipe.schedule,
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        seed=recipe.seed,
        data_seed=recipe.seed,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=save_every,
        save_total_limit=_STATES_KEPT,
        report_to=list(report_to) or "none",
        gradient_checkpointing=False,  # `build` has enabled it
        **optimizers.arguments(recipe),
        bf16=False,
        use_cpu=bases.choose_device(card.engine.device).type == "cpu",
        # Our rows are tokens and labels already; TRL must not apply a template to them again.
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # several GPUs need `accelerate launch`, not DataParallel
    return arguments
