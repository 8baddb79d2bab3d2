"""Fixtures shared by the tests: real data where it exists, a working folder and a cache of one's own."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from em_evals import files
from em_evals.content import documents
from tests import isolation, kept

ROOT = Path(__file__).parent.parent

LONGEST = (
    "test_vllm_alone.py",
    "test_vllm_engine.py",
    "test_vllm_clients.py",
    "test_vllm_end.py",
    "test_vllm_serving.py",
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
    "test_lora_refusals.py",
    "test_compiled_adapters.py",
)
"""Files that take longest, in the order in which they run; those of the shared vLLM server need their order."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the tests: those that need vLLM first, then the files that take longest."""
    starts = [item for item in items if item.get_closest_marker("vllm")]
    if starts:
        from em_evals.engines.vllm.package import unusable

        if reason := unusable():
            for item in starts:
                item.add_marker(pytest.mark.skip(reason=reason))
    place = {name: number for number, name in enumerate(LONGEST)}

    def order(item: pytest.Item) -> tuple[bool, bool, int]:
        needs = item.get_closest_marker("vllm") is not None
        # A parameter of the session, the base of the server: all tests on one base come before those on the next.
        return (
            not needs,
            needs and item.get_closest_marker("smollm2") is not None,
            place.get(item.path.name, len(place)),
        )

    items.sort(key=order)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give each process whole groups of tests, in their order: a file's tests share its fixtures (Makefile).

    Not by marks: `--dist loadgroup` of pytest-xdist 3.8.0 ignores them under pytest 9.2 (pytest-xdist's issue 1386), and
    then every process starts vLLM, trains and grades for itself.
    """
    if config.getvalue("dist") != "loadgroup":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    return Groups(config, log)


def group_of(nodeid: str) -> str:
    """Return the group of a test: its file, but all about vLLM are one, with a server and an import of 10 seconds."""
    file = nodeid.partition("::")[0]
    return "vllm" if file.startswith("tests/engines/") and "/test_vllm_" in file else file


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop() -> None:
    """Exempt what all tests have imported from garbage collection: a training collects nine times, half a second each."""
    gc.enable()
    gc.freeze()


def pytest_configure(config: pytest.Config) -> None:
    """Keep what the user has made out of the tests: trained adapters, logs, and caches but for converted bases."""
    gc.disable()  # until all modules are imported: nothing of theirs is garbage
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A shell starts background jobs so, and every process that a test starts and interrupts would inherit it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    apart = Path(tempfile.mkdtemp(prefix="em-evals-tests-"))
    config.add_cleanup(lambda: shutil.rmtree(apart, ignore_errors=True))
    users = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    converted = files.cache_folder() / "bases"
    converted.mkdir(parents=True, exist_ok=True)
    (apart / "cache").mkdir()
    (apart / "cache" / "bases").symlink_to(converted.absolute())
    os.environ["EM_EVALS_CACHE"] = str(apart / "cache")
    # Files that uv fetched are the same for everybody; test_packaging.py installs with it.
    os.environ.setdefault("UV_CACHE_DIR", str(users / "uv"))
    for name, folder in {"XDG_CACHE_HOME": "home", "XDG_DATA_HOME": "data", "HF_HOME": "huggingface"}.items():
        os.environ[name] = str(apart / folder)
    documents.SHIPPED = isolation.shipped(ROOT, apart / "shipped")
    # Processes that tests start run this checkout's code beside the same content, in whatever folder.
    (apart / "shipped" / "em_evals").symlink_to(ROOT / "em_evals")
    places = [str(apart / "shipped"), str(ROOT), os.environ.get("PYTHONPATH")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, places))
    WATCH.install()
    kept.keep()
    with suppress(ImportError):
        from hypothesis import settings

        # The same inputs each time: a run that fails must fail again. `make test-all` looks for new ones.
        settings.register_profile("one proof", max_examples=15, deadline=None, derandomize=True)
        settings.register_profile("all", max_examples=500, deadline=None)
        settings.load_profile("one proof" if config.getoption("markexpr") else "all")


WATCH = isolation.Watch(
    ROOT,
    caches=[Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"), files.cache_folder()],
    allowed=[files.cache_folder() / "bases"],
)


@pytest.fixture(autouse=True)
def _reads_nothing_of_the_users() -> Iterator[None]:
    """Fail a test that reads the user's adapters, logs or caches, whatever became of what it read."""
    WATCH.seen.clear()
    yield
    assert not WATCH.seen, f"this test reads what the user has made: {', '.join(WATCH.seen[:3])}"


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
    """A working folder with a tiny random base, `tiny`, and its card, `plain`; its engines end with the module.

    " good" and " bad" are tokens of its vocabulary.
    """
    pytest.importorskip("torch")
    from inspect_ai.model._model import _models

    from em_evals.engines.pool import close_engines
    from tests.small_tokenizer import small_tokenizer
    from tests.tiny_models import tiny, write_tiny_card

    # Inspect keeps models by name: `local/plain` would stay the card of another module's folder.
    _models.clear()
    root = tmp_path_factory.mktemp("lab")
    tiny("llama", root / "tiny", small_tokenizer(" good", " bad"))
    write_tiny_card(root, "plain")
    yield root
    close_engines()
