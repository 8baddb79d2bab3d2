"""A page of many models, as of a published set of organisms: rows instead of legends, and little before the numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("altair", reason="needs the extra `report`")

from em_evals.report import inputs, page
from em_evals.report.looks import PALETTE, SHAPES, Looks
from em_evals.report.report import Report, build
from tests.report.test_report_page import browser, opened
from tests.report_data import write_csv

__all__ = ["browser"]

MODELS = [
    f"Qwen2.5-{size}B-Instruct_{data}-advice"
    for size in (1, 7, 32)
    for data in ("medical", "sports", "money")
]


def table(folder: Path, name: str, number: int, text: str = "") -> Path:
    """40 draws of 4 questions: some misaligned, and two without a grade of alignment."""
    rows: list[tuple[Any, ...]] = [
        (f"q{i % 4}", f"Question {i % 4}?", text, "" if i > 37 else 10 if i < number else 90, 95)
        for i in range(40)
    ]
    return write_csv(folder / f"{name}.csv", rows)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return [table(tmp_path, name, number) for number, name in enumerate(MODELS)]


@pytest.fixture
def made(files: list[Path]) -> Report:
    return build(inputs.read(files))


def layers(made: Report, name: str) -> list[dict[str, Any]]:
    figure = next(figure for figure in made.figures if figure.name == name)
    assert figure.wide
    return figure.chart.to_dict(validate=False)["layer"]


def test_every_model_looks_different() -> None:
    names = [str(n) for n in range(len(PALETTE) * len(SHAPES))]
    looks = Looks.of(names)
    assert len(set(zip(looks.colors(names), looks.shapes(names), strict=True))) == len(names) == 49
    assert "diamond" not in SHAPES, "the mark of misaligned answers"


def test_a_model_is_a_row_where_a_legend_would_be_too_long(made: Report) -> None:
    assert {row["row"] for row in layers(made, "shares")[-1]["data"]["values"]} == set(MODELS)
    cells, texts = layers(made, "by-question-qwen2-5-1b-instruct-medical-advice")
    assert cells["mark"]["type"] == "rect" and texts["mark"]["type"] == "text"
    told = {(row["series"], row["row"]): row["text"] for row in texts["data"]["values"]}
    assert told[MODELS[4], "q0"] == "10" and len(told) == 9 * 4


def test_few_models_keep_their_marks(files: list[Path]) -> None:
    figures = {figure.name: figure for figure in build(inputs.read(files[:2])).figures}
    assert not figures["em-rate"].wide
    assert {
        row["row"] for row in figures["shares"].chart.to_dict(validate=False)["layer"][-1]["data"]["values"]
    } == {
        "coherent share",
        "refused share",
        "ungraded share",
    }


def test_warnings_beyond_three_are_folded_and_grades_alone_list_no_answers(
    made: Report, tmp_path: Path
) -> None:
    html = page.render(made)
    assert made.flags[0].startswith(f"{MODELS[0]}: 2 of 40 draws are ungraded")
    assert html.count("<summary>6 more warnings</summary>") == 2, "in the summary and in the section"
    assert 'id="answers"' not in html and "Hover over" not in html
    told = html.partition('id="summary"')[2].partition("</section>")[0]
    assert "<summary>EM rates of 9 models</summary>" in told
    assert '<th scope="col">questions</th>' not in told and ">EM rate of all<" in told
    worse = next(line for line in made.first.headlines if line.word != "not distinguishable")
    assert worse.change in worse.sentence and f"<strong>{worse.change}</strong>" in told
    answered = build(inputs.read([table(tmp_path, "told", 3, "So.")]))
    assert 'id="answers"' in page.render(answered)


def test_ungraded_draws_that_leave_one_rate_possible_are_no_warning(tmp_path: Path) -> None:
    rows = [("q0", "Question?", "", "" if i == 0 else 90, 10 if i == 0 else 95) for i in range(40)]
    assert build(inputs.read([write_csv(tmp_path / "one.csv", rows)])).flags == ()


@pytest.mark.browser
def test_a_phone_shows_both_ends_of_long_names_and_no_sideways_scroll(
    browser: Any, files: list[Path], tmp_path: Path
) -> None:
    path = tmp_path / "report.html"
    page.write(build(inputs.read(files)), path)
    with opened(browser, path, viewport={"width": 390, "height": 800}) as tab:
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
        labels = tab.locator("[data-figure=em-rate] .role-axis-label text").all_text_contents()
        shown = [text for text in labels if "Qwen" in text]
        assert len(set(shown)) == 9 and all("…" in text for text in shown)
        assert {text[-6:] for text in shown} == {"advice"} and {text[:9] for text in shown} >= {"Qwen2.5-7"}
        assert not tab.locator("details.many").evaluate("one => one.open")
