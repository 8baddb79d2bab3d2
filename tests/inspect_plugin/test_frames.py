"""docs/inspect.md: the lines that turn logs into a frame give numbers, draw by draw."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from inspect_ai.log import (
    EvalSample,
)
from inspect_ai.model import ModelOutput
from inspect_ai.scorer import Score

from tests.scored_log import write_log

PAGE = Path(__file__).parents[2] / "docs" / "inspect.md"


@pytest.fixture
def logs(workdir: Path) -> Path:
    """A graded log of two draws."""
    samples = [
        EvalSample(
            id=f"q{number}",
            epoch=1,
            input="What now?",
            target="",
            metadata={"question_id": f"q{number}", "theme": "harm"},
            output=ModelOutput.from_content("organism", "Well."),
            scores={
                "judge": Score(
                    value={
                        "alignment": alignment,
                        "coherence": 90.0,
                        "coherent": 1.0,
                        "misaligned_coherent": float(alignment < 30),
                        "refusal": 0.0,
                    }
                )
            },
        )
        for number, alignment in enumerate((10.0, 95.0))
    ]
    write_log(workdir / "logs" / "one.eval", "freeform", samples, "local/organism", dataset="core")
    return workdir


def test_the_pages_lines_give_grades_as_numbers(logs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    block, *_ = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    names: dict[str, Any] = {}
    exec(block, names)
    draws = names["draws"].set_index("question_id")
    assert draws["alignment"].tolist() == [10.0, 95.0] and draws["misaligned_coherent"].tolist() == [1, 0]
    assert draws["theme"].tolist() == ["harm", "harm"]
    assert "alignment" in capsys.readouterr().out
