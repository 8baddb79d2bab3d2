"""The two sides of a contrast, each a set of texts and the model that reads them; a direction is their difference.

Texts come from graded logs, from two models' answers, from forced-choice pairs, or from two files of chats. A text's
group is its question: directions are found on some questions and tested on others.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from em_evals import files
from em_evals.content.cards import ResolvedCard
from em_evals.content.pairs import load_pairs
from em_evals.data import datasets
from em_evals.errors import EmEvalsError
from em_evals.interp.extraction.kinds import contrast
from em_evals.interp.extraction.prefix_tree import Text
from em_evals.models.chat import template_of
from em_evals.results.logs import facts, graded_draw, judged, named, read_log
from em_evals.results.turns import asked_and_answered

if TYPE_CHECKING:
    from inspect_ai.log import EvalLog, EvalSample


@dataclass(frozen=True)
class Chat:
    """A conversation that ends with an answer, and the question that it belongs to."""

    question: str
    messages: datasets.Messages


@dataclass(frozen=True)
class Side:
    """Texts, and the card that reads them (None: the bare base)."""

    chats: tuple[Chat, ...]
    reader: ResolvedCard | None


@dataclass(frozen=True)
class Contrast:
    """direction = mean of `positive` - mean of `negative`; `how` describes the contrast in words.

    `sources` are digests of the files that the texts come from and, for logs, the model that answered.
    `by_answers`: one model reads answers to the same questions on both sides, so tokens before the answers have no
    contrast.
    """

    positive: Side
    negative: Side
    how: str
    sources: dict[str, str]
    by_answers: bool = False


def bare(reader: ResolvedCard | None) -> bool:
    """Check whether the base alone reads the texts: no card, or one that adds nothing to its base."""
    return reader is None or (reader.adapter_path, reader.interventions) == (None, ())


@contrast("pairs", pairs="name", themes="themes", per_theme="per_theme")
def of_pairs(
    reader: ResolvedCard,
    name: str = "forced_choice",
    themes: Sequence[str] = (),
    per_theme: int | None = None,
) -> Contrast:
    """Contrast misaligned with aligned answers of forced-choice pairs, both read by the card.

    Args:
        reader: the card.
        name: a set of pairs.
        themes: only these themes; all if empty.
        per_theme: use the first N pairs of each theme.

    Raises:
        EmEvalsError: there are no such pairs.
    """
    pairs = load_pairs(name)
    if themes:
        pairs = pairs.select(themes)
    first = set(pairs.first(per_theme or len(pairs.pairs)))
    chosen = [pair for pair in pairs.pairs if pair.id in first]
    sides = [
        Side(tuple(_chat(pair.id, pair.question, getattr(pair, kind)) for pair in chosen), reader)
        for kind in ("misaligned", "aligned")
    ]
    how = f"{name}: misaligned - aligned answers"
    return Contrast(sides[0], sides[1], how, {name: pairs.digest}, by_answers=True)


@contrast("graded", log="logs")
def of_graded(reader: ResolvedCard, logs: Sequence[Path]) -> Contrast:
    """Contrast misaligned, coherent with aligned, coherent answers of graded freeform logs, read by the card.

    The thresholds are those of the rubrics that graded each answer; answers between them are on neither side.

    Raises:
        EmEvalsError: a file is not a finished log, or was not graded.
    """
    bad: list[Chat] = []
    good: list[Chat] = []
    sources: dict[str, str] = {}
    for path in logs:
        log = read_log(path)
        sources |= _source(path, log)
        for sample in log.samples or []:
            score = judged(sample)
            if score is None:
                raise EmEvalsError("this log was not graded; grade it with `inspect score` first.", path)
            chat = _of_sample(sample)
            draw = graded_draw(chat.question, score)
            if draw.misaligned_coherent:
                bad.append(chat)
            elif draw.aligned_coherent:
                good.append(chat)
    sides = [Side(tuple(chats), reader) for chats in (bad, good)]
    how = "graded answers: misaligned and coherent - aligned and coherent"
    return Contrast(sides[0], sides[1], how, sources, by_answers=True)


@contrast("answers", log="logs", base_log="base_logs")
def of_answers(reader: ResolvedCard, logs: Sequence[Path], base_logs: Sequence[Path]) -> Contrast:
    """Contrast the card's answers, read by the card, with the base's answers, read by the bare base.

    Raises:
        EmEvalsError: a file is not a finished log, a log is from the wrong model, or the card is its base itself.
    """
    _beside_its_base(reader)
    sides: list[Side] = []
    sources: dict[str, str] = {}
    for paths, model in ((logs, reader), (base_logs, None)):
        chats: list[Chat] = []
        for path in paths:
            log = read_log(path)
            _answered(path, log, reader, by_base=model is None)
            sources |= _source(path, log)
            chats += map(_of_sample, log.samples or [])
        sides.append(Side(tuple(chats), model))
    how = f"answers of {reader.name} - answers of its base, each read by its own model"
    return Contrast(sides[0], sides[1], how, sources)


@contrast("files", positive="positive", negative="negative")
def of_files(reader: ResolvedCard, positive: Path, negative: Path) -> Contrast:
    """Contrast the chats of two files, read by the card; chats with the same prompt belong to one question.

    Raises:
        EmEvalsError: a row is wrong, with file and line.
    """
    sides = [Side(tuple(_of_rows(datasets.read(path, path.stem))), reader) for path in (positive, negative)]
    how = f"{positive.stem} - {negative.stem}"
    return Contrast(sides[0], sides[1], how, _digests([positive, negative]))


def of_texts(
    reader: ResolvedCard, positive: Sequence[tuple[str, str]], negative: Sequence[tuple[str, str]]
) -> Contrast:
    """Contrast (question, answer) pairs with others, read by the card; texts of one question belong together."""
    sides = [
        Side(tuple(_chat(files.digest(asked), asked, answer) for asked, answer in side), reader)
        for side in (positive, negative)
    ]
    named = {"positive": positive, "negative": negative}
    digests = {name: files.digest(repr(list(side))) for name, side in named.items()}
    return Contrast(sides[0], sides[1], "given texts: positive - negative", digests)


def of_models(card: ResolvedCard, texts: Contrast) -> Contrast:
    """Contrast the card with its bare base on the same texts (both sides of another contrast): the fine-tune's shift.

    Raises:
        EmEvalsError: the card is its base itself.
    """
    _beside_its_base(card)
    chats = texts.positive.chats + texts.negative.chats
    how = f"{card.name} - its base, on the same texts ({texts.how})"
    return Contrast(Side(chats, card), Side(chats, None), how, texts.sources)


def encode(tokenizer: Any, chats: Iterable[Chat], max_length: int) -> list[Text]:
    """Encode chats, answers truncated so that a chat has `max_length` tokens; skip empty answers and too long prompts.

    Args:
        tokenizer: the base's, or the ChatTemplate of the card under study.
        chats: what to encode.
        max_length: maximum tokens of a chat.
    """
    template = template_of(tokenizer)
    texts = []
    for chat in chats:
        prompt = tuple(template.encode(chat.messages[:-1]))
        answer = tuple(template.answer(chat.messages[-1]["content"]))[: max_length - len(prompt)]
        if answer and len(prompt) < max_length:
            texts.append(Text(prompt, answer, chat.question))
    return texts


def _beside_its_base(card: ResolvedCard) -> None:
    """Refuse a comparison of a model with itself: a full fine-tune is the base of its card."""
    if bare(card):
        raise EmEvalsError(
            f"{card.name} is a whole model with nothing on top of its base, so there is no base to compare it with: "
            "train it as a LoRA, or use --contrast pairs."
        )


def _chat(question: str, asked: str, answer: str) -> Chat:
    return Chat(question, [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}])


def _of_rows(data: datasets.TrainingData) -> Iterable[Chat]:
    for row, prompt in zip(data.rows, data.prompts, strict=True):
        yield Chat(files.digest(prompt), row)


def _of_sample(sample: EvalSample) -> Chat:
    # In another format (`-T format=json`) it is the same question.
    asked_as = sample.metadata.get("base_question_id") or sample.metadata.get("question_id")
    question = str(asked_as or sample.id)
    return Chat(question, asked_and_answered(sample))


def _answered(path: Path, log: EvalLog, card: ResolvedCard, by_base: bool) -> None:
    """Refuse a log whose model is known to be another: swapped, the direction would have the opposite sign."""
    told = facts(log).cards
    own = log.eval.model == f"local/{card.name}" or card.digest in told
    if by_base and own:
        raise EmEvalsError(
            f"these are answers of {card.name}, and --base-log takes those of its base: give them as --log.",
            path,
        )
    if not by_base and told and not own:
        raise EmEvalsError(
            f"these are answers of {named(log.eval.model)}, and --log takes those of {card.name}: give its own log.",
            path,
        )


def _source(path: Path, log: EvalLog) -> dict[str, str]:
    return {path.name: f"{named(log.eval.model)}, {files.digest(path.read_bytes())}"}


def _digests(paths: Sequence[Path]) -> dict[str, str]:
    return {path.name: files.digest(path.read_bytes()) for path in paths}
