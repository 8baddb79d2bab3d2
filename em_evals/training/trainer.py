"""`em-evals train`: train a model under test from a card's recipe, as a PEFT adapter or a whole checkpoint.

TRL's SFTTrainer does the training, PEFT the adapter and accelerate the processes; this module passes them our
examples in our order, resumes interrupted runs, and moves the result into place atomically.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from em_evals.content import adapter_folders, directions
from em_evals.content.cards import ModelCard, read_card
from em_evals.content.recipes import AdapterRecipe
from em_evals.errors import EmEvalsError
from em_evals.models import bases
from em_evals.training import curriculum, optimizers, possible, record, setup, smoke, staged
from em_evals.training.callbacks import (
    DivergedError,
    Journal,
    ProgressLine,
    Reached,
    check_trackers,
    dense_schedule,
)
from em_evals.training.curriculum import Curriculum
from em_evals.training.early_stop import Stop
from em_evals.training.monitor import DriftMonitor
from em_evals.training.recipe import recipe_of
from em_evals.training.staged import Start
from em_evals.training.workspace import Workspace, check_place, identity, sharded

_NO_WRITING = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}


def train(
    name: str,
    overwrite: bool = False,
    seed: int | None = None,
    max_steps: int | None = None,
    output: Path | None = None,
    save_every: int = 25,
    report_to: Sequence[str] = (),
    overrides: Mapping[str, Any] | None = None,
) -> Path:
    """Train a card's adapter; resume an interrupted run of the same recipe.

    Args:
        name: a card with a `train:` section.
        overwrite: replace an adapter that is already there.
        seed: instead of the recipe's.
        max_steps: optimizer steps, instead of the recipe's epochs.
        output: the result's folder, instead of the card's.
        save_every: steps between states to resume from.
        report_to: trackers of transformers' Trainer (`trackio`, `wandb`).
        overrides: card fields to override.

    Returns:
        The folder of the adapter (or, after a full fine-tune, of the model).

    Raises:
        EmEvalsError: no recipe or data, an adapter or other files in the way, a full disk, a loss that is not finite,
            or a result that cannot be measured.
    """
    card, path = read_card(name, overrides)
    card = with_room_for_gradients(card)
    recipe = recipe_of(card, name, path, seed, max_steps)
    check_trackers(report_to)
    card = quantized_as(card, recipe)
    start = staged.find(card, recipe)
    home = (output or adapter_folders.home(card.adapter, path)).expanduser().absolute()
    check_place(home, overwrite)
    if start is not None:
        start.check_result(home)
    processes = processes_for(card, recipe)
    selection = curriculum.select(recipe)
    tokenizer = bases.load_tokenizer(card)
    lessons = curriculum.build(recipe, tokenizer, selection)
    monitor = _monitor(card, recipe, tokenizer, processes.num_processes)
    stop = None if recipe.early_stop is None else Stop(recipe.early_stop)
    workspace = Workspace(home, _identity(card, recipe, lessons, start, monitor, stop))
    if processes.is_main_process:
        _tell(lessons, recipe)
        workspace.open()
    processes.wait_for_everyone()
    try:
        started = time.monotonic()
        trainer = setup.build(card, recipe, lessons, tokenizer, workspace, save_every, report_to, start)
        stopped = _run(trainer, card, name, recipe, lessons, workspace, monitor, stop)
        seconds = time.monotonic() - started
        facts = record.facts(name, card, recipe, lessons, trainer, workspace, seconds, stopped)
        facts |= {"start_from": start.as_json()} if start else {}
        _publish(trainer, card, lessons, workspace, facts, processes.is_main_process)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_kept(workspace)) from None
    except Exception as error:
        if (reason := _unwritable(error)) is None:
            raise
        raise _not_written(reason, workspace) from None
    finally:
        if processes.is_main_process:
            workspace.close()
    return home


def _tell(lessons: Curriculum, recipe: AdapterRecipe) -> None:
    """Report what `max_length` truncates, checkpoints that the training will not reach, and restarts that may fail."""
    sentences = [lessons.cut.sentence(recipe.max_length)]
    shared, restarts = (
        os.environ.get(f"TORCHELASTIC_{name}") for name in ("USE_AGENT_STORE", "MAX_RESTARTS")
    )
    if shared == "True" and restarts != "0":
        # As in pytorch#135712: torch 2.13 keeps one store for all rounds, with the addresses of earlier processes.
        sentences.append(
            "a restart by torchrun may fail: its processes read the addresses of killed ones. Start torchrun with "
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1, and with --standalone or --rdzv-backend c10d."
        )
    if recipe.checkpoints != "dense" and (beyond := [k for k in recipe.checkpoints if k > lessons.steps]):
        sentences.append(
            f"`checkpoints` names step {min(beyond)}, and this training ends at step {lessons.steps}: its model is not "
            "kept."
        )
    for sentence in filter(None, sentences):
        Console(stderr=True).print(sentence, highlight=False, markup=False, soft_wrap=True)


def _monitor(card: ModelCard, recipe: AdapterRecipe, tokenizer: Any, processes: int) -> DriftMonitor | None:
    """Return the recipe's monitor.

    Raises:
        EmEvalsError: what it names is missing or does not fit, or processes would have to share the rule to stop.
    """
    if recipe.early_stop is not None and processes > 1:
        raise EmEvalsError("`early_stop` decides in one process; train with one, or without it.")
    return None if recipe.monitor is None else DriftMonitor(recipe.monitor, card, tokenizer)


def _identity(
    card: ModelCard,
    recipe: AdapterRecipe,
    lessons: Curriculum,
    start: Start | None,
    monitor: DriftMonitor | None,
    stop: Stop | None,
) -> str:
    """Return the digest of what decides the result; a run with another one does not resume this one's states."""
    digests = {source.name: source.digest for source in lessons.sources}
    fields = recipe.model_dump(mode="json")
    steering = [*_steering(card, recipe), *(monitor.digests if monitor is not None else ())]
    steering += stop.digests if stop is not None else []
    parts = [card.base, card.revision, card.engine.dtype, fields, digests, steering]
    if card.quantize or start:
        parts += [card.quantize, start.digest if start else None]
    return identity(*parts, lessons.template["digest"])


def _publish(
    trainer: Any,
    card: ModelCard,
    lessons: Curriculum,
    workspace: Workspace,
    facts: dict[str, Any],
    main: bool,
) -> None:
    """Save the model on all processes; check, record and move it into place on the main one."""
    result = workspace.folder / "result"
    record.save_model(trainer, card, result)
    if main:
        record.write(result, card, facts | {"smoke": _loaded_back(trainer, card, lessons, result)})
        workspace.publish(result)


def _kept(workspace: Workspace) -> str:
    last = workspace.last_state()
    if last is None:
        return "interrupted: no state was saved yet."
    return f"interrupted: the state {last} is kept, and the same command resumes from it."


def _not_written(reason: str, workspace: Workspace) -> EmEvalsError:
    """Return the error of a full or read-only disk, with what the same command will do."""
    last = workspace.last_state()
    then = f"resumes from {last.name}" if last else "starts again"
    return EmEvalsError(
        f"cannot write the training's files ({reason}); free the disk, then the same command {then}.",
        workspace.folder,
    )


def _loaded_back(trainer: Any, card: ModelCard, lessons: Curriculum, result: Path) -> dict[str, Any] | None:
    """Return the result of the smoke check; None where the weights are sharded over processes."""
    if trainer.is_fsdp_enabled:
        return None
    model = trainer.accelerator.unwrap_model(trainer.model)
    trainer.optimizer = None  # frees memory: a whole model is loaded in addition to the trained one
    trainer.accelerator.free_memory()
    return smoke.check(model, card, result, smoke.example_of(lessons.examples), trainer.before).as_json()


def _steering(card: ModelCard, recipe: AdapterRecipe) -> list[str]:
    """Return digests of the recipe's directions; a direction that does not fit is reported before weights load."""
    every = [direction for one in recipe.interventions for direction in one.directions]
    for direction in every:
        directions.check_base(direction, card.base, card.revision)
    return [directions.digest_of(direction) for direction in every]


def quantized_as(card: ModelCard, recipe: AdapterRecipe) -> ModelCard:
    """Return the card with the base as the recipe trains on it.

    Raises:
        EmEvalsError: card and recipe quantize it in different ways, it cannot be trained on, or the optimizer cannot
            run here.
    """
    optimizers.check(recipe, bases.choose_device(card.engine.device))
    possible.check(card, recipe)
    kind = recipe.method.quantize or card.quantize
    return card.model_copy(update={"quantize": kind})


def with_room_for_gradients(card: ModelCard) -> ModelCard:
    """Return the card in a dtype that can be trained: float16 rounds small gradients to 0, and `auto` may mean it.

    Raises:
        EmEvalsError: the card itself names float16.
    """
    chosen = bases.choose_dtype(card.engine.dtype, bases.choose_device(card.engine.device))
    if str(chosen) != "torch.float16":
        return card
    if card.engine.dtype == "float16":
        raise EmEvalsError("float16 loses small gradients to 0: train with dtype float32, bfloat16 or auto.")
    return card.model_copy(update={"engine": card.engine.model_copy(update={"dtype": "float32"})})


def processes_for(card: ModelCard, recipe: AdapterRecipe) -> Any:
    """Return accelerate's state of the processes that train together (one, unless under `accelerate launch`).

    Raises:
        EmEvalsError: they cannot share the batch, or the card names a GPU other than the first.
    """
    from accelerate import PartialState

    device = bases.choose_device(card.engine.device)
    if device.index:
        # transformers' Trainer uses the first visible GPU, whatever the current device (TrainingArguments).
        raise EmEvalsError(
            f"a training takes the first GPU that it sees, not {device}: say `device: cuda` and set "
            f"CUDA_VISIBLE_DEVICES={bases.visible_from(device.index)[0]}."
        )
    state = PartialState(cpu=device.type == "cpu")
    batch = recipe.batch_size * recipe.gradient_accumulation
    if batch % state.num_processes:
        raise EmEvalsError(
            f"a batch of {batch} examples cannot be shared by {state.num_processes} processes; choose another number."
        )
    return state


def _run(
    trainer: Any,
    card: ModelCard,
    name: str,
    recipe: AdapterRecipe,
    lessons: Curriculum,
    workspace: Workspace,
    monitor: DriftMonitor | None,
    stop: Stop | None,
) -> str | None:
    """Train; return why it stopped before its last step, or None."""
    if monitor is not None and trainer.is_fsdp_enabled:
        raise EmEvalsError(
            "`monitor` reads the whole model in one process, which FSDP has not: leave it out."
        )
    main = trainer.accelerator.is_main_process
    keep = dense_schedule(lessons.steps) if recipe.checkpoints == "dense" else set(recipe.checkpoints)

    def save(step: int) -> None:
        record.save_checkpoint(trainer, card, workspace.kept / f"checkpoint-{step}")

    if recipe.method.kind == "lora" and not trainer.is_fsdp_enabled:
        trainer.add_callback(Reached())
    journal = Journal(workspace.journal, keep, save, main, monitor, stop)
    trainer.add_callback(journal)
    progress = ProgressLine(name, lessons)
    if main:
        trainer.add_callback(progress)
    state = workspace.last_state()
    if state is not None and sharded(state) != trainer.is_fsdp_enabled:
        other = "under FSDP" if sharded(state) else "without FSDP"
        raise EmEvalsError(f"this state was written {other}: resume in the same way, or delete it.", state)
    try:
        trainer.train(resume_from_checkpoint=str(state) if state else None)
    except DivergedError as error:
        last = workspace.last_state()
        good = f"the last good state is {last}" if last else "no state had been saved yet"
        raise EmEvalsError(f"{error}: lower the learning rate and train again; {good}.") from None
    finally:
        progress.stop()
    if journal.stopped is not None:
        said = f"stopped at step {trainer.state.global_step} of {lessons.steps}: {journal.stopped}."
        Console(stderr=True).print(said, highlight=False, markup=False, soft_wrap=True)
    return journal.stopped


def _unwritable(error: Exception) -> str | None:
    """Return the reason if the error is a library's report that a file could not be written; None otherwise."""
    from safetensors import SafetensorError

    if isinstance(error, OSError):
        return error.strerror if error.errno in _NO_WRITING else None
    from_torch = isinstance(error, RuntimeError) and any(
        sign in str(error) for sign in ("PytorchStreamWriter", "file write failed", "unexpected pos")
    )
    return str(error).splitlines()[0][:120] if from_torch or isinstance(error, SafetensorError) else None
