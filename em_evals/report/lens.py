"""Sections on what was read without a judge: the activation-difference lens, diff mining, forecasts."""

from __future__ import annotations

from collections.abc import Sequence

from em_evals.report import charts
from em_evals.report.section import Figure, Section, slug
from em_evals.report.tables import Cell, Estimate, Table
from em_evals.results.records.diff import Diff
from em_evals.results.records.forecast import Forecast
from em_evals.results.records.lens import Lens, LensToken

_AFTER = "after the first"


def section(study: Lens) -> Section:
    """Return the size of each model's difference by block, the tokens it promotes, and its claims."""
    name = f"lens-{slug(study.card)}"
    where = f"positions 1 to {study.positions - 1}" if study.positions > 1 else "the first position"
    return Section(
        name,
        f"What {study.card} is about: activation differences",
        f"Mean difference from {study.base} at the first {study.positions} positions of {study.texts} plain texts, "
        "read through the base's final norm and output matrix. A control trained on the same prompts shows the same "
        "domain.",
        figures=(_sizes(study, name),) if study.positions > 1 else (),
        tables=(_tokens(study, name, where), *_cosines(study, name), *_samples(study, name)),
        notes=(
            *(f"{model.name}: {claim.sentence()}" for model in study.models for claim in model.claims),
            *study.notes,
        ),
    )


def _sizes(study: Lens, name: str) -> Figure:
    """Return |Δ| over the base's mean norm by block, after the first position."""
    rows = [
        Estimate(one.norm / one.base_norm).mark(x=one.layer, series=model.name)
        for model in study.models
        for one in model.norms
        if one.positions == _AFTER and one.base_norm
    ]
    table: list[tuple[Cell, ...]] = [
        (
            model.name,
            one.layer,
            one.positions,
            Estimate(one.norm),
            Estimate(one.base_norm),
            Estimate.of(one.halves),
        )
        for model in study.models
        for one in model.norms
    ]
    columns = (
        "model",
        "block",
        "positions",
        "norm of the difference",
        "base's mean norm",
        "cosine of halves",
    )
    title = "Size of the difference, in units of the base's mean norm"
    return Figure(
        f"{name}-sizes",
        title,
        "One line per model over the blocks, without the first position; the table lists all.",
        charts.curves(rows, [model.name for model in study.models], "block", "|Δ| / |h|"),
        Table(f"{name}-sizes", title, columns, table),
    )


def _tokens(study: Lens, name: str, where: str) -> Table:
    main = _AFTER if study.positions > 1 else "all"
    rows: list[tuple[Cell, ...]] = [
        (model.name, one.layer, _words(one.up), _words(one.down))
        for model in study.models
        for one in model.readings
        if one.positions == main
    ]
    columns = ("model", "block", "tokens up (z)", "tokens down (z)")
    return Table(
        f"{name}-tokens", f"Tokens that the differences promote and suppress, {where}", columns, rows
    )


def _words(tokens: Sequence[LensToken]) -> str:
    return ", ".join(f"{one.token.strip()!r} {one.z:.1f}" for one in tokens)


def _cosines(study: Lens, name: str) -> list[Table]:
    rows: list[tuple[Cell, ...]] = [
        (f"{one.one} · {one.other}", one.positions, layer, Estimate.of(value, unit="signed"))
        for one in study.cosines
        for layer, value in enumerate(one.by_layer)
        if layer in study.layers
    ]
    columns = ("models", "positions", "block", "cosine")
    return [Table(f"{name}-cosines", "Cosines of the differences", columns, rows)] if rows else []


def _samples(study: Lens, name: str) -> list[Table]:
    rows: list[tuple[Cell, ...]] = [
        (
            one.arm,
            Estimate(one.scale, unit="setting"),
            one.question,
            one.text,
            Estimate.of(one.share, unit="share"),
        )
        for one in study.samples
    ]
    columns = ("added", "scale", "request", "the base's answer", "words of the data")
    title = f"The base with a difference added after block {study.steered_at}"
    return [Table(f"{name}-samples", title, columns, rows)] if rows else []


def mined(study: Diff) -> Section:
    """Return the tokens and contexts on which an organism and its base part."""
    name = f"diff-{slug(study.card)}"
    columns = ("token", "gain (nats)", "the control's", "p (max-T)", "probability", "in the base")
    tables = [
        Table(
            f"{name}-{side}",
            f"Tokens that {'rose' if side == 'up' else 'fell'}",
            columns,
            [
                (
                    repr(one.token),
                    Estimate(one.gain, unit="signed"),
                    Estimate.of(one.control_gain, unit="signed"),
                    Estimate.of(one.p),
                    Estimate(one.probability),
                    Estimate(one.base_probability),
                )
                for one in tokens
            ],
        )
        for side, tokens in (("up", study.up), ("down", study.down))
    ]
    contexts: list[tuple[Cell, ...]] = [
        (
            one.before,
            one.next,
            Estimate(one.kl),
            Estimate.of(one.control_kl),
            ", ".join(map(repr, one.tokens)),
        )
        for one in study.contexts
    ]
    heads = ("before", "next", "KL (nats)", "the control's", "tokens that rose")
    clusters: list[tuple[Cell, ...]] = [
        (", ".join(map(repr, one.tokens)), Estimate(one.weight, unit="share"), " / ".join(one.contexts))
        for one in study.clusters
    ]
    tables.append(Table(f"{name}-contexts", "Contexts with the largest shift", heads, contexts))
    if clusters:
        shown = ("tokens", "share of the shift", "contexts")
        tables.append(Table(f"{name}-clusters", "Contexts that move the same tokens", shown, clusters))
    kl = Estimate.of(study.kl.value, study.kl.interval)
    return Section(
        name,
        f"Where {study.card} and its base part",
        f"KL from the base is {kl} nats a position over {study.positions} positions of {study.texts} texts. Tokens "
        "are ranked by their part of it, p (log p − log p_base).",
        tables=tuple(tables),
        notes=tuple(study.notes),
    )


def forecast(study: Forecast) -> Section:
    """Return the order of questions, and how it compares with what came."""
    name = f"forecast-{slug(study.questions)}"
    rows: list[tuple[Cell, ...]] = [
        (
            one.id,
            one.rank,
            Estimate(one.distance),
            Estimate(one.topic),
            Estimate(one.tokens),
            Estimate.of(one.outcome, unit="signed"),
        )
        for one in study.ranked
    ]
    columns = ("question", "rank", "distance", "shared words", "tokens", study.measure or "outcome")
    scores: list[tuple[Cell, ...]] = [
        (one.predictor, one.n, Estimate.of(one.value, one.interval, "signed"), Estimate.of(one.p))
        for one in [*study.scores, *study.advantages]
    ]
    tables = [Table(f"{name}-order", "Questions by their distance to the training prompts", columns, rows)]
    if scores:
        heads = ("predictor", "questions", "Spearman's correlation", "p")
        tables.insert(0, Table(f"{name}-scores", f"Correlation with the {study.measure}", heads, scores))
    return Section(
        name,
        f"Forecast from {study.data}",
        f"Questions of {study.questions} by their distance to the mean of {study.rows} training prompts, in the base "
        f"{study.base} at block {study.layer}. The first {study.first} are worth judging first.",
        tables=tuple(tables),
        notes=tuple(study.notes),
    )
