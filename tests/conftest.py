"""Fixtures shared by the tests: real data where it exists, a working folder and a cache of one's own."""

from __future__ import annotations

import os
import shutil
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from em_evals import files
from em_evals.content import documents

ROOT = Path(__file__).parent.parent

LONGEST = (
    "test_vllm_engine.py",
    "test_vllm_serving.py",
    "test_vllm_plugin.py",
    "test_trainer.py",
    "test_study.py",
    "test_provider.py",
    "test_small_trainings.py",
    "test_defences.py",
    "test_verify.py",
    "test_phase.py",
    "test_extract.py",
    "test_interrupt.py",
    "test_packaging.py",
    "test_hf_engine.py",
    "test_recipe_to_result.py",
    "test_lora_options.py",
    "test_architectures.py",
    "test_contrast.py",
    "test_steer.py",
    "test_scorers.py",
    "test_judge.py",
    "test_planning.py",
    "test_demo.py",
    "test_held_out.py",
    "test_report_page.py",
    "test_vllm_cpu_lora.py",
    "test_lora_refusals.py",
    "test_compiled_adapters.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest come first: at the end no process waits for another's (Makefile)."""
    starts = [item for item in items if item.get_closest_marker("vllm")]
    if starts:
        from em_evals.engines.vllm.server import unusable

        if reason := unusable():
            for item in starts:
                item.add_marker(pytest.mark.skip(reason=reason))
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))


def pytest_configure(config: pytest.Config) -> None:
    """Keep what the user has made out of the tests: trained adapters, logs, and the cache but for converted bases."""
    apart = Path(tempfile.mkdtemp(prefix="em-evals-tests-"))
    config.add_cleanup(lambda: shutil.rmtree(apart, ignore_errors=True))
    converted = files.cache_folder() / "bases"
    converted.mkdir(parents=True, exist_ok=True)
    (apart / "cache").mkdir()
    (apart / "cache" / "bases").symlink_to(converted.absolute())
    os.environ["EM_EVALS_CACHE"] = str(apart / "cache")
    documents.SHIPPED = _shipped(apart / "shipped")
    # Processes that tests start run this checkout's code, in whatever folder.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))


def _shipped(folder: Path) -> Path:
    """A copy of the content that goes into the wheel."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    for pattern in project["tool"]["hatch"]["build"]["targets"]["wheel"]["include"]:
        if pattern.startswith("em_evals/"):
            continue
        for source in ROOT.glob(pattern):
            target = folder / source.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
    return folder


@pytest.fixture(scope="session", autouse=True)
def _elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Run in an empty folder: what lies in the checkout is not found there, and nothing is left there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("elsewhere"))
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real published data, never copied into the repository."""
    chosen = os.environ.get("EM_EVALS_DATA")
    places = [Path(chosen).expanduser()] if chosen else []
    for place in [*places, ROOT.parent / "shared" / "data"]:
        if place.is_dir():
            return place
    pytest.skip("needs published data: set EM_EVALS_DATA to a folder that holds it")


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, away from the checkout."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of one's own, empty: the session's holds the converted base."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("EM_EVALS_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session", autouse=True)
def judges_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Judges' replies are kept across runs: tests neither read nor fill the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INSPECT_CACHE_DIR", str(tmp_path_factory.mktemp("inspect")))
        yield


@pytest.fixture(scope="module")
def tiny_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working folder with a tiny random base, `tiny`, and a folder for cards; its engines end with the module.

    " good" and " bad" are tokens of its vocabulary.
    """
    pytest.importorskip("torch")
    from em_evals.engines.pool import close_engines
    from tests.small_tokenizer import small_tokenizer
    from tests.tiny_models import tiny

    root = tmp_path_factory.mktemp("lab")
    tiny("llama", root / "tiny", small_tokenizer(" good", " bad"))
    (root / "adapters").mkdir()
    yield root
    close_engines()
