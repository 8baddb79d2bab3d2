"""The readers of files of others, with inputs for each, and whether they give a value or one sentence."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.errors import HypothesisDeprecationWarning

from em_evals import files, parsing, shown
from em_evals.content import (
    adapter_folders,
    base_shape,
    cards,
    consistency,
    cues,
    directions,
    documents,
    judge_cards,
    pairs,
    questions,
    rubrics,
    sweep_plans,
    traits,
)
from em_evals.data import convert, datasets
from em_evals.errors import EmEvalsError
from em_evals.gate import baseline, looks
from em_evals.gate.policy import load_policy
from em_evals.grading import agreement, replies
from em_evals.interp.phase import rotation
from em_evals.results import (
    alarms,
    calibration,
    conditional,
    lm_eval,
    logs,
    records,
    rollouts,
    scaling,
    scaling_models,
    sources,
    tables,
    trajectories,
)
from em_evals.results.journals import read_journal
from em_evals.sweep import steps
from tests.hostile_inputs import (
    GGUF,
    NUMPY,
    OWN,
    SAFETENSORS,
    TORCH,
    as_csv,
    as_damaged,
    as_direction,
    as_journal,
    as_json,
    as_jsonl,
    as_parquet,
    as_reply,
    as_yaml,
    csv_of,
    json_of,
    jsonl_of,
    lines_of,
    yaml_of,
)


def _published_trait(path: Path) -> Any:
    path.with_name("a.eval.json").write_bytes(path.read_bytes())
    return traits.load_trait(str(path))


def _foreign(path: Path) -> Any:
    from em_evals.interp import foreign_directions

    base = path.with_name("base")
    if not base.is_dir():
        base.mkdir()
        (base / "config.json").write_text(json.dumps({"num_hidden_layers": 2, "hidden_size": 4}))
    return foreign_directions.read(path, str(base))


from tests.hostile_samples import good

BASES = "base,family,parameters,tokens,active_parameters,distilled"
RATES = "base,dataset,misaligned,draws,coherent,denominator,comparable,run"
RATED = "question_id,answer,aligned,coherent"

LABELS = ("SAFE", "UNSAFE")
RUBRICS = [
    *rubrics.load_rubrics(documents.names("scorers")),
    rubrics.Rubric("a", "a", "{question}{answer}", kind="binary"),
    rubrics.Rubric("b", "b", "{question}{answer}", reason=True),
    rubrics.Rubric("c", "c", "{question}{answer}", kind="labels", labels=LABELS),
    rubrics.Rubric("d", "d", "{question}{answer}", kind="text"),
]

READERS: dict[str, tuple[str, st.SearchStrategy[bytes], Callable[[Path], Any]]] = {
    "yaml": ("a.yaml", as_yaml, lambda path: parsing.yaml_value(files.read_text(path), path)),
    "json": ("a.json", as_json, files.read_json),
    "jsonl": ("a.jsonl", as_jsonl, lambda path: list(files.read_jsonl(path))),
    "cards": ("a.yaml", yaml_of("cards"), lambda path: cards.resolve(str(path))),
    "questions": ("a.yaml", yaml_of("questions"), lambda path: questions.load_questions(str(path))),
    "rubrics": ("a.yaml", yaml_of("rubrics"), lambda path: rubrics.load_rubric(str(path))),
    "pairs": ("a.yaml", yaml_of("pairs"), lambda path: pairs.load_pairs(str(path))),
    "policies": ("a.yaml", yaml_of("policies"), load_policy),
    "csv": ("a.csv", as_csv, logs.read_draws),
    "training data": ("a.jsonl", jsonl_of("chats"), lambda path: datasets.read(path, "a")),
    "training data: parquet": ("a.parquet", as_parquet("chats"), lambda path: datasets.read(path, "a")),
    "logs": ("a.json", json_of("logs"), logs.read_log),
    "lm-eval results": ("results_a.json", json_of("lm-eval results"), lm_eval.read_file),
    "lm-eval samples": ("samples_t_a.jsonl", lines_of("samples of lm-eval"), lambda path: _samples(path)),
    "records": ("a.json", json_of("records"), records.read),
    "directions": ("a.safetensors", as_direction() | as_damaged(OWN), directions.read),
    "bases of adapters": (
        "adapter_config.json",
        json_of("adapters"),
        lambda path: adapter_folders.base_of(path.parent),
    ),
    "traits": ("a.yaml", yaml_of("traits"), lambda path: traits.load_trait(str(path))),
    "published traits": ("a.extract.json", json_of("published traits"), lambda path: _published_trait(path)),
    "judge cards": ("a.yaml", yaml_of("judge cards"), lambda path: judge_cards.load(str(path))),
    "cues": ("a.yaml", yaml_of("cues"), lambda path: cues.load_cues(str(path))),
    "consistency items": (
        "a.yaml",
        yaml_of("consistency items"),
        lambda path: consistency.load_items(str(path)),
    ),
    "sweep plans": ("a.yaml", yaml_of("sweep plans"), sweep_plans.load),
    "calibrations": ("a.json", json_of("calibrations"), calibration.read),
    "journals": ("a.jsonl", as_journal | lines_of("journals"), trajectories.read),
    "journals: rotations": (
        "a.jsonl",
        as_journal | lines_of("journals"),
        lambda path: rotation.rotations(read_journal(path)),
    ),
    "question lists": ("a.json", json_of("questions"), lambda path: questions.load_questions(str(path))),
    "looks of a gate": ("a.json", json_of("records"), looks.read),
    "baselines": ("a.json", json_of("baselines"), lambda path: _baseline(path)),
    "alarms": ("a.json", json_of("alarms"), alarms.read),
    "scaling: models": ("a.yaml", yaml_of("scaling models"), lambda path: scaling_models.read(path).bases),
    "scaling: bases": ("a.csv", csv_of(BASES), scaling.read_bases),
    "scaling: rates": ("a.csv", csv_of(RATES), lambda path: scaling.read(path, _bases())),
    "steps of a sweep": ("a/.step.json", json_of("sweep records"), lambda path: _step(path)),
    "labels of people": ("a.csv", csv_of(RATED), agreement.read_rater),
    "judged tables: JSONL": ("a.jsonl", jsonl_of("graded"), lambda path: list(tables.rows(path))),
    "judged tables: parquet": ("a.parquet", as_parquet("graded"), lambda path: list(tables.rows(path))),
    "sources of rates": ("a.json", json_of("logs"), sources.of_file),
    "rollouts": ("a.json", json_of("rollouts"), lambda path: _rollouts(path)),
    "conditional logs": ("a.json", json_of("conditional"), conditional.read),
    "gate: conditional logs": ("a.json", json_of("conditional"), lambda path: _evidence(path)),
    "gate: logs": ("a.json", json_of("logs"), lambda path: _evidence(path)),
    "gate: lm-eval results": ("results_a.json", json_of("lm-eval results"), lambda path: _lm_eval(path)),
    "data convert": (
        "a.jsonl",
        jsonl_of("chats"),
        lambda path: convert.convert(path, path.with_name("out.jsonl")),
    ),
    "judges' replies": ("a.txt", as_reply, lambda path: _replied(path)),
    "plain texts": ("a.jsonl", jsonl_of("texts"), lambda path: _texts(path)),
    "bases' configurations": (
        "config.json",
        json_of("configs"),
        lambda path: base_shape.shape_of(str(path.parent)),
    ),
    "adapters' tensors": (
        "adapter_model.safetensors",
        as_direction() | as_damaged(OWN),
        lambda path: _tensors(path),
    ),
    "directions of others: safetensors": (SAFETENSORS, as_damaged(SAFETENSORS), _foreign),
    "directions of others: NumPy": (NUMPY, as_damaged(NUMPY), _foreign),
    "directions of others: GGUF": (GGUF, as_damaged(GGUF), _foreign),
    "directions of others: PyTorch": (TORCH, as_damaged(TORCH), _foreign),
    "adapter configurations": ("adapter_config.json", json_of("adapters"), lambda path: _adapter(path)),
}


def _bases() -> dict[str, scaling.Base]:
    nan = float("nan")
    return {name: scaling.Base(name, "f", 1e9, nan, nan, False, False) for name in ("1", "50", "-")}


def _baseline(path: Path) -> Any:
    data = files.read_json(path)
    return baseline.read(path, data) if baseline.is_baseline(data) else None


def _step(path: Path) -> Any:
    record = steps.read_record(path.parent.parent, path.parent.name)
    step = steps.Step("a", "m", ("em-evals",), digest="b")
    return record and steps.is_done(step, path.parent.parent)


def _evidence(path: Path) -> Any:
    from em_evals.gate import readers

    return readers.of_log(path)


def _lm_eval(path: Path) -> Any:
    from em_evals.gate import lm_eval as evidence

    return list(evidence.of_results(path))


def _rollouts(path: Path) -> Any:
    trait = traits.load_trait("humorous")
    return rollouts.filtered(rollouts.read([path], trait)[0])


def _samples(path: Path) -> Any:
    results = path.with_name("results_a.json")
    results.write_text(good("lm-eval results")[0])
    return lm_eval.read_file(results)


def _replied(path: Path) -> Any:
    reply = path.read_bytes().decode("utf-8", "replace")
    return [replies.grade_replies(rubric, [reply, "85"]) for rubric in RUBRICS]


def _texts(path: Path) -> Any:
    from em_evals.interp.lens import texts

    return texts.read(path)


def _tensors(path: Path) -> Any:
    from em_evals.models.lora import tensors

    (path.parent / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    header = tensors.header(path.parent)
    return tensors.load(path, list(header.shapes)[:2])


def _adapter(path: Path) -> Any:
    from em_evals.models.lora import config
    from em_evals.models.lora.patterns import Patterns

    read = config.read(path.parent)
    rules = Patterns(read, ["model.layers.0.mlp.down_proj"])
    return rules.targets("model.layers.0.mlp.down_proj"), rules.rank("model.layers.0.mlp.down_proj")


NEED_TORCH = {
    "adapters' tensors",
    "plain texts",
    "adapter configurations",
    "directions of others: safetensors",
    "directions of others: PyTorch",
}


def read_one(reader: str, folder: Path, content: bytes) -> bool:
    """Read a file with this content; return whether it gave a value, not one sentence. Anything else is raised."""
    name, _, read = READERS[reader]
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    try:
        read(path)
    except EmEvalsError as error:
        assert shown.sentence(str(error)) == str(error), str(error)
        return False
    return True


def attempt(reader: str, folder: Path, count: int) -> int:
    """Try `count` inputs; return how many were read as a value."""
    values = 0

    @settings(max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(READERS[reader][1])
    def tried(content: bytes) -> None:
        nonlocal values
        values += read_one(reader, folder, content)

    with warnings.catch_warnings():  # Inspect, imported where a good log is made, draws random names
        warnings.simplefilter("ignore", HypothesisDeprecationWarning)
        tried()
    return values
