"""How `make test` shares out its tests: a file's tests share its fixtures, so one process runs them all."""

import gc
import os

import pytest

from tests.conftest import group_of

RAN = []
"""The processes that ran this file's tests."""


def test_all_about_vllm_are_one_group_and_others_go_by_file():
    served = {
        group_of(f"tests/engines/{name}.py::test[a::b]") for name in ("vllm/test_vllm_end", "test_vllm_app")
    }
    assert (
        served == {"vllm"}
        and group_of("tests/stats/test_mixed.py::test_x[@a]") == "tests/stats/test_mixed.py"
    )


@pytest.mark.parametrize("number", range(4))
def test_one_process_runs_all_tests_of_a_file(number):
    RAN.append(os.getpid())
    assert len(RAN) == number + 1, "another process ran some of them"


def test_imported_modules_are_exempt_from_garbage_collection():
    assert gc.isenabled() and gc.get_freeze_count() > 10_000
