"""Files of graded draws with their factors: whose answers they are, who graded them, and columns to split them by."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from em_evals import files
from em_evals.errors import EmEvalsError
from em_evals.results import folders, logs, other_scores, tables, thoughts
from em_evals.results.graded_draw import GradedDraw, base_question
from em_evals.results.other_scores import Other
from em_evals.results.thoughts import GradedThought

if TYPE_CHECKING:
    from inspect_ai.log import EvalLog
    from inspect_ai.scorer import Score

FACTORS = (
    *(
        "seed",
        "training_seed",
        "role",
        "persona",
        "condition",
        "treatment",
        "variant",
        "organism",
        "finetune",
    ),
    *(
        "experiment",
        "run",
        "run_id",
        "step",
        "layer",
        "scale",
        "coefficient",
        "steering",
        "temperature",
        "system",
    ),
)
"""Columns of a judged table by which draws can differ in kind; pooling over them is noted."""

_MODEL, _JUDGE, _ASKED = (
    ("model", "model_id", "model_name", "adapter"),
    ("judge", "judge_model", "judge_name", "grader"),
    ("question_set",),
)
"""Columns of a judged table that name the model, the judge and the question set."""

MODELS = (*_MODEL, "checkpoint", "card", "group", "dataset", "arm", "cue", *_JUDGE)
"""Columns that say whose answers a row holds, under which cue, and who graded it: draws of two values are never pooled
unless asked for. `Model Name` is `model_name`."""


@dataclass(frozen=True)
class Source:
    """The graded draws of one file, or of a part of it.

    Attributes:
        path: the file.
        model: the model's name, or the names in the file's columns.
        judge: the model that graded; empty where the file does not say.
        asked: the question set; empty where the file does not say.
        draws: draws with grades of alignment and coherence; empty if only other rubrics graded.
        columns: each column's text of each draw.
        others: what other rubrics say.
        thoughts: each draw with its thought's grade; empty where no thoughts were graded.
        part: the values of the columns that this part was split by.
    """

    path: Path
    model: str
    judge: str
    asked: str
    draws: Sequence[GradedDraw]
    columns: Mapping[str, Sequence[str]]
    others: Mapping[str, Other] = field(default_factory=dict)
    thoughts: Sequence[GradedThought | None] = ()
    part: Mapping[str, str] = field(default_factory=dict)

    def units(self, cluster: str) -> list[str]:
        """Return each draw's sampled unit.

        Args:
            cluster: `question` (formats of one question together) or a column.
        """
        if cluster == "question":
            return [base_question(draw.question_id) for draw in self.draws]
        return list(column(self, cluster))


def column(source: Source, name: str) -> Sequence[str]:
    """Return a column.

    Raises:
        EmEvalsError: there is none of this name.
    """
    if name not in source.columns:
        known = ", ".join(
            key for key, values in source.columns.items() if 1 < len(set(values)) < len(values) / 2
        )
        raise EmEvalsError(
            f"there is no column '{name}' to split by; there are: {known or 'none'}.", source.path
        )
    return source.columns[name]


def read(paths: Iterable[Path], note: Callable[[str], None]) -> Iterator[Source]:
    """Yield every file of graded draws; in a folder, files without any are passed over with a note.

    Raises:
        EmEvalsError: a file is missing, damaged, unfinished or not graded; or there are no graded draws at all.
    """
    none = True
    for found in folders.walk(paths):
        if found.finished:
            note(found.note)
        elif found.named or not folders.is_other_json(found.path):
            try:
                source = of_file(found.path)
            except logs.NoAnswersError as error:
                if found.named:
                    raise
                note(f"{found.path.name} was passed over: {error.what}")
                continue
            none = False
            yield source
    if none:
        raise EmEvalsError("there are no graded answers here; rates need logs of `em_evals/freeform`.")


def of_file(path: Path) -> Source:
    """Read a judged table or an Inspect log.

    Raises:
        EmEvalsError: as for `logs.read_draws`.
    """
    if path.suffix.lower() in tables.SUFFIXES:
        return _of_table(path)
    if folders.is_other_json(path) and (kind := _kind(path)):
        raise EmEvalsError(
            f"this is a record of the kind '{kind}', which holds no draws: `em-evals report` shows it.", path
        )
    return _of_log(logs.read_log(path), path)


def _kind(path: Path) -> str:
    """Return the kind that a record's JSON names; empty for other JSON."""
    data = files.read_json(path)
    return str(data.get("kind") or "") if isinstance(data, dict) else ""


def split(source: Source, by: Sequence[str] | None) -> list[Source]:
    """Return the parts of a source by the values of columns, in order of first appearance.

    Args:
        source: to split.
        by: names of columns; none of them: one part. None: those of `MODELS` that hold more than one value.

    Raises:
        EmEvalsError: a column does not exist.
    """
    if by is None:
        by = [name for name in _called(source.columns, MODELS) if len(set(source.columns[name])) > 1]
    if not by:
        return [source]
    keys = list(zip(*(column(source, name) for name in by), strict=True))
    groups: dict[tuple[str, ...], list[int]] = {}
    for place, key in enumerate(keys):
        groups.setdefault(key, []).append(place)
    return [_part(source, places, dict(zip(by, key, strict=True))) for key, places in groups.items()]


def pooled(part: Source) -> dict[str, int]:
    """Return the factors of a judged table over which a part pools: column -> number of its values."""
    if part.path.suffix.lower() not in tables.SUFFIXES:
        return {}
    counts = {name: len(set(part.columns[name])) for name in _called(part.columns, FACTORS)}
    return {name: count for name, count in counts.items() if count > 1}


def _part(source: Source, places: Sequence[int], values: Mapping[str, str]) -> Source:
    """Return the draws at these places; a file of several models has no name for them, its part may have one."""
    columns = {name: [every[place] for place in places] for name, every in source.columns.items()}
    several = not _only(source.columns, _MODEL)
    return Source(
        source.path,
        (_only(columns, _MODEL) if several else "") or source.model,
        source.judge or _only(columns, _JUDGE),
        source.asked or _only(columns, _ASKED),
        [source.draws[place] for place in places],
        columns,
        thoughts=[source.thoughts[place] for place in places] if source.thoughts else (),
        part=values,
    )


def _of_table(path: Path) -> Source:
    rows = list(tables.rows(path))
    if not rows:
        raise EmEvalsError("there are no draws in this file.", path)
    names = list(dict.fromkeys(name for row, _ in rows for name in row if name))
    columns = {name: [row.get(name) or "" for row, _ in rows] for name in names}
    return Source(
        path,
        _only(columns, _MODEL) or path.stem,
        _only(columns, _JUDGE),
        _only(columns, _ASKED),
        [draw for _, draw in rows],
        columns,
    )


def _only(columns: Mapping[str, Sequence[str]], names: Sequence[str]) -> str:
    """Return the single values of columns; empty where there are several."""
    found = [set(columns[name]) for name in _called(columns, names)]
    return ", ".join(next(iter(values)) for values in found if len(values) == 1 and "" not in values)


def _called(columns: Iterable[str], names: Sequence[str]) -> list[str]:
    """Return the columns that have one of these names, in the names' order."""
    plain = {column: column.strip().lower().replace(" ", "_") for column in columns}
    return [column for name in names for column, own in plain.items() if own == name]


def _of_log(log: EvalLog, path: Path) -> Source:
    told = logs.facts(log)
    samples = log.samples or []
    if not samples:
        raise EmEvalsError("there are no draws in this file.", path)
    scores = [logs.graded(sample) for sample in samples]
    asked = [str(sample.metadata.get("question_id", sample.id)) for sample in samples]
    others = other_scores.others(
        (name, score) for name, score in zip(asked, scores, strict=True) if score is not None
    )
    only_others = bool(others) and not any(logs.judged(sample) for sample in samples)
    draws = [] if only_others else logs.draws_of_log(log)
    notes = list(dict.fromkeys(name for sample in samples for name in sample.metadata))
    columns = {name: [str(sample.metadata.get(name, "")) for sample in samples] for name in notes}
    columns |= {
        "model": [told.model] * len(samples),
        "card": [str((sample.output.metadata or {}).get("card_digest", "")) for sample in samples],
        "recipe": [told.recipe] * len(samples),
        "training_seed": [told.training_seed] * len(samples),
        "epoch": [str(sample.epoch) for sample in samples],
        "system": [told.system] * len(samples),
        "prefix": [told.prefix] * len(samples),
        "format": [told.format] * len(samples),
    }
    return Source(
        path,
        told.model,
        ", ".join(told.judges),
        f"{told.asked} {told.asked_digest}".strip(),
        draws,
        columns,
        others,
        _thoughts(draws, scores),
    )


def _thoughts(draws: Sequence[GradedDraw], scores: Sequence[Score | None]) -> Sequence[GradedThought | None]:
    """Return each draw with its thought's grade; nothing where no thoughts were graded."""
    if not draws:
        return ()
    found = [
        None if score is None else thoughts.of_score(draw, score)
        for draw, score in zip(draws, scores, strict=True)
    ]
    return found if any(one is not None for one in found) else ()
