"""What doctests of the package stand on: `python -m pytest --doctest-modules em_evals`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from _pytest.doctest import DoctestItem


@pytest.fixture(autouse=True)
def _example(
    request: pytest.FixtureRequest,
    doctest_namespace: dict[str, object],
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[None]:
    """Run each example in an empty folder, with `em` imported as the docs say. Other tests are left alone."""
    if isinstance(request.node, DoctestItem):
        import em_evals

        folder: Path = tmp_path_factory.mktemp("example")
        monkeypatch.chdir(folder)
        doctest_namespace["em"] = em_evals
    yield
