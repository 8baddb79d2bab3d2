"""The activation-difference lens (arXiv 2510.13900): what a finetune is about, from plain texts and no question.

The mean difference finetuned − base at the first positions of texts that have nothing to do with the training is read
through the final norm and output matrix. It shows the training's *domain*, which a control trained on the same prompts
shares: what is about misalignment can only be in organism − control.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from em_evals.content.cards import ResolvedCard
from em_evals.data import datasets
from em_evals.errors import EmEvalsError
from em_evals.interp.extraction.reading import Reading
from em_evals.interp.lens import texts as plain_texts
from em_evals.interp.lens import vocabulary
from em_evals.interp.lens.means import PositionMeans, position_means
from em_evals.interp.lens.models import changed_cards
from em_evals.interp.lens.readings import Readings, Settings, cosine, places, pooled
from em_evals.interp.lens.samples import Steered, samples
from em_evals.interp.lens.unembedding import Unembedding
from em_evals.interp.lens.vocabulary import Vocabulary
from em_evals.interp.steering.steer import spread
from em_evals.results.records.lens import (
    Lens,
    LensCosine,
    LensModel,
    LensSample,
    LensVocabulary,
    Pool,
    Role,
)


def lens(
    name: str,
    control: str | None = None,
    seeds: Sequence[str] = (),
    texts: Path | None = None,
    data: str | None = None,
    other: str = "everyday_answers",
    settings: Settings | None = None,
    fields: Mapping[str, Any] | None = None,
) -> Lens:
    """Read the difference between a card's model and its base.

    Args:
        name: the organism's card.
        control: the matched control's card; None: nothing about misalignment can be said.
        seeds: cards of the same recipe with other training seeds.
        texts: plain texts; None: the shipped ones.
        data: training data whose words are looked for; None: no such test.
        other: the data that they are compared with.
        settings: how it is read.
        fields: card fields that win over the cards'.

    Raises:
        EmEvalsError: a card has another base or changes nothing, or the texts are too short.
    """
    settings = settings or Settings()
    names = [name, *([control] if control is not None else []), *seeds]
    cards = changed_cards(names, fields or {})
    given = plain_texts.read(texts)
    sets = [datasets.load(data), datasets.load(other)] if data is not None else None
    reading = Reading(cards[0])
    size = len(reading.tokenizer)
    ids = plain_texts.beginnings(reading.tokenizer, given, settings.positions)
    words = vocabulary.of(reading.tokenizer, sets[0], sets[1], size) if sets is not None else None
    with reading.read_as(None) as model:
        base, unembedding, dtype = position_means(model, ids), Unembedding(model, size), str(model.dtype)
    layers = _layers(settings, base.norms.shape[0])
    shown = Readings(unembedding, reading.tokenizer, base, layers, settings, words)
    found: dict[str, PositionMeans] = {}
    for card in cards:
        with reading.read_as(card) as model:
            found[card.name] = position_means(model, ids)
    differences = {card.name: _minus(found[card.name], base) for card in cards}
    middle = layers[(len(layers) - 1) // 2]
    return Lens(
        card=cards[0].name,
        base=cards[0].card.base,
        dtype=dtype.removeprefix("torch."),
        texts=len(given.texts),
        positions=settings.positions,
        layers=list(layers),
        models=_models(shown, cards, differences, control, seeds),
        cosines=_cosines(differences),
        vocabulary=_words(words, reading.tokenizer),
        steered_at=middle if settings.steer else None,
        samples=_samples(cards, differences, base, middle, settings, words),
        notes=_notes(control, dtype, words),
        provenance={
            "texts": given.path.name,
            "texts_digest": given.digest,
            **({"data_digest": sets[0].digest, "other_digest": sets[1].digest} if sets is not None else {}),
        },
    )


def _models(
    shown: Readings,
    cards: Sequence[ResolvedCard],
    differences: Mapping[str, PositionMeans],
    control: str | None,
    seeds: Sequence[str],
) -> list[LensModel]:
    models = [
        shown.model(card.name, role, differences[card.name], card.digest)
        for card, role in zip(cards, _roles(control, seeds), strict=True)
    ]
    if control is not None:
        organism, other = cards[0].name, cards[1].name
        apart = _minus(differences[organism], differences[other])
        models.append(shown.model(f"{organism} − {other}", "organism − control", apart))
    return models


def _minus(one: PositionMeans, other: PositionMeans) -> PositionMeans:
    """Return the differences of two models on the same texts, fold by fold."""
    return PositionMeans(one.counts, one.sums - other.sums, one.norms - other.norms)


def _roles(control: str | None, seeds: Sequence[str]) -> list[Role]:
    return ["organism", *(["control"] if control is not None else []), *(["seed"] * len(seeds))]  # type: ignore[list-item]


def _layers(settings: Settings, depth: int) -> tuple[int, ...]:
    layers = settings.layers if settings.layers is not None else spread(depth)
    if wrong := [layer for layer in layers if not 0 <= layer < depth]:
        raise EmEvalsError(f"there is no layer {wrong[0]}; this base's are 0 to {depth - 1}.")
    return tuple(sorted(layers))


def _cosines(differences: Mapping[str, PositionMeans]) -> list[LensCosine]:
    names = list(differences)
    pools: list[Pool] = ["first", "after the first"]
    return [
        LensCosine(one=one, other=other, positions=pool, by_layer=cosine(*vectors))
        for pool in pools
        if pool == "first" or differences[names[0]].sums.shape[2] > 1
        for i, one in enumerate(names)
        for other in names[i + 1 :]
        for vectors in [[pooled(differences[name].mean(), pool) for name in (one, other)]]
    ]


def _words(words: Vocabulary | None, tokenizer: Any) -> LensVocabulary | None:
    if words is None:
        return None
    sides = [words.ids[words.own], words.ids[~words.own]]
    shown = [[text.strip() for text in vocabulary.decoded(tokenizer, side[:20])] for side in sides]
    return LensVocabulary(
        data=words.data,
        other=words.other,
        found=words.found,
        confirmed=(len(sides[0]), len(sides[1])),
        examples=(shown[0], shown[1]),
    )


def _samples(
    cards: Sequence[ResolvedCard],
    differences: Mapping[str, PositionMeans],
    base: PositionMeans,
    layer: int,
    settings: Settings,
    words: Vocabulary | None,
) -> list[LensSample]:
    if not settings.steer:
        return []
    pool: Pool = "after the first" if settings.positions > 1 else "first"
    arms = {name: pooled(one.mean(), pool) for name, one in differences.items()}
    steered = Steered(
        arms,
        pooled(base.mean(), pool),
        base.norms[:, places(pool)].mean(1),
        layer,
    )
    return samples(cards[0], steered, settings.steer, settings.seed, words)


def _notes(control: str | None, dtype: str, words: Vocabulary | None) -> list[str]:
    notes = [
        "a difference shows the domain and the voice of the training data; a control trained on the same prompts shows "
        "the same domain, so that a domain says nothing about misalignment.",
        "tokens are examples; only a claim that is `specific` lies beyond its null distributions.",
    ]
    if control is None:
        notes.append("no control was read: nothing here can be called misalignment.")
    if words is None:
        notes.append("no training data were named: whether the tokens are the training's was not tested.")
    if dtype != "torch.float32":
        notes.append(f"computed in {dtype.removeprefix('torch.')}; `-M dtype=float32` has less rounding.")
    return notes
