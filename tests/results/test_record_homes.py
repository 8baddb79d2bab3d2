"""Records are imported with their first name; each name has one home."""

import subprocess
import sys

from em_evals.results import records

CODE = """
import sys
import em_evals.gate.compare, em_evals.gate.outputs

found = [name.rpartition(".")[2] for name in sys.modules if name.startswith("em_evals.results.records.")]
print(*sorted(found))
"""


def test_every_public_name_has_a_home():
    homes = [name for names in records._HOMES.values() for name in names.split()]
    assert sorted(homes) == sorted({*records.__all__} - {"read", "write"})
    assert all(getattr(records, name) is not None for name in homes)


def test_the_gate_builds_its_own_records_alone():
    """All of them take a sixth of its processor time."""
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["base", "conditional", "gate"]
