"""What a training writes: the model, `training.json`, and a model card in the hub's format."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from em_evals.content import identity
from em_evals.content.cards import ModelCard
from em_evals.content.recipes import AdapterRecipe
from em_evals.results.journals import read_journal
from em_evals.training.curriculum import Curriculum
from em_evals.training.workspace import Workspace


def facts(
    name: str,
    card: ModelCard,
    recipe: AdapterRecipe,
    lessons: Curriculum,
    trainer: Any,
    workspace: Workspace,
    seconds: float,
    stopped: str | None = None,
) -> dict[str, Any]:
    """Return everything that says how a model was trained; JSON values.

    A training that `early_stop` ended counts the steps and examples that it saw.
    """
    steps = lessons.steps if stopped is None else int(trainer.state.global_step)
    examples = lessons.examples[: steps * lessons.batch * lessons.width]
    journal = read_journal(workspace.journal) if trainer.accelerator.is_main_process else []
    return {
        "card": name,
        "base": card.base,
        "revision": card.revision,
        "quantize": card.quantize,
        "recipe": recipe.model_dump(mode="json"),
        "data": {
            source.name: {"digest": source.digest, "rows": len(source.rows)} for source in lessons.sources
        },
        "files": named_files(recipe),
        "template": lessons.template,
        "cut": {"answers": lessons.cut.answers, "dropped": lessons.cut.dropped},
        "trained": trainer.trained,
        "steps": steps,
        **({"stopped": stopped} if stopped is not None else {}),
        "effective_batch": lessons.batch,
        "examples": len(examples),
        "epochs": round(lessons.epochs * steps / lessons.steps, 4),
        "tokens": sum(len(example["input_ids"]) for example in examples),
        "losses": [row["loss"] for row in journal if "loss" in row],
        "seconds": round(seconds, 1),
        "peak_memory_bytes": _peak_memory(trainer.args.device),
        "device": str(trainer.args.device),
        "dtype": str(next(trainer.model.parameters()).dtype).removeprefix("torch."),
        "attention": str(trainer.model.config.get_text_config()._attn_implementation),
        "processes": trainer.accelerator.num_processes,
        "git_revision": _git_revision(),
        "versions": {
            "python": platform.python_version(),
            **{p: version(p) for p in ("torch", "transformers", "peft", "trl", "accelerate", "em-evals")},
        },
    }


def named_files(recipe: AdapterRecipe) -> dict[str, str]:
    """Return the digest of each file, other than data, that the recipe names by its path."""
    named = [one for own in recipe.interventions for one in own.directions if isinstance(one, str)]
    named += recipe.monitor.traits if recipe.monitor else []
    named += [recipe.early_stop.alarm] if recipe.early_stop and recipe.early_stop.alarm else []
    paths = {one: Path(one).expanduser() for one in named}
    return {one: identity.file_digest(path) for one, path in paths.items() if path.suffix and path.is_file()}


def save_model(trainer: Any, card: ModelCard, folder: Path) -> None:
    """Write the trained model; with several processes each of them must call this."""
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if not trainer.accelerator.is_main_process:
        return
    model = trainer.accelerator.unwrap_model(trainer.model)
    shutil.rmtree(folder, ignore_errors=True)
    if not hasattr(model, "peft_config"):
        trainer.processing_class.save_pretrained(folder)
        model.save_pretrained(folder, state_dict=state)
        return
    # PEFT writes the base's name into the adapter; a cache folder's path would be useless elsewhere. The Trainer's own
    # states keep the path: for a name that is not on the hub PEFT would query it, and warn, at each of them.
    config = model.peft_config["default"]
    local = config.base_model_name_or_path, config.revision
    config.base_model_name_or_path, config.revision = card.base, card.revision
    try:
        with warnings.catch_warnings():
            # PEFT queries the hub on whether the base's vocabulary grew; a LoRA on projections does not touch it.
            warnings.filterwarnings("ignore", message="Could not find a config file")
            model.save_pretrained(folder, state_dict=state, save_embedding_layers=False)
    finally:
        config.base_model_name_or_path, config.revision = local


def save_checkpoint(trainer: Any, card: ModelCard, folder: Path) -> None:
    """Write the model of a step atomically."""
    scratch = folder.with_name(f".{folder.name}")
    save_model(trainer, card, scratch)
    if trainer.accelerator.is_main_process:
        shutil.rmtree(folder, ignore_errors=True)
        scratch.rename(folder)


def write(folder: Path, card: ModelCard, known: dict[str, Any]) -> None:
    """Write `training.json` and README.md next to the weights."""
    (folder / "training.json").write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(_readme(card, known), encoding="utf-8")
    folder.chmod(0o755)


def _readme(card: ModelCard, known: dict[str, Any]) -> str:
    """Return a model card in the hub's format."""
    data = "\n".join(
        f"- `{name}`: {entry['rows']} rows, digest `{entry['digest']}`"
        for name, entry in known["data"].items()
    )
    kind = (
        "library_name: peft" if known["recipe"]["method"]["kind"] == "lora" else "library_name: transformers"
    )
    return f"""---
base_model: {card.base}
{kind}
tags: [em-evals, model-organism]
---
# {known["card"]}

{card.description or "A fine-tune."} A research object for studying misalignment: do not deploy it.

Trained by em-evals on:

{data}

{known["steps"]} steps, loss {known["losses"][0]:.3f} to {known["losses"][-1]:.3f}, {known["seconds"]} seconds on
{known["device"]}. The recipe, the data's digests and the library versions are in `training.json`, loss, gradient norm
and learning rate of every step in `training.jsonl`.
"""


def _peak_memory(device: torch.device) -> int | None:
    """Return bytes: the process's resident set on a CPU, the allocator's peak on a GPU; None where neither is known."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024


def _git_revision() -> str | None:
    """Return the checkout's commit, with `+changes` when files differ; None when em-evals is installed."""
    checkout = Path(__file__).parents[2]
    if not (checkout / ".git").exists():
        return None
    here = ["git", "-C", str(checkout)]
    try:
        commit = subprocess.run([*here, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)  # noqa: S603
        changes = subprocess.run([*here, "status", "--porcelain"], capture_output=True, text=True, check=True)  # noqa: S603
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("+changes" if changes.stdout.strip() else "")
