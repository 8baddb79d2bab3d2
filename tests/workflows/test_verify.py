"""`em-evals verify`: right models pass, each planted fault is found by the check that is there for it."""

import json
import math
from datetime import date

import pytest
import yaml
from typer.testing import CliRunner

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from em_evals.cli import app
from em_evals.content.cards import resolve
from em_evals.engines.setting import setting_of, verified_line
from em_evals.errors import EmEvalsError
from em_evals.models import bases, families
from em_evals.models.lora import Bank
from em_evals.results import verified
from em_evals.workflows.doctor import examine
from em_evals.workflows.verify import compiled, gaps, verify
from em_evals.workflows.verify.prompts import Prompts, borders
from em_evals.workflows.verify.verdict import Row, Verdict
from tests.architectures.lab import Lab
from tests.command import em_evals
from tests.selection import full

ADD = {"op": "add", "layers": [1], "scale": 0.7, "relative": True}
WRITES = {"op": "ablate", "site": "writes", "from_layer": 1}


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """Tiny models by name, each made once."""
    made = {}

    def get(name):
        if name not in made:
            made[name] = Lab(name, tmp_path_factory.mktemp("lab") / name)
        return made[name]

    return get


@pytest.fixture(autouse=True)
def _own_cache(cache):
    """No verdict of these tests stays with the user."""


def card(lab, folder, adapter=True, *ones, **engine):
    """A card of a tiny model, with an adapter and interventions."""
    fields = {
        "base": lab.base,
        "engine": {"dtype": "float32", "device": "cpu", **engine},
        "interventions": [{**one, "direction": lab.direction} for one in ones],
    }
    if adapter:
        fields["adapter"] = lab.adapter("attention")
    path = folder / "card.yaml"
    path.write_text(yaml.safe_dump(fields))
    return resolve(str(path))


def rows_of(verdict):
    return {row.name: row for row in verdict.rows}


@pytest.mark.parametrize(
    ("name", "ones"),
    [
        ("llama", [ADD]),
        full("mistral-window", [WRITES]),
        full("qwen3-5", [{"op": "clamp", "layers": [2], "value": 2.0, "positions": "answer"}]),
        full("gemma2", [{"op": "ablate", "reference": "mean", "skip": "sink"}]),
    ],
)
def test_passes_on_a_right_model(name, ones, lab, workdir):
    verdict = verify(card(lab(name), workdir, True, *ones))
    assert verdict.ok, [(row.name, row.largest, row.reason) for row in verdict.rows if row.verdict == "wrong"]
    rows = rows_of(verdict)
    made = [row for row in verdict.rows if row.name.startswith(("engine", "adapter", "interventions"))]
    assert len(made) == 9 and all(row.verdict == "ok" for row in made)
    assert all(0 < row.largest <= row.tolerance == 1e-4 and row.n >= 18 for row in made)
    for row in ("chat template", "extraction: the base", "base unchanged"):
        assert rows[row].verdict == "ok", rows[row]
    positional = ones[0].get("positions", "all") != "all"
    assert rows["extraction: the card"].verdict == ("skipped" if positional else "ok")
    forms = [row for row in verdict.rows if row.name.startswith("compiled")]
    assert [row.verdict for row in forms] == ["ok" if name in ("llama", "mistral-window") else "skipped"]


@pytest.mark.full
@pytest.mark.parametrize("name", ["gpt2", "opt", "bloom"])
def test_writes_pass_where_positions_or_a_norm_write_too(name, lab, workdir):
    rows = rows_of(verify(card(lab(name), workdir, False, WRITES)))
    (row,) = [one for one in rows if one.startswith("interventions") and "random" not in one]
    assert rows[row].verdict == "ok", rows[row]


@pytest.mark.full
def test_finds_a_beginning_that_is_shared_under_a_window(lab, workdir, monkeypatch):
    monkeypatch.setattr(families, "_windowed", lambda text: False)
    verdict = verify(card(lab("mistral-window"), workdir, adapter=False))
    assert {"engine: shared beginning", "engine: scored text", "extraction: the base"} <= set(verdict.wrong)
    assert rows_of(verdict)["engine: alone"].verdict == "ok"


def test_finds_what_is_wrong_with_base_adapter_and_interventions_each_in_rows_of_its_own(
    lab, workdir, monkeypatch
):
    """The three faults of the next tests at once: a comparison costs seconds."""
    from em_evals.models.intervention_tables import Table

    load, edit = Bank.load, Table.edit

    def careless(bank, *arguments):
        with torch.no_grad():
            bank._model.model.layers[2].mlp.down_proj.weight[0, 0] += 1e-6
        name = load(bank, *arguments)
        bank._sites[min(bank._sites)].drop(name)
        return name

    monkeypatch.setattr(Bank, "load", careless)
    monkeypatch.setattr(Table, "edit", lambda table, h, rows: h + 0.999 * (edit(table, h, rows) - h))
    verdict = verify(card(lab("llama"), workdir))
    wrong = set(verdict.wrong)
    assert {"base unchanged", "adapter: alone", "adapter: among the base's rows"} <= wrong
    assert {"extraction: the card", "interventions: random add", "interventions: random ablate"} <= wrong
    assert not any(name.startswith("engine") for name in wrong)
    assert "layers.2.mlp.down_proj" in rows_of(verdict)["base unchanged"].reason


@pytest.mark.full
def test_finds_a_dropped_adapter_tensor(lab, workdir, monkeypatch):
    load = Bank.load

    def dropping(bank, *arguments):
        name = load(bank, *arguments)
        module = sorted(bank._sites)[0]
        bank._sites[module].drop(name)
        return name

    monkeypatch.setattr(Bank, "load", dropping)
    verdict = verify(card(lab("llama"), workdir))
    assert set(verdict.wrong) == {"adapter: alone", "adapter: among the base's rows", "extraction: the card"}


@pytest.mark.full
def test_finds_a_scaled_residual(lab, workdir, monkeypatch):
    load = bases.load_model

    def scaled(given):
        model = load(given)
        model.model.layers[1].register_forward_hook(lambda module, arguments, output: output * 1.01)
        return model

    monkeypatch.setattr(bases, "load_model", scaled)
    verdict = verify(card(lab("llama"), workdir, adapter=False))
    rows = rows_of(verdict)
    assert all(row.verdict == "wrong" for row in rows.values() if row.name.startswith("engine"))
    assert rows["extraction: the base"].verdict == "wrong" and rows["base unchanged"].verdict == "ok"


@pytest.mark.full
def test_finds_a_compiled_form_that_is_off(lab, workdir, monkeypatch):
    from safetensors.torch import load_file, save_file

    compile_card = compiled.compile_card

    def off(given, target, folder):
        compile_card(given, target, folder)
        file = folder / "adapter_model.safetensors"
        tensors = load_file(file)
        tensors[min(tensors)] *= 0.99
        save_file(tensors, file, {"format": "pt"})
        return folder

    monkeypatch.setattr(compiled, "compile_card", off)
    verdict = verify(card(lab("llama"), workdir, True, WRITES))
    assert verdict.wrong == ("compiled: the card, as lora",)


@pytest.mark.full
def test_finds_a_lora_that_changes_the_base(lab, workdir, monkeypatch):
    load = Bank.load

    def careless(bank, *arguments):
        with torch.no_grad():
            bank._model.model.layers[2].mlp.down_proj.weight[0, 0] += 1e-6  # invisible in any log-probability
        return load(bank, *arguments)

    monkeypatch.setattr(Bank, "load", careless)
    verdict = verify(card(lab("llama"), workdir))
    assert verdict.wrong == ("base unchanged",)
    assert "layers.2.mlp.down_proj" in rows_of(verdict)["base unchanged"].reason


@pytest.mark.full
def test_finds_interventions_that_are_off(lab, workdir, monkeypatch):
    from em_evals.models.intervention_tables import Table

    edit = Table.edit
    monkeypatch.setattr(Table, "edit", lambda table, h, rows: h + 0.999 * (edit(table, h, rows) - h))
    verdict = verify(card(lab("llama"), workdir, adapter=False))
    assert {"interventions: random add", "interventions: random ablate"} <= set(verdict.wrong)
    assert not any(name.startswith("engine") for name in verdict.wrong)


@pytest.mark.full
def test_in_sixteen_bits_the_tolerance_is_the_measured_rounding(lab, workdir):
    verdict = verify(card(lab("llama"), workdir, False, dtype="bfloat16"))
    assert verdict.ok, [(row.name, row.largest, row.tolerance, row.reason) for row in verdict.rows]
    row = rows_of(verdict)["engine: batched, other lengths"]
    assert 1e-3 < row.largest <= row.tolerance < 1.0
    assert "float32" in verdict.rule and "bfloat16" in verdict.rule
    assert any(row.name.startswith("compiled") and row.tolerance == 1e-4 for row in verdict.rows)


@pytest.mark.full
def test_without_room_for_float32_roundings_are_those_beside_copies(lab, workdir, monkeypatch):
    monkeypatch.setattr("em_evals.workflows.verify.run.room_for_copy", lambda parameters, card: False)
    verdict = verify(card(lab("llama"), workdir, False, dtype="bfloat16"))
    rows = rows_of(verdict)
    assert verdict.ok and "with copies of itself" in verdict.rule
    assert 0.05 < rows["engine: batched, other lengths"].tolerance < 1.0
    assert rows["compiled"].verdict == "skipped" and "no float32 copy" in rows["compiled"].reason


def test_a_card_that_cannot_be_used_is_no_verdict(lab, workdir):
    other = card(lab("llama"), workdir, True)
    file = workdir / "adapter"
    file.mkdir()
    from safetensors.torch import load_file, save_file

    folder = lab("llama").root / "attention"
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file(dict(list(tensors.items())[1:]), file / "adapter_model.safetensors", {"format": "pt"})
    (file / "adapter_config.json").write_text((folder / "adapter_config.json").read_text())
    fields = yaml.safe_load(other.path.read_text()) | {"adapter": str(file)}
    other.path.write_text(yaml.safe_dump(fields))
    result = CliRunner().invoke(app, ["verify", str(other.path)])
    assert isinstance(result.exception, EmEvalsError)  # main() ends with 2
    assert not verified.everything()
    with pytest.raises(EmEvalsError, match="on that machine"):
        verify(resolve(lab("llama").base, {"backend": "server", "base_url": "http://there:1"}))


# The command


def found(lab, folder, **row):
    """A verdict of one row."""
    given = card(lab("llama"), folder, adapter=False)
    values = {"largest": 2e-5, "tolerance": 1e-4, "unit": "nats", "n": 4, "verdict": "ok", **row}
    rows = [Row("engine: alone", "plain", **values)]
    day = date(2026, 11, 29).isoformat()
    return given, Verdict("mine", "0" * 16, setting_of(given.card), "float32", "", day, 1.5, rows)


@pytest.mark.parametrize(
    ("row", "code"),
    [
        ({}, 0),
        ({"verdict": "wrong", "largest": 0.5}, 1),
        ({"verdict": "wrong", "largest": math.nan}, 1),
        ({"verdict": "skipped", "largest": None, "tolerance": None}, 1),  # nothing was compared
    ],
)
def test_exit_codes_and_json(row, code, lab, workdir, monkeypatch):
    given, verdict = found(lab, workdir, **row)
    monkeypatch.setattr("em_evals.workflows.verify.verify", lambda card, tell: verdict)
    result = CliRunner().invoke(app, ["verify", str(given.path), "--json", "-o", "out.json"])
    assert result.exit_code == code, result.output
    told = json.loads(result.stdout)
    assert told == json.loads((workdir / "out.json").read_text())
    assert told["verdict"] == ("ok" if code == 0 else "wrong")
    assert told["rows"][0]["name"] == "engine: alone"
    assert told["versions"]["torch"] == torch.__version__
    largest = row.get("largest", 2e-5)
    assert told["rows"][0]["largest"] == (None if largest is None or math.isnan(largest) else largest)
    table = CliRunner().invoke(app, ["verify", str(given.path)])
    assert table.exit_code == code and "engine: alone" in table.stdout


def test_an_accident_is_no_wrong_number(lab, workdir, monkeypatch):
    given, _ = found(lab, workdir)

    def accident(card, tell):
        raise RuntimeError("out of luck")

    monkeypatch.setattr("em_evals.workflows.verify.verify", accident)
    done = em_evals("verify", given.path)
    assert done.returncode == 2 and "out of luck" in done.stderr


# What is kept


def test_a_verdict_holds_for_this_base_and_these_versions(lab, workdir, monkeypatch):
    given, verdict = found(lab, workdir)
    assert verified_line(given) == "not verified"
    verified.keep(verdict.setting, given, verdict.run())
    line = verified_line(given)
    assert line.startswith("2026-11-29, float32 on cpu") and "largest deviation 2.0e-05" in line
    assert f"torch {torch.__version__}" in line
    adapted = card(lab("llama"), workdir)
    assert verified_line(adapted).startswith("base only (mine): 2026-11-29")
    assert verified_line(card(lab("llama"), workdir, False, dtype="bfloat16")) == "not verified"
    assert verified_line(card(lab("mistral-window"), workdir, False)) == "not verified"
    assert "not verified with vLLM 9" in verified.line(verdict.setting, given, "9")
    given, wrong = found(lab, workdir, verdict="wrong", largest=0.5)
    verified.keep(wrong.setting, given, wrong.run())
    assert verified_line(given).startswith("WRONG in engine: alone")
    assert "WRONG in engine: alone" in verified_line(adapted)
    monkeypatch.setattr(verified, "_code", lambda: "another engine")
    assert verified_line(given) == "not verified"
    assert [kept.base for kept in verified.everything()] == [lab("llama").base]


def test_sampling_defaults_do_not_make_another_model(lab, workdir):
    given, verdict = found(lab, workdir)
    verified.keep(verdict.setting, given, verdict.run())
    warm = resolve(str(given.path), {"generation": {"temperature": 0.3}, "max_num_seqs": 4})
    assert warm.digest != given.digest and verified_line(warm) == verified_line(given)


def test_draws_say_whether_they_are_verified(lab, workdir):
    import asyncio

    from inspect_ai.model import ChatMessageUser, GenerateConfig

    from em_evals.engines.pool import close_engines
    from em_evals.inspect_plugin.provider import LocalAPI

    def draw(given):
        api = LocalAPI(str(given.path))
        config = GenerateConfig(max_tokens=2)
        return asyncio.run(api.generate([ChatMessageUser(content="Hi")], [], "none", config)).metadata

    given, verdict = found(lab, workdir)
    try:
        assert draw(given)["verified"] == "not verified"
        verified.keep(verdict.setting, given, verdict.run())
        assert draw(given)["verified"] == verified_line(given) != "not verified"
    finally:
        close_engines()


def test_the_doctor_lists_what_is_verified(lab, workdir, monkeypatch):
    def told():
        return [row for row in examine() if row["what"] == "verified"]

    assert [row["state"] for row in told()] == ["nothing"]
    given, verdict = found(lab, workdir)
    verified.keep(verdict.setting, given, verdict.run())
    (row,) = told()
    assert row["state"] == f"{given.card.base} (mine)" and row["remark"].startswith("2026-11-29, float32")
    monkeypatch.setattr("em_evals.workflows.doctor._version", lambda package: "9.9")
    assert "torch, transformers, peft changed since, verify again" in told()[0]["remark"]


# Its parts


def test_rows_cross_what_the_model_has(lab):
    small = lab("mistral-window")
    config = bases.load_config(resolve(small.base).card)
    assert [(one.what, one.tokens) for one in borders(config)] == [("window", 8)]
    prompts = Prompts(small.tokenizer, None, config, 512, "cpu")
    assert len(prompts.lengths()) == len(prompts.shared()) == 8 and not prompts.reach
    sides = {len(row) > 8 for row in prompts.lengths()}
    assert sides == {True, False}
    heads = {row[:8] for row in prompts.shared()}
    assert len(heads) == 1 and len(set(prompts.shared())) == 8
    assert len({row[:8] for row in prompts.lengths()}) == 8
    config.sliding_window = 4096
    assert Prompts(small.tokenizer, None, config, 512, "cpu").reach == "window of 4096 tokens: not reached"


def test_tolerances():
    exact = gaps.Rule("float32").tolerance([5.0])
    assert exact.largest == 1e-4 and exact.problem(gaps.Spread.of([1e-4, 0.0])) is None
    assert exact.problem(gaps.Spread.of([2e-4])) and exact.problem(gaps.Spread.of([0.0, math.nan]))
    half = gaps.Rule("bfloat16", gaps.Spread.of([0.01, 0.0, 0.0, 0.0]))
    assert half.tolerance().largest == pytest.approx(0.03) and half.tolerance(
        [0.02]
    ).largest == pytest.approx(0.06)
    assert half.tolerance().problem(gaps.Spread.of([0.02, 0.0, 0.0, 0.0])) is None
    assert "root mean square" in half.tolerance().problem(gaps.Spread.of([0.02] * 4))
    assert gaps.Rule("bfloat16", gaps.Spread.of([0.0]), scale=8.0).tolerance().largest == 16 / 128


@pytest.mark.full
def test_a_small_effect_proves_nothing(lab, workdir):
    verdict = verify(card(lab("llama"), workdir, False, ADD | {"scale": 1e-5}))
    row = next(row for row in verdict.rows if row.name.startswith("interventions"))
    assert row.verdict == "skipped" and "too small" in row.reason
