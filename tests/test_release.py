"""Workflows, templates and the Dockerfile: they parse, name what exists, and hold least privileges. Nothing is run."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TARGETS = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def steps(workflow: dict[str, Any]) -> list[dict[str, Any]]:
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


def test_there_is_a_workflow_for_each_occasion() -> None:
    assert [path.stem for path in WORKFLOWS] == ["docs", "nightly", "release", "test"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_runs_make_targets_that_exist(path: Path) -> None:
    lines = [line for step in steps(read(path)) for line in str(step.get("run", "")).splitlines()]
    assert lines, "a workflow that runs nothing of ours"
    for line in lines:
        program, *targets = shlex.split(line)
        assert program == "make" and set(targets) <= TARGETS, line


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_may_read_and_only_named_jobs_may_more(path: Path) -> None:
    workflow = read(path)
    assert workflow["permissions"] == {"contents": "read"}
    for name, job in workflow["jobs"].items():
        assert job["timeout-minutes"] <= 360, name
        more = set(job.get("permissions", {}))
        assert not more or (job.get("environment") and more <= {"id-token", "pages"}), name
    for step in steps(workflow):
        action, _, version = str(step.get("uses", "x@v1")).partition("@")
        assert version and version not in ("main", "master", "latest"), action
        if action == "actions/checkout":
            assert step["with"]["persist-credentials"] is False


def test_python_versions_of_ci_are_those_of_the_package() -> None:
    tested = read(ROOT / ".github" / "workflows" / "test.yml")["jobs"]["package"]["strategy"]["matrix"][
        "python"
    ]
    named = [one.rpartition(" ")[2] for one in PROJECT["classifiers"] if "Python :: 3." in one]
    assert tested == named and f">={tested[0]}" == PROJECT["requires-python"]


def test_forms_ask_for_what_a_fault_needs() -> None:
    forms = {path.stem: read(path) for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")}
    assert set(forms) == {"config", "request", "wrong-number"}
    for name in ("request", "wrong-number"):
        form = forms[name]
        assert form["name"] and form["description"]
        ids = [field["id"] for field in form["body"]]
        assert len(set(ids)) == len(ids) and all(field["attributes"]["label"] for field in form["body"])
    assert "doctor --json" in str(forms["wrong-number"])


def test_the_dockerfile_installs_extras_that_exist_and_is_not_root() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    lines = [line for line in re.sub(r"\\\n", " ", text).splitlines() if line and not line.startswith("#")]
    words = {line.split()[0] for line in lines}
    assert words <= {"FROM", "RUN", "ENV", "COPY", "USER", "WORKDIR", "ENTRYPOINT", "CMD"} and lines[
        0
    ].startswith("FROM ")
    assert ":" in lines[0] and not lines[0].endswith(":latest")
    extras = re.search(r"/src\[([\w,]+)\]", text)
    assert extras and set(extras[1].split(",")) <= set(PROJECT["optional-dependencies"])
    users = [line for line in lines if line.startswith("USER ")]
    assert users == ["USER em"] and lines.index(users[0]) < next(
        i for i, line in enumerate(lines) if line.startswith("ENTRYPOINT")
    )
