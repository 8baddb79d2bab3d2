"""`em-evals judges`: agreement between judges, and their errors against people."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from em_evals.cli.output import Json, echo, estimate_cell, print_json, print_table
from em_evals.errors import EmEvalsError

if TYPE_CHECKING:
    from em_evals.grading.agreement import Agreement


def calibrate(
    log: Annotated[
        Path, typer.Argument(help="A graded Inspect log, or a judged table with the column answer.")
    ],
    labels: Annotated[
        Path, typer.Option(help="People's grades: a table with question_id, answer, aligned, coherent.")
    ],
    by: Annotated[
        str | None, typer.Option(help="Column that names the arms: errors can differ by arm.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write the record.")] = Path(
        "calibration.json"
    ),
    as_json: Json = False,
) -> None:
    """Store a judge's sensitivity and specificity.

    They hold at the thresholds, and `em-evals rates --corrected` uses them.
    """
    from dataclasses import asdict

    from em_evals.files import without_nan
    from em_evals.results import calibration

    found = calibration.calibrate(log, labels, by)
    found.write(output)
    if as_json:
        print_json(
            without_nan(
                {
                    name: {**asdict(own), "sensitivity": own.sensitivity, "specificity": own.specificity}
                    for name, own in found.arms.items()
                }
            )
        )
        return
    rows = [
        [name, str(own.total), str(own.positives), f"{own.sensitivity:.3f}", f"{own.specificity:.3f}"]
        for name, own in found.arms.items()
    ]
    print_table(f"{output}", ["arm", "labeled", "EM by people", "sensitivity", "specificity"], rows)


def judges(
    first: Annotated[
        Path, typer.Argument(help="A graded Inspect log, or a judged table with the column answer.")
    ],
    second: Annotated[
        Path | None, typer.Argument(help="The same answers, graded by another judge (`inspect score`).")
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="Human grades: a table with question_id, answer, aligned, coherent.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare the grades of two judges on the same answers.

    `--labels` compares judges with people.
    """
    from dataclasses import asdict, replace
    from itertools import combinations

    from em_evals.files import without_nan
    from em_evals.grading import agreement

    given = [path for path in (first, second, labels) if path is not None]
    if len(given) < 2:
        raise EmEvalsError("name a second log, or people's grades with --labels: agreement takes two.")
    raters = [agreement.read_rater(path) for path in given]
    names = [rater.name for rater in raters]
    raters = [
        # The same judge twice: add the file names.
        replace(rater, name=f"{rater.name} in {path.name}") if names.count(rater.name) > 1 else rater
        for rater, path in zip(raters, given, strict=True)
    ]
    found = [agreement.agreement(one, other) for one, other in combinations(raters, 2)]
    if as_json:
        print_json(without_nan([asdict(entry) for entry in found]))
        return
    for entry in found:
        _show_agreement(entry)


def _show_agreement(found: Agreement) -> None:
    echo(f"first: {found.first}; second: {found.second}")
    left = f"; {found.unmatched[0]} and {found.unmatched[1]} had no match" if any(found.unmatched) else ""
    echo(f"{found.answers} answers graded by both{left}")
    rows = [
        [
            name,
            str(scale.answers),
            estimate_cell(scale.alpha, scale.alpha_interval, ".2f"),
            f"{scale.rank:.2f}",
            estimate_cell(scale.bias, scale.bias_interval, "+.1f"),
        ]
        for name, scale in found.scales.items()
    ]
    print_table("", ["grade", "answers", "Krippendorff's alpha", "rank correlation", "second − first"], rows)
    columns = ["decision", "both", "first only", "second only", "neither", "Krippendorff's alpha"]
    rows = [
        [name, *(str(n) for n in (d.both, d.first_only, d.second_only, d.neither)), f"{d.alpha:.2f}"]
        for name, d in found.decisions.items()
    ]
    print_table("", columns, rows)
    themes = found.scales["alignment"].bias_by_theme
    rows = [[theme, f"{bias:+.1f}"] for theme, bias in themes.items()]
    print_table("", ["theme", "alignment, second − first"], rows)
    rows = [
        [first, second, str(count)]
        for first, row in found.categories.items()
        for second, count in row.items()
        if first != second
    ]
    if rows:
        print_table("", ["category by the first", "by the second", "answers"], rows)
