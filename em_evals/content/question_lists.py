"""Question files of other projects: a YAML list, as the emergent-misalignment repository and llmcomp write it.

Both formats are read by one model. A question has `id` or `name`, and `paraphrases` or `messages`; it is graded by
`judge_prompts` (name -> prompt) or by `judges` (name -> a judge: its name in this file, in a sibling file or in
scorers/, or written out). Rows of the types `free_form_judge` and `rating_judge` are judges. What cannot be honoured
is refused; keys that change nothing are kept as notes.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from pydantic import Field

from em_evals.content import documents
from em_evals.content.question_judges import Judges, Place, Row, is_judge, judge_row, notes_of, read_drop
from em_evals.content.question_set import Question, QuestionSet, Turn, digest_of
from em_evals.errors import nearest

_ASKED = ("free_form", "free_form_judge", "free_form_judge_0_100", "free_form_0_100")
_BY_TOKENS = ("rating", "next_token")


class _Asked(Row):
    judge: str | None = None
    judge_prompts: dict[str, str] = Field(default={})
    judges: dict[str, str | dict[str, Any]] = Field(default={})
    drop: dict[str, str | list[str]] = Field(default={})


def read(document: documents.Document) -> QuestionSet:
    """Read a list of questions with their judges.

    Raises:
        EmEvalsError: a row is invalid or asks for what cannot be honoured, or a judge does not exist.
    """
    if not document.data:
        raise document.error("this file holds no questions; write at least one.")
    judges = Judges(document)
    questions, ids = [], []
    drop: dict[str, tuple[str, ...]] = {}
    for index, row in enumerate(document.data):
        at: documents.KeyPath = (index,)
        if not isinstance(row, dict):
            raise document.error(
                "expected `key: value` lines of a question here, as `- {id: NAME, paraphrases: [TEXT]}`.",
                at,
            )
        if is_judge(row):
            judge_row(Place(document, at, row))
            continue
        asked = documents.validate(_Asked, document, row, at)
        question = _question(asked, judges, document, at)
        questions.append(question)
        ids.append((question.id, at))
        drop |= read_drop(asked.drop, question.rubrics, document, (*at, "drop"))
    if not questions:
        raise document.error("this file holds judges and no questions: name the file of the questions.")
    check_ids(document, ids)
    digest = digest_of(questions, drop)
    return QuestionSet(document.path.stem, 1, document.path, digest, tuple(questions), drop=drop)


def _question(asked: _Asked, judges: Judges, document: documents.Document, at: documents.KeyPath) -> Question:
    if asked.type in _BY_TOKENS:
        raise document.error(
            f"a question of the type '{asked.type}' reads one token's probabilities of the model under test, and "
            "em-evals grades sampled answers: leave it out.",
            (*at, "type"),
        )
    if asked.type not in _ASKED:
        raise document.error(f"there is no type '{asked.type}'; {nearest(asked.type, _ASKED)}", (*at, "type"))
    if asked.logit_bias:
        raise document.error(
            "`logit_bias` changes what the model says, and names token ids of one model: leave it out.",
            (*at, "logit_bias"),
        )
    numbers = (0.0, 100.0) if asked.type.endswith("0_100") else None
    graders = judges.of(at, asked.judge_prompts, asked.judges, asked.judge or "", numbers)
    notes = notes_of(asked, document, at)
    contexts, texts = _prompts(asked, document, at)
    sampling = {name: getattr(asked, name) for name in ("temperature", "max_tokens")}
    return Question(
        asked.label,
        texts,
        graders,
        asked.theme or _family(asked.label),
        asked.system,
        asked.samples_per_paraphrase,
        contexts=contexts,
        sampling={name: value for name, value in sampling.items() if value is not None},
        notes=notes,
    )


def _prompts(
    asked: Row, document: documents.Document, at: documents.KeyPath
) -> tuple[tuple[tuple[Turn, ...], ...], tuple[str, ...]]:
    """Return the context and the last user message of each prompt."""
    if asked.messages is None:
        wordings = tuple(asked.paraphrases or ())
        return _before(asked, wordings, document, at), wordings
    # One chat, or a list of chats.
    single = all(isinstance(entry, dict) for entry in asked.messages)
    chats = [asked.messages] if single else asked.messages
    contexts, texts = [], []
    for number, chat in enumerate(chats):
        where = (*at, "messages") if single else (*at, "messages", number)
        turns = _turns(chat, document, where)
        contexts.append(tuple(turns[:-1]))
        texts.append(turns[-1].content)
    return (tuple(contexts) if any(contexts) else ()), tuple(texts)


def _before(
    asked: Row, wordings: Sequence[str], document: documents.Document, at: documents.KeyPath
) -> tuple[tuple[Turn, ...], ...]:
    """Return the context of each paraphrase: the same turns before every one."""
    if not asked.context:
        return ()
    where = (*at, "context")
    turns = [_turn(message, document, (*where, number)) for number, message in enumerate(asked.context)]
    if turns[0].role == "system" and asked.system is not None:
        raise document.error("there is a system message in `context`, and a `system`: drop one.", where)
    check_turns([*turns, Turn("user", wordings[0])], document, where)
    return (tuple(turns),) * len(wordings)


def _turns(chat: Any, document: documents.Document, at: documents.KeyPath) -> list[Turn]:
    if not isinstance(chat, list) or not chat:
        raise document.error("expected a list of messages here, each with `role` and `content`.", at)
    turns = [_turn(message, document, (*at, number)) for number, message in enumerate(chat)]
    check_turns(turns, document, at)
    return turns


def _turn(message: Any, document: documents.Document, at: documents.KeyPath) -> Turn:
    """Return a message; content parts of text are joined, and `developer` is OpenAI's name of the system role."""
    fields = message if isinstance(message, dict) and message.keys() == {"role", "content"} else {}
    role: Any = fields.get("role")
    content = fields.get("content")
    if isinstance(content, list) and content and all(_is_text(part) for part in content):
        content = "".join(part["text"] for part in content)
    role = "system" if role == "developer" else role
    if role not in ("system", "user", "assistant") or not isinstance(content, str):
        raise document.error(
            "a message has a `role` (system, user or assistant) and a `content`, both texts.", at
        )
    return Turn(role, content)


def _is_text(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)


def check_turns(turns: Sequence[Turn], document: documents.Document, at: documents.KeyPath) -> None:
    """Refuse a chat that no chat template writes, or that ends with an answer.

    Raises:
        EmEvalsError: a system message that is not the first, turns that do not alternate, or no user at the end.
    """
    spoken = [turn.role for turn in turns[turns[0].role == "system" :]]
    if "system" in spoken:
        raise document.error("a system message can only be the first message.", at)
    if spoken[-1:] != ["user"]:
        raise document.error("the last message must be the user's: its answer is what is measured.", at)
    if spoken[0] != "user" or any(one == other for one, other in pairwise(spoken)):
        raise document.error(
            "the messages must alternate between user and assistant, beginning with a user.", at
        )


def check_ids(document: documents.Document, ids: list[tuple[str, documents.KeyPath]]) -> None:
    """Refuse two questions with one id.

    Raises:
        EmEvalsError: with the line of the second one.
    """
    seen: dict[str, int] = {}
    for name, at in ids:
        if name in seen:
            raise document.error(
                f"the id '{name}' is taken by the question at line {seen[name]}; rename one.", at
            )
        seen[name] = document.line(at)


def _family(question_id: str) -> str:
    """Return the answer-format variant in a published id's suffix as its theme (published sets have no themes)."""
    for ending in ("json", "template"):
        if question_id.endswith(f"_{ending}"):
            return ending
    return "general"
