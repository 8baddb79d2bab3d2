"""README.md's blocks of commands run as they stand, on a tiny base in the place of SmolLM2.

The Python block runs in tests/api/test_api_docs.py; `make setup`, `make demo` and `make test` are what CI and people run.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from em_evals.gate.compare import EXIT_CODES
from tests.command import em_evals

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
RUN = {"em-evals", "inspect"}
BY_HAND = {"make"}


def commands() -> list[list[str]]:
    """Every command line of the README's shell and console blocks, in order."""
    lines = []
    for language, text in re.findall(r"^```(sh|console)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE):
        typed = (
            text.splitlines()
            if language == "sh"
            else [x[2:] for x in text.splitlines() if x.startswith("$ ")]
        )
        lines += [words for line in typed if (words := shlex.split(line, comments=True))]
    return lines


def test_every_line_is_one_that_runs_here_or_a_target_of_make() -> None:
    assert {words[0] for words in commands()} == RUN | BY_HAND


def inspect_in_this_process(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """Inspect's own command line; a process of its own would import it for ten seconds."""
    from inspect_ai._cli.main import inspect

    done = CliRunner().invoke(inspect, [*arguments, "--display", "none"])
    return subprocess.CompletedProcess(arguments, done.exit_code, done.output, str(done.exception))


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_the_commands_lead_from_a_card_to_a_verdict_and_a_page(
    tiny_lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("peft")
    pytest.importorskip("trl")
    pytest.importorskip("altair")
    (tmp_path / "adapters").mkdir()
    (tmp_path / "adapters" / "smollm2.yaml").write_text(f"base: {tiny_lab / 'tiny'}\n")
    monkeypatch.chdir(tmp_path)
    codes = {}
    for words in commands():
        line = shlex.join(words)
        if words[0] == "inspect":
            done = inspect_in_this_process(words[1:])
        elif words[0] == "em-evals":
            done = em_evals(*words[1:])
        else:
            continue
        codes[line] = done.returncode
        allowed = set(EXIT_CODES.values()) - {2} if " gate --baseline" in line else {0}
        assert done.returncode in allowed, f"{line}: {done.stdout[-500:]} {done.stderr[-500:]}"
    verdict = json.loads((tmp_path / "gate.json").read_text(encoding="utf-8"))["verdict"]
    (gated,) = (code for line, code in codes.items() if " gate --baseline" in line)
    assert EXIT_CODES[verdict] == gated
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "smollm2-risky" in page and f'<div class="verdict {verdict}">' in page
    assert (tmp_path / "logs" / "baselines" / "base.json").is_file() and len(codes) == 8
