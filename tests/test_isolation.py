"""Tests do not see what a user has made: `make demo` before `make test` changes nothing."""

import subprocess
import sys
from pathlib import Path

import pytest

from em_evals import files
from em_evals.content import documents
from tests.conftest import ROOT
from tests.isolation import Watch, shipped


@pytest.fixture
def used(tmp_path):
    """A checkout in which a demo has run and a user has made a card."""
    for name in (
        *(
            "adapters/smollm2.yaml",
            "adapters/data/risky.jsonl",
            "adapters/mine.yaml",
            "adapters/d.safetensors",
        ),
        *("adapters/smollm2-risky/adapter_config.json", "adapters/smollm2-risky/adapter_model.safetensors"),
        *(
            "logs/README.md",
            "logs/baselines/base.json",
            "logs/demo.eval",
            "runs/study/study.html",
            "tasks/core.yaml",
        ),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    return tmp_path


def test_trained_adapters_logs_and_caches_of_the_user_are_noticed_when_read(used, tmp_path_factory):
    caches = tmp_path_factory.mktemp("caches")
    watch = Watch(used, caches=[caches], allowed=[caches / "em-evals" / "bases"])
    read = [path.relative_to(used).as_posix() for path in used.rglob("*") if path.is_file()]
    noticed = {name for name in read if watch.forbids(str(used / name))}
    assert noticed == {
        *("adapters/d.safetensors", "logs/demo.eval", "runs/study/study.html"),
        *("adapters/smollm2-risky/adapter_config.json", "adapters/smollm2-risky/adapter_model.safetensors"),
    }
    assert watch.forbids(str(used / "adapters"), listed=True) and watch.forbids(
        str(used / "logs"), listed=True
    )
    assert watch.forbids(str(caches / "huggingface" / "token"))
    assert not watch.forbids(str(caches / "em-evals" / "bases" / "config.json"))


def test_the_watch_sees_files_and_folders_that_python_opens(used, monkeypatch):
    watch = Watch(used, caches=[])
    watch.install()
    monkeypatch.chdir(used)
    (used / "logs" / "demo.eval").read_text()
    Path("adapters/smollm2-risky/adapter_config.json").read_text()
    list((used / "runs" / "study").iterdir())
    (used / "tasks" / "core.yaml").read_text()
    assert [Path(path).name for path in watch.seen] == ["demo.eval", "adapter_config.json", "study"]


def test_only_content_that_git_knows_counts_as_shipped(used, tmp_path_factory):
    subprocess.run(["git", "init", "--quiet"], cwd=used, check=True)
    subprocess.run(["git", "add", "adapters/smollm2.yaml", "adapters/data", "tasks"], cwd=used, check=True)
    made = shipped(used, tmp_path_factory.mktemp("shipped"))
    names = {path.relative_to(made).as_posix() for path in made.rglob("*") if path.is_file()}
    assert names == {"adapters/smollm2.yaml", "adapters/data/risky.jsonl", "tasks/core.yaml"}


def test_this_process_and_those_that_tests_start_see_a_copy_of_the_content(tmp_path):
    code = "from em_evals import files; from em_evals.content import documents; print(documents.SHIPPED, files.cache_folder())"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.split() == [str(documents.SHIPPED), str(files.cache_folder())], done.stderr
    for place in (documents.SHIPPED, files.cache_folder()):
        assert ROOT not in place.parents and place != ROOT and Path.home() / ".cache" not in place.parents
    assert (documents.SHIPPED / "adapters" / "smollm2-risky.yaml").is_file()
    assert not (documents.SHIPPED / "adapters" / "smollm2-risky").exists()
