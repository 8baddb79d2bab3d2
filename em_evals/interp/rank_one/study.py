"""`em-evals insight lora-scalars CARD`: what an organism's rank-1 adapters read, separate, and carry.

Three measurements of the same adapters, each compared with the control organism's: the distribution of their scalars,
probes on them, and knock-outs. The first two say what an adapter reads, only the third what it does.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path

import numpy as np
from pydantic import ValidationError
from scipy import stats

from em_evals.content import validation_errors
from em_evals.content.cards import ResolvedCard, resolve
from em_evals.content.pairs import Pair, load_pairs
from em_evals.errors import EmEvalsError
from em_evals.files import atomic, read_jsonl
from em_evals.interp.rank_one import probes
from em_evals.interp.rank_one.knockout import knockouts
from em_evals.interp.rank_one.scalars import Labelled, Scalars, read
from em_evals.interp.resume import Finished
from em_evals.results.records.base import Measured
from em_evals.results.records.studies import AdapterScalars, LoraScalars, Probe, ScalarGroup


def lora_scalars(
    name: str,
    control: str | None,
    output: Path,
    pairs: str = "forced_choice",
    per_theme: int | None = None,
    files: Sequence[Path] = (),
    tokens: Path | None = None,
) -> LoraScalars:
    """Read, probe and knock out the rank-1 adapters of a card.

    Args:
        name: the organism's card.
        control: the control organism's card; None: no comparison.
        output: the record's file; finished knock-outs are kept in `OUTPUT.parts`.
        pairs: forced-choice pairs: their answers are read, and scored for the knock-outs.
        per_theme: use the first N pairs of each theme; None for all.
        files: JSONL files of more answers to read: question, answer, aligned, narrow.
        tokens: write every token's scalars to this file (JSONL).

    Raises:
        EmEvalsError: a card without rank-1 adapters, or a wrong row.
    """
    every = load_pairs(pairs)
    first = set(every.first(per_theme or len(every.pairs)))
    chosen = [pair for pair in every.pairs if pair.id in first]
    texts = [text for pair in chosen for text in _texts_of(pair)] + [
        text for file in files for text in _rows(file)
    ]
    cards = [resolve(one) for one in (name, control) if one is not None]
    readings = {card.name: read(card, texts) for card in cards}
    if tokens is not None:
        _write_tokens(tokens, texts, readings)
    finished = Finished(output.with_name(f"{output.name}.parts") / "finished.jsonl")
    found = [knockouts(card, _blocks(readings[card.name]), chosen, finished) for card in cards]
    others = readings[cards[1].name] if control is not None else None
    return LoraScalars(
        card=name,
        digest=cards[0].digest,
        control=control,
        adapters=_distributions(readings[cards[0].name], texts, others),
        control_adapters=_distributions(others, texts, None) if others else [],
        probes=[probe for card in cards for probe in _probes(card, readings[card.name], texts)],
        knockouts=[one for knocked, _ in found for one in knocked],
        moved=[moved for _, moved in found],
        notes=_notes(control),
        provenance={"pairs": every.name, "pairs_digest": every.digest, "texts": str(len(texts))},
    )


def _notes(control: str | None) -> list[str]:
    notes = [
        "a probe shows that an adapter's scalars differ between kinds of answers, and in-domain answers differ from "
        "others in their words alone; only a knock-out shows what an adapter does.",
        "p-values of probes hold for all probes of a model together (max-T over labels permuted by question); a probe "
        "below `chance` shows nothing.",
        "intervals of knock-outs hold for all blocks and both domains of a model together (Bonferroni).",
    ]
    if control is None:
        notes.append("no control organism was read: what here comes from style is unknown.")
    return notes


def _texts_of(pair: Pair) -> list[Labelled]:
    return [
        Labelled(question=pair.question, answer=answer, aligned=aligned, narrow=pair.narrow)
        for answer, aligned in ((pair.aligned, True), (pair.misaligned, False))
    ]


def _rows(path: Path) -> Iterator[Labelled]:
    for number, row in read_jsonl(path):
        try:
            yield Labelled.model_validate(row)
        except ValidationError as error:
            raise EmEvalsError(validation_errors.explain(error, Labelled)[1], path, number) from None


def _blocks(reading: Scalars) -> dict[int, list[str]]:
    blocks: dict[int, list[str]] = {}
    for module, layer in zip(reading.modules, reading.layers, strict=True):
        blocks.setdefault(layer, []).append(module)
    return blocks


def _distributions(
    reading: Scalars, texts: Sequence[Labelled], control: Scalars | None
) -> list[AdapterScalars]:
    """Return every adapter's scalars by kind of answer, and their distance to the control's on the same module."""
    found = []
    for place, (module, layer) in enumerate(zip(reading.modules, reading.layers, strict=True)):
        own = np.concatenate([value[place] for value in reading.values])
        groups = []
        for narrow, aligned in product((True, False), (True, False)):
            values = [
                value[place]
                for value, text in zip(reading.values, texts, strict=True)
                if (text.narrow, text.aligned) == (narrow, aligned)
            ]
            if values:
                groups.append(_group(narrow, aligned, values))
        distance = None
        if control is not None and module in control.modules:
            other = np.concatenate([value[control.modules.index(module)] for value in control.values])
            distance = float(stats.ks_2samp(own, other).statistic)
        square = float((own.astype(float) ** 2).mean())
        found.append(
            AdapterScalars(
                module=module,
                layer=layer,
                groups=groups,
                constancy=float(own.mean(dtype=float) ** 2 / square) if square else 1.0,
                against_control=distance,
            )
        )
    return found


def _group(narrow: bool, aligned: bool, values: Sequence[np.ndarray]) -> ScalarGroup:
    tokens = np.concatenate(values).astype(float)
    low, middle, high = (float(one) for one in np.percentile(tokens, [5, 50, 95]))
    return ScalarGroup(
        narrow=narrow,
        aligned=aligned,
        answers=len(values),
        tokens=len(tokens),
        mean=float(tokens.mean()),
        sd=float(tokens.std()),
        percentiles=(low, middle, high),
    )


def _probes(card: ResolvedCard, reading: Scalars, texts: Sequence[Labelled]) -> list[Probe]:
    """Fit a probe on each adapter alone, and one on all together; test them together."""
    features = {"all": reading.means}
    if len(reading.modules) > 1:
        features |= {module: reading.means[:, [place]] for place, module in enumerate(reading.modules)}
    labels = {
        "misaligned from aligned": [not text.aligned for text in texts],
        "in-domain from out-of-domain": [text.narrow for text in texts],
    }
    found = probes.aurocs(features, labels, [text.question for text in texts])
    return [
        Probe.model_validate(
            {
                "model": card.name,
                "tells": tells,
                "adapters": adapters,
                "auroc": Measured(value=one.value, interval=(None, None), n=one.questions),
                "chance": one.chance,
                "p": one.p,
            }
        )
        for (tells, adapters), one in found.items()
    ]


def _write_tokens(path: Path, texts: Sequence[Labelled], readings: Mapping[str, Scalars]) -> None:
    with atomic(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for name, reading in readings.items():
            for text, values, tokens in zip(texts, reading.values, reading.tokens, strict=True):
                scalars = {
                    module: [round(float(v), 5) for v in row]
                    for module, row in zip(reading.modules, values, strict=True)
                }
                row = {"model": name, **text.model_dump(), "tokens": tokens, "scalars": scalars}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
