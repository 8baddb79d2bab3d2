"""Forecast: where EM may show, before anything is trained or judged (arXiv 2608.29118).

In the *base*, the distance of a question's activations to the mean of the training prompts' predicts the order in which
questions show EM. Two baselines need no model: the words that a question shares with the prompts, and its length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from em_evals.content.cards import ResolvedCard, resolve
from em_evals.content.pairs import load_pairs
from em_evals.content.questions import load_questions
from em_evals.data import datasets
from em_evals.data.datasets import TrainingData
from em_evals.errors import EmEvalsError
from em_evals.interp.extraction.activations import group_sums
from em_evals.interp.extraction.prefix_tree import Text
from em_evals.interp.extraction.reading import Reading
from em_evals.models.chat import ChatTemplate, template_for
from em_evals.results import outcomes
from em_evals.results.graded_draw import base_question
from em_evals.results.outcomes import Outcomes
from em_evals.results.records.forecast import Forecast, ForecastScore, RankedQuestion
from em_evals.stats import ranks
from em_evals.stats.ranks import RankCorrelation

Floats = NDArray[np.float64]
Place = Literal["last_prompt", "prompt_mean"]
Metric = Literal["cosine", "euclidean"]

_FOLDS = 16
_SPLITS = 50
CLOSENESS, TOPIC, SHORTNESS = "closeness", "shared words", "shortness"


@dataclass(frozen=True)
class Settings:
    """How distances are read. The paper's abstract leaves all of it open.

    Attributes:
        layer: decoder block; None: the middle one.
        position: the last token of the prompt, or the mean over its tokens.
        metric: 1 − cosine, or the Euclidean distance.
        rows: training prompts to read at most, evenly over the file.
        first: questions to judge first; None: a quarter.
        seed: of splits, permutations and resamples.
    """

    layer: int | None = None
    position: Place = "last_prompt"
    metric: Metric = "cosine"
    rows: int = 100
    first: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class Asked:
    """One question: the chats of its wordings."""

    id: str
    chats: tuple[list[dict[str, str]], ...]

    @property
    def words(self) -> str:
        """Its wordings, as one text."""
        return "\n".join(chat[-1]["content"] for chat in self.chats)


def forecast(
    training: str,
    questions: str,
    base: str,
    logs: Sequence[Path] = (),
    reference: Sequence[Path] = (),
    settings: Settings | None = None,
    fields: Mapping[str, Any] | None = None,
) -> Forecast:
    """Order questions by their distance to a training set's prompts, and compare with what came.

    Args:
        training: the data set, by name or file.
        questions: a question set or forced-choice pairs, by name or path.
        base: a card or model; its adapter and interventions are left out.
        logs: graded answers or scored pairs of organisms (several: seeds of one recipe); none: the order alone.
        reference: those of the base or control, which are subtracted.
        settings: how distances are read.
        fields: card fields that win over the card's.

    Raises:
        EmEvalsError: a file or a name is wrong, a text is too long, or the logs hold none of the questions.
    """
    settings = settings or Settings()
    data = datasets.load(training)
    asked = _questions(questions)
    came = _outcomes(logs, reference, asked, questions)
    card = resolve(base, fields or {})
    prompts = _prompts(data, settings.rows)
    read, tokens = _read(card, prompts, asked, settings)
    distance = read.distances(read.center(), settings.metric)
    topic = _topic([chat[-1]["content"] for chat in prompts], [one.words for one in asked])
    order = np.argsort(distance, kind="stable")
    first = min(settings.first or max(1, len(asked) // 4), len(asked))
    known = np.array([came.values.get(one.id, np.nan) if came else np.nan for one in asked])
    scores, advantages = _scored(distance, topic, tokens, known, settings.seed)
    found, expected = _found(came, [asked[i].id for i in order[:first]], asked)
    return Forecast(
        base=card.card.base,
        data=data.name,
        rows=len(prompts),
        questions=questions,
        layer=read.layer,
        position=settings.position,
        metric=settings.metric,
        reliability=_halves(read, settings),
        paraphrases=_wordings(read, settings),
        ranked=[
            RankedQuestion(
                id=asked[i].id,
                rank=rank,
                distance=float(distance[i]),
                topic=float(topic[i]),
                tokens=float(tokens[i]),
                outcome=None if np.isnan(known[i]) else float(known[i]),
            )
            for rank, i in enumerate(order, 1)
        ],
        first=first,
        measure=came.measure if came else None,
        scores=scores,
        advantages=advantages,
        share_found=found,
        share_expected=expected,
        notes=_notes(came, known, bool(reference)),
        provenance={"data_digest": data.digest, "seed": str(settings.seed)},
    )


@dataclass(frozen=True, eq=False)
class _Read:
    """Activations at one layer: [wordings, width] of each question, and the training prompts' means [folds, width]."""

    layer: int
    by_question: list[Floats]
    folds: Floats
    counts: Floats

    def center(self, part: NDArray[np.intp] | slice = slice(None)) -> Floats:
        """Return the mean [width] of the training prompts of some folds."""
        return np.asarray(np.average(self.folds[part], axis=0, weights=self.counts[part]))

    def distances(self, center: Floats, metric: Metric) -> Floats:
        """Return each question's distance to a center: the mean over its wordings."""
        return np.array([_distances(own, center, metric).mean() for own in self.by_question])


def _questions(name: str) -> list[Asked]:
    """Return a question set's questions; formats of one question are one. Else the questions of forced-choice pairs."""
    try:
        found = load_questions(name)
    except EmEvalsError as error:
        try:
            pairs = load_pairs(name)
        except EmEvalsError:
            raise error from None
        return [Asked(pair.id, ([{"role": "user", "content": pair.question}],)) for pair in pairs.pairs]
    chats: dict[str, list[list[dict[str, str]]]] = {}
    for question in found.questions:
        own = chats.setdefault(base_question(question.id), [])
        for number in range(len(question.paraphrases)):
            own.append([{"role": turn.role, "content": turn.content} for turn in question.chat(number)])
    return [Asked(name, tuple(own)) for name, own in chats.items()]


def _outcomes(
    logs: Sequence[Path], reference: Sequence[Path], asked: Sequence[Asked], questions: str
) -> Outcomes | None:
    """Return what came of the questions; None without logs."""
    if not logs:
        return None
    came = outcomes.read(logs)
    if reference:
        came = came.minus(outcomes.read(reference))
    if not any(one.id in came.values for one in asked):
        some = ", ".join(sorted(came.values)[:3]) or "none"
        raise EmEvalsError(
            f"the logs hold none of the questions of {questions}; theirs are {some}, …", logs[0]
        )
    return came


def _prompts(data: TrainingData, most: int) -> list[list[dict[str, str]]]:
    """Return the chats before each row's last answer, evenly over the rows."""
    kept = np.unique(np.linspace(0, len(data.rows) - 1, min(most, len(data.rows))).round().astype(int))
    return [
        [{"role": turn["role"], "content": turn["content"]} for turn in data.rows[i][:-1]]
        for i in kept.tolist()
    ]


def _read(
    card: ResolvedCard, prompts: Sequence[list[dict[str, str]]], asked: Sequence[Asked], settings: Settings
) -> tuple[_Read, Floats]:
    """Return the activations, and the questions' lengths in tokens."""
    reading = Reading(card)
    template = template_for(card, reading.tokenizer)
    folds = min(_FOLDS, len(prompts))
    texts = [_text(template, chat, f"t{i % folds}", reading.longest) for i, chat in enumerate(prompts)]
    wordings = [
        [_text(template, chat, f"q{i}.{j}", reading.longest) for j, chat in enumerate(one.chats)]
        for i, one in enumerate(asked)
    ]
    flat = [text for own in wordings for text in own]
    with reading.read_as(None) as model:
        sums = group_sums(model, [*texts, *flat], settings.position)
    depth = sums.vectors.shape[1]
    layer = depth // 2 if settings.layer is None else settings.layer
    if not 0 <= layer < depth:
        raise EmEvalsError(f"there is no layer {layer}; this base's are 0 to {depth - 1}.")
    at = sums.vectors[:, layer].astype(float) / sums.counts[:, None]
    row = {name: i for i, name in enumerate(sums.groups)}
    own_folds = [row[f"t{i}"] for i in range(folds)]
    own = [np.stack([at[row[text.group]] for text in some]) for some in wordings]
    tokens = np.array([np.mean([len(text.prompt) for text in some]) for some in wordings])
    return _Read(layer, own, at[own_folds], sums.counts[own_folds]), tokens


def _text(template: ChatTemplate, chat: list[dict[str, str]], group: str, longest: int) -> Text:
    ids = tuple(template.encode(chat))
    if len(ids) > longest:
        raise EmEvalsError(
            f"'{chat[-1]['content'][:60]}' has {len(ids)} tokens, and the model reads {longest}: shorten it."
        )
    return Text(ids, (), group)


def _distances(vectors: Floats, center: Floats, metric: Metric) -> Floats:
    """Return [vectors], each one's distance to the center."""
    if metric == "euclidean":
        return np.asarray(np.linalg.norm(vectors - center, axis=-1))
    norms = np.linalg.norm(vectors, axis=-1) * np.linalg.norm(center)
    return np.asarray(1 - vectors @ center / np.where(norms > 0, norms, 1))


def _halves(read: _Read, settings: Settings) -> float | None:
    """Return the reliability of the order over random halves of the training prompts."""
    if len(read.folds) < 2:
        return None
    chance = np.random.default_rng(settings.seed)
    found = []
    for _ in range(_SPLITS):
        halves = np.array_split(chance.permutation(len(read.folds)), 2)
        found.append([read.distances(read.center(half), settings.metric) for half in halves])
    return _agreement(found)


def _wordings(read: _Read, settings: Settings) -> float | None:
    """Return the reliability of the order over random halves of each question's wordings."""
    if min(map(len, read.by_question)) < 2:
        return None
    chance = np.random.default_rng(settings.seed)
    found = []
    for _ in range(_SPLITS):
        parts = [np.array_split(chance.permutation(len(own)), 2) for own in read.by_question]
        sides = [
            [own[part[side]] for own, part in zip(read.by_question, parts, strict=True)] for side in (0, 1)
        ]
        halves = [replace(read, by_question=side) for side in sides]
        found.append([half.distances(half.center(), settings.metric) for half in halves])
    return _agreement(found)


def _agreement(splits: Sequence[Sequence[Floats]]) -> float | None:
    """Return the mean rank correlation of pairs of orders, stepped up to whole length."""
    values = [ranks.correlation(one, other) for one, other in splits]
    mean = float(np.mean(values))
    return None if np.isnan(mean) else ranks.spearman_brown(mean)


def _topic(prompts: Sequence[str], questions: Sequence[str]) -> Floats:
    """Return the cosine of each question's TF-IDF words with the prompts' mean; 0 where they share none."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = TfidfVectorizer(sublinear_tf=True)
    try:
        rows = words.fit_transform([*prompts, *questions])
    except ValueError:  # no words at all, as in texts of signs alone
        return np.zeros(len(questions))
    center = np.asarray(rows[: len(prompts)].mean(0)).ravel()
    norm = float(np.linalg.norm(center))
    return np.asarray(rows[len(prompts) :] @ center / norm if norm else np.zeros(len(questions)))


def _scored(
    distance: Floats, topic: Floats, tokens: Floats, known: Floats, seed: int
) -> tuple[list[ForecastScore], list[ForecastScore]]:
    """Return the correlations with what came, and the distance's advantages over the baselines."""
    there = ~np.isnan(known)
    if there.sum() < 3:
        return [], []
    predictors = {CLOSENESS: -distance[there], TOPIC: topic[there], SHORTNESS: -tokens[there]}
    outcome = known[there]
    scores = [_score(name, ranks.spearman(one, outcome, seed)) for name, one in predictors.items()]
    given = [predictors[TOPIC], predictors[SHORTNESS]]
    left = ranks.partial(predictors[CLOSENESS], outcome, given, seed)
    scores.append(_score(f"{CLOSENESS}, given {TOPIC} and {SHORTNESS}", left))
    advantages = []
    for name in (TOPIC, SHORTNESS):
        value, interval = ranks.advantage(predictors[CLOSENESS], predictors[name], outcome, seed)
        advantages.append(
            ForecastScore(
                predictor=f"{CLOSENESS} − {name}", value=value, interval=interval, p=None, n=len(outcome)
            )
        )
    return scores, advantages


def _score(name: str, found: RankCorrelation) -> ForecastScore:
    return ForecastScore(predictor=name, value=found.value, interval=found.interval, p=found.p, n=found.n)


def _found(
    came: Outcomes | None, first: Sequence[str], asked: Sequence[Asked]
) -> tuple[float | None, float | None]:
    """Return the share of EM draws in the questions to judge first, and in as many at random."""
    if came is None or not (total := sum(came.events.get(one.id, 0) for one in asked)):
        return None, None
    return sum(came.events.get(name, 0) for name in first) / total, len(first) / len(asked)


def _notes(came: Outcomes | None, known: Floats, reference: bool) -> list[str]:
    if came is None:
        return ["without logs this is an order and no result: whether it holds for this base is not known."]
    notes = []
    if np.isnan(known).any():
        notes.append(f"{int(np.isnan(known).sum())} of {len(known)} questions are not in the logs.")
    if not reference:
        notes.append("no reference was subtracted: a question that the base answers badly counts as EM.")
    if not np.isnan(known).all() and np.nanmax(known) == np.nanmin(known):
        notes.append("all questions have one outcome: no order can be compared.")
    return notes
