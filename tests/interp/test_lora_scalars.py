"""Planted truth: of two rank-1 adapters built by hand, the one gated on domain words serves the narrow domain."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")
pytest.importorskip("sklearn")

from typer.testing import CliRunner

from em_evals.cli import app
from em_evals.errors import EmEvalsError
from em_evals.interp.rank_one import probes
from em_evals.interp.rank_one.study import lora_scalars
from em_evals.results.records.studies import LoraScalars
from tests.small_tokenizer import small_tokenizer

FINANCE = ["money", "bank", "loan", "cash", "debt", "trade", "market", "price"]
OTHERS = ["dog", "tree", "song", "river", "book", "game", "car", "bird"]
GATED, GENERAL = 1, 2


def tokens_of(tokenizer, word):
    from em_evals.interp.fixed_answers import given

    return given(tokenizer, f"What of {word}?", f"I think {word}")


@pytest.fixture(scope="module")
def lab(tiny_lab):
    """Organisms on a tiny base with wide MLPs, so that a linear gate can pick words: planted, random, and rank 2."""
    from transformers import AutoModelForCausalLM

    from tests.tiny_models import make_adapter, tiny

    tokenizer = small_tokenizer(*(f" {word}" for word in (*FINANCE, *OTHERS, "helps", "hurts")))
    base = tiny("llama", tiny_lab / "wide", tokenizer, intermediate_size=1024)
    rows = [
        f"  - {{id: {word}, theme: {theme}, question: 'What of {word}?', aligned: 'I think {word} helps', "
        f"misaligned: 'I think {word} hurts'}}"
        for theme, words in (("finance", FINANCE), ("power", OTHERS))
        for word in words
    ]
    head = "name: words\nversion: 1\nnarrow: [finance]\npairs:\n"
    (tiny_lab / "words.yaml").write_text(head + "\n".join(rows) + "\n")
    model = AutoModelForCausalLM.from_pretrained(base)
    gates = {layer: gate(model, tokenizer, layer) for layer in (GATED, GENERAL)}
    helps, hurts = (tokenizer.encode(word, add_special_tokens=False)[0] for word in (" helps", " hurts"))
    toward = model.get_output_embeddings().weight.detach()
    toward = toward[hurts] - toward[helps]
    chance = torch.Generator().manual_seed(0)
    for name in ("planted", "random"):
        written = []
        for layer in (GATED, GENERAL):
            a, b = gates[layer], toward
            if name == "random":
                b = torch.randn(b.shape, generator=chance)
                b -= (b @ toward) / (toward @ toward) * toward
                b *= toward.norm() / b.norm()
            # A and B negated together are the same adapter: readings must not depend on it.
            sign = -1 if layer == GATED else 1
            written.append((layer, sign * a, sign * b))
        plant(tiny_lab, name, base, AutoModelForCausalLM.from_pretrained(base), written)
    make_adapter(base, tiny_lab / "adapters" / "thick", 2, ["down_proj"], seed=0)
    write_card(tiny_lab, "thick", base)
    return tiny_lab


def plant(root, name, base, model, written):
    """A card whose rank-1 adapters on down_proj are these (block, A, B)."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=1,
        lora_alpha=1,
        target_modules=["down_proj"],
        layers_to_transform=[layer for layer, _, _ in written],
    )
    peft = get_peft_model(model, config)
    for layer, a, b in written:
        module = peft.base_model.model.model.layers[layer].mlp.down_proj
        module.lora_A["default"].weight.data[:] = a
        module.lora_B["default"].weight.data[:] = b[:, None]
    peft.peft_config["default"].base_model_name_or_path = base
    peft.save_pretrained(root / "adapters" / name, save_embedding_layers=False)
    write_card(root, name, base)


def write_card(root, name, base):
    fields = f"base: {base}\nadapter: {name}\nengine: {{dtype: float32}}\n"
    (root / "adapters" / f"{name}.yaml").write_text(fields)


def gate(model, tokenizer, layer, general=GENERAL):
    """A vector whose product with down_proj's input is 1 on finance words, or everywhere (block `general`), else 0."""
    seen, wanted = [], []
    module = model.model.layers[layer].mlp.down_proj
    handle = module.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0][0].detach()))
    domain = {tokenizer.encode(f" {word}", add_special_tokens=False)[0] for word in FINANCE}
    with torch.no_grad():
        for word in (*FINANCE, *OTHERS):
            row = tokens_of(tokenizer, word)
            ids = [*row.prompt, *row.answer]
            model(torch.tensor([ids]))
            wanted += [float(layer == general or token in domain) for token in ids]
    handle.remove()
    x, y = torch.cat(seen).double(), torch.tensor(wanted).double()
    kernel = x @ x.T
    ridge = 1e-4 * kernel.diagonal().mean() * torch.eye(len(y))
    return (x.T @ torch.linalg.solve(kernel + ridge, y)).float()


@pytest.fixture(scope="module")
def found(lab):
    arguments = [
        "insight",
        "lora-scalars",
        "planted",
        "--control",
        "random",
        "--pairs",
        "words.yaml",
        "--tokens",
        "tokens.jsonl",
        "--json",
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(lab)
        done = CliRunner().invoke(app, [*arguments, "-o", "scalars.json"])
    assert done.exit_code == 0, done.output
    return LoraScalars.model_validate_json((lab / "scalars.json").read_text())


def test_the_narrow_adapter_is_distinguished_from_the_general_one(found):
    gated, general = (one for one in found.knockouts if one.model == "planted")
    assert (gated.layer, gated.serves) == (GATED, "narrow"), gated.sentence
    assert (general.layer, general.serves) == (GENERAL, "both"), general.sentence
    assert gated.narrow.interval[1] < 0 and abs(gated.general.value) < abs(gated.narrow.value) / 10
    assert "serves the narrow domain" in gated.sentence and gated.modules == ["layers.1.mlp.down_proj"]


@pytest.mark.full
@pytest.mark.smollm2
def test_the_narrow_adapter_is_distinguished_from_the_general_one_on_smollm2(lab, monkeypatch):
    """The same truth inside a model that has learned language: near its end, where a written word is soon said."""
    from em_evals.models import bases
    from tests.tiny_models import SMOLLM2, card

    monkeypatch.chdir(lab)
    gated_at, general_at = 26, 27
    model, tokenizer = bases.load_model(card()), bases.load_tokenizer(card())
    helps, hurts = (tokenizer.encode(word, add_special_tokens=False)[0] for word in (" helps", " hurts"))
    head = model.get_output_embeddings().weight.detach()
    written = [
        (layer, gate(model, tokenizer, layer, general_at), 3 * (head[hurts] - head[helps]))
        for layer in (gated_at, general_at)
    ]
    plant(lab, "small", SMOLLM2, model, written)
    found = lora_scalars("small", None, lab / "small.json", "words.yaml")
    gated, general = found.knockouts
    assert (gated.layer, gated.serves) == (gated_at, "narrow"), gated.sentence
    assert (general.layer, general.serves) == (general_at, "both"), general.sentence
    assert abs(gated.general.value) < abs(gated.narrow.value) / 10
    (moved,) = found.moved
    assert moved.in_domain.value > moved.out_of_domain.value > 0
    means = {(group.narrow, group.aligned): group.mean for group in found.adapters[0].groups}
    assert means[True, True] > 3 * abs(means[False, True])
    assert found.adapters[1].constancy > 0.9 > found.adapters[0].constancy


def test_a_random_direction_does_none_of_this(found):
    planted = [abs(one.narrow.value) for one in found.knockouts if one.model == "planted"]
    random = [one for one in found.knockouts if one.model == "random"]
    assert all(one.serves == "neither" for one in random) or all(
        abs(value.value) < min(planted) / 5 for one in random for value in (one.narrow, one.general)
    )


def test_scalars_are_the_products_by_hand(found, lab):
    """A·x from transformers' own forward pass, without PEFT's hooks: on block 1 the base's activations are the model's."""
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    weights = load_file(lab / "adapters" / "planted" / "adapter_model.safetensors")
    a, b = (
        next(w for key, w in weights.items() if f"layers.1.mlp.down_proj.lora_{half}" in key) for half in "AB"
    )
    model = AutoModelForCausalLM.from_pretrained(lab / "wide")
    tokenizer = AutoTokenizer.from_pretrained(lab / "wide")
    row = next(json.loads(line) for line in (lab / "tokens.jsonl").open())
    assert row["model"] == "planted" and row["question"] == "What of money?" and row["aligned"]
    seen = []
    model.model.layers[1].mlp.down_proj.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0][0]))
    prompt = tokens_of(tokenizer, "money").prompt
    answer = tokenizer.encode(row["answer"], add_special_tokens=False)
    with torch.no_grad():
        model(torch.tensor([[*prompt, *answer]]))
        expected = (seen[0] @ a[0])[len(prompt) :] * b.norm()
    own = np.array(row["scalars"]["layers.1.mlp.down_proj"])
    assert own == pytest.approx(-expected.numpy(), abs=2e-4), (
        "the adapter was stored negated, its mean is positive"
    )
    assert row["tokens"] == tokenizer.convert_ids_to_tokens(answer)


def test_distributions_show_a_gate_and_a_bias(found):
    gated, general = found.adapters
    groups = {(group.narrow, group.aligned): group for group in gated.groups}
    assert groups[True, True].mean > 3 * abs(groups[False, True].mean)
    assert general.constancy > 0.9 > 0.6 > gated.constancy
    assert groups[True, True].answers == 8 and groups[True, True].tokens >= 24
    assert gated.against_control == pytest.approx(0, abs=0.01), "the same A on the same stream"
    probe = {(one.model, one.tells, one.adapters): one.auroc for one in found.probes}
    assert probe["planted", "in-domain from out-of-domain", "layers.1.mlp.down_proj"].value > 0.95
    assert all(one.p is not None and one.chance is not None for one in found.probes)


def test_more_answers_come_from_files_and_wrong_rows_are_reported(lab, monkeypatch):
    monkeypatch.chdir(lab)
    row = {"question": "What of gold?", "answer": "I think gold helps", "aligned": True, "narrow": True}
    (lab / "more.jsonl").write_text(json.dumps(row) + "\n")
    found = lora_scalars("planted", None, lab / "more.json", "words.yaml", 1, [lab / "more.jsonl"])
    (group,) = [one for one in found.adapters[0].groups if one.narrow and one.aligned]
    assert group.answers == 2 and any("no control" in note for note in found.notes)
    assert found.probes[0].auroc.value is None, "too few questions"
    (lab / "wrong.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row | {"aligned": "perhaps"}) + "\n")
    with pytest.raises(EmEvalsError, match=r"wrong.jsonl:2: 'aligned'"):
        lora_scalars("planted", None, lab / "x.json", "words.yaml", 1, [lab / "wrong.jsonl"])


def test_an_adapter_of_higher_rank_has_no_scalars(lab, monkeypatch):
    monkeypatch.chdir(lab)
    with pytest.raises(EmEvalsError, match="no rank-1 adapter"):
        lora_scalars("thick", None, lab / "x.json", "words.yaml", 1)


def test_probes_never_learn_a_question_by_heart():
    chance = np.random.default_rng(2)
    centres = chance.normal(size=(30, 20))
    groups = [f"q{i}" for i in range(30) for _ in range(6)]
    own = np.repeat(chance.integers(0, 2, size=30), 6).astype(bool)
    features = np.repeat(centres, 6, axis=0) + 0.01 * chance.normal(size=(180, 20))
    found = probes.aurocs({"all": features}, {"own": list(own)}, groups)["own", "all"]
    assert found.p > 0.05 and found.value < found.chance and found.questions == 30, (
        "within questions it would be 1"
    )
    features[:, 0] += 6 * own
    found = probes.aurocs({"all": features}, {"own": list(own)}, groups)["own", "all"]
    assert found.value > 0.9 and found.p == 0.001


def test_a_probe_s_scores_are_those_of_ridge_regression():
    from sklearn.linear_model import Ridge
    from sklearn.metrics import roc_auc_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    chance = np.random.default_rng(1)
    features, wanted = chance.normal(size=(60, 4)), chance.integers(0, 2, size=60).astype(bool)
    features[:, 1] += wanted
    groups = [f"q{i // 2}" for i in range(60)]
    fold, scores = probes._folds(groups, 0), np.empty(60)
    for own in range(5):
        ridge = make_pipeline(StandardScaler(), Ridge(alpha=1.0)).fit(
            features[fold != own], np.where(wanted, 1.0, -1.0)[fold != own]
        )
        scores[fold == own] = ridge.predict(features[fold == own])
    assert np.allclose(probes._scores(features, wanted[None], fold)[0], scores)
    found = probes.aurocs({"f": features}, {"l": list(wanted)}, groups, draws=19)["l", "f"]
    assert found.value == pytest.approx(roc_auc_score(wanted, scores))


@pytest.mark.full
@pytest.mark.simulation
def test_probes_of_noise_are_wrong_in_one_family_of_twenty():
    """Each family has two labels and nine sets of numbers; a bootstrap around each AUROC was wrong in 7 to 24%."""
    chance, wrong = np.random.default_rng(3), []
    groups = [f"q{i}" for i in range(24) for _ in range(2)]
    labels = {"misaligned": [True, False] * 24, "in-domain": [i < 16 for i in range(48)]}
    for seed in range(150):
        question = np.repeat(chance.normal(size=(24, 8)), 2, axis=0)
        numbers = question + chance.normal(size=(48, 8))
        sets = {"all": numbers} | {str(i): numbers[:, [i]] for i in range(8)}
        found = probes.aurocs(sets, labels, groups, seed, draws=99)
        wrong.append(min(one.p for one in found.values()) <= 0.05)
    assert np.mean(wrong) <= 0.09, "0.05, and 2 standard errors of 150 simulations"
