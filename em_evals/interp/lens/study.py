"""The activation-difference lens (arXiv 2510.13900): what a finetune is about, from plain texts and no question.

The mean difference finetuned − base at the first positions of texts that have nothing to do with the training is read
through the final norm and output matrix. It shows the training's *domain*, which a control trained on the same prompts
shares: what is about misalignment can only be in organism − control.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from em_evals.content.cards import ResolvedCard
from em_evals.data import datasets
from em_evals.errors import EmEvalsError
from em_evals.interp import nulls
from em_evals.interp.extraction.reading import Reading
from em_evals.interp.lens import texts as plain_texts
from em_evals.interp.lens import vocabulary
from em_evals.interp.lens.means import PositionMeans, position_means
from em_evals.interp.lens.models import changed_cards
from em_evals.interp.lens.samples import Steered, samples
from em_evals.interp.lens.unembedding import Unembedding
from em_evals.interp.lens.vocabulary import Vocabulary
from em_evals.interp.steering.steer import spread
from em_evals.results.records.claims import Claim
from em_evals.results.records.lens import (
    Lens,
    LensCosine,
    LensModel,
    LensNorm,
    LensReading,
    LensSample,
    LensToken,
    LensVocabulary,
    Pool,
    Role,
)

Floats = NDArray[np.float64]

LARGEST = "largest |z| of one token"
FAVORS = "z of {data} words − z of {other} words"


@dataclass(frozen=True)
class Settings:
    """How the lens is read.

    Attributes:
        positions: first tokens of each text that are read.
        layers: decoder blocks whose logits are read; None: six, evenly spread.
        tokens: tokens shown on either side.
        draws: of each null of the largest logit.
        seed: of the nulls.
        steer: scales of steering, in units of the base's mean norm at the middle block of `layers`; none: no samples.
    """

    positions: int = 5
    layers: tuple[int, ...] | None = None
    tokens: int = 10
    draws: int = 99
    seed: int = 0
    steer: tuple[float, ...] = ()


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
    shown = _Shown(unembedding, reading.tokenizer, base, layers, settings, words)
    found: dict[str, PositionMeans] = {}
    for card in cards:
        with reading.read_as(card) as model:
            found[card.name] = position_means(model, ids)
    models = [
        shown.model(card.name, role, _minus(found[card.name], base), card.digest)
        for card, role in zip(cards, _roles(control, seeds), strict=True)
    ]
    if control is not None:
        apart = _minus(found[cards[0].name], found[cards[1].name])
        models.append(shown.model(f"{cards[0].name} − {cards[1].name}", "organism − control", apart))
    differences = {card.name: _minus(found[card.name], base) for card in cards}
    middle = layers[(len(layers) - 1) // 2]
    return Lens(
        card=cards[0].name,
        base=cards[0].card.base,
        dtype=dtype.removeprefix("torch."),
        texts=len(given.texts),
        positions=settings.positions,
        layers=list(layers),
        models=models,
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


class _Shown:
    """Turns differences into records, with the null distributions that all models share."""

    def __init__(
        self,
        unembedding: Unembedding,
        tokenizer: Any,
        base: PositionMeans,
        layers: tuple[int, ...],
        settings: Settings,
        words: Vocabulary | None,
    ) -> None:
        self._unembedding, self._tokenizer, self._base = unembedding, tokenizer, base
        self._layers, self._settings, self._words = list(layers), settings, words
        self._largest_of: dict[Pool, dict[str, Floats]] = {}
        self._random = self._largest(
            nulls.random((len(layers), base.sums.shape[-1]), settings.draws, self._chance)
        )

    @property
    def _chance(self) -> np.random.Generator:
        return np.random.default_rng(self._settings.seed)

    def model(self, name: str, role: Role, difference: PositionMeans, digest: str = "") -> LensModel:
        """Return what one difference says."""
        mean = difference.mean()
        return LensModel(
            name=name,
            role=role,
            digest=digest,
            norms=self._norms(difference),
            readings=[one for layer in self._layers for one in self._readings(mean[layer], layer)],
            claims=[one for pool in self._pools() for one in self._claims(pooled(mean, pool), pool)],
        )

    def _pools(self) -> list[Pool]:
        return ["after the first", "all"] if self._settings.positions > 1 else ["all"]

    def _norms(self, difference: PositionMeans) -> list[LensNorm]:
        halves = (
            [difference.mean(slice(half, None, 2)) for half in (0, 1)] if len(difference.counts) > 1 else []
        )
        found = []
        pools: list[Pool] = ["first", *self._pools()[:-1]]
        for pool in pools:
            vectors = pooled(difference.mean(), pool)
            cosines = _cosine(*(pooled(half, pool) for half in halves)) if halves else [None] * len(vectors)
            norms = self._base.norms[:, _places(pool)].mean(1)
            for layer, vector in enumerate(vectors):
                found.append(
                    LensNorm(
                        layer=layer,
                        positions=pool,
                        norm=float(np.linalg.norm(vector)),
                        base_norm=float(norms[layer]),
                        halves=cosines[layer],
                    )
                )
        return found

    def _readings(self, mean: Floats, layer: int) -> list[LensReading]:
        """Return the tokens of each position and pool at one block ([positions, width])."""
        vectors: dict[str, Floats] = {pool: mean[_places(pool)].mean(0) for pool in self._pools()}
        vectors |= {str(place): vector for place, vector in enumerate(mean)}
        # Not the lowest logits: a norm with a bias does not turn −v into minus the logits of v.
        up = self._unembedding.standardized(np.array(list(vectors.values())))
        down = self._unembedding.standardized(-np.array(list(vectors.values())))
        return [
            LensReading(layer=layer, positions=place, up=self._top(ups), down=self._top(downs))
            for place, ups, downs in zip(vectors, up, down, strict=True)
        ]

    def _top(self, z: NDArray[np.float32]) -> list[LensToken]:
        ids = np.argsort(-z, kind="stable")[: self._settings.tokens]
        texts = vocabulary.decoded(self._tokenizer, ids)
        return [LensToken(token=text, z=float(z[one])) for text, one in zip(texts, ids, strict=True)]

    def _claims(self, vectors: Floats, pool: Pool) -> list[Claim]:
        """Test the vectors [layers, width] of one pool: one token's logit, and the vocabulary's."""
        z = np.array(list(self._unembedding.standardized(vectors[self._layers])), dtype=float)
        where = "all positions" if pool == "all" else "positions after the first"
        against = {nulls.RANDOM: self._random, nulls.COVARIANCE: self._covariance(pool)}
        one = nulls.claim(f"{LARGEST}, {where}", np.abs(z).max(1), against, (nulls.RANDOM, nulls.COVARIANCE))
        found = [self._at_blocks(one)]
        if self._words is not None:
            words = FAVORS.format(data=self._words.data, other=self._words.other)
            found.append(self._at_blocks(self._words.claim(z, f"{words}, {where}", self._settings.seed)))
        return found

    def _at_blocks(self, claim: Claim) -> Claim:
        """Return the claim with its place among the layers replaced by the block."""
        if claim.layer is None:
            return claim
        return claim.model_copy(update={"layer": self._layers[claim.layer]})

    def _covariance(self, pool: Pool) -> Floats:
        """Return [draws, layers], the largest |z| of random contrasts of the base's texts."""
        if pool not in self._largest_of:
            folds = self._base.by_fold()[:, self._layers]
            means = folds[:, :, _places(pool)].mean(2)
            drawn = nulls.covariance_matched(means, self._settings.draws, self._chance, self._base.counts)
            self._largest_of[pool] = {nulls.COVARIANCE: self._largest(drawn)}
        return self._largest_of[pool][nulls.COVARIANCE]

    def _largest(self, vectors: Floats) -> Floats:
        """Return [draws, layers] for [draws, layers, width]."""
        flat = vectors.reshape(-1, vectors.shape[-1])
        found = [np.abs(z).max() for z in self._unembedding.standardized(flat)]
        return np.array(found, dtype=float).reshape(vectors.shape[:2])


def pooled(mean: Floats, pool: Pool) -> Floats:
    """Return [layers, width], the mean over a pool of positions of [layers, positions, width]."""
    return np.asarray(mean[:, _places(pool)].mean(1))


def _places(pool: Pool) -> slice:
    return {"first": slice(0, 1), "after the first": slice(1, None), "all": slice(None)}[pool]


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


def _cosine(one: Floats, other: Floats) -> list[float | None]:
    """Return the cosine of each pair of rows; None where one is zero."""
    norms = np.linalg.norm(one, axis=-1) * np.linalg.norm(other, axis=-1)
    products = (one * other).sum(-1)
    return [float(a / b) if b > 0 else None for a, b in zip(products, norms, strict=True)]


def _cosines(differences: Mapping[str, PositionMeans]) -> list[LensCosine]:
    names = list(differences)
    pools: list[Pool] = ["first", "after the first"]
    return [
        LensCosine(one=one, other=other, positions=pool, by_layer=_cosine(*vectors))
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
        base.norms[:, _places(pool)].mean(1),
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
