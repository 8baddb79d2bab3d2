"""The verdict: may the candidate replace the baseline? For each metric, and overall.

For one metric, d is the change for the worse and m > 0 the margin that the policy accepts.

- **pass**: the hypothesis d ≥ m is rejected at one-sided alpha, that is, the bound of d lies below the margin
  (non-inferiority). No evidence of harm is not evidence of no harm: a few draws cannot pass.
  - **regression**: no pass, and the hypothesis d ≤ 0 is rejected (or d ≤ m, if the policy has `regression: margin`). A
    real change for the worse that is certainly smaller than the margin is a pass, and its sentence reports it.
  - **inconclusive**: neither. More draws decide it (see `em-evals gate --plan`), or more items if none are
    drawn.
  - **invalid**: the numbers are not comparable or not interpretable.

**Several metrics.** The overall verdict is a regression if any metric is one, so these tests form a family. Their
p-values are adjusted by Holm's method, which holds under any dependence: an unchanged model is called a regression
with probability at most alpha, for any number of metrics. The overall verdict is a pass only if *all* metrics pass,
which is an intersection-union test: a model that is worse than the margin on some metric passes overall only if that
metric's own test errs, with probability at most alpha and no adjustment (Berger, Technometrics 24, 1982). Dividing
alpha among the metrics would only make passing needlessly hard. A single metric's pass, selected from many, is
unadjusted.

**Guards.** An EM rate also falls when answers become incoherent. Coherent share and fluency are therefore metrics
like the others, and also guard the other metrics of their log: if a guard regressed or is below its floor, no other
metric of that log can pass or stay open (it is invalid); if a guard is inconclusive, none can pass.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Set
from dataclasses import dataclass, replace
from typing import Literal

from em_evals.gate import words
from em_evals.gate.evidence import Counts, Evidence, Items, Mean, Measure
from em_evals.gate.inputs import Side
from em_evals.gate.policy import Applied, Policy, fits, not_a_share
from em_evals.results.records import GateMetric, Verdict
from em_evals.stats.means import Contrast, MeanContrast, holm
from em_evals.stats.paired import PairedContrast
from em_evals.stats.rates import RateContrast

EXIT_CODES: dict[Verdict, int] = {"pass": 0, "regression": 1, "invalid": 2, "inconclusive": 3}


@dataclass(frozen=True)
class Judgement:
    """The gate's verdict, with its reasons."""

    verdict: Verdict
    sentence: str
    rows: tuple[GateMetric, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    models: tuple[str, str]

    @property
    def exit_code(self) -> int:
        """Exit code of `em-evals gate`."""
        return EXIT_CODES[self.verdict]


def judge(baseline: Side, candidate: Side, policy: Policy) -> Judgement:
    """Compare two sides under a policy."""
    problems = [f"baseline: {text}" for text in baseline.problems]
    problems += [f"candidate: {text}" for text in candidate.problems]
    notes = [f"baseline: {text}" for text in baseline.notes]
    notes += [f"candidate: {text}" for text in candidate.notes]
    rows: list[GateMetric] = []
    metrics = Counter(name for one in baseline.evidence.values() for name in one.measures)
    several = {name for name, count in metrics.items() if count > 1}
    for key, before in baseline.evidence.items():
        if before.part_of is not None and not any(policy.named(name) for name in before.measures):
            continue
        after = candidate.evidence.get(key)
        if after is None:
            problems += _lacking(before, baseline, candidate)
            continue
        differing = words.differing(key, before.identity, after.identity)
        problems += differing
        if not differing:
            rows += _rows(before, after, policy, problems, notes, several)
    only = candidate.evidence.keys() - baseline.evidence.keys()
    notes += [f"{key} is in the candidate only and was not compared." for key in only]
    problems += _absent(policy, rows)
    if not rows and not problems:
        problems.append("nothing could be compared: the policy names no metric that both sides have.")
    decided = _guarded(_decided(rows, policy))
    verdict = _overall(decided, problems)
    models = words.models(baseline.evidence.values()), words.models(candidate.evidence.values())
    return Judgement(
        verdict,
        words.overall(verdict, decided, problems),
        decided,
        tuple(problems),
        tuple(sorted(notes)),
        models,
    )


def contrast(before: Measure, after: Measure) -> Contrast | None:
    """Return the contrast of two measures; None if they differ in form (one file has items, the other only a mean)."""
    if isinstance(before, Counts) and isinstance(after, Counts):
        return RateContrast(before.clusters, after.clusters)
    if isinstance(before, Items) and isinstance(after, Items):
        return PairedContrast(before.values, after.values)
    if isinstance(before, Mean) and isinstance(after, Mean):
        return MeanContrast(
            before.value, after.value, (before.error, after.error), (before.draws, after.draws)
        )
    return None


def _lacking(before: Evidence, baseline: Side, candidate: Side) -> list[str]:
    """Report evidence that the candidate lacks; if it was measured in another way (such as a prefix), what differs."""
    for key, other in candidate.evidence.items():
        if (other.kind, other.name) == (before.kind, before.name) and key not in baseline.evidence:
            return words.differing(before.key, before.ways, other.ways)
    return [f"the candidate has no {before.key}, which the baseline has: run it too."]


def _rows(
    before: Evidence,
    after: Evidence,
    policy: Policy,
    problems: list[str],
    notes: list[str],
    several: Set[str],
) -> Iterator[GateMetric]:
    if before.card_digest and before.card_digest == after.card_digest:
        notes.append(
            f"{before.key}: baseline and candidate are the same model (card digest {before.card_digest})."
        )
    if before.kind == "csv":
        notes.append(
            "a CSV names neither judge nor rubric: that both were graded the same way is taken on trust."
        )
    for name, measure in before.measures.items():
        found = policy.rule(name) if before.part_of is None else policy.named(name)
        if found is None:
            notes.append(f"the policy has no rule for {name}; it was not compared.")
            continue
        other = after.measures.get(name)
        compared = contrast(measure, other) if other is not None else None
        if compared is None:
            problems.append(
                f"{before.key}: {name} is not given in the same form on both sides; log samples for both."
            )
            continue
        if wrong := not_a_share(name, found.rule, isinstance(measure, Counts)):
            problems.append(f"the policy: {wrong[1]}")
            continue
        drawn = isinstance(measure, Counts) and before.kind != "lm_eval"
        needed = found.rule.minimum_draws or (policy.minimum_draws if drawn else policy.minimum_items)
        if few := words.too_few(before.key, name, (before.draws(name), after.draws(name)), needed, drawn):
            problems.append(few)
            continue
        title = f"{name} of {before.key}" if name in several else name
        yield _row(before.key, name, title, compared, found, policy, _unit(measure))


def _unit(measure: Measure) -> str:
    """Return the measure's unit; a mean from a results file can be of anything, so it has none."""
    if isinstance(measure, Counts):
        return "share"
    return measure.unit if isinstance(measure, Items) else ""


def _row(
    source: str, name: str, title: str, compared: Contrast, found: Applied, policy: Policy, unit: str
) -> GateMetric:
    rule = found.rule
    worse: Literal["higher", "lower"] = "higher" if found.better == "lower" else "lower"
    alpha = policy.alpha_of(rule)
    harm = rule.margin if policy.regression == "margin" else 0.0
    if worse == "higher":
        p_worse, p_within = compared.p_above(harm), compared.p_below(rule.margin)
    else:
        p_worse, p_within = compared.p_below(-harm), compared.p_above(-rule.margin)
    short = rule.minimum is not None and not compared.candidate >= rule.minimum
    return GateMetric(
        metric=name,
        title=title,
        source=source,
        guard=found.guard,
        worse=worse,
        unit=unit,
        margin=rule.margin,
        alpha=alpha,
        baseline=compared.baseline,
        candidate=compared.candidate,
        difference=compared.estimate,
        interval=compared.interval(alpha),
        random_questions=compared.random_questions(alpha),
        effect=compared.effect,
        effect_name=compared.effect_name,
        units=compared.units,
        p_worse=p_worse,
        p_worse_adjusted=math.nan,
        p_within=p_within,
        verdict="invalid" if short else "inconclusive",
        sentence=words.below_floor(title, compared.candidate, rule.minimum, unit) if short else "",
    )


def _decided(rows: list[GateMetric], policy: Policy) -> list[GateMetric]:
    """Set each row's own verdict; rows below their floor arrive as invalid."""
    adjusted = holm({str(index): row.p_worse for index, row in enumerate(rows)})
    result = []
    for index, row in enumerate(rows):
        row = replace(row, p_worse_adjusted=adjusted[str(index)])
        short = row.verdict == "invalid"
        if row.p_within <= row.alpha:
            row = replace(row, verdict="invalid" if short else "pass")
        elif (
            row.p_worse_adjusted <= row.alpha
        ):  # may be below its floor too; the regression is the stronger finding
            row, short = replace(row, verdict="regression"), False
        if not short:
            row = replace(row, sentence=words.row(row, policy.regression))
        result.append(row)
    return result


def _guarded(rows: list[GateMetric]) -> tuple[GateMetric, ...]:
    """Overrule metrics that pass, or stay open, although a guard of the same log did not pass."""
    result = []
    for row in rows:
        failed = [
            other for other in rows if other.guard and other.source == row.source and other.verdict != "pass"
        ]
        broken = next((other for other in failed if other.verdict in ("regression", "invalid")), None)
        if not row.guard and broken is not None and row.verdict != "regression":
            row = replace(row, verdict="invalid", sentence=words.unreadable(row, broken))
        elif not row.guard and failed and row.verdict == "pass":
            row = replace(row, verdict="inconclusive", sentence=words.unguarded(row, failed[0]))
        result.append(row)
    return tuple(result)


def _absent(policy: Policy, rows: list[GateMetric]) -> Iterator[str]:
    for name, rule in {**policy.metrics, **policy.guards}.items():
        if rule.required and not any(fits(row.metric, name) for row in rows):
            yield f"the policy requires {name}, but no value of it could be compared."


def _overall(rows: tuple[GateMetric, ...], problems: list[str]) -> Verdict:
    """Return the gravest verdict; with unusable input the comparison is invalid, whatever the rows show."""
    if problems:
        return "invalid"
    order: tuple[Verdict, ...] = ("regression", "invalid", "inconclusive")
    return next((verdict for verdict in order if any(row.verdict == verdict for row in rows)), "pass")
