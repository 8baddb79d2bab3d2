"""What `auto` means, told without torch where its build leaves no choice, is what torch says."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

from em_evals.models import devices

DOCTOR = """
import json, sys
from em_evals.models import devices
from em_evals.workflows.doctor import examine

found = {row["what"]: row for row in examine()}
print(json.dumps([devices.automatic(), found["device"], found["backend auto"]["state"], "torch" in sys.modules]))
"""


def test_the_doctor_says_what_torch_says_without_importing_it():
    done = subprocess.run([sys.executable, "-c", DOCTOR], capture_output=True, text=True, check=True)
    automatic, row, backend, imported = json.loads(done.stdout)
    device = devices.choose_device("auto")
    dtype = str(devices.choose_dtype("auto", device)).removeprefix("torch.")
    assert automatic == [str(device), dtype] == [row["state"], row["remark"].removeprefix("dtype auto: ")]
    assert devices.kind("auto") == device.type and backend in ("transformers", "vllm")
    assert imported == (torch.version.cuda is not None or sys.platform != "linux")


@pytest.mark.parametrize(
    ("build", "alone"),
    [
        ({"cuda": None, "hip": None, "xpu": None}, True),
        ({"cuda": None}, True),
        ({"cuda": "13.0", "hip": None}, False),
        ({"cuda": None, "hip": "7.1"}, False),
        ({"cuda": None, "xpu": "2026.0"}, False),
        ({}, False),
    ],
)
def test_only_a_build_without_accelerators_is_believed(build, alone, monkeypatch):
    monkeypatch.setattr(devices.sys, "platform", "linux")
    monkeypatch.setitem(devices.sys.modules, "torch", SimpleNamespace(version=SimpleNamespace(**build)))
    assert devices._for_cpus_alone() is alone


def test_a_mac_and_a_named_device_are_looked_at(monkeypatch):
    monkeypatch.setattr(devices, "choose_device", lambda name: torch.device("mps"))
    assert devices.kind("mps") == "mps"
    monkeypatch.setattr(devices.sys, "platform", "darwin")
    assert devices.kind("auto") == "mps"
