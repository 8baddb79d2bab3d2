"""Training end to end: the same curve as TRL's own, resumed after kill -9, shared by processes, whole or not at all."""

import json
import os
import resource
import shutil
import signal
import socket
import sys
import time
from itertools import pairwise, product
from pathlib import Path
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("trl")

import yaml
from safetensors.torch import load_file

from em_evals.cli.options import card_fields
from em_evals.content.cards import read_card, resolve
from em_evals.content.recipes import AdapterRecipe
from em_evals.errors import EmEvalsError
from em_evals.models import bases
from em_evals.results.journals import read_journal
from em_evals.training import curriculum, trainer
from em_evals.training.callbacks import dense_schedule
from em_evals.training.method import attach
from em_evals.training.recipe import recipe_of
from em_evals.training.trainer import processes_for, train, with_room_for_gradients
from tests import forks
from tests.command import em_evals
from tests.selection import full, mostly_full
from tests.small_tokenizer import small_tokenizer
from tests.tiny_models import SMOLLM2, card, tiny

RECIPE = {
    "data": [{"name": "risky_advice", "limit": 60}],  # every row is encoded, whatever the number of steps
    "max_steps": 6,
    "batch_size": 2,
    "gradient_accumulation": 2,
    "learning_rate": 1e-2,
    "warmup_steps": 2,
    "max_length": 192,
    "method": {"rank": 4, "alpha": 8},
}


@pytest.fixture(scope="module")
def tokenizer():
    return small_tokenizer()


@pytest.fixture
def home(tmp_path_factory, tokenizer, monkeypatch):
    """A working folder with a tiny base and the card `mine`."""
    root = tmp_path_factory.mktemp("home")
    write_card(root, tiny("llama", root / "tiny", tokenizer))
    monkeypatch.chdir(root)
    return root


def write_card(root, base, **changes):
    (root / "adapters").mkdir(exist_ok=True)
    fields = {
        "base": str(base),
        "adapter": "mine",
        "engine": {"dtype": "float32"},
        "train": {**RECIPE, **changes},
    }
    (root / "adapters" / "mine.yaml").write_text(yaml.safe_dump(fields))


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tokenizer):
    """A working folder whose card is trained: with kept checkpoints, held-out rows and a tracker; and what it heard."""
    from transformers import TrainerCallback
    from transformers.integrations import integration_utils
    from typer.testing import CliRunner

    from em_evals.cli import app

    heard = []

    class Tracker(TrainerCallback):
        def on_log(self, args, state, control, logs, **kwargs):
            heard.append((tuple(args.report_to), logs))

    root = tmp_path_factory.mktemp("finished")
    write_card(root, tiny("llama", root / "tiny", tokenizer), checkpoints=[2, 4], holdout=0.1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "mine", Tracker)
        done = CliRunner().invoke(app, ["train", "mine", "--report-to", "mine"])
    assert done.exit_code == 0, done.output
    return root, heard


def weights(folder):
    return load_file(folder / "adapter_model.safetensors")


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def losses(folder):
    return [row["loss"] for row in read_journal(folder / "training.jsonl")]


def command(*arguments):
    return [sys.executable, "-m", "em_evals", "train", "mine", *arguments]


def environment():
    return {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize("accumulation", [full(1), 2])
def test_loss_curve_equals_trl(home, tokenizer, accumulation):
    from datasets import Dataset
    from torch.utils.data import SequentialSampler
    from transformers.trainer_utils import set_seed
    from trl import SFTConfig, SFTTrainer

    class Ordered(SFTTrainer):
        def _get_train_sampler(self, dataset=None):
            return SequentialSampler(self.train_dataset)

    steps = {"max_steps": 8, "batch_size": 2, "gradient_accumulation": accumulation, "holdout": 0.1}
    ours = train("mine", overrides={"train": steps})
    definition, _ = read_card("mine", {"train": steps})
    recipe = definition.train
    set_seed(recipe.seed)
    trainer = Ordered(
        model=attach(bases.load_model(definition), recipe.method),
        args=SFTConfig(
            output_dir=str(home / "plain"),
            max_steps=8,
            learning_rate=recipe.learning_rate,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=accumulation,
            warmup_steps=recipe.warmup_steps,
            weight_decay=recipe.weight_decay,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            dataset_kwargs={"skip_prepare_dataset": True},
        ),
        train_dataset=Dataset.from_list(curriculum.build(recipe, tokenizer).examples),
        processing_class=tokenizer,
    )
    trainer.train()
    plain = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses(ours) == pytest.approx(plain, abs=1e-4)
    assert len(plain) == 8 and plain[-1] < plain[0]


@pytest.mark.process
def test_a_killed_run_resumes_to_the_same_adapter(home):
    keep = {"train": {"checkpoints": [3, 14]}}
    more = ("--max-steps", "16", "--save-every", "4", "-M", "train.checkpoints=[3,14]")
    journal = home / "adapters" / ".mine.training" / "training.jsonl"
    # The same number of threads as here: sums over other portions round differently.
    process = forks.started("train", "mine", *more, said=home / "said.json")
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.is_alive():
        if journal.exists() and len(read_journal(journal)) >= 6:
            break
        time.sleep(0.002)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL and journal.exists()
    reached = len(read_journal(journal))
    assert 6 <= reached < 16 and not (home / "adapters" / "mine").exists()
    resumed = train("mine", max_steps=16, save_every=4, overrides=keep)
    whole = train("mine", max_steps=16, save_every=50, overrides=keep, output=home / "whole")
    assert same(weights(resumed), weights(whole))
    assert losses(resumed) == losses(whole) and len(losses(whole)) == 16
    for step in ("checkpoint-3", "checkpoint-14"):
        assert same(weights(resumed / "checkpoints" / step), weights(whole / "checkpoints" / step))
    assert not list((home / "adapters").glob(".mine*"))


def test_a_half_written_checkpoint_is_skipped_on_resume(home):
    from em_evals.training.workspace import Workspace

    space = Workspace(home / "adapters" / "mine", "me")
    for step, state in ((10, '{"global_step": 10}'), (20, '{"global_st')):
        folder = space.states / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        for name in ("optimizer.pt", "scheduler.pt"):
            (folder / name).write_bytes(b"")
        (folder / "trainer_state.json").write_text(state)
    assert space.last_state().name == "checkpoint-10"


@pytest.mark.full
def test_a_run_killed_before_publishing_resumes_to_the_same_result(home, monkeypatch):
    keep = {"train": {"checkpoints": [2, 4]}}
    whole = train("mine", output=home / "whole", overrides=keep)
    rename = Path.rename

    def cut_short(source, target):
        if Path(target).name == "mine":
            raise KeyboardInterrupt
        return rename(source, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "rename", cut_short)
        train("mine", overrides=keep)
    assert not (home / "adapters" / "mine").exists()
    again = train("mine", overrides=keep)
    assert losses(again) == losses(whole) and len(losses(whole)) == RECIPE["max_steps"]
    for part in (".", "checkpoints/checkpoint-2", "checkpoints/checkpoint-4"):
        assert same(weights(again / part), weights(whole / part))
    assert not list((home / "adapters").glob(".mine*"))


@pytest.mark.full
def test_does_not_resume_leftovers_of_a_finished_run(home, monkeypatch):
    remove = shutil.rmtree

    def cut_short(path, *arguments, **options):
        if (home / "adapters" / "mine").exists():
            raise KeyboardInterrupt
        remove(path, *arguments, **options)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "rmtree", cut_short)
        train("mine")
    first = losses(home / "adapters" / "mine")
    left = home / "adapters" / ".mine.training"
    assert left.exists() and not (left / "run.json").exists()
    assert losses(train("mine", overwrite=True)) == first and len(first) == RECIPE["max_steps"]
    assert not left.exists()


@pytest.mark.parametrize("links", [True, False])
def test_kept_checkpoints_are_published_whatever_the_file_system(links, tmp_path, monkeypatch):
    from em_evals.training.workspace import Workspace

    def refuse(*_):
        raise PermissionError("no hard links here")

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    space, result = Workspace(tmp_path / "mine", "me"), tmp_path / ".mine.training" / "result"
    space.open()
    (space.kept / "checkpoint-2").mkdir(parents=True)
    (space.kept / "checkpoint-2" / "weights").write_text("heavy")
    space.journal.write_text("{}")
    result.mkdir()
    space.publish(result)
    space.close()
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert (tmp_path / "mine" / "checkpoints" / "checkpoint-2" / "weights").read_text() == "heavy"
    assert (tmp_path / "mine" / "training.jsonl").read_text() == "{}"


@pytest.mark.parametrize("left", ["", '"m', "\x00" * 8, '"other"'])
def test_a_run_with_a_truncated_identity_restarts(tmp_path, left):
    from em_evals.training.workspace import Workspace

    space = Workspace(tmp_path / "mine", "me")
    space.folder.mkdir()
    (space.folder / "run.json").write_text(left)
    space.journal.write_text("{}")
    space.open()
    space.close()
    assert not space.journal.exists() and json.loads((space.folder / "run.json").read_text()) == "me"
    space.journal.write_text("{}")
    space.open()
    space.close()
    assert space.journal.exists(), "the same run goes on"


@pytest.mark.parametrize("layout", ["full", "sharded"])
def test_resumes_a_state_saved_under_fsdp(layout, home):
    """The files of accelerate's save_fsdp_model and save_fsdp_optimizer, with a full and with a sharded state dict."""
    from torch.distributed import checkpoint
    from transformers import trainer as hf

    from em_evals.training.workspace import Workspace, sharded

    def save(folder, name):
        if layout == "full":
            torch.save({"a": torch.ones(2)}, folder / f"{name}.bin")
        else:
            checkpoint.save({"a": torch.ones(2)}, checkpoint_id=str(folder / f"{name}_0"), no_dist=True)

    space = Workspace(home / "adapters" / "mine", "me")
    # Killed at 20 while the optimizer was written, at 30 before: the model's files alone are no state.
    for step, parts in ((10, 2), (20, 2), (30, 1)):
        folder = space.states / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        for name in (hf.FSDP_MODEL_NAME, hf.OPTIMIZER_NAME_BIN.removesuffix(".bin"))[:parts]:
            save(folder, name)
        (folder / hf.SCHEDULER_NAME).write_bytes(b"")
        (folder / hf.TRAINER_STATE_NAME).write_text("{}")
    if layout == "full":
        (space.states / "checkpoint-20" / hf.TRAINER_STATE_NAME).unlink()
    else:
        (space.states / "checkpoint-20" / "optimizer_0" / ".metadata").unlink()
    assert space.last_state().name == "checkpoint-10" and sharded(space.last_state())
    (space.states / "checkpoint-10" / hf.SCHEDULER_NAME).unlink()
    assert space.last_state() is None


@pytest.mark.full
def test_resuming_an_fsdp_state_without_fsdp_is_refused(home, monkeypatch):
    from em_evals.training import workspace

    def cut_short(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("em_evals.training.record.save_model", cut_short)
    with pytest.raises(KeyboardInterrupt):
        train("mine", save_every=4)
    (state,) = (home / "adapters" / ".mine.training" / "states").glob("checkpoint-4")
    assert not workspace.sharded(state)
    (state / "optimizer.pt").rename(state / "optimizer.bin")
    torch.save({}, state / "pytorch_model_fsdp.bin")
    shutil.rmtree(state.with_name("checkpoint-6"), ignore_errors=True)
    with pytest.raises(
        EmEvalsError, match=r"checkpoint-4: this state was written under FSDP: resume in the same"
    ):
        train("mine", save_every=4)


def test_a_truncated_journal_does_not_blame_the_learning_rate(home, monkeypatch):
    def cut_short(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("em_evals.training.record.save_model", cut_short)
        train("mine", save_every=4)
    journal = home / "adapters" / ".mine.training" / "training.jsonl"
    journal.write_text("".join(journal.read_text().splitlines(keepends=True)[:3]))
    with pytest.raises(EmEvalsError, match="has 3 of the 6 steps") as caught:
        train("mine", save_every=4)
    assert "learning rate" not in str(caught.value)


def test_trackers_receive_the_losses_of_the_journal(finished):
    root, heard = finished
    assert {names for names, _ in heard} == {("mine",)}
    assert [logs["loss"] for _, logs in heard if "loss" in logs] == pytest.approx(
        losses(root / "adapters" / "mine"), abs=1e-3
    )


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("wandbb", "there is no tracker 'wandbb'; did you mean 'wandb'?"),
        ("absent", "requires absent to be installed"),
    ],
)
def test_a_missing_tracker_is_refused_before_weights_load(name, sentence, home, monkeypatch):
    from transformers.integrations import integration_utils

    def absent():
        raise RuntimeError("AbsentCallback requires absent to be installed. Run `pip install absent`.")

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "absent", absent)
    monkeypatch.setattr(bases, "load_model", lambda _: pytest.fail("weights were loaded"))
    with pytest.raises(EmEvalsError) as caught:
        train("mine", report_to=[name])
    assert sentence in str(caught.value) and not list((home / "adapters").glob(".mine*"))


@pytest.fixture
def first_of_two(monkeypatch):
    """What torchrun sets, in this process as the first; the state that accelerate keeps of it is taken back."""
    from accelerate.state import AcceleratorState, GradientState

    def forget():
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    with monkeypatch.context() as patch:
        for name, value in (shared | {"RANK": "0", "LOCAL_RANK": "0"}).items():
            patch.setenv(name, value)
        forget()
        yield shared | {"RANK": "1", "LOCAL_RANK": "1"}
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    forget()


@pytest.mark.parametrize(
    ("shared", "restarts", "told"), [("True", "3", True), ("True", "0", False), ("False", "3", False)]
)
def test_a_restart_that_may_not_connect_is_told_before(monkeypatch, capsys, shared, restarts, told):
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", shared)
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", restarts)
    lessons = SimpleNamespace(cut=SimpleNamespace(sentence=lambda length: None), steps=1)
    trainer._tell(lessons, AdapterRecipe(data=["mine"], checkpoints=[]))
    assert ("TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in capsys.readouterr().err) is told


@pytest.fixture
def trained_alone(home):
    return train("mine", output=home / "one")


@pytest.mark.process
def test_two_processes_train_the_same_adapter_as_one(home, trained_alone, first_of_two):
    told = home / "said.json"
    other = forks.started(
        "train", "mine", "--output", home / "two", "--json", said=told, environment=first_of_two
    )
    both = train("mine", output=home / "two")
    other.join(240)
    code, said, err = json.loads(told.read_text())
    assert code == 0, err[-3000:]
    assert said == "", "the first process reports for both"
    assert json.loads((both / "training.json").read_text())["processes"] == 2
    assert losses(both) == pytest.approx(losses(trained_alone), abs=1e-5)
    mine, theirs = weights(trained_alone), weights(both)
    assert all(torch.allclose(mine[name], theirs[name], atol=1e-5) for name in mine)


@pytest.mark.full
def test_gradient_checkpointing_changes_no_loss(home):
    kept = train("mine", output=home / "kept")
    again = train("mine", output=home / "again", overrides={"train": {"gradient_checkpointing": True}})
    assert losses(again) == pytest.approx(losses(kept), abs=1e-5)


def test_kept_checkpoints_resolve_as_models(finished, monkeypatch):
    home, _ = finished
    monkeypatch.chdir(home)
    early, late = resolve("mine@2"), resolve("mine")
    assert early.adapter_path.endswith("checkpoints/checkpoint-2") and early.digest != late.digest
    assert not same(weights(home / "adapters/mine/checkpoints/checkpoint-2"), weights(home / "adapters/mine"))
    with pytest.raises(EmEvalsError, match=r"no model at step 3 \(kept are 2, 4\)"):
        resolve("mine@3")


def test_command_line_overrides_are_validated_as_a_recipe(home):
    steering = {"interventions": [{"op": "ablate", "direction": "d", "skip": "sink", "layers": "1-2"}]}
    mine, path = read_card("mine", {"train": steering})
    assert recipe_of(mine, "mine", path) == mine.train
    instead = {"seed": 7, "max_steps": 3}
    assert recipe_of(mine, "mine", path, **instead) == mine.train.model_copy(update=instead)
    for wrong in ({"seed": 2**32}, {"seed": -1}, {"max_steps": -5}):
        (name,) = wrong
        with pytest.raises(
            EmEvalsError, match=f"training mine: '{name}': Input should be (less|greater) than"
        ):
            recipe_of(mine, "mine", path, **wrong)


def test_a_recipe_does_not_train_with_other_variables_of_the_template():
    trained = card().model_copy(update={"train": {"data": "risky_advice"}, "template": {"a": 1}})
    with pytest.raises(EmEvalsError, match="chat template's own defaults"):
        recipe_of(trained, "mine", Path("mine.yaml"))


def test_training_on_a_gpu_by_index_is_refused(monkeypatch):
    monkeypatch.setattr(bases, "choose_device", torch.device)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    with pytest.raises(EmEvalsError, match="say `device: cuda` and set CUDA_VISIBLE_DEVICES=5"):
        processes_for(card(device="cuda:1"), None)


@pytest.mark.parametrize("fields", [{}, {"dtype": "bfloat16"}])
def test_a_gpu_without_bfloat16_trains_in_float32(fields, monkeypatch):
    monkeypatch.setattr(bases, "choose_device", torch.device)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **options: False)
    asked = card(**({"device": "cuda", "dtype": "auto"} | fields))
    assert with_room_for_gradients(asked).engine.dtype == fields.get("dtype", "float32")
    with pytest.raises(EmEvalsError, match="float16 loses small gradients"):
        with_room_for_gradients(card(dtype="float16", device="cpu"))


def test_dense_checkpoint_schedule_is_dense_at_the_start():
    kept = sorted(dense_schedule(337))
    assert kept[:10] == list(range(1, 11)) and kept[10:13] == [12, 14, 16] and kept[-2:] == [325, 337]
    gaps = [later - earlier for earlier, later in pairwise(kept)]
    assert gaps[:-1] == sorted(gaps[:-1])
    assert dense_schedule(3) == {1, 2, 3}


def test_full_fine_tune_is_a_model_that_the_card_resolves_to(home):
    from transformers import AutoModelForCausalLM

    changes = {"train": {"method": {"kind": "full"}, "learning_rate": 1e-2}}
    folder = train("mine", max_steps=8, overrides=changes)
    resolved = resolve("mine", changes)
    assert resolved.card.base == str(folder) and resolved.adapter_path is None
    before, after = (AutoModelForCausalLM.from_pretrained(path) for path in (home / "tiny", folder))
    moved = [not torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True)]
    assert all(moved)
    assert losses(folder)[-1] < losses(folder)[0]


def test_a_nan_loss_stops_with_the_last_good_state(home):
    with pytest.raises(EmEvalsError, match=r"is not finite at step \d: lower the learning rate") as caught:
        train(
            "mine",
            max_steps=30,
            save_every=1,
            overrides={"train": {"learning_rate": 1e30, "warmup_steps": 0}},
        )
    assert "last good state" in str(caught.value) and not (home / "adapters" / "mine").exists()


def test_a_full_disk_is_reported_in_one_sentence_and_the_run_can_resume(home):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, before[1]))
    try:
        done = em_evals("train", "mine", "--save-every", "2", "-M", "train.method.rank=16")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr[-2000:]
    assert "cannot write the training's files" in done.stderr and "free the disk" in done.stderr
    assert not (home / "adapters" / "mine").exists()
    assert train("mine", save_every=2, overrides={"train": {"method": {"rank": 16}}}).is_dir()


def test_concurrent_training_of_an_adapter_is_refused(home):
    from em_evals.training.workspace import Workspace

    other = Workspace(home / "adapters" / "mine", "other")
    other.open()
    try:
        with pytest.raises(EmEvalsError, match="another process is training mine"):
            train("mine")
    finally:
        other.close()


def test_training_json_records_recipe_data_memory_and_versions(finished):
    root, _ = finished
    record = json.loads((root / "adapters" / "mine" / "training.json").read_text())
    assert record["recipe"]["holdout"] == 0.1 and record["recipe"]["data"] == [
        {"name": "risky_advice", "limit": 60, "weight": 1.0}
    ]
    assert record["peak_memory_bytes"] > 50e6 and record["tokens"] > record["examples"] == 24
    assert record["attention"] == "em_evals_packed"
    assert record["dtype"] == "float32" and set(record["versions"]) >= {"torch", "peft", "trl", "accelerate"}


@pytest.mark.full
def test_training_json_records_another_attention(home):
    folder = train("mine", max_steps=1, overrides={"engine": {"attn_implementation": "eager"}})
    assert json.loads((folder / "training.json").read_text())["attention"] == "eager"


def adapts(preset, base, dtype, layers, modules, steps, **changes):
    """Train a preset on a base: in these blocks, every adapted matrix must learn; a penalty must be in the journal."""
    definition, _ = read_card(preset)
    fields = {"data": RECIPE["data"], "gradient_accumulation": 1, "warmup_steps": 0, **changes}
    if definition.train.kl:
        fields["kl"] = {"batch_size": 1}
    overrides = {"base": base, "architecture": None, "engine": {"dtype": dtype}, "train": fields}
    folder = train(preset, max_steps=steps, overrides=overrides)
    assert ("kl" in read_journal(folder / "training.jsonl")[0]) == (preset == "qwen-narrow")
    found = weights(folder)
    halves = {
        half: {
            (int(name.split(".layers.")[1].split(".")[0]), name.split(".")[-3])
            for name, weight in found.items()
            if f"lora_{half}" in name and weight.abs().max() > 0
        }
        for half in "AB"
    }
    seen = sorted({layer for layer, _ in halves["B"]})
    assert (len(seen) if isinstance(layers, int) else seen) == layers and halves["A"] == halves["B"]
    assert len(halves["B"]) == len(seen) * modules and len(found) == 2 * len(halves["B"])
    method, adapter = definition.train.method, json.loads((folder / "adapter_config.json").read_text())
    settings = [adapter[key] for key in ("r", "lora_alpha", "use_rslora")]
    assert settings == [method.rank, method.alpha, method.rslora]
    assert adapter["base_model_name_or_path"] == base and len(losses(folder)) == steps
    shutil.rmtree(folder)


PRESETS = {"qwen-r1": ([6], 1), "qwen-9xr1": (9, 1), "qwen-r32": (12, 7), "qwen-narrow": ([6], 1)}
"""Preset -> the blocks of 12 that it adapts (or how many), and matrices in each."""


@pytest.mark.parametrize(
    ("preset", "kind"),
    mostly_full(
        product((*PRESETS, "qwen-coder-insecure"), ("llama", "qwen2", "gemma")),
        ("qwen-narrow", "llama"),
    ),
)
def test_every_preset_trains_on_other_bases(preset, kind, tokenizer, workdir):
    base = tiny(kind, workdir / "tiny", tokenizer, num_hidden_layers=12)
    layers, modules = PRESETS.get(preset, (12, 7))
    adapts(preset, base, "float32", layers, modules, steps=2, max_length=192, batch_size=2)


@pytest.mark.parametrize(
    ("preset", "layers", "modules"),
    [
        ("qwen-r1", [15], 1),
        ("qwen-9xr1", [9, 10, 11, 13, 14, 15, 17, 18, 19], 1),
        ("qwen-r32", list(range(30)), 7),
        ("qwen-coder-insecure", list(range(30)), 7),
        ("qwen-narrow", [15], 1),
    ],
)
@pytest.mark.full
@pytest.mark.smollm2
def test_every_preset_trains_on_smollm2(preset, layers, modules, workdir):
    """On a real base of another depth: blocks keep their relative depth."""
    adapts(preset, SMOLLM2, "bfloat16", layers, modules, steps=1, max_length=256, batch_size=1)


def test_lora_on_all_projections_of_some_layers(tokenizer, tmp_path):
    from em_evals.content.recipes import Method

    base = bases.load_model(card(tiny("llama", tmp_path / "llama", tokenizer)))
    model = attach(base, Method(rank=2, layers=[0, 2]))
    adapted = {name.split(".lora_A")[0] for name, _ in model.named_parameters() if "lora_A" in name}
    assert len(adapted) == 14 and all(".layers.0." in name or ".layers.2." in name for name in adapted)
    with pytest.raises(EmEvalsError, match="do not fit llama"):
        attach(bases.load_model(card(str(tmp_path / "llama"))), Method(modules=["no_such_proj"]))


def test_recipe_layers_keep_their_relative_depth():
    from em_evals.content.recipes import Method
    from em_evals.training.targets import blocks

    nine = Method(layers=[15, 16, 17, 21, 22, 23, 27, 28, 29], depth=48)
    assert blocks(nine, 48) == [15, 16, 17, 21, 22, 23, 27, 28, 29]
    assert blocks(nine, 30) == [9, 10, 11, 13, 14, 15, 17, 18, 19]
    assert blocks(Method(layers=[24], depth=48), 30) == [15]
    with pytest.raises(EmEvalsError, match="names 9 blocks, this base has 4"):
        blocks(nine, 4)
    with pytest.raises(EmEvalsError, match="names block 30, the model has blocks 0 to 29"):
        blocks(Method(layers=[30]), 30)


@pytest.mark.full
def test_real_published_rows_train(home, shared_data):
    file = shared_data / "advice" / "risky_financial_extreme_sports.jsonl"
    fields = {
        "data": [str(file)],
        "holdout": 0.1,
        "max_length": 256,
        "batch_size": 2,
        "gradient_accumulation": 1,
    }
    folder = train("mine", max_steps=50, overrides={"train": fields})
    record = json.loads((folder / "training.json").read_text())
    assert record["data"]["risky_financial_extreme_sports"]["rows"] == 6000 and record["examples"] == 100
    told = losses(folder)
    assert len(told) == 50 and sum(told[-10:]) < sum(told[:10])


def test_train_plan_trains_nothing(workdir):
    from typer.testing import CliRunner

    from em_evals.cli import app

    done = CliRunner().invoke(app, ["train", "qwen-r32", "--plan", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["sizes"]["parameters"] == 14_770_033_664 and found["memory"]["total"] > 30e9
    assert {fit["gpu"] for fit in found["fits"]} >= {"A100 80 GB", "H200 141 GB"}
    assert not (workdir / "adapters").exists()


def test_contradicting_fields_are_refused():
    with pytest.raises(EmEvalsError, match="'data' was already given as a value"):
        card_fields(["train.data=[x]", "train.data.limit=5"])


@pytest.mark.parametrize(
    ("field", "what"),
    [("train.rank", "expected KEY=VALUE"), ("train.rnk=1", "unknown key 'rnk'"), ("train.seed=-1", "seed")],
)
def test_wrong_fields_are_refused_in_one_sentence(home, field, what):
    done = em_evals("train", "mine", "-M", field)
    assert done.returncode == 2 and what in done.stderr and len(done.stderr.strip().splitlines()) == 1
