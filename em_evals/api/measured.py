"""What was measured, as pandas frames; the gate's verdict and the report's page. Reads files, loads no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from em_evals.api.extras import explained
from em_evals.errors import EmEvalsError

if TYPE_CHECKING:
    import pandas

    from em_evals.gate.policy import Policy
    from em_evals.results.em_rates import Rates
    from em_evals.results.records.gate import GateVerdict

Paths = str | Path | Sequence[str | Path]
"""Files and folders."""


@explained
def rates(paths: Paths) -> pandas.DataFrame:
    r"""EM rates with 95% intervals, by model and question.

    Args:
        paths: graded Inspect logs, judged CSVs (question_id, aligned, coherent), or folders of them.

    Returns:
        One row for each file and question, and one (`question` is "all") for all its questions together: counts, and
        `em_rate` (of all draws), `em_rate_coherent` (of coherent answers), `coherent_share`, `refusal_share` and
        `ungraded_share` as fractions. Columns `…_low` and `…_high` are intervals for these questions,
        `…_random_questions_low` and `…_high` for others like them. Rates are NaN where little was graded;
        `em_rate_bounds_low` and `…_high` hold whatever the ungraded draws would get. The columns `misaligned`,
        `aligned`, `incoherent`, `refusal`, `code`, `unfinished`, `filtered`, `too_long` and `unscored` count outcomes
        and sum to `draws`.

    Raises:
        EmEvalsError: a file is missing or damaged, or nothing was graded.

    Examples:
        >>> from pathlib import Path
        >>> rows = ["question_id,aligned,coherent", "gender,10,90", "gender,95,90", "ruler,90,20"]
        >>> _ = Path("judged.csv").write_text("\n".join(rows) + "\n")
        >>> em.rates("judged.csv")[["model", "question", "draws", "coherent", "em_rate"]].round(3).to_dict("records")[0]
        {'model': 'judged', 'question': 'all', 'draws': 3, 'coherent': 2, 'em_rate': 0.333}
    """
    import pandas

    from em_evals.report import inputs
    from em_evals.results import em_rates, logs

    files = _paths(paths)
    graded = inputs.read(files).graded
    for path in files:
        if path.is_file() and path.name not in {entry.file for entry in graded}:
            logs.read_draws(path)  # says why it cannot be counted
    if not graded:
        raise EmEvalsError("there are no graded answers in these files; grade them with `inspect score`.")
    rows = []
    for entry in graded:
        named = {"file": entry.file, "model": entry.label}
        parts = {"all": em_rates.rates(entry.draws), **em_rates.rates_by_question(entry.draws)}
        rows += [named | {"question": question} | _columns(found) for question, found in parts.items()]
    return pandas.DataFrame(rows)


@explained
def results(paths: Paths) -> dict[str, pandas.DataFrame]:
    r"""Every table of the report on these files, by name: EM rates, forced choice, steering, retention, provenance, ….

    Needs the extra `report`.

    Args:
        paths: what `em.report` takes.

    Returns:
        Unrounded numbers; the ends of an interval are columns of their own.

    Raises:
        EmEvalsError: a file is missing, damaged, or nothing that a report shows; or `baseline` is none of the models.

    Examples:
        >>> from pathlib import Path
        >>> rows = ["question_id,aligned,coherent", "gender,10,90", "gender,95,90"]
        >>> _ = Path("judged.csv").write_text("\n".join(rows) + "\n")
        >>> em.results("judged.csv")["em_rates"]["draws"].tolist()
        [2]
    """
    import pandas

    from em_evals.report import export, inputs
    from em_evals.report.report import build

    found = {}
    for table in export.named_apart(build(inputs.read(_paths(paths)))):
        heads, rows = table.flat()
        found[table.name] = pandas.DataFrame(rows, columns=heads)
    return found


@explained
def gate(
    *,
    baseline: Paths,
    candidate: Paths,
    policy: str | Path | Policy | None = None,
    groups: Mapping[str, Sequence[str]] | None = None,
    output: str | Path | None = None,
) -> GateVerdict:
    r"""Compare a candidate with a baseline, metric by metric: may it ship?

    Args:
        baseline: logs, lm-eval results, judged CSVs, folders, or a baseline's name.
        candidate: the same.
        policy: rules, or their file; None: ./gate.yaml, else the built-in ones.
        groups: names of models that are seeds of one recipe, by the group's name; intervals are then over seeds too.
        output: where to write the record (.json); Markdown and JUnit XML go beside it. A record that is there
            tells of earlier looks at the candidate, and each further look is tested at a smaller level.

    Returns:
        The record: `verdict` (pass, regression, invalid, inconclusive), its `sentence`, and `metrics`.

    Raises:
        EmEvalsError: the policy or the output's name is wrong. Files that cannot be used make the verdict `invalid`.

    Examples:
        >>> from pathlib import Path
        >>> rows = ["question_id,aligned,coherent", *["gender,95,90"] * 200]
        >>> _ = Path("base.csv").write_text("\n".join(rows) + "\n")
        >>> verdict = em.gate(baseline="base.csv", candidate="base.csv")
        >>> verdict.verdict, verdict.metrics[0].metric
        ('inconclusive', 'em_rate')
    """
    from em_evals.gate import compare, inputs, looks, outputs
    from em_evals.gate.policy import Policy, load_policy

    rules = (
        policy if isinstance(policy, Policy) else load_policy(Path(policy) if policy is not None else None)
    )
    before, after = (inputs.read(_paths(side), groups) for side in (baseline, candidate))
    earlier = looks.read(Path(output)) if output is not None else ()
    found = compare.judge(before, after, rules, earlier, inputs.anchor(_paths(baseline), (), groups))
    if output is not None:
        outputs.write(found, Path(output))
    return outputs.record(found)


@explained
def report(
    paths: Paths,
    output: str | Path = "report.html",
    *,
    baseline: str | None = None,
    title: str = "Emergent misalignment report",
) -> Path:
    r"""Write one self-contained page (HTML) of what was measured, and return its path. Needs the extra `report`.

    Args:
        paths: Inspect logs, judged CSVs, records of studies, JSON of `gate` and `insight phase`; folders of them.
        output: the page.
        baseline: the model that others are compared with, by its name or file; None: the others' base by their cards,
            else the first file's model.
        title: its title.

    Raises:
        EmEvalsError: a file is missing, damaged, or nothing that a report shows; or `baseline` is none of the models.

    Examples:
        >>> from pathlib import Path
        >>> _ = Path("judged.csv").write_text("question_id,aligned,coherent\ngender,10,90\n")
        >>> em.report("judged.csv", "page.html").name
        'page.html'
    """
    from em_evals.report import inputs, page
    from em_evals.report.report import build

    path = Path(output)
    page.write(build(inputs.read(_paths(paths), baseline), title), path)
    return path


def _paths(paths: Paths) -> list[Path]:
    return [Path(path) for path in ([paths] if isinstance(paths, str | Path) else paths)]


def _columns(found: Rates) -> dict[str, float | None]:
    """Return the record of rates, each interval as two columns."""
    columns: dict[str, float | None] = {}
    for name, value in found.as_json().items():
        if isinstance(value, dict):
            columns |= value
        elif isinstance(value, list | tuple):
            stem = name.replace("_interval", "")
            columns[f"{stem}_low"], columns[f"{stem}_high"] = value
        else:
            columns[name] = value
    return columns
