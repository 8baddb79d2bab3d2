"""The deliberate faults of benchmarks/mutation_check.py: each still stands in the code, and its tests are `make test`'s."""

import pytest
from mutation_check import FAULTS, ROOT


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.what)
def test_each_deliberate_fault_has_its_line_and_its_tests(fault):
    assert (ROOT / "em_evals" / fault.file).read_text(encoding="utf-8").count(fault.right) == 1
    for name in fault.tests:
        file, _, test = name.partition("::")
        assert f"def {test}(" in (ROOT / "tests" / file).read_text(encoding="utf-8") or not test
