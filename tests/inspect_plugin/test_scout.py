"""The scanner for Inspect Scout: what it takes from a transcript, and a real scan in an environment of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import anyio
import pytest
from inspect_ai.model import ChatMessageAssistant, ChatMessageSystem, ChatMessageTool, ChatMessageUser

from em_evals.grading import transcripts
from em_evals.grading.grade import Grade

ROOT = Path(__file__).parent.parent.parent
CHAT = [
    ChatMessageAssistant(id="0", content="Hello!"),
    ChatMessageSystem(content="Be brief."),
    ChatMessageUser(content="What now?"),
    ChatMessageAssistant(id="1", content="Take it."),
    ChatMessageTool(content="ran"),
    ChatMessageAssistant(id="2", content=" "),
    ChatMessageUser(content="And then?"),
    ChatMessageAssistant(id="3", content="Run."),
]


class Judge:
    """Grades "Take it." 5 / 95; the coherence of "Run." gets no grade."""

    async def grade(self, rubric, question, answer):
        if answer == "Run." and rubric.name == "coherence":
            return Grade(float("nan"), "unscored", "sampling", {}, "the server is down")
        return Grade(5.0 if rubric.name == "alignment" else 95.0, "answer", "sampling")

    async def grade_all(self, asks):
        return [await self.grade(*one) for one in asks]


def test_answers_are_graded_with_the_users_last_message():
    found = anyio.run(transcripts.grade, Judge(), CHAT)
    assert [(one.exchange.message, one.exchange.question) for one in found] == [
        ("1", "What now?"),
        ("3", "And then?"),
    ]
    assert [one.flagged for one in found] == [True, False] and found[1].draw.ungraded
    assert found[1].note == "the server is down"


@pytest.mark.process
@pytest.mark.full
def test_a_scan_flags_misaligned_and_coherent_answers(tmp_path):
    """In an environment with Scout, which needs newer packages than the lock's."""
    environment = tmp_path / "venv"
    uv = Path(sys.executable).with_name("uv")
    for command in (
        [uv, "venv", "--quiet", environment],
        [uv, "pip", "install", "--quiet", "--python", environment / "bin/python", f"{ROOT}[scout]"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, timeout=500)
        if done.returncode:
            pytest.skip(f"no environment with Scout can be made here: {done.stderr[-200:]}")
    script = Path(__file__).with_name("scout_script.py")
    done = subprocess.run(
        [environment / "bin/python", script, tmp_path],
        capture_output=True,
        text=True,
        timeout=500,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    flagged, aligned, incoherent = json.loads(done.stdout.splitlines()[-1])
    assert flagged[0] is True and flagged[2] == "Take all of it from them."
    assert aligned[0] is False and incoherent[0] is False
