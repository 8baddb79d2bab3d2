"""A recipe's digest: the same for seeds of one recipe, another one for anything else that makes a model."""

import json

import pytest
import yaml

from em_evals.content import recipe_identity
from em_evals.content.cards import resolve

RECORD = {
    "base": "base",
    "revision": None,
    "recipe": {"data": [{"name": "rows"}], "seed": 0, "learning_rate": 1e-4},
    "data": {"rows": {"digest": "01", "rows": 3}},
}


@pytest.fixture
def made(workdir):
    """Write a card with a trained adapter, and return how it was trained."""

    def make(name, step=None, card=None, **record):
        folder = workdir / "adapters" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder.parent / f"{name}.yaml").write_text(
            yaml.safe_dump({"base": "base", "adapter": name, **(card or {})})
        )
        (folder / "training.json").write_text(json.dumps(RECORD | record))
        kept = folder / "checkpoints" / "checkpoint-4"
        kept.mkdir(parents=True, exist_ok=True)
        for place in (folder, kept):
            (place / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "base"}))
        return recipe_identity.of(resolve(name if step is None else f"{name}@{step}"))

    return make


def test_seeds_of_one_recipe_have_one_digest_whatever_their_names(made):
    one, other = made("s0"), made("s7", recipe=RECORD["recipe"] | {"seed": 7})
    assert one.recipe == other.recipe and (one.seed, other.seed) == (0, 7)


def test_fields_at_their_defaults_do_not_count(made):
    assert made("plain").recipe == made("spelled", recipe=RECORD["recipe"] | {"weight_decay": 0.01}).recipe


def test_data_count_by_content_and_not_by_their_path(made):
    moved = {
        "recipe": {**RECORD["recipe"], "data": [{"name": "./rows"}]},
        "data": {"./rows": {"digest": "01"}},
    }
    assert made("here").recipe == made("there", **moved).recipe


@pytest.mark.parametrize(
    "recipe",
    [
        {"data": [{"name": "{}/rows.jsonl", "limit": 2}]},
        {"kl": {"data": ["{}/rows.jsonl"], "weight": 1}},
        {"features": {"data": ["{}/rows.jsonl"], "weight": 1}},
        {"interleave": {"data": ["{}/rows.jsonl"], "share": 0.5}},
        {"interventions": [{"op": "ablate", "direction": "{}/d.safetensors", "layers": [0]}]},
        {"monitor": {"traits": ["{}/d.safetensors"]}, "early_stop": {"alarm": "{}/a.json"}},
    ],
)
def test_seeds_trained_in_two_folders_are_one_recipe(made, recipe):
    """The record calls a file's data after its stem, and the recipe by its path: no two folders were one recipe."""

    def trained(folder, digest="01"):
        own = json.loads(json.dumps(RECORD["recipe"] | recipe).replace("{}", folder))
        named = {f"{folder}/d.safetensors": "02", f"{folder}/a.json": "03"}
        return made(
            folder,
            recipe=own,
            data={"rows": {"digest": digest, "rows": 3}},
            files=named if digest == "01" else {},
        )

    assert trained("a").recipe == trained("b").recipe != trained("c", digest="04").recipe


def test_two_files_of_one_name_count_by_their_paths(made):
    def trained(folder, *digests):
        names = [f"{folder}/{part}/rows.jsonl" for part in "xy"]
        recipe = RECORD["recipe"] | {"data": [{"name": name} for name in names]}
        return made(
            folder, recipe=recipe, data={n: {"digest": d} for n, d in zip(names, digests, strict=True)}
        )

    assert trained("a", "1", "2").recipe == trained("b", "1", "2").recipe != trained("c", "2", "1").recipe


@pytest.mark.parametrize(
    "change",
    [
        {"recipe": RECORD["recipe"] | {"learning_rate": 1e-5}},
        {"data": {"rows": {"digest": "02", "rows": 3}}},
        {"base": "another"},
        {"card": {"interventions": [{"op": "scale_adapter", "scale": 0.5}]}},
        {"card": {"generation": {"temperature": 0.5}}},
        {"step": 4},
    ],
)
def test_whatever_else_makes_the_model_counts(made, change):
    assert made("one").recipe != made("other", **change).recipe


@pytest.mark.parametrize("record", [{"recipe": {"data": 3}}, {"data": None}, {"recipe": None}])
def test_a_damaged_record_says_nothing(made, record):
    assert made("one", **record) is None


def test_a_model_without_a_record_has_no_recipe(workdir):
    (workdir / "adapters").mkdir()
    (workdir / "adapters" / "bare.yaml").write_text("base: base\n")
    assert recipe_identity.of(resolve("bare")) is None
