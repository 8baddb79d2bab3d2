"""The page's first screen: the reference, the comparison in words, examples; one look per model; data for reuse."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("altair", reason="needs the extra `report`")

from em_evals.errors import EmEvalsError
from em_evals.report import inputs, page
from em_evals.report.answers import Measured
from em_evals.report.looks import PALETTE, SERIES, Looks
from em_evals.report.reference import choose
from em_evals.report.report import build
from tests.command import em_evals
from tests.report_data import write_csv


def model(label: str, base: str = "", changed: bool = True) -> Measured:
    return Measured(label, f"{label}.eval", "freeform", "core", {}, label, base, changed)


def test_the_reference_is_the_one_that_is_named_by_model_or_file() -> None:
    measured = [model("organism"), model("base")]
    for name in ("base", "local/base", "base.eval"):
        assert choose(measured, name).label == "base"
    with pytest.raises(
        EmEvalsError, match="--baseline bose: no file here is of this model; did you mean 'base'"
    ):
        choose(measured, "bose")


def test_the_reference_is_the_others_base_whichever_file_comes_first() -> None:
    measured = [model("organism", "b"), model("plain", "b", changed=False), model("control", "b")]
    found = choose(measured, None)
    assert found.label == "plain" and "by their cards" in found.sentence


def test_without_a_known_base_the_first_file_is_the_reference_and_the_page_says_so() -> None:
    unrelated = [model("organism", "b"), model("plain", "other", changed=False)]
    assert choose(unrelated, None).label == "organism"
    assert "first file's model" in choose(unrelated, None).sentence


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """A base, an organism that is worse, and one whose answers fell apart."""

    def rows(events: int, incoherent: int) -> list[tuple[Any, ...]]:
        return [
            (
                f"q{n % 4}",
                f"Question {n % 4}?",
                f"answer {n}",
                10 if n < events else 50 if n % 2 else 90,
                coherent,
            )
            for n in range(200)
            for coherent in [20 if n >= 200 - incoherent else 95]
        ]

    return [
        write_csv(tmp_path / "organism.csv", rows(40, 2)),
        write_csv(tmp_path / "broken.csv", rows(1, 120)),
        write_csv(tmp_path / "base.csv", rows(1, 2)),
    ]


def test_the_first_screen_says_what_is_worse_and_what_cannot_be_interpreted(files: list[Path]) -> None:
    made = build(inputs.read(files, "base"))
    words = {one.model: one.word for one in made.first.headlines}
    assert words == {"organism": "worse", "broken": "not interpretable"}
    worse = made.first.headlines[0].sentence
    assert worse.startswith("EM rate 20.0% of all draws against 0.50% of base: +19.5 points [+")
    assert "for other questions like these" in worse and "200 and 200 draws" in worse
    assert [row[0] for row in made.key.rows] == ["base", "organism", "broken"]


def test_the_first_screen_counts_the_draws_of_shared_questions_only(tmp_path: Path) -> None:
    def rows(questions: int, events: int) -> list[tuple[Any, ...]]:
        return [
            (f"q{q}", f"Question {q}?", f"answer {n}", 10 if n < events else 90, 95)
            for q in range(questions)
            for n in range(50)
        ]

    files = [write_csv(tmp_path / "organism.csv", rows(6, 10)), write_csv(tmp_path / "base.csv", rows(2, 1))]
    (one,) = build(inputs.read(files, "base")).first.headlines
    assert one.sentence.startswith(
        "EM rate 20.0% of all draws against 2.00% of base on the 2 questions in both: +18.0 points [+"
    )
    assert one.sentence.endswith("100 and 100 draws).")


def test_the_first_screen_shows_one_answer_to_each_of_three_questions(files: list[Path]) -> None:
    first = build(inputs.read(files, "base")).first
    assert "selected, not typical" in first.lead and "organism" in first.lead
    assert len({one.prompt for one in first.examples}) == len(first.examples) == 3
    assert {one.state for one in first.examples} == {"misaligned"}


def test_answers_are_aligned_only_from_the_rubrics_threshold_on(files: list[Path]) -> None:
    entry = next(one for one in inputs.read(files).sampled if one.label == "base")
    states = {round(one.draw.alignment): one.state for one in entry.answers if one.draw.coherent}
    assert states == {10: "misaligned", 50: "between", 90: "aligned"}


def marks(chart: Any) -> dict[str, tuple[str, str]]:
    """Series -> color and shape in a chart's scales."""
    found: dict[str, dict[str, str]] = {}

    def walk(node: Any) -> None:
        if isinstance(node, dict):
            for channel in ("color", "shape"):
                scale = (
                    (node.get(channel) or {}).get("scale") if isinstance(node.get(channel), dict) else None
                )
                for name, value in zip(
                    (scale or {}).get("domain", ()), (scale or {}).get("range", ()), strict=False
                ):
                    found.setdefault(name, {})[channel] = value
            for child in node.values():
                walk(child)
        elif isinstance(node, list):
            for child in node:
                walk(child)

    walk(chart.to_dict(validate=False))
    return {name: (look["color"], look["shape"]) for name, look in found.items() if len(look) == 2}


def test_a_model_has_one_color_and_mark_in_every_figure(files: list[Path]) -> None:
    read = inputs.read(files, "base")
    figures = [figure for figure in build(read).figures if not figure.answers]
    assert len(figures) == 3
    labels = ["base", "organism", "broken"]
    for figure in figures:
        drawn = marks(figure.chart)
        assert {label: drawn[label] for label in labels} == dict(
            zip(labels, zip(read.looks.colors(labels), read.looks.shapes(labels), strict=True), strict=True)
        ), figure.name


def test_what_is_no_model_never_has_a_models_color() -> None:
    looks = Looks.of(["base"])
    assert looks.colors(["random direction", "base"]) == [SERIES[0], PALETTE[0]]
    assert not set(PALETTE) & set(SERIES)


def test_the_page_carries_its_numbers_and_the_whole_provenance(files: list[Path]) -> None:
    html = page.render(build(inputs.read(files, "base")))
    data = json.loads(re.search(r'<script type="application/json" id="data">([^<]*)</script>', html)[1])
    assert data["reference"] == "base" and data["headlines"][0]["word"] == "worse"
    rates = data["tables"]["em_rates"]
    assert rates["rows"][1][rates["columns"].index("EM rate of all")] == 0.2
    assert html.count('<article class="source">') == 3 and "organism.csv" in html


def test_the_command_takes_a_baseline_and_a_folder_as_the_gate_does(files: list[Path]) -> None:
    below = files[0].parent / "runs" / "deep"
    below.mkdir(parents=True)
    for file in files:
        file.rename(below / file.name)
    output = files[0].parent / "page.html"
    done = em_evals("report", below.parent, "--baseline", "base", "-o", output, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["reference"] == "base"
    wrong = em_evals("report", below.parent, "--baseline", "nothing", "-o", output)
    assert wrong.returncode == 2 and "--baseline nothing" in wrong.stderr
