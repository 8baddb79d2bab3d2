"""Write a judgment for people and programs: table, Markdown, JUnit XML, JSON. No decisions here.

Names come from files and are untrusted: they are escaped in Markdown and XML, never used as markup.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree

from em_evals import files, shown
from em_evals.errors import EmEvalsError
from em_evals.gate import words
from em_evals.gate.compare import Judgement
from em_evals.results import records
from em_evals.results.records.gate import GateMetric, GateVerdict

COLUMNS = ("metric", "baseline", "candidate", "difference", "other questions", "effect", "n", "verdict")
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_MARKUP = re.compile(r"([\\`*_\[\]<>|~&])")


def write(judgement: Judgement, path: Path) -> list[Path]:
    """Write the record (JSON), and the same content as Markdown and as JUnit XML next to it.

    Raises:
        EmEvalsError: the name does not end in `.json`.
    """
    if path.suffix != ".json":
        raise EmEvalsError(
            f"-o {path}: name the record with the ending .json; .md and .xml are written next to it."
        )
    records.write(record(judgement), path)
    texts = {path.with_suffix(".md"): markdown(judgement), path.with_suffix(".xml"): junit(judgement)}
    for place, text in texts.items():
        with files.atomic(place) as temporary:
            temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    return [path, *texts]


def record(judgement: Judgement) -> GateVerdict:
    """Return the complete record, with null for missing numbers."""
    return GateVerdict(
        verdict=judgement.verdict,
        exit_code=judgement.exit_code,
        sentence=judgement.sentence,
        baseline=judgement.models[0],
        candidate=judgement.models[1],
        metrics=list(judgement.rows),
        problems=list(judgement.problems),
        notes=list(judgement.notes),
        looks=list(judgement.looks),
    )


def table(rows: Sequence[GateMetric]) -> tuple[list[str], list[list[str]]]:
    """Return column heads, with the level of the rows' intervals, and rows; no column that says nothing new."""
    levels = " / ".join(dict.fromkeys(words.confidence(row.alpha) for row in rows)) or "95%"
    heads = [f"{name} [{levels}]" if name in COLUMNS[3:5] else name for name in COLUMNS]
    lines = [heads, *map(_cells, rows)]
    if all(row.random_questions == row.interval for row in rows):
        other = COLUMNS.index("other questions")
        lines = [line[:other] + line[other + 1 :] for line in lines]
    return lines[0], lines[1:]


def _cells(row: GateMetric) -> list[str]:
    counts = f"{row.units[0]}" if row.units[0] == row.units[1] else f"{row.units[0]} / {row.units[1]}"
    return [
        f"{row.title} (guard)" if row.guard else row.title,
        words.level(row.baseline, row.unit),
        words.level(row.candidate, row.unit),
        f"{words.change(row.difference, row.unit)} {words.bounds(*row.interval, row.unit)}",
        "the same" if row.random_questions == row.interval else words.bounds(*row.random_questions, row.unit),
        f"{row.effect_name} {row.effect:+.2f}" if math.isfinite(row.effect) else "–",
        counts,
        row.verdict,
    ]


def markdown(judgement: Judgement) -> str:
    """Return Markdown for $GITHUB_STEP_SUMMARY: the verdict, the table, and the sentences behind it."""
    head = _escaped(f"{judgement.models[1]} against {judgement.models[0]}")
    lines = [f"## Gate: {judgement.verdict}", "", _escaped(judgement.sentence), "", f"Candidate {head}.", ""]
    if judgement.rows:
        heads, rows = table(judgement.rows)
        lines += [_line(heads), _line(["---"] * len(heads), plain=True), *map(_line, rows), ""]
    lines += [f"- {_escaped(text)}" for text in judgement.reasons]
    if judgement.notes:
        lines += ["", "Notes:", "", *(f"- {_escaped(note)}" for note in judgement.notes)]
    return "\n".join(lines) + "\n"


def junit(judgement: Judgement) -> str:
    """Return JUnit XML: one test case per metric and one for the input. Inconclusive fails, as the exit code does."""
    cases = [
        _case("input", "input", "; ".join(judgement.problems), "invalid" if judgement.problems else "pass")
    ]
    cases += [
        _case(
            row.source if row.against == "baseline" else f"{row.against}.{row.source}",
            row.metric,
            row.sentence,
            row.verdict,
        )
        for row in judgement.rows
    ]
    suite = ElementTree.Element(
        "testsuite",
        name="em-evals gate",
        # The schema requires a time and a host; the real host name stays private.
        timestamp=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S"),
        hostname="localhost",
        tests=str(len(cases)),
        failures=str(sum(case.find("failure") is not None for case in cases)),
        errors=str(sum(case.find("error") is not None for case in cases)),
        time="0",
    )
    properties = ElementTree.SubElement(suite, "properties")
    for name, value in (
        ("verdict", judgement.verdict),
        ("baseline", judgement.models[0]),
        ("candidate", judgement.models[1]),
    ):
        ElementTree.SubElement(properties, "property", name=name, value=_clean(value))
    suite.extend(cases)
    ElementTree.SubElement(suite, "system-out").text = _clean(
        "\n".join([judgement.sentence, *judgement.notes])
    )
    ElementTree.SubElement(suite, "system-err")
    ElementTree.indent(suite)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(suite, encoding="unicode") + "\n"


def _case(source: str, name: str, sentence: str, verdict: str) -> ElementTree.Element:
    case = ElementTree.Element("testcase", name=_clean(name), classname=_clean(f"gate.{source}"), time="0")
    if verdict != "pass":
        kind = "error" if verdict == "invalid" else "failure"
        told = ElementTree.SubElement(case, kind, message=_clean(sentence), type=verdict)
        told.text = _clean(sentence)
    return case


def _clean(text: str) -> str:
    """Return text as one line, without characters that XML cannot represent."""
    return _NOT_XML.sub("\ufffd", shown.line(text))


def _escaped(text: str) -> str:
    """Return text as one line, escaped so that Markdown shows it literally."""
    return _MARKUP.sub(r"\\\1", shown.line(text))


def _line(texts: Sequence[str], plain: bool = False) -> str:
    return "| " + " | ".join(text if plain else _escaped(text) for text in texts) + " |"
