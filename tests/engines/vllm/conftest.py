"""One vLLM server for all tests of this folder: in `make test` on a tiny base, in `make test-all` on the small one too.

The server is made uncomfortable: little memory for keys and values, so that requests are preempted; prompts prefilled
in chunks; every adapter slot taken; prefixes shared. It starts for one adapter alone (test_vllm_alone.py) and again for
all models, after a kill or because more is asked of it. The files run in the order that tests/conftest.py gives.
"""

import numpy as np
import pytest
import yaml

from em_evals.content import directions
from em_evals.content.directions import Direction
from em_evals.content.intervention import Intervention
from em_evals.engines import pool
from em_evals.engines.protocol import Request
from tests.engines.vllm.lab import GREEDY, Base, prompts
from tests.models.test_interventions import SETS
from tests.tiny_models import SMOLLM2, card, make_adapter, tiny


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("vllm")


@pytest.fixture(
    scope="session",
    params=["tiny", pytest.param("smollm2", marks=[pytest.mark.full, pytest.mark.smollm2])],
)
def base(request, root):
    if request.param == "smollm2":
        return Base(SMOLLM2, layers=30, width=576, token_bytes=30 * 3 * 64 * 2 * 4, answer=20)
    # vLLM's attention on CPU knows heads of 32 and more.
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
    made = tiny("llama", root / "tiny", **heads)
    return Base(made, layers=3, width=64, token_bytes=3 * 1 * 32 * 2 * 4, answer=100)


@pytest.fixture(scope="session")
def direction(root, base):
    chance = np.random.default_rng(0)
    shape = (base.layers, base.width)
    found = Direction(
        chance.normal(size=shape).astype(np.float32),
        chance.normal(size=shape).astype(np.float32),
        np.full(base.layers, 40.0, np.float32),
    )
    directions.write(found, root / "adapters" / "d.safetensors")
    return str(root / "adapters" / "d.safetensors")


@pytest.fixture(scope="session")
def loras(root, base):
    make = {
        "r1": (1, ["down_proj"], 1, [base.layers // 2], False, 1),
        "r16": (16, "all-linear", 2, None, False, 0.05),
        "rs": (8, ["q_proj", "v_proj", "down_proj"], 3, None, True, 0.03),
        "r4": (4, ["gate_proj"], 4, None, False, 0.1),
        "late": (2, ["o_proj"], 5, None, False, 0.3),
    }
    return {
        name: make_adapter(base.path, root / "adapters" / name, rank, modules, seed, layers, rs, strength)
        for name, (rank, modules, seed, layers, rs, strength) in make.items()
    }


@pytest.fixture(scope="session")
def sets(direction, base, root):
    """Those of test_interventions.py that a server takes; a subspace is of this direction and another."""
    other = root / "adapters" / "e.safetensors"
    chance = np.random.default_rng(1)
    vectors = chance.normal(size=(base.layers, base.width)).astype(np.float32)
    vectors += directions.read(root / "adapters" / "d.safetensors").vectors
    directions.write(Direction(vectors, vectors, np.full(base.layers, 40.0, np.float32)), other)

    def made(one):
        along = [direction, str(other)] if "direction" in one else direction
        return Intervention.model_validate({**one, "direction": along})

    return {name: tuple(map(made, fields)) for name, fields in SETS.items() if "writes" not in name}


@pytest.fixture(scope="session")
def models(loras, sets):
    """Every kind of model: (adapter, interventions)."""
    half = Intervention(op="scale_adapter", scale=0.5)
    alone = [(None, one) for one in sets.values()]
    adapted = [(loras[name], ()) for name in ("r1", "r16", "rs", "r4")]
    both = [
        (loras["r16"], sets["ablate mean"]),
        (loras["r1"], sets["answer"]),
        (loras["rs"], sets["composed"]),
    ]
    return [*alone, *adapted, *both, (loras["r16"], (half, *sets["prompt"]))]


@pytest.fixture(scope="session")
def reference(base):
    """The transformers engine."""
    from em_evals.engines.hf.engine import HFEngine

    engine = HFEngine(card(base.path))
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def lone(base, loras):
    """The vLLM engine, with one adapter reserved and nothing else."""
    from em_evals.engines.vllm.engine import VLLMEngine

    made = VLLMEngine(base.card)
    made.reserve(loras["r16"], ())
    yield made
    made.close()


@pytest.fixture(scope="session")
def reserved(lone, models):
    """The same engine with every model reserved; its server may still be the one for a single adapter."""
    for model in models:
        lone.reserve(*model)
    return lone


@pytest.fixture(scope="session")
def engine(reserved, models):
    """The same engine, its server for every model running."""
    reserved.submit(Request(prompts(reserved)[0], GREEDY, *models[-1])).result(1200)
    return reserved


@pytest.fixture
def cards(root, base, loras, direction, lone, monkeypatch):
    """Three cards on the engine's base, which is the process's engine for them."""
    monkeypatch.chdir(root)
    for name, more in {
        "a": {},
        "b": {"adapter": "r16"},
        "c": {
            "adapter": "r1",
            "interventions": [{"op": "add", "direction": "d", "layers": [1], "scale": 2.0}],
        },
    }.items():
        fields = {"base": base.path, "backend": "vllm", "engine": base.engine, **more}
        (root / "adapters" / f"{name}.yaml").write_text(yaml.safe_dump(fields))
    engines = {pool._key(base.card, "vllm"): lone}
    monkeypatch.setattr(pool, "_engines", engines)
    yield
    for one in engines.values():
        if one is not lone:
            one.close()
