"""EM rates: by both conventions with coherent, refused and ungraded shares, by question, and the draws behind them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from em_evals.report import charts, damage
from em_evals.report.answers import Answer, Measured
from em_evals.report.chart_parts import Row
from em_evals.report.looks import Looks
from em_evals.report.rate_marks import rate_cell, rate_mark
from em_evals.report.section import Figure, Section, slug
from em_evals.report.tables import Cell, Estimate, Table
from em_evals.results import em_rates, graded_draw
from em_evals.results.em_rates import Rates
from em_evals.results.rate import Rate

CONVENTIONS = {"em_rate": "of all draws", "em_rate_coherent": "of coherent draws"}
SHARES = {
    "coherent_share": "coherent share",
    "refusal_share": "refused share",
    "ungraded_share": "ungraded share",
}
MANY = 8
"""With more models than this a legend cannot be read: charts then have a row for each model."""
_CELLS, _MARKS = (1, 2, 4), 1500
"""Cell widths (in points of 0-100) of a scatter's marks, and the number of marks that browsers draw without delay."""


def section(graded: Sequence[Measured], looks: Looks) -> Section | None:
    """Return the section of EM rates of every graded log or CSV."""
    if not graded:
        return None
    found = {entry.label: em_rates.rates(entry.draws) for entry in graded}
    together = _together(graded).values()
    return Section(
        "rates",
        "EM rate",
        "Misaligned and coherent answers, over all draws (model-organisms convention) and over the coherent ones "
        "(Betley et al.). Thick lines are 95% intervals for new draws for these questions, thin ones for other "
        "questions like these. Read every rate with the shares of coherent, refused and ungraded draws: a rate that "
        "fell because answers became incoherent, or were refused or not graded, is not a cure.",
        flags=tuple(
            flag
            for entries in together
            for flag in damage.flags([(one, found[one.label]) for one in entries])
        )
        + tuple(_ungraded(label, one) for label, one in found.items() if _open(one)),
        figures=(_overall(found, looks), _shares(found, looks), *_by_question(graded, looks)),
        notes=tuple(note for entries in together for note in damage.unlike(entries)),
    )


def table(found: dict[str, Rates], graded: Sequence[Measured]) -> Table:
    """Return the rates of all models, for the summary and for papers."""
    rows: list[tuple[Cell, ...]] = []
    for entry in graded:
        rates = found[entry.label]
        shares = [rate_cell(rate) for rate in rates.shares.values()]
        rows.append((entry.label, _set_of([entry]) or "–", rates.draws, rates.misaligned_coherent, *shares))
    columns = (
        "model",
        "questions",
        "draws",
        "EM draws",
        "EM rate of all",
        "EM rate of coherent",
        *SHARES.values(),
    )
    return Table("em_rates", "EM rates with 95% intervals for these questions", columns, rows)


def scatters(graded: Sequence[Measured], first: dict[str, int], looks: Looks) -> Section | None:
    """Return a section of coherence against alignment, with one figure per model.

    Args:
        graded: the measurements to draw.
        first: index of each label's first answer among all answers of the page.
        looks: of the page's models.
    """
    figures = []
    for entry in graded:
        rows = _groups(entry.answers, first[entry.label])
        if rows:
            draw = entry.draws[0]
            scored = sum(row["n"] for row in rows)
            figures.append(
                Figure(
                    f"draws-{slug(entry.label)}",
                    f"{entry.label}: {scored:,} scored of {len(entry.answers):,} draws",
                    f"Scatter of alignment and coherence for {scored} draws of {entry.label}.",
                    charts.scatter(rows, draw.misaligned_below, draw.coherent_above, entry.label, looks),
                    _grid_table(entry),
                    answers=True,
                )
            )
    if not figures:
        return None
    texts = any(answer.text for entry in graded for answer in entry.answers)
    reading = " Hover over a mark to read an answer, select it to list all of its answers." if texts else ""
    return Section(
        "draws",
        "Alignment and coherence",
        "Every scored draw; nearby draws share a mark, larger for more of them. The frame is the EM corner."
        + reading,
        figures=tuple(figures),
    )


def others(sampled: Sequence[Measured]) -> Section | None:
    """Return a section of the logs' further metrics: shares of TRUE of a deception set, means of other rubrics."""
    rows = [
        (entry.label, entry.asked, name, Estimate.of(value, (low, high)))
        for entry in sampled
        for name, (value, low, high) in entry.other.items()
    ]
    if not rows:
        return None
    told = Table(
        "other_scores",
        "As recorded in the logs, with 95% intervals",
        ("model", "questions", "score", "value"),
        rows,
    )
    return Section("others", "Other scores", "Scores by other rubrics, on their own scales.", tables=(told,))


def _overall(found: dict[str, Rates], looks: Looks) -> Figure:
    rows = []
    told: list[tuple[Any, ...]] = []
    for label, rates in found.items():
        for key, name in CONVENTIONS.items():
            rate: Rate = getattr(rates, key)
            rows.append(rate_mark(label, name, rate))
            told.append((label, name, rate_cell(rate), Estimate.of(rate.value, rate.random, "share")))
    columns = ("model", "convention", "EM rate, these questions", "EM rate, other questions")
    return Figure(
        "em-rate",
        "EM rate of all draws (filled) and of coherent ones (hollow)",
        "EM rate of each model with intervals: "
        + "; ".join(f"{row[0]} {row[1]} {row[2]}" for row in told)
        + ".",
        charts.dots(rows, list(CONVENTIONS.values()), "EM rate", percent=True, looks=looks, by_row=True),
        Table("em_rate", "EM rate by both conventions, 95% intervals", columns, told),
        wide=len(found) > MANY,
    )


def _shares(found: dict[str, Rates], looks: Looks) -> Figure:
    many = len(found) > MANY
    rows = [
        rate_mark(*((label, name) if many else (name, label)), rates.shares[key])
        for key, name in SHARES.items()
        for label, rates in found.items()
    ]
    told: list[tuple[Cell, ...]] = [
        (label, r.draws, *r.outcomes.values(), *(rate_cell(r.shares[key]) for key in SHARES))
        for label, r in found.items()
    ]
    outcomes = tuple(name.replace("_", " ") for name in graded_draw.OUTCOMES)
    title = "Coherent, refused and ungraded shares"
    return Figure(
        "shares",
        title,
        "Shares of draws that are coherent, refused and ungraded: "
        + "; ".join(f"{row[0]} {', '.join(map(str, row[-3:]))}" for row in told)
        + ".",
        charts.dots(
            rows, list(SHARES.values() if many else found), "share of draws", percent=True, looks=looks
        ),
        Table(
            "shares",
            f"{title} with 95% intervals, and the number of draws of each outcome",
            ("model", "draws", *outcomes, *SHARES.values()),
            told,
        ),
        wide=many,
    )


def _open(rates: Rates) -> bool:
    """Return whether ungraded draws leave more than one EM rate possible."""
    return bool(rates.ungraded) and (
        not rates.estimable or len({f"{end:.4f}" for end in rates.em_rate_bounds}) > 1
    )


def _ungraded(label: str, rates: Rates) -> str:
    """Return a sentence on the EM rates that ungraded draws leave possible."""
    least, most = (Estimate.of(end, unit="share") for end in rates.em_rate_bounds)
    rest = f"whatever their grades were, the EM rate of all draws lies between {least} and {most}."
    if rates.estimable:
        return f"{label}: {rates.ungraded} of {rates.draws} draws are ungraded and count as no EM; {rest}"
    return f"{label}: {rates.ungraded} of {rates.draws} draws are ungraded, so there is no rate; {rest}"


def _by_question(graded: Sequence[Measured], looks: Looks) -> list[Figure]:
    """Return one figure per question set: all models in a figure must have answered its questions."""
    figures = []
    for asked, entries in _together(graded).items():
        by_model = {entry.label: em_rates.rates_by_question(entry.draws) for entry in entries}
        labels = list(by_model)
        questions = list(dict.fromkeys(q for found in by_model.values() for q in found))
        questions.sort(
            key=lambda q: (
                -max(found[q].em_rate_bounds[0] for found in by_model.values() if q in found)  # never NaN
            )
        )
        rows: list[Row] = []
        told: list[tuple[Cell, ...]] = []
        for question in questions:
            for label in labels:
                if rates := by_model[label].get(question):
                    rows.append(rate_mark(question, label, rates.em_rate, wide=False))
                    told.append((question, label, rates.draws, *map(rate_cell, rates.shares.values())))
        columns = (
            *("question", "model", "draws", "EM rate of all", "EM rate of coherent"),
            *SHARES.values(),
        )
        figures.append(
            Figure(
                f"by-question-{slug(asked)}",
                "EM rate of all draws by question" + (f" ({asked})" if _set_of(entries) else ""),
                f"EM rate of {len(questions)} questions for {', '.join(labels)}, highest first.",
                charts.shares(rows, "EM rate of all draws")
                if len(labels) > MANY
                else charts.dots(rows, labels, "EM rate of all draws", percent=True, looks=looks),
                Table(f"by_question_{slug(asked)}", "By question, with 95% intervals", columns, told),
                wide=True,
            )
        )
    return figures


def _set_of(entries: Sequence[Measured]) -> str:
    """Return the name of the first one's question set; empty for a table whose only name is its model's."""
    return "" if entries[0].asked == entries[0].label else entries[0].asked


def _together(graded: Sequence[Measured]) -> dict[str, list[Measured]]:
    """Group measurements that share questions, under the first one's name."""
    groups: list[tuple[str, set[str], list[Measured]]] = []
    for entry in graded:
        asked = {draw.question_id for draw in entry.draws}
        for _, known, members in groups:
            if known & asked:
                known |= asked
                members.append(entry)
                break
        else:
            groups.append((entry.asked, asked, [entry]))
    result: dict[str, list[Measured]] = {}
    for name, _, members in groups:
        result[name if name not in result else f"{name} {len(result) + 1}"] = members
    return result


def _grid_table(entry: Measured) -> Table:
    """Return a scatter as a table: scored draws by alignment in steps of ten, coherent and not."""
    counts: dict[int, list[int]] = {}
    for draw in entry.draws:
        if draw.scored:
            counts.setdefault(min(int(draw.alignment // 10), 9), [0, 0])[0 if draw.coherent else 1] += 1
    rows: list[Any] = [(f"{ten * 10}–{ten * 10 + 10}", *counts[ten]) for ten in sorted(counts)]
    caption = f"{entry.label}: scored draws by alignment"
    return Table(f"draws_{slug(entry.label)}", caption, ("alignment", "coherent", "not coherent"), rows)


def _groups(answers: Sequence[Answer], first: int) -> list[Row]:
    """Merge nearby draws of one kind into a mark at their mean, in larger cells if there would be too many marks."""
    cells: dict[tuple[int, int, bool], list[int]] = {}
    for width in _CELLS:
        cells = {}
        for number, answer in enumerate(answers):
            draw = answer.draw
            if draw.scored:
                place = round(draw.alignment / width), round(draw.coherence / width)
                cells.setdefault((*place, draw.misaligned_coherent), []).append(number)
        if len(cells) <= _MARKS:
            break
    return [
        {
            "x": round(sum(answers[i].draw.alignment for i in inside) / len(inside), 2),
            "y": round(sum(answers[i].draw.coherence for i in inside) / len(inside), 2),
            "n": len(inside),
            "event": event,
            "i": first + inside[0],
            "cell": [column * width, line * width, width],
        }
        for (column, line, event), inside in sorted(cells.items(), key=lambda item: item[0][2])
    ]
