"""The page's script is bundled once for a version of vl-convert; what others may have written is not used."""

import pytest

pytest.importorskip("vl_convert")

import vl_convert

from em_evals.files import cache_folder
from em_evals.report import library


@pytest.fixture
def bundles(tmp_path, monkeypatch):
    """A bundler that counts its calls, and a cache of its own."""
    calls = []
    monkeypatch.setenv("EM_EVALS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(
        vl_convert, "javascript_bundle", lambda: f"run({len(calls)})</script{calls.append(1) or ''}"
    )
    yield calls
    library.browser_library.cache_clear()


def made():
    library.browser_library.cache_clear()
    return library.browser_library()


def test_it_is_bundled_once(bundles):
    assert made() == made() == "run(0)<\\/script" and len(bundles) == 1
    (file,) = (cache_folder() / "report").iterdir()
    file.chmod(0o666)
    assert made() == "run(1)<\\/script", "others could write this file"
    assert not file.stat().st_mode & 0o022 and made() == "run(1)<\\/script"


def test_a_cache_that_cannot_be_written_costs_time_only(bundles, tmp_path):
    (tmp_path / "cache").write_text("a file")
    assert made() == "run(0)<\\/script" and made() == "run(1)<\\/script"
