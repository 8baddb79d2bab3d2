"""A base spread over several places by accelerate equals the base on one device: draws, adapters, steering, activations.

One CPU has one place that computes; blocks whose weights lie on disk go through accelerate's hooks as those of another
GPU do, with weights on the meta device between their calls.
"""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from em_evals.content.directions import Direction
from em_evals.content.intervention import Intervention
from em_evals.engines.hf.engine import HFEngine
from em_evals.engines.protocol import Request, Sampling
from em_evals.errors import EmEvalsError
from em_evals.interp.extraction import activations
from em_evals.interp.extraction.prefix_tree import Text
from em_evals.models import bases
from em_evals.models.lora import Bank
from em_evals.models.placement import device_of
from tests.tiny_models import card, make_adapter, tiny

PLACES = {
    "model.embed_tokens": "cpu",
    "model.rotary_emb": "cpu",
    "model.layers.0": "cpu",
    "model.layers.1": "disk",
    "model.layers.2": "disk",
    "model.norm": "cpu",
    "lm_head": "cpu",
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny("llama", tmp_path_factory.mktemp("base"), tie_word_embeddings=False)


def steer(op):
    chance = torch.Generator().manual_seed(3)
    vectors = torch.randn(3, 64, generator=chance).numpy()
    vector = Direction(vectors, torch.zeros(3, 64).numpy(), torch.ones(3).numpy())
    fields = {"scale": 3.0} if op == "add" else {}
    return Intervention(op=op, direction=vector, layers=(1, 2), **fields)


def drawn(engine, adapter):
    sampling = Sampling(temperature=0, max_tokens=6, logprobs=True)
    models = [(None, ()), (adapter, ()), (None, (steer("add"),)), (adapter, (steer("ablate"),))]
    prompts = [(5, 6, 7, 8), (9, 10, 11, 12, 13, 14)]
    futures = [
        engine.submit(Request(prompt, sampling, path, steps)) for path, steps in models for prompt in prompts
    ]
    return [one.result(300) for one in futures]


def read(loaded):
    kept = {}
    hooks = [
        block.register_forward_hook(lambda _, __, output, i=i: kept.__setitem__(i, output))
        for i, block in enumerate(loaded.model.model.layers)
    ]
    with torch.no_grad():
        loaded.model(input_ids=torch.tensor([[5, 6, 7]], device=loaded.device), use_cache=False)
    for hook in hooks:
        hook.remove()
    return kept


def test_draws_adapters_and_steering_over_several_places_equal_one_device(base, tmp_path):
    adapter = make_adapter(base, tmp_path / "adapter", 4, ["q_proj", "down_proj", "lm_head"], 1)
    found = []
    for engine in (HFEngine(card(base)), HFEngine(card(base, device_map=PLACES))):
        try:
            found.append(drawn(engine, adapter))
            with engine.activations(adapter, (steer("add"),)) as loaded:
                streams = read(loaded)
            found[-1] = found[-1], streams
        finally:
            engine.close()
    (whole, streams), (spread, others) = found
    assert len({str(draw.tokens) for draw in whole}) > 4
    for one, other in zip(whole, spread, strict=True):
        assert one.tokens == other.tokens
        assert [e.logprob for e in one.logprobs] == pytest.approx(
            [e.logprob for e in other.logprobs], abs=1e-5
        )
    assert all(torch.allclose(streams[i], others[i], atol=1e-5) for i in range(3))


def test_the_base_is_really_spread(base):
    model = bases.load_model(card(base, device_map=PLACES))
    weight = model.model.layers[1].self_attn.q_proj.weight
    assert weight.is_meta and device_of(model.model.layers[1]) == torch.device("cpu") == device_of(model)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"max_memory": {0: "1GiB"}}, "`max_memory` is for `device_map: auto`"),
        (
            {"max_memory": {"cpu": "1GiB"}, "device_map": {"": "cpu"}},
            "`max_memory` is for `device_map: auto`",
        ),
        ({"device_map": "auto", "device": "cpu"}, "`device` and `device_map` exclude each other"),
        ({"device_map": {"": "cuda:99"}}, "names the device cuda:99, which this machine does not have"),
        ({"device_map": "auto", "max_memory": {99: "1GiB"}}, "names the device 99, which this machine"),
    ],
)
def test_contradicting_placements_are_refused(options, sentence, base):
    with pytest.raises(EmEvalsError, match=sentence):
        bases.check(card(base, **options))


def test_a_name_without_a_module_is_refused_before_weights_load(base):
    places = {"": "cpu", "model.layer.1": "disk"}
    with pytest.raises(EmEvalsError, match=r"has no module 'model.layer.1'; did you mean 'model.layers"):
        bases.load_model(card(base, device_map=places))
    with pytest.raises(EmEvalsError, match=r"has no module 'x'; it has .*lm_head, .*model.layers"):
        bases.load_model(card(base, device_map={"": "cpu", "x": "disk"}))


def test_adapters_that_need_an_offloaded_weight_are_refused(base, tmp_path):
    from peft import LoraConfig, get_peft_model

    # PEFT saves every module whose name ends so: "norm" would also be the norms inside the offloaded blocks.
    for name, options in {
        "dora": {"use_dora": True},
        "inner": {"modules_to_save": ["1.input_layernorm"]},
        "last": {"modules_to_save": ["model.norm"]},
    }.items():
        config = LoraConfig(
            **{"task_type": "CAUSAL_LM", "r": 2, "target_modules": r".*1.self_attn.q_proj", **options}
        )
        get_peft_model(bases.load_model(card(base)), config).save_pretrained(tmp_path / name)
    bank = Bank(bases.load_model(card(base, device_map=PLACES)))
    with pytest.raises(EmEvalsError, match=r"DoRA .*needs the weight of model.layers.1.* is offloaded"):
        bank.load(str(tmp_path / "dora"))
    with pytest.raises(
        EmEvalsError, match=r"needs the weight of model.layers.1.input_layernorm.* is offloaded"
    ):
        bank.load(str(tmp_path / "inner"))
    bank.load(str(tmp_path / "last"))  # the last norm is on the CPU


def test_sums_of_an_extraction_are_those_of_one_device(base):
    texts = [Text((5, 6, 7), (8, 9), "a"), Text((5, 6), (10, 11, 12), "b")]
    found = [
        activations.group_sums(bases.load_model(card(base, **options)), texts)
        for options in ({}, {"device_map": PLACES})
    ]
    assert torch.allclose(*(torch.tensor(one.vectors) for one in found), atol=1e-5)
