"""What an engine must offer for the models that will come, and what tells models apart."""

import json

import numpy as np
import pytest

from em_evals.content import directions
from em_evals.content.cards import ModelCard
from em_evals.content.directions import Direction
from em_evals.content.intervention import Intervention
from em_evals.engines.vllm import variants
from em_evals.engines.vllm.variants import BARE, Plan, as_json, from_json, plan
from em_evals.errors import EmEvalsError

pytest.importorskip("torch")
pytest.importorskip("peft")
safetensors = pytest.importorskip("safetensors.numpy")


@pytest.fixture(scope="module", autouse=True)
def base(tmp_path_factory):
    """The configuration of a small base; no weight is read."""
    from transformers import AutoConfig

    folder = tmp_path_factory.mktemp("base")
    sizes = {
        "hidden_size": 4,
        "intermediate_size": 6,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "vocab_size": 8,
    }
    AutoConfig.for_model(
        "llama", num_key_value_heads=2, architectures=["LlamaForCausalLM"], **sizes
    ).save_pretrained(folder)
    global CARD
    CARD = ModelCard.model_validate({"base": str(folder), "engine": {"device": "cpu"}})


def variant(adapter, interventions):
    return variants.variant(CARD, adapter, interventions)


def adapter(folder, rank=8, value=1.0, name="layers.1.mlp.down_proj", **config):
    folder.mkdir(parents=True)
    fields = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": [name], **config}
    (folder / "adapter_config.json").write_text(json.dumps(fields))
    place = "lm_head" if name == "lm_head" else f"model.{name}"
    out, width = (8, 4) if name == "lm_head" else (4, 6)
    tensors = {
        f"base_model.model.{place}.lora_A.weight": np.ones((rank, width), np.float32),
        f"base_model.model.{place}.lora_B.weight": np.full((out, rank), value, np.float32),
    }
    if config.get("use_dora"):
        tensors[f"base_model.model.{place}.lora_magnitude_vector"] = np.ones(out, np.float32)
    safetensors.save_file(tensors, folder / "adapter_model.safetensors")
    return str(folder)


def direction(path, value=1.0):
    directions.write(
        Direction(*(np.full(shape, value, np.float32) for shape in ((3, 4), (3, 4), (3,)))), path
    )
    return str(path)


def test_a_key_says_what_is_done_and_not_where_the_files_lie(tmp_path, cache):
    one, moved = adapter(tmp_path / "one"), adapter(tmp_path / "elsewhere" / "one")
    other = adapter(tmp_path / "two", value=2.0)
    d, e = direction(tmp_path / "d.safetensors"), direction(tmp_path / "e.safetensors", 2.0)
    copy = direction(tmp_path / "copy.safetensors")
    add = Intervention(op="add", direction=d, layers=(1,))
    assert variant(one, (add,)).key == variant(moved, (add.model_copy(update={"direction": copy}),)).key
    keys = [
        variant(*model).key
        for model in (
            (None, ()),
            (one, ()),
            (other, ()),
            (one, (add,)),
            (None, (add,)),
            (None, (add.model_copy(update={"scale": 2.0}),)),
            (None, (add.model_copy(update={"direction": e}),)),
            (one, (Intervention(op="scale_adapter", scale=0.5),)),
        )
    ]
    assert len(set(keys)) == len(keys) and keys[0] == BARE.key


def test_a_variant_survives_the_way_to_another_process(tmp_path, cache):
    d = direction(tmp_path / "d.safetensors")
    made = variant(
        adapter(tmp_path / "a"), (Intervention(op="clamp", direction=d, value=3.0, positions="answer"),)
    )
    assert from_json(as_json(made)) == made


def test_scaling_an_adapter_multiplies_its_b_in_the_named_blocks(tmp_path, cache):
    made = variant(adapter(tmp_path / "a"), (Intervention(op="scale_adapter", layers=(1,), scale=0.25),))
    tensors = safetensors.load_file(made.adapter / "adapter_model.safetensors")
    (b,) = [value for name, value in tensors.items() if "lora_B" in name]
    assert (b == 0.25).all() and made.steering == ()
    with pytest.raises(EmEvalsError, match="none there"):
        variant(str(tmp_path / "a"), (Intervention(op="scale_adapter", layers=(2,), scale=0.25),))


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"peft_type": "IA3"}, "IA3"),
        ({"use_dora": True}, "DoRA"),
        ({"name": "lm_head"}, "outside the blocks"),
    ],
)
def test_what_is_no_plain_lora_is_refused_by_name(config, sentence, tmp_path):
    with pytest.raises(EmEvalsError, match=sentence):
        variant(adapter(tmp_path / "a", **config), ())


def test_the_salt_parts_what_must_not_share_a_prefix(tmp_path):
    d = direction(tmp_path / "d.safetensors")
    everywhere = variant(None, (Intervention(op="add", direction=d),))
    answers = variant(None, (Intervention(op="add", direction=d, positions="answer"),))
    assert BARE.salt("5") == ""
    assert everywhere.salt("5") == everywhere.salt("9") != ""
    assert answers.salt("5") != answers.salt("9") and answers.salt("5") != everywhere.salt("5")


def test_steps_count_what_meets_at_one_block(tmp_path):
    d = direction(tmp_path / "d.safetensors")

    def at(*layers):
        return [Intervention(op="add", direction=d, layers=one) for one in layers]

    for sets, steps in (
        (at("all"), 1),
        (at("all", (1,)), 2),
        (at((0,), (1,)), 1),
        (at((0, 1), (1, 2), "all"), 3),
    ):
        assert variant(None, sets).steps == steps
    assert BARE.steps == 0


def test_a_plan_has_room_for_everybody_and_merges_what_is_alone(tmp_path, cache):
    small, large = variant(adapter(tmp_path / "s", 1), ()), variant(adapter(tmp_path / "l", 20, 2.0), ())
    d = direction(tmp_path / "d.safetensors")
    steered = variant(str(tmp_path / "s"), (Intervention(op="ablate", direction=d),))
    assert plan([BARE], None, merge=True) == Plan()
    assert plan([small, steered], None, merge=True) == Plan(steps=1, merged=small.adapter_key)
    assert plan([small], None, merge=False) == Plan(loras=4, rank=8)
    assert plan([BARE, small], None, merge=True) == Plan(loras=4, rank=8)
    assert plan([small, large], 2, merge=True) == Plan(loras=2, rank=32)
    with pytest.raises(EmEvalsError, match="512"):
        plan([variant(adapter(tmp_path / "x", 600, 3.0), ())], None, merge=False)


def test_a_plan_covers_what_it_was_made_for_and_nothing_else(tmp_path, cache):
    small, large = variant(adapter(tmp_path / "s", 1), ()), variant(adapter(tmp_path / "l", 20, 2.0), ())
    d = direction(tmp_path / "d.safetensors")
    steered = variant(None, (Intervention(op="ablate", direction=d),))
    merged = plan([small], None, merge=True)
    assert merged.covers(small) and not merged.covers(BARE) and not merged.covers(large)
    served = plan([BARE, small], None, merge=True)
    assert (
        served.covers(BARE)
        and served.covers(small)
        and not served.covers(large)
        and not served.covers(steered)
    )
    assert plan([BARE, steered], None, merge=True).covers(steered)


def test_every_direction_of_a_list_counts(tmp_path):
    """By its content in the key, and as a step that a server must have room for."""
    d, e, f = (direction(tmp_path / f"{name}.safetensors", ord(name)) for name in "def")

    def ablate(*names):
        return Intervention(op="ablate", direction=names)

    both = variant(None, (ablate(d, e),))
    assert both.steps == 2 and variant(None, (ablate(d, e), ablate(f))).steps == 3
    assert from_json(as_json(both)) == both
    others = [(ablate(d),), (ablate(e),), (ablate(d, f),), (ablate(d), ablate(e)), (ablate(d, e, f),)]
    split = [(ablate(d, e), ablate(f)), (ablate(d), ablate(e, f))]
    keys = {variant(None, one).key for one in [*others, *split]} | {both.key}
    assert len(keys) == len(others) + len(split) + 1
    direction(tmp_path / "e.safetensors", 9)
    assert variant(None, (ablate(d, e),)).key != both.key


def test_a_direction_in_memory_reaches_the_server_as_a_file_and_is_the_same_model(tmp_path, cache):
    held = Direction(np.ones((2, 4), np.float32), np.zeros((2, 4), np.float32), np.ones(2, np.float32))
    directions.write(held, tmp_path / "d.safetensors")
    ones = [
        variant(None, [Intervention(op="add", direction=one, scale=2.0)])
        for one in (held, str(tmp_path / "d.safetensors"))
    ]
    assert ones[0].key == ones[1].key and ones[0].steering_key
    (told,) = from_json(as_json(ones[0])).steering
    assert directions.get(told.direction) == held
    assert str(cache) in told.direction, "it lies in the user's cache, for the server's processes"
