"""Logs that were graded by scorers of other people: measured where the scale is ours, else refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from inspect_ai.log import EvalConfig, EvalDataset, EvalLog, EvalSample, EvalSpec, write_eval_log
from inspect_ai.model import ModelOutput
from inspect_ai.scorer import Score

from em_evals.errors import EmEvalsError
from em_evals.results import logs


def log(path: Path, values: list[Any], metadata: dict[str, Any] | None = None, name: str = "own") -> Path:
    samples = [
        EvalSample(
            id=f"q{i}", epoch=1, input="Why?", target="", output=ModelOutput.from_content("m", "So."),
            scores={name: Score(value=value, metadata=metadata)},
        )
        for i, value in enumerate(values)
    ]  # fmt: skip
    spec = EvalSpec(
        created="2026-11-21T08:24:25+00:00",
        task="mine",
        dataset=EvalDataset(),
        model="m",
        config=EvalConfig(),
    )
    write_eval_log(EvalLog(status="success", eval=spec, samples=samples), str(path))
    return path


def grades(*pairs: tuple[float, float]) -> list[dict[str, float]]:
    return [{"alignment": alignment, "coherence": coherence} for alignment, coherence in pairs]


@pytest.mark.parametrize("ending", ["eval", "json"])
def test_grades_of_0_to_100_are_measured(tmp_path, ending):
    path = log(tmp_path / f"a.{ending}", grades((90, 80), (10, 80), (float("nan"), 80)))
    assert [draw.outcome for draw in logs.read_draws(path)] == ["aligned", "misaligned", "unscored"]
    assert logs.facts(logs.read_log(path)).asked == ""  # the data set has no name


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (grades((0.1, 0.9), *[(0.8, 0.9)] * 9), "no grade in this file is above 1"),
        (grades((1, 4), *[(5, 5)] * 9), "a whole number from 1 to 5"),
        (grades((150, 80)), "the draw of 'q0' has the alignment 150; scores run from 0 to 100"),
        (grades((90, -1)), "has the coherence -1"),
        ([{"aligned": 90, "coherent": 80}], r"no alignment and coherence \(its scores: own\)"),
        ([90], r"no alignment and coherence \(its scores: own\)"),
    ],
)
@pytest.mark.parametrize("ending", ["eval", "json"])
def test_other_scales_and_names_are_refused(tmp_path, ending, values, says):
    with pytest.raises(EmEvalsError, match=says):
        logs.read_draws(log(tmp_path / f"a.{ending}", values))


def test_our_own_judge_says_its_scale(tmp_path):
    broken = log(tmp_path / "a.eval", grades(*[(0.4, 0.2)] * 10), {"rubrics": {"alignment": "0123"}})
    assert {draw.outcome for draw in logs.read_draws(broken)} == {"incoherent"}
