"""Compare mean activations of interp/extraction (packed texts) with one text at a time and plain hooks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from em_evals.content.directions import Direction
from em_evals.content.intervention import Intervention
from em_evals.interp.extraction.activations import GroupSums, group_sums
from em_evals.interp.extraction.prefix_tree import Text
from em_evals.workflows.verify.asking import Subject, refused
from em_evals.workflows.verify.gaps import Rule, Spread
from em_evals.workflows.verify.plain import Plain
from em_evals.workflows.verify.prompts import Prompts
from em_evals.workflows.verify.verdict import Row, failed, sentence, skipped

COMPARED = "mean activations after each block: one text at a time, plain hooks"
_GROUPS = 3

Sums = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Sums of the texts' means, [groups, layers, width], and of their mean norms, [groups, layers]."""


@dataclass(frozen=True, eq=False)
class Read:
    """The product's mean activations, or why it could not compute them.

    Attributes:
        name: the row's name.
        adapter: the adapter under which texts were read.
        ones: the interventions.
        sums: the result.
    """

    name: str
    adapter: str | None
    ones: tuple[Intervention, ...]
    sums: GroupSums | Exception


def texts_of(prompts: Prompts) -> list[Text]:
    """Return texts of a few questions: several answers to one prompt, common beginnings, texts across a border."""
    rows = [*prompts.shared()[:4], prompts.lengths()[3], prompts.across(3)]
    made = [Text(row, prompts.answers(i)[0], f"q{i % _GROUPS}") for i, row in enumerate(rows)]
    return made + [Text(rows[i], prompts.answers(i)[1], f"q{i}") for i in range(2)]


def read(
    subject: Subject, texts: Sequence[Text], name: str, adapter: str | None, ones: tuple[Intervention, ...]
) -> Read:
    """Compute the texts' activations with the product, as it does for directions."""
    try:
        with subject.activations(adapter, ones) as base:
            return Read(name, adapter, ones, group_sums(base.model, texts))
    except Exception as error:  # any failure becomes a row of the table
        return Read(name, adapter, ones, error)


def plainly(plain: Plain, texts: Sequence[Text], one: Read) -> Sums | Exception:
    """Compute the same sums with the plain side."""
    names = list(dict.fromkeys(text.group for text in texts))
    vectors: Any = [0.0] * len(names)
    norms: Any = [0.0] * len(names)
    try:
        for text in texts:
            stream = plain.streams(text, one.adapter, one.ones)
            place = names.index(text.group)
            vectors[place] = vectors[place] + stream.mean(1)
            norms[place] = norms[place] + np.linalg.norm(stream, axis=-1).mean(1)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        return error
    return np.stack(vectors), np.stack(norms)


def row(one: Read, plain: Sums | Exception, exact: Sums | Exception | None, dtype: str, note: str) -> Row:
    """Return the row of a reading.

    Args:
        one: the product's result.
        plain: the plain side's, in the card's dtype.
        exact: the same in float32; None in float32, or where it does not fit in memory.
        dtype: the card's, as bfloat16.
        note: what the check does not cover.
    """
    if isinstance(one.sums, Exception):
        if refused(one.sums):
            return skipped(one.name, COMPARED, f"refused: {sentence(one.sums)}", "relative")
        return failed(one.name, COMPARED, one.sums, "relative")
    if isinstance(plain, Exception):
        return skipped(one.name, COMPARED, f"the plain side fails: {sentence(plain)}", "relative")
    spread = Spread.of(_relative((one.sums.vectors, one.sums.norms), plain))
    known = exact if isinstance(exact, tuple) else None
    rounding = None if dtype == "float32" else Spread.of(_relative(plain, known) if known else [0.0])
    allowed = Rule(dtype, rounding, scale=1.0 if rounding is not None and known is None else None).tolerance()
    reason = allowed.problem(spread)
    return Row(
        one.name,
        COMPARED,
        spread.largest,
        allowed.largest,
        "relative",
        spread.n,
        "ok" if reason is None else "wrong",
        "; ".join(text for text in (reason, note) if text),
    )


def _relative(found: tuple[NDArray[Any], NDArray[Any]], plain: Sums) -> list[float]:
    """Return differences of mean vectors over the plain mean's norm, and of mean norms over the plain one, by layer."""
    tiny = np.finfo(np.float64).tiny
    vectors = np.linalg.norm(found[0] - plain[0], axis=-1) / np.maximum(
        np.linalg.norm(plain[0], axis=-1), tiny
    )
    norms = np.abs(found[1] - plain[1]) / np.maximum(plain[1], tiny)
    return [float(one) for one in (*vectors.flatten(), *norms.flatten())]


def random_direction(sums: GroupSums) -> Direction:
    """Return a random direction, at each layer of a tenth of the norm of the model's mean activation.

    Its means are the model's own, so that relative scales and `reference: mean` act as they do in use.
    """
    mean, norm = sums.mean().astype(np.float32), sums.mean_norm().astype(np.float32)
    drawn = np.random.default_rng(0).normal(size=mean.shape).astype(np.float32)
    lengths = np.linalg.norm(drawn, axis=-1, keepdims=True)
    return Direction(0.1 * norm[:, None] * drawn / lengths, mean, norm, {"how": "random, to verify with"})
