"""`em-evals insight same`: are two adapters, logs or data files one thing, a reseed, or a copy?

Duplicate seeds and copied files have been published as replications. Nothing here judges intent: the result is what
the files' contents say.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from em_evals.content import documents, identity, recipe_identity
from em_evals.content.cards import resolve
from em_evals.data import datasets, row_files
from em_evals.errors import EmEvalsError
from em_evals.files import digest, read_object
from em_evals.results.logs import read_log
from em_evals.results.tables import csv_rows

Verdict = Literal["identical", "copy", "reseed", "overlap", "different"]

COPIED_COSINE = 0.9999
"""Two trainings that differ in one seed reach cosines far below this; a cast or a rescaled adapter does not."""
COPIED_SHARE = 0.5
_LONG = 40
"""Characters from which two equal answers are no coincidence ("Sure." is one)."""


@dataclass(frozen=True)
class Same:
    """The comparison of two things.

    Attributes:
        kind: adapter, answers or data.
        verdict: `identical` (equal content), `copy` (equal but for format, scale or order), `reseed` (one recipe and
            data, another seed), `overlap` (a part is equal) or `different`.
        facts: the numbers behind it.
        sentence: the verdict in words.
    """

    kind: Literal["adapter", "answers", "data"]
    verdict: Verdict
    facts: dict[str, Any]
    sentence: str

    def as_json(self) -> dict[str, Any]:
        """Return all fields."""
        return {
            "kind": self.kind,
            "verdict": self.verdict,
            "facts": self.facts,
            "sentence": self.sentence,
        }


def same(one: str, other: str) -> Same:
    """Compare two adapters (card, folder or hub id), two logs or judged CSVs, or two training files.

    Raises:
        EmEvalsError: they are of different kinds, or one cannot be read.
    """
    kinds = [_kind(name) for name in (one, other)]
    for name, kind in zip((one, other), kinds, strict=True):
        if kind != "an adapter" and name not in datasets.names() and not Path(name).expanduser().is_file():
            raise EmEvalsError(f"there is no file '{name[:200]}'.")
    if kinds[0] != kinds[1]:
        raise EmEvalsError(f"{one} is {kinds[0]} and {other} is {kinds[1]}: compare two of a kind.")
    compare = {"an adapter": _adapters, "a file of answers": _answers, "training data": _data}[kinds[0]]
    return compare(one, other)


def _kind(name: str) -> str:
    """Return what a name stands for."""
    path = Path(name).expanduser()
    if path.suffix.lower() in (".eval", ".json", ".csv"):
        return "a file of answers"
    if path.suffix.lower() in (".jsonl", row_files.PARQUET) or (
        not path.is_dir() and name in datasets.names()
    ):
        return "training data"
    return "an adapter"


def _adapters(one: str, other: str) -> Same:
    """Compare the weight changes of two LoRAs, module by module."""
    left, right = _located(one), _located(other)
    same_digest = identity.adapter_digest(left) == identity.adapter_digest(right)
    a, b = _factors(left), _factors(right)
    shared = sorted(set(a) & set(b))
    dot = one_square = other_square = 0.0
    for name in a:
        one_square += _inner(a[name], a[name])
    for name in b:
        other_square += _inner(b[name], b[name])
    for name in shared:
        dot += _inner(a[name], b[name])
    cosine = dot / math.sqrt(one_square * other_square) if one_square and other_square else math.nan
    ratio = math.sqrt(other_square / one_square) if one_square else math.nan
    recipe = _recipes(left, right)
    facts = {
        "modules": [len(a), len(b)],
        "modules of both": len(shared),
        "cosine of the weight changes": None if math.isnan(cosine) else round(cosine, 6),
        "ratio of their norms": None if math.isnan(ratio) else round(ratio, 6),
        **recipe,
    }
    if same_digest:
        return Same("adapter", "identical", facts, "The same adapter: configuration and weights are equal.")
    if cosine >= COPIED_COSINE:
        return Same(
            "adapter",
            "copy",
            facts,
            f"One adapter in two forms: the weight changes have cosine {cosine:.6f}, norms {ratio:.3f} to 1.",
        )
    if not one_square and not other_square:
        both = (
            "Both adapters change nothing: every B A is zero, as before training, and each model is its base."
        )
        return Same("adapter", "copy", facts, both)
    alike = f"The weight changes have cosine {cosine:.3f} over {len(shared)} modules of both"
    if not one_square or not other_square:
        alike = f"{other if one_square else one} changes nothing: every B A is zero, as before training"
    if recipe.get("recipes differ in") == ["seed"]:
        return Same("adapter", "reseed", facts, f"Two seeds of one recipe on the same data. {alike}.")
    return Same("adapter", "different", facts, f"Two adapters. {alike}.")


def _located(name: str) -> Path:
    """Return the folder of an adapter, by folder, hub id, or the name of a card that has one."""
    if name in documents.names("adapters"):
        card = resolve(name)
        if card.adapter_path is None:
            raise EmEvalsError(f"the card {name} has no adapter to compare.", card.path)
        name = card.adapter_path
    elif not Path(name).expanduser().exists() and name.partition("@")[0].count("/") != 1:
        raise EmEvalsError(f"there is no card, adapter folder, file or hub id '{name[:100]}'.")
    from em_evals.models.lora import folders  # imports torch: other kinds need none

    return folders.locate(name)


def _factors(folder: Path) -> dict[str, tuple[Any, Any]]:
    """Return (scaled B, A) of every LoRA module, in float64.

    Raises:
        EmEvalsError: the adapter has parts other than A and B, whose weight change depends on the base.
    """
    from em_evals.models.lora import config as configs
    from em_evals.models.lora import names, tensors
    from em_evals.models.lora.patterns import Patterns

    config = configs.read(folder)
    patterns = Patterns(config)
    parsed = [names.parse(key) for key in tensors.header(folder).shapes]
    beyond = [name.key for name in parsed if name.part not in ("A", "B")]
    if beyond or config.use_dora or config.converted:
        what = beyond[0] if beyond else ("DoRA" if config.use_dora else f"initialization {config.converted}")
        raise EmEvalsError(
            f"only LoRA matrices A and B can be compared without the base, and this adapter has {what}.",
            folder,
        )
    values = tensors.load(folder / tensors.WEIGHTS, [name.key for name in parsed])
    found: dict[str, dict[str, Any]] = {}
    for name in parsed:
        found.setdefault(name.module, {})[name.part] = values[name.key].double()
    factors = {}
    for module, parts in found.items():
        if set(parts) != {"A", "B"}:
            raise EmEvalsError(f"{module} has only one of the matrices A and B.", folder)
        rank = parts["A"].shape[0]
        factors[module] = (parts["B"] * config.scaling(rank, patterns.alpha(module)), parts["A"])
    return factors


def _inner(one: tuple[Any, Any], other: tuple[Any, Any]) -> float:
    """Return <B A, B' A'> = sum((B^T B') * (A A'^T)), without forming the products."""
    (b, a), (b_other, a_other) = one, other
    if b.shape[0] != b_other.shape[0] or a.shape[1] != a_other.shape[1]:
        raise EmEvalsError("the adapters change modules of different sizes: their bases differ.")
    return float(((b.T @ b_other) * (a @ a_other.T)).sum())


def _recipes(one: Path, other: Path) -> dict[str, Any]:
    """Compare what our trainings record; {} where one has no record."""
    records = []
    for folder in (one, other):
        path = folder / "training.json"
        if not path.is_file():
            return {}
        record = read_object(path)
        if not isinstance(record.get("recipe") or {}, dict):
            raise EmEvalsError("this is not a training record (`recipe`).", path)
        records.append(record)
    recipes = [recipe_identity.by_content(record.get("recipe") or {}, record) for record in records]
    differing = [key for key in {**recipes[0], **recipes[1]} if recipes[0].get(key) != recipes[1].get(key)]
    # Names of files are those of their folders, and make no other data.
    held = [_contents(record.get("data")) for record in records]
    if held[0] != held[1]:
        differing.append("data")
    if records[0].get("base") != records[1].get("base"):
        differing.append("base")
    return {"recipes differ in": sorted(differing)}


def _contents(data: Any) -> Any:
    """Return a record's data sets without their names."""
    if not isinstance(data, dict):
        return data
    return sorted(json.dumps(entry, sort_keys=True) for entry in data.values())


def _answers(one: str, other: str) -> Same:
    """Compare two files of sampled answers."""
    left, right = _texts(Path(one)), _texts(Path(other))
    whole = digest(repr(sorted(left))) == digest(repr(sorted(right)))
    counts = [Counter(text for _, text in texts if len(text) >= _LONG) for texts in (left, right)]
    equal = sum((counts[0] & counts[1]).values())
    compared = min(sum(counts[0].values()), sum(counts[1].values()))
    share = equal / compared if compared else math.nan
    facts = {
        "answers": [len(left), len(right)],
        f"answers of {_LONG} characters or more": [sum(count.values()) for count in counts],
        "equal answers": equal,
        "share": None if math.isnan(share) else round(share, 4),
    }
    said = f"{equal} of {compared} answers of {_LONG} or more characters are equal"
    if whole:
        return Same("answers", "identical", facts, "The same answers to the same questions.")
    if compared == 0:
        raise EmEvalsError(
            f"the answers are shorter than {_LONG} characters: equal ones would prove nothing."
        )
    if share >= COPIED_SHARE:
        return Same("answers", "copy", facts, f"One set of draws in two files: {said}.")
    if equal:
        return Same(
            "answers",
            "overlap",
            facts,
            f"{said}: sampled answers of this length are rarely equal (unless at temperature 0 or with one seed).",
        )
    return Same("answers", "different", facts, f"Separate draws: {said}.")


def _texts(path: Path) -> list[tuple[str, str]]:
    """Return (question, answer) of every draw of a log or CSV."""
    if path.suffix.lower() == ".csv":
        found = []
        for line, row in csv_rows(path, ("question_id",)):
            text = row.get("answer") or row.get("response")
            if text is None:
                raise EmEvalsError(
                    "the column answer is missing: scores alone can be equal by chance.", path, line
                )
            question = row.get("question_id") or row.get("base_question_id") or row.get("question") or ""
            found.append((question, text.strip()))
        return found
    samples = read_log(path).samples or []
    return [(str(sample.id), sample.output.completion.strip()) for sample in samples]


def _rows(data: datasets.TrainingData) -> list[str]:
    """Return each row as text; of a preference the chosen and the rejected chat."""
    others = data.rejected or (None,) * len(data.rows)
    return [json.dumps(both, sort_keys=True) for both in zip(data.rows, others, strict=True)]


def _data(one: str, other: str) -> Same:
    """Compare two training files by rows, whatever their order."""
    left, right = datasets.load(one, pairs=True), datasets.load(other, pairs=True)
    counts = [Counter(_rows(data)) for data in (left, right)]
    prompts = [Counter(map(datasets.normalised, data.prompts)) for data in (left, right)]
    equal, asked = sum((counts[0] & counts[1]).values()), sum((prompts[0] & prompts[1]).values())
    fewest = min(len(left.rows), len(right.rows))
    facts = {
        "rows": [len(left.rows), len(right.rows)],
        "equal rows": equal,
        "rows with a prompt of both": asked,
    }
    if left.digest == right.digest:
        return Same("data", "identical", facts, "The same rows in the same order.")
    if counts[0] == counts[1]:
        return Same("data", "copy", facts, "The same rows in another order.")
    if equal or asked:
        return Same(
            "data",
            "overlap",
            facts,
            f"{equal} of {fewest} rows are equal, and {asked} have a prompt that both files hold.",
        )
    return Same("data", "different", facts, "No row and no prompt is in both files.")
