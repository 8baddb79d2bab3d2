"""Commands import the records that they use."""

import subprocess
import sys

CODE = """
import sys
import em_evals.gate.compare, em_evals.gate.outputs

found = [name.rpartition(".")[2] for name in sys.modules if name.startswith("em_evals.results.records.")]
print(*sorted(found))
"""


def test_the_gate_builds_its_own_records_alone():
    """All of them take a sixth of its processor time."""
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["base", "conditional", "gate"]
