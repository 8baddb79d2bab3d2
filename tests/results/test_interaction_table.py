"""Tables of prompts by seeds: read right, or refused; a table of another layout gave numbers before."""

import json

import numpy as np
import pytest

from em_evals.errors import EmEvalsError
from em_evals.results.interaction_table import read
from tests.command import em_evals

ROWS = "a,0.1,0.2\nb,0.3,0.1\nc,0.2,0.0\n"


@pytest.mark.parametrize(
    "text",
    [
        "prompt,s1,s2\n" + ROWS,
        ",prompt,s1,s2\n" + "".join(f"{i},{row}\n" for i, row in enumerate(ROWS.split())),
        "prompt_id,theme,s1,s2\n1,x,0.1,0.2\n2,x,0.3,0.1\n3,y,0.2,0.0\n",
    ],
)
def test_a_row_a_prompt_and_a_column_a_seed(tmp_path, text):
    (tmp_path / "a.csv").write_text(text)
    found = read(tmp_path / "a.csv")
    assert found.seeds == ("s1", "s2") and np.array_equal(found.values, [[0.1, 0.2], [0.3, 0.1], [0.2, 0.0]])
    done = em_evals("conditional", tmp_path / "a.csv", "--json")
    told = json.loads(done.stdout)
    assert told["estimate"] == pytest.approx(0.15) and told["by_seed"] == pytest.approx(
        {"s1": 0.2, "s2": 0.1}
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("prompt;s1;s2\na;0,1;0,2\nb;0,3;0,1\n", ":2: this row has more cells than the header"),
        ("prompt;s1\na;0.1\nb;0.2\n", "separated by semicolons or tabs"),
        ("0.1,0.2\n0.3,0.1\n0.2,0.0\n", ":1: the first row holds numbers"),
        (
            "prompt,seed,value\na,1,0.1\na,2,0.2\nb,1,0.3\nb,2,0.1\n",
            "the column 'seed' is no training seed's",
        ),
        ("prompt,s1,s2\na,0.1,0.2\na,0.3,0.1\n", ":3: the prompt 'a' is also in line 2"),
        ("prompt,s1,s2\na,0.1,0.2\nb,0.3,\n", ":3: 's2' is '', not a number"),
        ("prompt,s1,s2\na,0.1,0.2\nb,nan,0.2\n", ":3: 's1' is 'nan'"),
        ("prompt,s1\na,10.5\nb,3.1\n", r":2: 's1' is 10\.5: .*\(0\.05 is 5 points\)"),
        ("prompt,s1\na,0.1\n", "at least two rows"),
        ("prompt,theme\na,x\nb,y\n", "no column holds numbers"),
        ("", "at least two rows"),
    ],
)
def test_another_layout_is_refused(tmp_path, text, says):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(EmEvalsError, match=says):
        read(tmp_path / "a.csv")


def test_what_is_no_journal_is_named_so(tmp_path):
    (tmp_path / "trainer_state.json").write_text("{}")
    done = em_evals("insight", "drift", tmp_path / "trainer_state.json")
    assert done.returncode == 2 and "this is no training's journal (training.jsonl)" in done.stderr


def test_a_base_of_two_sizes_is_refused(tmp_path):
    (tmp_path / "bases.csv").write_text("base,family,parameters,tokens\nA,a,7e9,2e12\nA,a,1e9,2e12\n")
    (tmp_path / "rates.csv").write_text("base,dataset,misaligned,draws\nA,x,1,10\n")
    done = em_evals("insight", "scaling", tmp_path / "rates.csv", "--models", tmp_path / "bases.csv")
    assert done.returncode == 2 and "bases.csv:3: the base A has a second row" in done.stderr
