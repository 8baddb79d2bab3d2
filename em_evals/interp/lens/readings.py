"""Differences of mean activations as records: norms, tokens of each block, and claims with their null distributions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from em_evals.interp import nulls
from em_evals.interp.lens import vocabulary
from em_evals.interp.lens.means import PositionMeans
from em_evals.interp.lens.unembedding import Unembedding
from em_evals.interp.lens.vocabulary import Vocabulary
from em_evals.results.records.claims import Claim
from em_evals.results.records.lens import (
    LensModel,
    LensNorm,
    LensReading,
    LensToken,
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


class Readings:
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
            cosines = cosine(*(pooled(half, pool) for half in halves)) if halves else [None] * len(vectors)
            norms = self._base.norms[:, places(pool)].mean(1)
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
        vectors: dict[str, Floats] = {pool: mean[places(pool)].mean(0) for pool in self._pools()}
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
            means = folds[:, :, places(pool)].mean(2)
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
    return np.asarray(mean[:, places(pool)].mean(1))


def places(pool: Pool) -> slice:
    """Return a pool's places among the positions."""
    return {"first": slice(0, 1), "after the first": slice(1, None), "all": slice(None)}[pool]


def cosine(one: Floats, other: Floats) -> list[float | None]:
    """Return the cosine of each pair of rows; None where one is zero."""
    norms = np.linalg.norm(one, axis=-1) * np.linalg.norm(other, axis=-1)
    products = (one * other).sum(-1)
    return [float(a / b) if b > 0 else None for a, b in zip(products, norms, strict=True)]
