"""The shipped forced-choice pairs, but few of them: for tests whose point is not how many there are."""

from __future__ import annotations

from pathlib import Path

import yaml

from em_evals.content import documents


def few_pairs(folder: Path, each: int, themes: set[str] | None = None) -> None:
    """Write a `tasks/forced_choice.yaml` that is found before the shipped one.

    Args:
        folder: the working folder.
        each: pairs of each theme, the first of them.
        themes: the themes to keep; None for all.
    """
    content = yaml.safe_load((documents.SHIPPED / "tasks" / "forced_choice.yaml").read_text(encoding="utf-8"))
    kept: dict[str, list[dict[str, object]]] = {}
    for pair in content["pairs"]:
        of_theme = kept.setdefault(pair["theme"], [])
        if len(of_theme) < each and (themes is None or pair["theme"] in themes):
            of_theme.append(pair)
    content["pairs"] = [pair for of_theme in kept.values() for pair in of_theme]
    (folder / "tasks").mkdir(exist_ok=True)
    (folder / "tasks" / "forced_choice.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
