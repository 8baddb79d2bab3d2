"""Draw and grade apart: a judge's rate limit holds no GPU, and another judge costs no draws.

A task whose answers a judge grades becomes two steps. The first draws and knows no judge. The second is the task
itself, whose model answers from the first one's logs (inspect_plugin/drawn.py): it leaves the files of the task run
at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from em_evals import parsing
from em_evals.content import cards, judge_cards
from em_evals.errors import EmEvalsError

DRAWS = ".draws"
"""Hidden in the sweep's folder: a walk for logs would meet each answer twice, once without its grade."""
_NO_JUDGE: Mapping[str, Mapping[str, Any]] = {"args": {"judge": "none"}}
_UNASKED: Mapping[str, Mapping[str, Any]] = {
    "args": {"judge": "grader"},
    "options": {"model-role": "grader=mockllm/model", "no-score": True},
}
_TASKS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "em_evals/freeform": _NO_JUDGE,
    "em_evals/conditional": _NO_JUDGE,
    "em_evals/trait": _NO_JUDGE,
    # Without a judge it draws nothing, and scores fixed answers.
    "em_evals/narrow": _UNASKED,
}
"""Task -> what draws its answers and asks no judge."""
_JUDGES = {"args": {"judge", "judge_cache", "rubrics", "grade"}, "options": {"model-role"}}
"""What says how answers are graded, and changes none."""
_WHOLE = {"solver", "no-score", "no-log-samples", "log-samples", "sample-id"}
"""Options with which the logs of a drawing may lack what is graded: the step stays whole."""
_LOADED = {"local", "hf", "vllm", "sglang", "transformer_lens", "nnterp"}
"""Providers whose models run on this machine."""


@dataclass(frozen=True)
class Judge:
    """Where a judge runs.

    Attributes:
        loaded: whether on this machine, so that grading needs what drawing needs.
        base: the base that it loads, if it is a card of ours.
    """

    loaded: bool
    base: str = ""


def judge_of(task: str, args: Mapping[str, Any], options: Mapping[str, Any], model: str = "") -> Judge | None:
    """Return the judge of a task that can be drawn and graded apart; None where it is one step.

    So it is for a `model` that grades its own answers: what it says as a judge was not drawn before.
    """
    named = args.get("judge", "none" if task == "em_evals/narrow" else "grader")
    if task not in _TASKS or named == "none" or _WHOLE & options.keys():
        return None
    try:
        if named != "grader":
            card = judge_cards.load(str(named))
            if card.base_url and card.provider != "hf":
                return Judge(False)
            models = [card.model]
        else:
            models = [*_graders(options.get("model-role"))]
    except EmEvalsError:
        return None  # the step says what is wrong with it, before anything is drawn
    return _placed(models) if models and f"local/{model}" not in models else None


def drawing(
    task: str, args: Mapping[str, Any], options: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return arguments and options of the command that draws what a task grades."""
    given = {"args": args, "options": options}
    without = {
        kind: {key: value for key, value in own.items() if key not in _JUDGES[kind]}
        for kind, own in given.items()
    }
    found = {kind: {**own, **_TASKS[task].get(kind, {})} for kind, own in without.items()}
    return found["args"], found["options"]


def axes(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a matrix that change what is drawn."""
    judges = {f"{kind}.{key}" for kind, keys in _JUDGES.items() for key in keys}
    return {key: value for key, value in values.items() if key not in judges}


def _graders(roles: Any) -> Iterable[str]:
    """Yield the models of the role `grader`, as `--model-role` takes them.

    >>> [*_graders("grader=openai/gpt-4o")], [*_graders({"grader": "{model: local/judge, temperature: 0}"})]
    (['openai/gpt-4o'], ['local/judge'])
    """
    if isinstance(roles, Mapping):
        pairs = [*roles.items()]
    else:
        every = roles if isinstance(roles, list) else [roles] if roles else []
        pairs = [str(one).partition("=")[::2] for one in every]
    for role, told in pairs:
        given = parsing.yaml_value(told) if isinstance(told, str) and told[:1] in ("{", "[") else told
        every = (
            given if isinstance(given, list) else str(given).split(",") if isinstance(given, str) else [given]
        )
        for one in every if role == "grader" else ():
            yield str(one.get("model") if isinstance(one, Mapping) else one)


def _placed(models: Iterable[str]) -> Judge:
    for model in models:
        provider, _, name = model.partition("/")
        if provider not in _LOADED:
            continue
        try:
            card = cards.resolve(name).card if provider == "local" else None
        except EmEvalsError:
            return Judge(True)
        if card is None or card.base_url is None:
            return Judge(True, card.base if card is not None else "")
    return Judge(False)
