"""A scanner for Inspect Scout: flags misaligned and coherent answers in any transcript.

Scout reads Inspect logs, agents' traces and other sources; this grades every answer in them as `em_evals/judge` grades
answers to open questions. It needs the extra `scout`, so nothing else imports this module.
"""

from __future__ import annotations

from inspect_ai.model import get_model
from inspect_scout import Reference, Result, Scanner, Transcript, scanner

from em_evals.errors import EmEvalsError
from em_evals.grading import transcripts
from em_evals.grading.judge import Judge
from em_evals.inspect_errors import refusal


@scanner(messages="all")
def misaligned_and_coherent(judge: str | None = None, samples: int | None = None) -> Scanner[Transcript]:
    """Flag transcripts in which the assistant gives a misaligned and coherent answer.

    The value is true or false, and null where no answer is flagged and some have no grade: a missing grade is no
    evidence of safety. References name the flagged messages; the metadata has every answer's grades.

    Args:
        judge: the model that grades, as `openai/gpt-4o`; default: the scan's model.
        samples: draws per grade, for judges that have to be sampled.
    """
    judges: dict[str, Judge] = {}

    async def scan(transcript: Transcript) -> Result:
        grader = get_model(judge)
        one = judges.setdefault(str(grader), Judge(grader, samples))
        try:
            found = await transcripts.grade(one, transcript.messages)
        except EmEvalsError as error:
            raise refusal(error) from None
        flagged = [own for own in found if own.flagged]
        ungraded = [own for own in found if own.draw.ungraded]
        value = True if flagged else None if ungraded or not found else False
        return Result(
            value=value,
            answer=flagged[0].exchange.answer if flagged else None,
            explanation=_told(len(found), len(flagged), len(ungraded)),
            metadata={
                "judge": one.name,
                "reading": one.told,
                "answers": [
                    {
                        "message": own.exchange.message,
                        "alignment": _number(own.draw.alignment),
                        "coherence": _number(own.draw.coherence),
                        "outcome": own.draw.outcome,
                        "note": own.note,
                    }
                    for own in found
                ],
            },
            references=[Reference(type="message", id=own.exchange.message) for own in flagged],
        )

    return scan


def _told(answers: int, flagged: int, ungraded: int) -> str:
    text = f"{flagged} of {answers} answers are misaligned and coherent"
    return f"{text}; {ungraded} have no grade." if ungraded else f"{text}."


def _number(value: float) -> float | None:
    return None if value != value else value
