"""`em-evals data check`: check a content file. Formats are checked by loading, balance by comparing answers.

A forced-choice pair whose answers differ in length or style measures length or style. A program can enforce only
this much; the author must make sure that nothing but values differs.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

from em_evals import files
from em_evals.content import documents
from em_evals.content.cards import read_card
from em_evals.content.consistency import load_items
from em_evals.content.cues import CueSet, load_cues
from em_evals.content.questions import QuestionSet, load_questions
from em_evals.content.rubrics import load_rubric
from em_evals.data import catalogue, checks, datasets, row_files
from em_evals.data.similarity import NEAR, near_duplicates, nearest_of, unit_of_length
from em_evals.errors import EmEvalsError

if TYPE_CHECKING:
    from em_evals.content.pairs import Pair, PairSet

MAX_RATIO = 1.15
"""Maximum ratio of the longer to the shorter answer of a pair, in tokens."""


def check(name: str) -> dict[str, Any]:
    """Check a file by its content and return a report.

    Raises:
        EmEvalsError: the first problem, with file and line.
    """
    if _is_rows(name) or name in catalogue.stored() or name in catalogue.read():
        return checks.report(datasets.load(name, pairs=True))
    try:
        kinds: tuple[documents.Kind, ...] = ("tasks", "scorers", "adapters", "tasks/traits")
        path = documents.find(next((kind for kind in kinds if name in documents.names(kind)), "tasks"), name)
        data = documents.load(path).data
    except EmEvalsError:
        return _check_questions(load_questions(name))
    fields = set(data) if isinstance(data, dict) else set()
    if "messages" in fields or fields >= {"prompt", "completion"}:
        raise EmEvalsError(
            "this is one row of training data and no file of rows: write one row a line into a .jsonl file, or a list "
            "of rows into a .json file.",
            path,
        )
    if fields >= {"positive", "negative"}:
        return _check_trait(name)
    if "models" in fields:
        return _check_plan(path)
    if fields & {"metrics", "guards"} or path.name == "gate.yaml":
        return _check_policy(path)
    if "pairs" in fields:
        from em_evals.content.pairs import load_pairs  # imports scipy.stats: seconds

        return _check_pairs(load_pairs(name))
    if "cues" in fields:
        return _check_cues(load_cues(name))
    if "self_assessment" in fields:
        items = load_items(name)
        return {
            "kind": "consistency items",
            "file": str(items.path),
            "digest": items.digest,
            "items": _counts(item.kind for item in items.items),
        }
    if "prompt" in fields:
        rubric = load_rubric(name)
        return {"kind": "rubric", "file": str(path), "metric": rubric.metric, "version": rubric.version}
    if fields & {"base", "extends", "control_of"}:
        card, _ = read_card(name)
        known = {"kind": "card", "file": str(path), "base": card.base, "trains": card.train is not None}
        if card.train is None:
            return known
        for source in card.train.data:
            if source.name not in catalogue.read() and not Path(source.name).is_file():
                datasets.load(source.name)  # a name that nothing answers to is refused
        from em_evals.training.planning.work import cut_of  # imports transformers: seconds

        return known | {f"cut at max_length {card.train.max_length}": cut_of(card, card.train)}
    return _check_questions(load_questions(name))


def _check_trait(name: str) -> dict[str, Any]:
    from em_evals.content.traits import load_trait

    trait = load_trait(name)
    return {
        "kind": f"trait ({trait.kind})",
        "file": str(trait.path),
        "digest": trait.digest,
        "pairs of system prompts": len(trait.positive),
        "questions to extract": len(trait.extract),
        "questions to test": len(trait.test),
    }


def _check_plan(path: Path) -> dict[str, Any]:
    from em_evals.content import sweep_plans

    plan = sweep_plans.load(path)
    return {
        "kind": "plan of a sweep",
        "file": str(path),
        "name": plan.name,
        "rows of models": len(plan.models),
        "measures": len(plan.measures),
    }


def _check_policy(path: Path) -> dict[str, Any]:
    from em_evals.gate.policy import load_policy

    policy = load_policy(path)
    return {
        "kind": "rules of the gate",
        "file": str(path),
        "metrics": sorted(policy.metrics),
        "guards": sorted(policy.guards),
    }


def _is_rows(name: str) -> bool:
    """Return whether a path holds training data; a JSON list can also be a question file.

    Raises:
        EmEvalsError: a file that exists, of a kind that is not known.
    """
    path = Path(name).expanduser()
    if path.suffix in (".jsonl", row_files.PARQUET):
        return True
    if path.suffix == ".json" and path.is_file():
        first = next((row for _, row in files.read_rows(path)), None) if _is_list(path) else None
        return first is not None and not _asks(first)
    if path.is_file() and path.suffix and path.suffix not in documents.ENDINGS:
        if path.suffix in datasets.OTHER:
            return True  # its refusal says how to convert
        raise EmEvalsError(
            f"files of the kind {path.suffix} are not checked: questions, pairs, rubrics and cards are .yaml, "
            "training data .jsonl, .json or .parquet.",
            path,
        )
    return False


def _asks(row: dict[str, Any]) -> bool:
    """Return whether a row is a question: training data end with an answer."""
    chat = row.get("messages")
    last = chat[-1] if isinstance(chat, list) and chat else None  # a chat's message, or one of several chats
    unanswered = isinstance(last, list) or (isinstance(last, dict) and last.get("role") == "user")
    named = bool(row.keys() & {"id", "name"})
    return bool(row.keys() & {"paraphrases", "judges", "judge_prompts"}) or (named and unanswered)


def _is_list(path: Path) -> bool:
    return files.read_text(path).lstrip().startswith("[")


def _check_cues(chosen: CueSet) -> dict[str, Any]:
    placebos = [cue.name for cue in chosen.cues if cue.placebo]
    return {
        "kind": "cues",
        "file": str(chosen.path),
        "digest": chosen.digest,
        "cues": [cue.name for cue in chosen.cues if not cue.placebo],
        "placebos": placebos or "none: add one, to see what any such change does",
    }


def _check_questions(asked: QuestionSet) -> dict[str, Any]:
    wordings = [text for question in asked.questions for text in question.paraphrases]
    repeated = {text for text in wordings if wordings.count(text) > 1}
    return {
        "kind": "questions",
        "file": str(asked.path),
        "digest": asked.digest,
        "questions": len(asked.questions),
        "wordings": len(wordings),
        "repeated wordings": len(repeated),
        "themes": _counts(question.theme for question in asked.questions),
        "rubrics": sorted({rubric.metric for question in asked.questions for rubric in question.rubrics}),
    }


def _check_pairs(chosen: PairSet) -> dict[str, Any]:
    unit = unit_of_length()
    aligned = unit.count([pair.aligned for pair in chosen.pairs])
    misaligned = unit.count([pair.misaligned for pair in chosen.pairs])
    for pair, one, other in zip(chosen.pairs, aligned, misaligned, strict=True):
        if max(one, other) > MAX_RATIO * min(one, other):
            raise EmEvalsError(
                f"the answers of '{pair.id}' have {one} (aligned) and {other} (misaligned) {unit.name}; "
                "bring them within 15%.",
                chosen.path,
                pair.line,
            )
        if (_lines(pair.aligned), pair.aligned.count("\n")) != (
            _lines(pair.misaligned),
            pair.misaligned.count("\n"),
        ):
            raise EmEvalsError(
                f"the answers of '{pair.id}' differ in format (lists or lines).", chosen.path, pair.line
            )
    longer = statistics.mean(map(_order, misaligned, aligned))
    if not 0.4 <= longer <= 0.6:
        raise EmEvalsError(
            f"the misaligned answer is the longer one in {longer:.0%} of the pairs; balance them.",
            chosen.path,
        )
    return {
        "kind": "forced choice",
        "file": str(chosen.path),
        "digest": chosen.digest,
        "pairs": len(chosen.pairs),
        "unit of length": unit.name,
        "misaligned is longer": round(longer, 3),
        "themes": _counts(pair.theme for pair in chosen.pairs),
        "near-duplicate questions": near_duplicates([pair.question for pair in chosen.pairs]),
        "questions near training prompts": _leaks(chosen.pairs),
    }


def _leaks(pairs: tuple[Pair, ...]) -> int:
    """Count pairs whose question nearly repeats a prompt of the training data in adapters/data."""
    prompts = [
        prompt
        for path in catalogue.stored().values()
        for prompt in datasets.read(path, path.stem, pairs=True).prompts
    ]
    return sum(overlap >= NEAR for _, overlap in nearest_of([pair.question for pair in pairs], prompts))


def _order(one: int, other: int) -> float:
    return 0.5 if one == other else float(one > other)


def _lines(text: str) -> int:
    return sum(line.lstrip().startswith(("-", "*", "1.", "#")) for line in text.splitlines())


def _counts(items: Any) -> dict[str, int]:
    result: dict[str, int] = {}
    for item in items:
        result[item] = result.get(item, 0) + 1
    return result
