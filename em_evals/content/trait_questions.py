"""Trait files as question sets: the questions of a trait, its judge's prompt, and its system prompts as formats.

`evil.eval.json` asks the trait's test questions and `evil.extract.json` those to extract on (persona vectors); a YAML
file of many traits asks its shared questions, FILE.yaml:TRAIT one trait's. `-T format=positive_1` adds a system prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from em_evals.content import traits
from em_evals.content.documents import Document
from em_evals.content.published_rubrics import from_published
from em_evals.content.question_set import Question, QuestionSet, Variant, digest_of
from em_evals.content.rubrics import Rubric
from em_evals.content.traits import Trait
from em_evals.errors import EmEvalsError

_EXTRACT = ".extract.json"


def is_trait(data: Any) -> bool:
    """Return whether parsed content is a trait's, or of many traits."""
    keys = set(data) if isinstance(data, dict) else set()
    one, many = (
        {"instruction", "questions"} <= keys,
        isinstance(data, dict) and isinstance(data.get("traits"), dict),
    )
    return one or many or {"positive", "negative", "questions"} <= keys


def names_one(name: str) -> bool:
    """Return whether a name is FILE.yaml:TRAIT."""
    path, colon, own = name.rpartition(":")
    return bool(colon and own) and path.endswith((".yaml", ".yml"))


def read(name: str, document: Document | None) -> QuestionSet:
    """Return a trait file's questions.

    Args:
        name: its path, or FILE.yaml:TRAIT.
        document: the parsed file; None for FILE.yaml:TRAIT.

    Raises:
        EmEvalsError: the file is invalid.
    """
    if document is not None and isinstance(document.data.get("traits"), dict):
        return _of_many(document)
    trait = traits.load_trait(name if document is None else str(document.path))
    extracts = document is not None and document.path.name.endswith(_EXTRACT)
    return _set(trait, trait.extract if extracts or not trait.test else trait.test, _variants(trait))


def rubric_of(trait: Trait) -> Rubric:
    """Return the rubric that grades a trait; its grade has the trait's name.

    Raises:
        EmEvalsError: the trait's file has none.
    """
    if not trait.prompt:
        raise EmEvalsError(
            f"{trait.name} has no rubric, so no judge can grade it: extract it from its prompts alone (no --judge).",
            trait.path,
        )
    return from_published(trait.name, trait.prompt, trait.path, 1)


def test_questions(trait: Trait) -> tuple[Question, ...]:
    """Return the questions to test a trait on, with its rubric where it has one.

    Raises:
        EmEvalsError: there are none.
    """
    if not trait.test:
        raise EmEvalsError(f"{trait.name} has no questions to test on: write `test` questions.", trait.path)
    return _set(trait, trait.test, {}).questions


def _of_many(document: Document) -> QuestionSet:
    """Return the questions that many traits share; the formats are named TRAIT_positive_1 and so on."""
    every = [traits.load_trait(f"{document.path}:{name}") for name in document.data["traits"]]
    variants = {
        f"{trait.name}_{name}": variant for trait in every for name, variant in _variants(trait).items()
    }
    shared = tuple(dict.fromkeys((*every[0].extract, *every[0].test)))
    return _set(replace(every[0], name=document.path.stem, prompt=""), shared, variants)


def _set(trait: Trait, asked: Sequence[str], variants: dict[str, Variant]) -> QuestionSet:
    rubrics = (rubric_of(trait),) if trait.prompt else ()
    digits = len(str(len(asked)))
    questions = tuple(
        Question(f"{trait.name}_{number:0{digits}}", (text,), rubrics, trait.name)
        for number, text in enumerate(asked, start=1)
    )
    return QuestionSet(trait.name, 1, trait.path, digest_of(questions), questions, variants)


def _variants(trait: Trait) -> dict[str, Variant]:
    return {
        f"{side}_{number}": Variant(system=text)
        for side, texts in trait.sides.items()
        for number, text in enumerate(texts, start=1)
    }
