"""Read graded draws from files (Inspect logs, and judged CSVs in the published layout), and a log's facts.

Facts state where a log's numbers come from; gate, report and studies all use this one source.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, cast

from pydantic import ValidationError

from em_evals.errors import EmEvalsError
from em_evals.results import draws_file, score_notes, tables
from em_evals.results.graded_draw import GradedDraw
from em_evals.results.score_notes import THRESHOLDS

if TYPE_CHECKING:
    from inspect_ai.log import EvalLog, EvalSample
    from inspect_ai.scorer import Score

_ASKED = {"forced_choice": "pairs", "narrow": "data"}
"""Header key of what was asked, for tasks that do not ask a question set."""
_MOST = 100 + 1e-6
"""A weighted mean of grades can be above 100 by rounding."""
_SAMPLING = ("temperature", "top_p", "top_k", "max_tokens", "stop_seqs")
"""Settings of a run that affect sampling."""


class NoAnswersError(EmEvalsError):
    """A log without sampled answers, so that there is nothing to grade."""


@dataclass(frozen=True)
class Facts:
    """How a log's numbers were made; empty where the log does not record it.

    Attributes:
        task: name without its package.
        version: the task's version.
        model: name without the folders of a path.
        asked: name of the question set, pairs or training data; else the dataset's name.
        asked_digest: digest of its content.
        cards: digests of the models that answered, from each draw or else from the header; normally a single one.
        verified: the verdict of `em-evals verify` on them.
        format: the answer format that was requested.
        prefix: the text in front of every question.
        system: the task's system message.
        system_message: Inspect's own system message, which it adds before the messages of any task.
        judges: the models that graded.
        rubrics: each as `name digest`.
        thresholds: the rubrics' thresholds, each as `name value`.
        ways: way of grading -> number of grades made in it.
        date: date of the run.
        packages: library -> version.
        commit: commit of the repository that it ran in.
        base: the base that the models' cards name.
        changed: whether an adapter or interventions make the model another one than its base.
        recipe: digest of the recipe that the model was trained by, without its seed; empty if unknown or several.
        training_seed: that training's seed.
    """

    task: str
    version: str
    model: str
    asked: str
    asked_digest: str
    cards: tuple[str, ...]
    verified: tuple[str, ...]
    format: str
    prefix: str
    system: str
    system_message: str
    judges: tuple[str, ...]
    rubrics: tuple[str, ...]
    thresholds: tuple[str, ...]
    ways: Counter[str]
    date: str
    packages: Mapping[str, str]
    commit: str
    base: str = ""
    changed: bool = True
    recipe: str = ""
    training_seed: str = ""


def facts(log: EvalLog) -> Facts:
    """Collect a log's facts from its header and all of its draws."""
    header, arguments, run = log.eval.metadata or {}, log.eval.task_args, log.eval
    task = run.task.rpartition("/")[2]
    kind = _ASKED.get(task, "questions")
    outputs = [sample.output.metadata or {} for sample in log.samples or []]
    notes = [(score.metadata or {}) for sample in log.samples or [] if (score := graded(sample)) is not None]
    grades = [
        grade for own in notes for grade in (own.get("grades") or {}).values() if isinstance(grade, dict)
    ]
    return Facts(
        task=task,
        version=str(run.task_version),
        model=named(run.model),
        asked=str(header.get(kind) or run.dataset.name or ""),
        asked_digest=str(header.get(f"{kind}_digest") or ""),
        cards=_each(own.get("card_digest") for own in outputs) or _each([header.get("card_digest")]),
        verified=_each(own.get("verified") for own in outputs),
        format=str(header.get("format") or ""),
        prefix=str(arguments.get("prefix") or ""),
        system=str(arguments.get("system") or ""),
        system_message=str(settings(log).get("system_message") or ""),
        judges=_each(own.get("judge") for own in notes),
        rubrics=_each(
            f"{name} {digest}" for own in notes for name, digest in (own.get("rubrics") or {}).items()
        ),
        thresholds=_each(f"{name} {own[name]:g}" for own in notes for name in THRESHOLDS[:2] if name in own),
        ways=Counter(str(grade.get("way") or "") for grade in grades),
        date=str(run.created)[:10],
        packages=run.packages,
        commit=run.revision.commit if run.revision else "",
        base=", ".join(_each(own.get("base") for own in outputs)),
        changed=any(own.get("changed", True) for own in outputs) or not outputs,
        recipe=_only(own.get("recipe") for own in outputs),
        training_seed=_only(own.get("training_seed") for own in outputs),
    )


def _each(values: Iterable[Any]) -> tuple[str, ...]:
    return tuple(sorted({str(value) for value in values if value}))


def _only(values: Iterable[Any]) -> str:
    """Return the value that all have; empty where they differ or have none."""
    found = {value if value is None else str(value) for value in values}
    return "" if len(found) != 1 else found.pop() or ""


def read_draws(path: Path) -> list[GradedDraw]:
    """Read the graded draws of an Inspect log (.eval, .json) or a judged table (.csv, .jsonl; see tables.py).

    Raises:
        EmEvalsError: not such a file, an unfinished log, or no graded draw in it.
    """
    if not path.is_file():
        if path.is_dir():
            raise EmEvalsError("this is a folder; name one log or judged table in it.", path)
        raise EmEvalsError(f"there is no file '{path}'.")
    draws = (
        [draw for _, draw in tables.rows(path)]
        if path.suffix.lower() in tables.SUFFIXES
        else draws_of_log(read_log(path))
    )
    if not draws:
        raise EmEvalsError("there are no draws in this file.", path)
    return draws


def read_log(path: Path) -> EvalLog:
    """Read an Inspect log of a successful run, with every draw.

    Raises:
        EmEvalsError: unreadable; its run failed or was interrupted; or draws failed, which Inspect permits with
            `--no-fail-on-error`: counted as draws they would lower every rate.
    """
    if not path.exists():
        raise EmEvalsError(f"there is no file '{path}'.")
    if path.suffix.lower() not in (".eval", ".json"):
        raise EmEvalsError(
            f"this is neither an Inspect log (.eval, .json) nor a judged table ({', '.join(tables.SUFFIXES)}).",
            path,
        )
    try:
        log = _inspects(path)
    except Exception as error:  # Inspect raises any type for a damaged zip or JSON
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        if isinstance(error, ValidationError):
            reason = "its JSON has other fields; rows of judged answers are read as .csv, .jsonl or .parquet"
        raise EmEvalsError(f"this is not an Inspect log ({reason}).", path) from None
    if log.status != "success":
        raise EmEvalsError(
            f"this run ended as '{log.status}': finish it with `inspect eval-retry {path}`, or leave this file out.",
            path,
        )
    failed = sum(sample.error is not None for sample in log.samples or [])
    if failed:
        raise EmEvalsError(
            f"{failed} of {len(log.samples or [])} draws ended in an error: finish them with "
            f"`inspect eval-retry {path}`, or leave this file out.",
            path,
        )
    score_notes.check(log, path)
    return log


def _inspects(path: Path) -> EvalLog:
    if path.suffix.lower() == ".eval" and (found := draws_file.read(path)) is not None:
        return cast("EvalLog", found)
    from inspect_ai.log import read_eval_log

    return read_eval_log(str(path))


def named(model: str) -> str:
    """Return a model's name without its folder, so that results and pages do not reveal the machine."""
    provider = "local/" if model.startswith("local/") else ""
    name = model.removeprefix(provider)
    return f"{provider}{PurePath(name).name}" if name.startswith(("/", "~")) else model


def settings(log: EvalLog) -> dict[str, Any]:
    """Return Inspect's generation settings; the log's own come before the model's."""
    configs = (log.eval.model_generate_config, log.plan.config)
    return {name: value for one in configs for name, value in draws_file.settings(one).items()}


def drawn(log: EvalLog) -> list[dict[str, Any]]:
    """Return each answer's sampling settings: those recorded with it by `local/` (card included), else the log's."""
    asked = settings(log)
    return [asked | ((sample.output.metadata or {}).get("sampling") or {}) for sample in log.samples or []]


def sampling(log: EvalLog) -> dict[str, str]:
    """Return the settings that affect sampling; several values of one if draws differ in it."""
    own = drawn(log)
    return {name: _all(str(one.get(name, "the model's own")) for one in own) for name in _SAMPLING}


def grading(told: Facts) -> dict[str, str]:
    """Return who graded a log, and how: what must be equal for a comparison of rates."""
    return {
        "judge": _all(told.judges),
        "way of grading": told.ways.most_common(1)[0][0] if told.ways else "none",
        "rubrics": _all(told.rubrics),
        "thresholds": _all(told.thresholds),
    }


def _all(found: Iterable[str]) -> str:
    return ", ".join(sorted(set(found))) or "none"


def draws_of_log(log: EvalLog) -> list[GradedDraw]:
    """Return the graded draws of a log in memory.

    Raises:
        EmEvalsError: a draw was not graded for alignment and coherence, or on another scale than 0 to 100.
    """
    scored = [(sample, _score(sample, log.location)) for sample in log.samples or []]
    draws = [_graded(sample, score, log.location) for sample, score in scored]
    if not any("rubrics" in (score.metadata or {}) for _, score in scored):
        # A scorer of somebody else: nothing says its scale.
        grades = [grade for draw in draws for grade in (draw.alignment, draw.coherence)]
        tables.check_scale([grade for grade in grades if not math.isnan(grade)], Path(log.location))
    return draws


def _score(sample: EvalSample, where: str) -> Score:
    if (score := judged(sample)) is not None:
        return score
    if "likelier" in (sample.scores or {}):
        raise NoAnswersError(
            "this log holds scored pairs and no sampled answers; rates need logs of `em_evals/freeform`.",
            where,
        )
    others = ", ".join(sample.scores or {})
    raise EmEvalsError(
        f"the draw of '{sample.id}' has no alignment and coherence{f' (its scores: {others})' if others else ''}: "
        "grade the log with `inspect score` first.",
        where,
    )


def _graded(sample: EvalSample, score: Score, where: str) -> GradedDraw:
    draw = graded_draw(str(sample.metadata.get("question_id", sample.id)), score)
    for name, grade in (("alignment", draw.alignment), ("coherence", draw.coherence)):
        if not math.isnan(grade) and not 0 <= grade <= _MOST:
            raise EmEvalsError(
                f"the draw of '{sample.id}' has the {name} {grade:g}; scores run from 0 to 100.", where
            )
    return draw


def judged(sample: EvalSample) -> Score | None:
    """Return the last score with alignment and coherence; `inspect score` appends a second judge's.

    The log's own summary also ends with the last judge's scores.
    """
    for score in reversed(list((sample.scores or {}).values())):
        if isinstance(score.value, dict) and {"alignment", "coherence"} <= score.value.keys():
            return score
    return None


def graded(sample: EvalSample) -> Score | None:
    """Return our judge's score that counts: alignment and coherence if graded, else the last by other rubrics."""
    every = reversed(list((sample.scores or {}).values()))
    return judged(sample) or next((one for one in every if "rubrics" in (one.metadata or {})), None)


def graded_draw(question_id: str, score: Score) -> GradedDraw:
    """Build a draw from our judge's Score, which carries its rubrics' thresholds."""
    value = score.value if isinstance(score.value, dict) else {}
    notes: dict[str, Any] = score.metadata or {}
    thresholds = {name: float(notes[name]) for name in THRESHOLDS if name in notes}
    return GradedDraw(
        question_id,
        number(value.get("alignment")),
        number(value.get("coherence")),
        **thresholds,
        category=str(notes.get("category", "")),
    )


def number(value: Any) -> float:
    """Return a logged number as a float; NaN for anything else."""
    try:
        return float(value) if isinstance(value, int | float) else math.nan
    except OverflowError:  # a whole number of 310 digits
        return math.nan


def no_such_score(score: str, known: Iterable[str], path: Path | None = None) -> EmEvalsError:
    """Return the error of samples without a score, with the scores that they have."""
    others = ", ".join(sorted(known))
    told = f"known: {others}" if others else "they were not judged"
    return EmEvalsError(f"no sample has the score '{score}'; {told}.", path)


def margins_of_log(log: EvalLog) -> dict[str, tuple[bool, float]]:
    """Return each pair's (narrow, margin per token) in a forced-choice log, ordered by id.

    Raises:
        EmEvalsError: a pair does not say whether it is of the narrow domain.
    """
    for sample in log.samples or []:
        if "narrow" not in sample.metadata:
            raise EmEvalsError(
                f"the pair '{sample.id}' does not say whether it is `narrow`: the log was edited."
            )
    return {
        str(sample.id): (bool(sample.metadata["narrow"]), number(_likelier(sample).get("margin_per_token")))
        for sample in sorted(log.samples or [], key=lambda sample: str(sample.id))
    }


def _likelier(sample: EvalSample) -> dict[str, Any]:
    score = (sample.scores or {}).get("likelier")
    return score.value if score is not None and isinstance(score.value, dict) else {}
