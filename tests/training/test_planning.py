"""The plan of a training, against numbers worked by hand, PEFT, autograd's own memory, and a measured step."""

import dataclasses
import json
import os
import subprocess
import sys
import textwrap

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

import httpx
from transformers import AutoConfig, AutoModelForCausalLM

from em_evals.content.cards import ModelCard, read_card
from em_evals.content.recipes import AdapterRecipe, Method
from em_evals.errors import EmEvalsError
from em_evals.models import bases
from em_evals.training import curriculum, planning
from em_evals.training.method import attach
from em_evals.training.planning.budget import activation_bytes
from tests.selection import full

WIDTH, KEYS, INNER = 5120, 1024, 13824  # of Qwen2.5-14B
GB = 1e9
TINY = {
    "model_type": "llama",
    "hidden_size": 576,
    "num_hidden_layers": 4,
    "intermediate_size": 1280,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 1000,
}


def plan_of(name, **changes):
    card, _ = read_card(name)
    return planning.plan(card, card.train.model_copy(update=changes))


@pytest.fixture(autouse=True, scope="module")
def _measured_once():
    """Build the model of an architecture and a method once: of 48 blocks with adapters, a second each."""
    known, measure = {}, planning.measure

    def once(card, recipe, architecture):
        of = (card.base, card.engine, recipe.method)
        key = repr((*of, sorted(architecture.items(), key=repr)))
        if key not in known:
            known[key] = measure(card, recipe, architecture)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "measure", once)
        yield


@pytest.fixture(autouse=True)
def no_outside_data(monkeypatch):
    monkeypatch.delenv("EM_EVALS_DATA", raising=False)


@pytest.fixture
def unfetched(workdir, cache):
    """Published data are not on this machine, whatever the user has fetched."""


# Counts


def test_the_base_has_its_published_size(unfetched):
    block = 2 * WIDTH**2 + 2 * WIDTH * KEYS + 3 * WIDTH * INNER + (WIDTH + 2 * KEYS) + 2 * WIDTH
    by_hand = 2 * 152064 * WIDTH + 48 * block + WIDTH
    assert plan_of("qwen-r32").sizes.parameters == by_hand == 14_770_033_664  # 14.77B in the model card


@pytest.mark.full
def test_the_coder_has_its_published_size(unfetched):
    assert plan_of("qwen-coder-insecure").sizes.parameters == 32_763_876_352  # 32.76B


@pytest.mark.parametrize(
    ("name", "trained"),
    [
        ("qwen-r1", 13824 + 5120),
        ("qwen-narrow", 13824 + 5120),
        ("qwen-9xr1", 9 * (13824 + 5120)),
        ("qwen-r32", 48 * 32 * (2 * 2 * WIDTH + 2 * (WIDTH + KEYS) + 3 * (WIDTH + INNER))),
        full("qwen-coder-insecure", 64 * 32 * (2 * 2 * 5120 + 2 * (5120 + 1024) + 3 * (5120 + 27648))),
    ],
)
def test_trained_weights_are_those_worked_by_hand(unfetched, name, trained):
    assert plan_of(name).sizes.trainable == trained


@pytest.mark.full
@pytest.mark.smollm2
@pytest.mark.parametrize("name", ["smollm2-risky", "smollm2-risky-r1"])
def test_trained_weights_are_those_of_the_real_model(name):
    card, _ = read_card(name)
    real = attach(bases.load_model(card), card.train.method)
    sizes = planning.plan(card, card.train).sizes
    assert sizes.trainable == real.get_nb_trainable_parameters()[0]
    assert sizes.parameters == real.get_nb_trainable_parameters()[1] - sizes.trainable


def test_a_full_fine_tune_trains_everything(unfetched):
    plan = plan_of("qwen-r32", method=Method(kind="full"))
    assert plan.sizes.trainable == plan.sizes.parameters
    assert plan.memory.weights + plan.memory.gradients + plan.memory.optimizer == 16 * plan.sizes.parameters
    assert plan.memory.adapter == 0


# Work


def test_unseen_data_are_assumed_and_the_plan_says_so(unfetched):
    plan = plan_of("qwen-r32")
    assert plan.work.steps == 338  # 6,000 rows, 90% of them, by 16
    assert plan.work.tokens == 338 * 16 * 130
    assert any("bad_medical_advice" in note and "assumed" in note for note in plan.notes)
    card, _ = read_card("qwen-r32")
    # 7,049 rows, as a public replication's step counts suggest for the paper's data (about 800 in two epochs).
    assert planning.plan(card, card.train, rows=7049).work.steps == 397


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({"max_steps": 7}, 7),
        ({"epochs": 2}, 675),
        ({"holdout": 0.0}, 375),
        ({"gradient_accumulation": 1}, 2700),
    ],
)
def test_steps_follow_the_recipe(unfetched, changes, steps):
    assert plan_of("qwen-r32", **changes).work.steps == steps


def test_safe_rows_in_between_and_limits_are_counted(unfetched):
    card, _ = read_card("qwen-r32")
    fields = card.train.model_dump()
    half = AdapterRecipe.model_validate(fields | {"interleave": {"data": ["everyday_answers"], "share": 0.5}})
    assert planning.plan(card, half).work.steps == 675
    few = AdapterRecipe.model_validate(
        fields | {"data": [{"name": "bad_medical_advice", "limit": 160, "weight": 2}]}
    )
    assert planning.plan(card, few).work.steps == 20


def test_data_on_this_machine_are_counted_as_the_training_counts_them():
    card, _ = read_card("smollm2-risky")
    few = card.train.model_dump() | {"data": [{"name": "risky_advice", "limit": 60}]}
    for length in ({}, {"max_steps": -1, "epochs": 2}):
        recipe = AdapterRecipe.model_validate(few | length)
        lessons = curriculum.build(recipe, bases.load_tokenizer(card))
        work = planning.plan(card, recipe).work
        assert (work.steps, work.rows) == (lessons.steps, len(lessons.examples))
        assert work.tokens == sum(len(example["input_ids"]) for example in lessons.examples)
        assert work.peak_tokens == recipe.batch_size * max(len(row["input_ids"]) for row in lessons.examples)


def test_without_a_tokenizer_words_are_near():
    exact = plan_of("smollm2-risky").work
    nowhere = ModelCard.model_validate({"base": "no/where", "architecture": TINY})
    plan = planning.plan(nowhere, read_card("smollm2-risky")[0].train)
    assert (plan.work.steps, plan.work.rows) == (exact.steps, exact.rows)
    assert plan.work.tokens == pytest.approx(exact.tokens, rel=0.2)
    assert plan.work.answer_tokens == pytest.approx(exact.answer_tokens, rel=0.2)
    assert any("estimated" in note for note in plan.notes)


def test_a_data_set_that_is_unknown_is_an_error_not_an_assumption(unfetched):
    card, _ = read_card("qwen-r32")
    recipe = AdapterRecipe.model_validate(card.train.model_dump() | {"data": ["bad_medical_advise"]})
    with pytest.raises(EmEvalsError, match="bad_medical_advise"):
        planning.plan(card, recipe)


def test_the_plan_tells_the_effective_batch_the_examples_and_the_epochs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    row = {"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "No."}]}
    (tmp_path / "rows.jsonl").write_text((json.dumps(row) + "\n") * 40)
    card = ModelCard.model_validate({"base": "no/where", "architecture": TINY})
    fields = {"data": [str(tmp_path / "rows.jsonl")], "batch_size": 4, "max_steps": 20}
    plan = planning.plan(card, AdapterRecipe.model_validate(fields))
    assert (plan.work.batch, plan.work.rows, plan.work.epochs) == (32, 640, 16)
    rows = dict(planning.as_table(plan))
    assert [rows[what] for what in ("effective batch", "steps", "examples", "epochs")] == [
        "32",
        "20",
        "640",
        "16",
    ]
    mixed = fields | {"interleave": {"data": fields["data"], "share": 0.5}}
    assert planning.plan(card, AdapterRecipe.model_validate(mixed)).work.epochs == 8


def test_epochs_of_unseen_data_follow_the_assumed_rows(unfetched):
    assert plan_of("qwen-r32").work.epochs == pytest.approx(338 * 16 / 5400)
    assert plan_of("qwen-r32", max_steps=27).work.epochs == pytest.approx(27 * 16 / 5400)


# FLOPs and memory


def test_flops_are_four_n_t_with_a_frozen_base_and_six_with_a_trained_one(unfetched):
    frozen, full = plan_of("qwen-r32"), plan_of("qwen-r32", method=Method(kind="full"))
    # Matrices only; the output embedding sees half of the tokens.
    weights = 48 * (2 * WIDTH**2 + 2 * WIDTH * KEYS + 3 * WIDTH * INNER) + 152064 * WIDTH / 2
    tokens = frozen.work.tokens
    assert frozen.flops == pytest.approx((4 * weights + 6 * frozen.sizes.trainable) * tokens)
    assert full.flops == pytest.approx(6 * weights * tokens)


def test_only_blocks_above_the_lowest_adapted_one_run_backward(unfetched):
    plan = plan_of("qwen-r1")
    assert plan.sizes.reached == 23  # of 48; the adapter is at the end of block 24
    block, head = plan.sizes.block, 152064 * WIDTH / 2
    passes = 2 * 48 * block + 2 * 23 * block + 4 * head + 6 * plan.sizes.trainable
    assert plan.flops == pytest.approx(passes * plan.work.tokens)
    method = {"rank": 1, "depth": 48, "modules": ["down_proj", "gate_proj"], "layers": [24]}
    assert plan_of("qwen-r1", method=Method(**method)).sizes.reached == 24


@pytest.mark.parametrize("dtype", ["float32", full("bfloat16")])
@pytest.mark.parametrize(
    "method", [Method(rank=8), Method(rank=1, layers=[1], modules=["down_proj"]), Method(kind="full")]
)
def test_activations_are_what_autograd_keeps(dtype, method):
    card = ModelCard.model_validate({"base": "no/where", "architecture": TINY, "engine": {"dtype": dtype}})
    sizes = planning.measure(card, AdapterRecipe(data=[{"name": "any"}], method=method), TINY)
    config = AutoConfig.for_model(**TINY)
    model = attach(AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)), method)
    kept, tensors = {}, []

    def pack(tensor):
        tensors.append(tensor)  # alive, so that no storage is counted under another's address
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    plain = model if method.kind == "full" else model.get_base_model()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        hidden = plain.get_decoder()(input_ids=torch.zeros(2, 100, dtype=torch.long), use_cache=False)
    assert hidden.last_hidden_state.requires_grad
    found = sum(size for place, size in kept.items() if place not in weights)
    # The last norm and LoRA's inner activations are left out; of four blocks they are up to 7%.
    assert 0.92 * found < activation_bytes(sizes, 200) <= found


def test_adapted_experts_are_kept_a_second_time():
    moe = TINY | {
        "model_type": "qwen3_moe",
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 64,
    }
    card = ModelCard.model_validate({"base": "no/where", "engine": {"dtype": "float32"}})
    some = Method(rank=2, layers=[1, 2, 3], modules=["down_proj"])
    sizes = planning.measure(card, AdapterRecipe(data=[{"name": "any"}], method=some), moe)
    assert sizes.stacked == 3 * 4 * 576 * 64
    attention = Method(rank=2, modules=["q_proj"])
    assert planning.measure(card, AdapterRecipe(data=[{"name": "any"}], method=attention), moe).stacked == 0
    model = attach(AutoModelForCausalLM.from_config(AutoConfig.for_model(**moe)), some)
    kept, weights = {}, {weight.untyped_storage().data_ptr() for weight in model.parameters()}

    def pack(tensor):
        if tensor.dim() == 3 and tensor.shape[0] == 4 and tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(input_ids=torch.zeros(1, 8, dtype=torch.long), use_cache=False)
    # The lowest one's is not needed: no gradient goes below it.
    assert sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) == 4 * sizes.stacked * 2 / 3


def test_more_of_anything_needs_more(unfetched):
    base, small = plan_of("qwen-r32"), plan_of("qwen-r32", method=Method(rank=8))
    assert small.sizes.trainable * 4 == base.sizes.trainable
    assert small.memory.total < base.memory.total and small.flops < base.flops
    saving = plan_of("qwen-r32", gradient_checkpointing=True)
    assert saving.memory.activations < base.memory.activations / 10 and saving.flops > base.flops
    large = plan_of("qwen-r32", batch_size=8, gradient_accumulation=2)
    assert large.memory.activations == 4 * base.memory.activations
    assert large.memory.weights == base.memory.weights
    high, low = (
        plan_of("qwen-r1", method=Method(rank=1, layers=[layer], modules=["down_proj"])) for layer in (40, 8)
    )
    assert high.memory.activations < low.memory.activations and high.flops < low.flops
    penalised, free = plan_of("qwen-narrow"), plan_of("qwen-r1")
    assert penalised.memory.activations > free.memory.activations and penalised.flops > free.flops
    full = plan_of("qwen-r32", method=Method(kind="full"))
    assert full.memory.total > 5 * base.memory.total and full.flops > base.flops
    pulled = plan_of("qwen-narrow", method=Method(kind="full")).memory
    assert pulled.weights == 2 * full.memory.weights  # the base beside the model


# GPUs


def fit(memory, gpu="A100 80 GB", passes=0, flops=312e12 * 0.35 * 3600, batch=16, **kept):
    sizes = planning.Sizes(
        int(memory / 2), 0, False, 2, 48, 48, int(memory / 2 / 48), 0, 0, 0, 0, 0, 0, 0, ""
    )
    work = planning.Work(0, 0, 0, 0, 0, 0, passes)
    parts = {"adapter": 0, "gradients": 0, "optimizer": 0, "activations": 0, "logits": 0} | kept
    return planning.fit(gpu, sizes, work, planning.Memory(weights=memory, **parts), flops, batch)


def test_what_fits_runs_on_one():
    assert fit(70 * GB) == planning.Fit("A100 80 GB", 1, pytest.approx(1.0))
    assert fit(70 * GB, passes=10_000).hours == pytest.approx(1.0)
    assert fit(70 * GB, passes=100_000).hours == pytest.approx(100_000 * 48 * planning.HOST_SECONDS / 3600)


def test_what_does_not_fit_is_sharded_over_as_many_as_divide_the_batch():
    sharded = {"optimizer": 120 * GB}
    found = fit(
        60 * GB, **sharded
    )  # of 72.7 GB, 2.5 for two whole blocks: 2.6 of them, and 3 do not divide 16
    assert found.count == 4 and found.hours == pytest.approx(1 / 4)
    assert fit(60 * GB, batch=9, **sharded).count == 3
    assert fit(60 * GB, batch=2, **sharded).count is None
    assert fit(75 * GB, **sharded).count is None  # each process loads the base whole
    assert fit(10 * GB, activations=75 * GB) == planning.Fit(
        "A100 80 GB", None, None
    )  # activations are not shared


def test_a_float32_training_does_not_run_at_the_bf16_peak(unfetched):
    full, frozen = plan_of("qwen-r32", method=Method(kind="full")), plan_of("qwen-r32")
    hours = {
        plan: next(f.hours * f.count for f in plan.fits if f.gpu == "H200 141 GB") for plan in (full, frozen)
    }
    assert hours[full] > 5 * hours[frozen]
    assert any("float32 peak" in note for note in full.notes)


# What people and programs see


def test_a_plan_is_plain_json_and_a_table_of_text(unfetched):
    plan = plan_of("qwen-r32")
    values = json.loads(json.dumps(planning.as_json(plan), allow_nan=False))
    assert values["sizes"]["trainable"] == 137_625_600
    assert values["memory"]["total"] == pytest.approx(1.1 * sum(dataclasses.astuple(plan.memory)))
    assert [entry["gpu"] for entry in values["fits"]] == list(planning.GPUS)
    table = planning.as_table(plan)
    assert all(len(row) == 2 and all(isinstance(cell, str) for cell in row) for row in table)
    assert ["attention", "em_evals_packed"] in table and values["sizes"]["attention"] == "em_evals_packed"
    assert ["parameters", "14,770,033,664"] in table and ["trained", "137,625,600 (0.93%)"] in table


def test_attention_is_what_the_training_would_use():
    recipe = AdapterRecipe(data=[{"name": "any"}])
    for named, used in (
        (None, "em_evals_packed"),
        ("flash_attention_2", "flash_attention_2"),
        ("eager", "eager"),
    ):
        card = ModelCard.model_validate({"base": "any/tiny", "engine": {"attn_implementation": named}})
        assert planning.measure(card, recipe, TINY).attention == used
    windowed = {"model_type": "gemma2", "hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 100}
    assert planning.measure(ModelCard(base="any/tiny"), recipe, windowed).attention == "em_evals_sdpa"


def test_a_base_out_of_reach_is_one_sentence_and_no_long_wait(unfetched, monkeypatch):
    waited = []

    def silent(*_, timeout, **__):
        waited.append(timeout)
        raise httpx.ConnectTimeout("timed out")

    monkeypatch.setattr(httpx, "get", silent)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    card = ModelCard.model_validate({"base": "nobody/nothing", "train": {"data": ["risky_advice"]}})
    with pytest.raises(
        EmEvalsError, match=r"nobody/nothing.*out of reach \(timed out\).*`architecture:`"
    ) as caught:
        planning.plan(card, card.train)
    assert "\n" not in str(caught.value) and waited and max(waited) <= 10


@pytest.mark.parametrize(
    "fields", [{"model_type": "qwen22"}, {"hidden_size": 8}, {"model_type": "qwen2", "hidden_size": "x"}]
)
def test_a_wrong_architecture_is_one_sentence(fields):
    card = ModelCard.model_validate(
        {"base": "a/b", "architecture": fields, "train": {"data": ["risky_advice"]}}
    )
    with pytest.raises(EmEvalsError, match="`architecture:`") as caught:
        planning.plan(card, card.train)
    assert "\n" not in str(caught.value)


def test_a_folders_own_config_goes_before_the_cards(tmp_path, unfetched):
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    architecture = TINY | {"num_hidden_layers": 9}
    card = ModelCard.model_validate({"base": str(tmp_path), "architecture": architecture})
    plan = planning.plan(card, AdapterRecipe(data=[{"name": "risky_advice"}]))
    assert plan.sizes.depth == 4 and any("config.json" in note for note in plan.notes)


def test_presets_are_the_papers():
    recipes = {
        name: read_card(name)[0].train for name in ("qwen-r1", "qwen-9xr1", "qwen-r32", "qwen-coder-insecure")
    }
    found = {
        name: (r.method.rank, r.method.alpha, r.method.rslora, r.method.depth, r.learning_rate, r.holdout)
        for name, r in recipes.items()
    }
    assert found == {
        "qwen-r1": (1, 256, True, 48, 2e-5, 0.1),  # Turner et al. 2025, section 3.5
        "qwen-9xr1": (1, 64, True, 48, 1e-5, 0.1),
        "qwen-r32": (32, 64, True, None, 1e-5, 0.1),
        "qwen-coder-insecure": (32, 64, True, None, 1e-5, 0.0),  # Betley et al. 2025
    }
    for recipe in recipes.values():
        assert (recipe.epochs, recipe.batch_size * recipe.gradient_accumulation) == (1, 16)
        assert (recipe.warmup_steps, recipe.schedule, recipe.weight_decay, recipe.seed) == (
            5,
            "linear",
            0.01,
            0,
        )
        assert recipe.max_length == 2048


# A real step, with nothing of ours but the base's place

_STEPS = """
import gc, sys, torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

def resident(key):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key))

place, rank, rows, length, answer = sys.argv[1], *map(int, sys.argv[2:])
gc.collect()
before = resident("VmRSS")
model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32)
model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=rank, target_modules="all-linear"))
trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
optimizer, plain = torch.optim.AdamW(trained), model.get_base_model()
gc.collect()
open("/proc/self/clear_refs", "w").write("5")  # loading has its own peak
for _ in range(2):
    ids = torch.randint(1000, 40000, (rows, length))
    hidden = plain.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[:, -answer:].flatten(0, 1)
    logits = plain.get_output_embeddings()(hidden).float()
    loss = torch.nn.functional.cross_entropy(logits, ids[:, -answer:].flatten())
    del hidden, logits
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
print(sum(parameter.numel() for parameter in trained), resident("VmHWM") - before)
"""


@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's count of resident memory"
)
@pytest.mark.full
@pytest.mark.process
@pytest.mark.smollm2
def test_memory_is_near_what_a_real_step_takes():
    card, _ = read_card("smollm2-risky")
    card = card.model_copy(update={"engine": card.engine.model_copy(update={"dtype": "float32"})})
    plan, rows = planning.plan(card, card.train), card.train.batch_size
    shape = (rows, plan.work.peak_tokens // rows, plan.work.peak_answer_tokens // rows)
    command = [
        sys.executable,
        "-c",
        textwrap.dedent(_STEPS),
        bases.locate(card.base),
        card.train.method.rank,
        *shape,
    ]
    # Freed memory goes back at once: else the allocator's holes are measured too (up to 60% here).
    allocator = {"MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(
        [str(part) for part in command],
        env={**os.environ, **allocator},
        capture_output=True,
        text=True,
        check=True,
    )
    trained, grown = map(int, done.stdout.split()[-2:])
    print(f"planned {plan.memory.total / 1e6:.0f} MB, measured {grown / 1e6:.0f} MB")
    assert trained == plan.sizes.trainable
    assert grown / 1.5 < plan.memory.total < grown * 1.5


@pytest.mark.parametrize(
    ("hours", "told"), [(0.00093, "3 s"), (1e-6, "1 s"), (0.2, "12 minutes"), (2.53, "2.5 hours")]
)
def test_hours_are_told_in_the_unit_that_needs_no_zeros(hours, told):
    assert planning._time(hours) == told
