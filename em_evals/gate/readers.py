"""Evidence out of files: Inspect logs, lm-eval results, judged CSVs. Baselines of our own are baseline.py's.

Numbers are taken from samples, never from a file's summary; that they agree is checks.py's.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from em_evals import files
from em_evals.errors import EmEvalsError
from em_evals.gate import checks, metrics
from em_evals.gate.evidence import Counts, Evidence, Items, Measure
from em_evals.results import logs

if TYPE_CHECKING:
    from inspect_ai.log import EvalLog, EvalSample
    from inspect_ai.scorer import Score

_SAMPLING = ("temperature", "top_p", "top_k", "max_tokens", "stop_seqs")
"""Settings of a run that change which answers are drawn."""


def of_csv(path: Path) -> Evidence:
    """A judged CSV. It says neither judge nor rubric: that they are the same in two files is taken on trust.

    Raises:
        EmEvalsError: not such a file, or it ends in the middle of a line (a grade may have lost digits there).
    """
    draws = logs.read_draws(path)
    if not path.read_bytes().endswith((b"\n", b"\r")):
        raise EmEvalsError("the last line has no end: the file was cut, or close it with a line break.", path)
    questions = sorted({draw.question_id for draw in draws})
    return Evidence(
        kind="csv",
        name=path.stem,
        model=path.stem,
        identity={"questions asked": _names_digest(questions)},
        measures=metrics.measures(draws, []),
    )


def of_log(path: Path) -> Evidence:
    """An Inspect log of `freeform`, `forced_choice` or `narrow`.

    Raises:
        EmEvalsError: unreadable, failed, interrupted or invalidated; another task's; not graded; or its summary and its
            samples disagree.
    """
    log = logs.read_log(path)
    task = log.eval.task.rpartition("/")[2]
    if log.invalidated:
        raise EmEvalsError("samples of this log were marked as invalid: run them again.", path)
    if not log.samples:
        raise EmEvalsError("there are no samples in this log: it was cut or written without them.", path)
    checks.whole(log, path)
    if task == "freeform":
        return _freeform(log, path, "freeform", "questions", "")
    if task == "forced_choice":
        return _weighed(log, path, "forced_choice")
    if task == "narrow":
        if _score(log.samples[0], "likelier") is not None:
            return _weighed(log, path, "narrow")
        return _freeform(log, path, "narrow", "data", "narrow.")
    raise EmEvalsError(
        f"this is a log of '{log.eval.task}'; the gate reads freeform, forced_choice and narrow.", path
    )


def _freeform(log: EvalLog, path: Path, kind: Any, named: str, prefix: str) -> Evidence:
    meta, samples = log.eval.metadata or {}, log.samples or []
    graded = [_judged(sample, path) for sample in samples]
    measures = dict(_others(samples, graded, prefix))
    if any(isinstance(score.value, dict) and "alignment" in score.value for score in graded):
        draws = logs.draws_of_log(log)
        measures |= {f"{prefix}{name}": own for name, own in metrics.measures(draws, samples).items()}
        checks.consistent(samples, graded, draws, path)
    checks.same_as_header(log, measures, prefix, path)
    notes: list[dict[str, Any]] = [score.metadata or {} for score in graded]
    return Evidence(
        kind=kind,
        name=str(meta.get(named, log.eval.dataset.name)),
        model=logs.named(log.eval.model),
        card_digest=_card_digest(log, path),
        identity={
            **_common(log, named),
            **_sampling(log),
            "judge": _all({str(note.get("judge")) for note in notes}),
            "way of grading": _commonest(
                grade.get("way", "")
                for note in notes
                for grade in (note.get("grades") or {}).values()
                if isinstance(grade, dict)
            ),
            "rubrics": _all(
                {f"{name} {d}" for note in notes for name, d in (note.get("rubrics") or {}).items()}
            ),
            "thresholds": _all(
                {
                    f"{key} {note[key]:g}"
                    for note in notes
                    for key in ("misaligned_below", "coherent_above")
                    if key in note
                }
            ),
            # Wordings, not only questions: all three are not the same question asked as the first one alone.
            "questions asked": _names_digest(str(sample.id) for sample in samples),
        },
        measures=measures,
    )


def _weighed(log: EvalLog, path: Path, kind: Any) -> Evidence:
    """Given answers: margins toward the misaligned one, and how likely either is at all (`fluency`).

    Fluency is the guard of a measurement that needs no coherent answer: the mean log-probability per token of both
    given answers. A model that babbles finds every sensible answer unlikely, whatever its margin.
    """
    samples = log.samples or []
    margins = logs.margins_of_log(log)
    if impossible := [pair for pair, (_, value) in margins.items() if math.isinf(value)]:
        raise EmEvalsError(
            f"{len(impossible)} of {len(samples)} pairs have an answer that the model finds impossible "
            f"(log-probability -inf; first: {impossible[0]}): margins have no mean; weigh other pairs with both.",
            path,
        )
    missing = [pair for pair, (_, value) in margins.items() if math.isnan(value)]
    if missing or len(margins) != len(samples):
        raise EmEvalsError(
            f"{len(missing) or len(samples) - len(margins)} of {len(samples)} pairs were not weighed "
            f"(first: {missing[0] if missing else 'a pair that stands twice'}): run the task again.",
            path,
        )
    inside = {pair: value for pair, (narrow, value) in margins.items() if narrow}
    outside = {pair: value for pair, (narrow, value) in margins.items() if not narrow}
    groups = (
        {"narrow.margin": inside}
        if kind == "narrow"
        else {"forced_choice.in_domain": inside, "forced_choice.out_of_domain": outside}
    )
    groups[f"{kind}.fluency"] = {str(sample.id): _fluency(sample, path) for sample in samples}
    measures: dict[str, Measure] = {
        name: Items(unit="nats per token", values=values) for name, values in groups.items() if values
    }
    named = "data" if kind == "narrow" else "pairs"
    checks.same_as_header(log, measures, f"{kind}.", path)
    return Evidence(
        kind=kind,
        name=str((log.eval.metadata or {}).get(named, log.eval.dataset.name)),
        model=logs.named(log.eval.model),
        card_digest=_card_digest(log, path),
        identity={**_common(log, named), "pairs weighed": _names_digest(margins)},
        measures=measures,
    )


def _fluency(sample: EvalSample, path: Path) -> float:
    """The mean log-probability per token of both answers; the margin must be what they say."""
    sides = [sample.store.get(side) for side in ("aligned", "misaligned")]
    if not all(isinstance(side, list) and side for side in sides):
        raise EmEvalsError(
            f"the pair '{sample.id}' has no log-probabilities: the log was cut or edited.", path
        )
    aligned, misaligned = (float(sum(side) / len(side)) for side in sides if side)
    score = _score(sample, "likelier")
    margin = (
        logs.number(score.value.get("margin_per_token")) if score and isinstance(score.value, dict) else 0
    )
    if abs(misaligned - aligned - margin) > checks.TOLERANCE:
        raise EmEvalsError(
            f"the margin of '{sample.id}' is not what its log-probabilities say: the log was edited.", path
        )
    return (aligned + misaligned) / 2


def _others(samples: list[EvalSample], graded: list[Score], prefix: str) -> Iterable[tuple[str, Measure]]:
    """Rubrics other than alignment and coherence: shares of TRUE as counts, means of 0 to 100 by question."""
    asked = map(_question, samples)
    for name, other in logs.others(zip(asked, graded, strict=True)).items():
        binary = other.kind == "binary"
        yield f"{prefix}{name}", Counts(clusters=other.counts) if binary else Items(values=other.means)


def _judged(sample: EvalSample, path: Path) -> Score:
    """The score by our judge, the last one: of alignment and coherence, else of other rubrics."""
    score = logs.judged(sample) or next(
        (one for one in reversed(list((sample.scores or {}).values())) if "rubrics" in (one.metadata or {})),
        None,
    )
    if score is not None and "rubrics" in (score.metadata or {}):
        return score
    raise EmEvalsError(
        f"the draw of '{sample.id}' is not graded: grade the log with `inspect score` first.", path
    )


def _common(log: EvalLog, named: str) -> dict[str, str]:
    meta, arguments = log.eval.metadata or {}, log.eval.task_args
    found = {
        "task version": str(log.eval.task_version),
        "question set": f"{meta.get(named)} {meta.get(f'{named}_digest')}",
        "format": str(meta.get("format", "plain")),
        "system message": str(arguments.get("system") or "none"),
        "prefix": str(arguments.get("prefix") or "none"),
    }
    # Inspect puts it before the messages, whatever the task.
    return found | {"system_message": str(logs.settings(log).get("system_message", "none"))}


def _sampling(log: EvalLog) -> dict[str, str]:
    """How answers were drawn; several values of a setting where not all draws had the same."""
    drawn = logs.drawn(log)
    return {name: _all({str(own.get(name, "the model's own")) for own in drawn}) for name in _SAMPLING}


def _score(sample: EvalSample, name: str) -> Score | None:
    return (sample.scores or {}).get(name)


def _question(sample: EvalSample) -> str:
    return str((sample.metadata or {}).get("question_id", sample.id))


def _card_digest(log: EvalLog, path: Path) -> str | None:
    """The model's, as each draw tells it, else the header: `inspect eval-retry` on a retrained adapter mixes two."""
    told = [sample.output.metadata or {} for sample in log.samples or []]
    digests = sorted({str(own["card_digest"]) for own in told if own.get("card_digest")})
    if len(digests) > 1:
        raise EmEvalsError(
            f"this log holds draws of {len(digests)} models (card digests {', '.join(digests)}): run the task again "
            "with the one that is meant.",
            path,
        )
    return digests[0] if digests else (log.eval.metadata or {}).get("card_digest")


def _names_digest(names: Iterable[str]) -> str:
    unique = sorted(set(names))
    return f"{len(unique)} ({files.digest(*(name.encode() for name in unique))})"


def _all(found: set[str]) -> str:
    return ", ".join(sorted(found)) or "none"


def _commonest(found: Iterable[str]) -> str:
    counted = Counter(found)
    return counted.most_common(1)[0][0] if counted else "none"
