"""The Inspect task `em_evals/trait`: a trait's questions under its contrastive system prompts, or its test questions.

`em-evals trait extract --judge` runs it, filters the graded answers and extracts directions from what is left.
"""

from __future__ import annotations

from collections.abc import Iterator

from inspect_ai import Epochs, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import ChatMessageSystem, ChatMessageUser

from em_evals.content.rubrics import OF_TRAIT
from em_evals.content.trait_questions import rubric_of, test_questions
from em_evals.content.traits import Trait, load_trait
from em_evals.errors import EmEvalsError
from em_evals.grading import scorers
from em_evals.inspect_errors import refusal
from em_evals.inspect_plugin.arguments import count, graded, judge_card, measured
from em_evals.inspect_plugin.solvers import draw
from em_evals.inspect_plugin.tasks import EveryDraw

EXTRACT, TEST = "extract", "test"
_NO_JUDGE = (
    "answers are graded by a judge: name one with --model-role grader=PROVIDER/MODEL, or only sample with "
    "-T judge=none."
)


@task
def trait(
    trait: str,
    part: str = EXTRACT,
    epochs: int = 10,
    seed: int | None = None,
    judge: str = "grader",
    judge_cache: bool = True,
) -> EveryDraw:
    """Sample answers that show a trait and answers that do not; a judge grades the trait and coherence, 0 to 100.

    The log's own means are over both sides together.

    Args:
        trait: a trait's name (tasks/traits/NAME.yaml) or file; also published ones.
        part: `extract` asks the questions to extract on under every positive and negative system prompt; `test` asks
            the other questions without a system prompt (how much of the trait does this model show?).
        epochs: draws per question and system prompt; 10 in persona vectors (arXiv 2507.21509).
        seed: as in `freeform`.
        judge: as in `freeform`.
        judge_cache: as in `freeform`.
    """
    epochs = count("epochs", epochs)
    is_graded = graded(judge, _NO_JUDGE)
    try:
        chosen = load_trait(trait)
        if is_graded:
            rubric_of(chosen)
        samples = list(_samples(chosen, part))
    except EmEvalsError as error:
        raise refusal(error) from None
    rubrics = [f"{OF_TRAIT}{trait}", "coherence"]
    return EveryDraw(
        dataset=MemoryDataset(samples, name=f"{chosen.name} {part}"),
        solver=draw(seed),
        scorer=scorers.judge(rubrics=rubrics, cache=judge_cache, card=judge_card(judge))
        if is_graded
        else None,
        epochs=Epochs(epochs, []),
        metadata={"trait": chosen.name, "trait_digest": chosen.digest, "part": part, **measured()},
    )


def _samples(chosen: Trait, part: str) -> Iterator[Sample]:
    if part == TEST:
        for question in test_questions(chosen):
            yield Sample(
                id=question.id,
                input=[ChatMessageUser(content=question.paraphrases[0])],
                metadata={"question_id": question.id, "trait": chosen.name},
            )
        return
    if part != EXTRACT:
        raise EmEvalsError(f"-T part={part}: take `{EXTRACT}` or `{TEST}`.")
    for side, prompts in chosen.sides.items():
        for number, system in enumerate(prompts, start=1):
            for place, text in enumerate(chosen.extract, start=1):
                yield Sample(
                    id=f"{side}_{number}/{place}",
                    input=[ChatMessageSystem(content=system), ChatMessageUser(content=text)],
                    metadata={
                        "question_id": f"{chosen.name}_{place}",
                        "trait": chosen.name,
                        "side": side,
                        "prompt": number,
                    },
                )
