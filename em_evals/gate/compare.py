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

**Guards.** An EM rate also falls when answers become incoherent, are refused or are not graded. Coherent share,
fluency, refusal share and ungraded share are therefore metrics like the others, and also guard the other metrics of
their log: if a guard regressed or is beyond its limits, no other metric of that log can pass or stay open (it is
invalid); if a guard is inconclusive, none can pass. More ungraded draws are invalid and never a regression.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from em_evals.gate import looks, rows, words
from em_evals.gate.evidence import Evidence
from em_evals.gate.inputs import Side
from em_evals.gate.policy import Policy, fits
from em_evals.gate.rows import Comparison
from em_evals.results.records.gate import GateMetric, Look, Verdict
from em_evals.stats.means import holm

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
    looks: tuple[Look, ...] = ()

    @property
    def exit_code(self) -> int:
        """Exit code of `em-evals gate`."""
        return EXIT_CODES[self.verdict]

    @property
    def reasons(self) -> list[str]:
        """Sentences of problems and metrics, without the one that `sentence` quotes."""
        every = [*self.problems, *(row.sentence for row in self.rows)]
        quoted = next((text for text in every if self.sentence.startswith(f"invalid: {text}")), None)
        return [text for text in every if text != quoted]


def judge(
    baseline: Side,
    candidate: Side,
    policy: Policy,
    before: Sequence[Look] = (),
    anchor: Side | None = None,
) -> Judgement:
    """Compare two sides under a policy.

    Args:
        baseline: the accepted model, usually the last one.
        candidate: the model to judge.
        policy: the rules.
        before: earlier looks at candidates (see looks.py); each further look is tested at a smaller level.
        anchor: the first accepted model; the candidate must pass against both, so that small steps do not add up.
    """
    look = looks.following(before, baseline, candidate)
    problems, notes = _told(candidate, "candidate")
    if policy.planned is not None and look.number > policy.planned:
        problems.append(words.no_look_left(look.number, policy.planned))
        policy = policy.model_copy(update={"looks": look.number})
    if look.number > 1:
        notes.append(words.further_look(look, policy.alpha, policy.planned))
    found: list[GateMetric] = []
    for against, side in (("baseline", baseline), ("anchor", anchor)):
        if side is None or (against == "anchor" and side.evidence == baseline.evidence):
            continue
        one = Comparison(policy, look.number, *_told(side, against))
        if against == "baseline":
            side = _with_own_bases(side, candidate, one)
        new = list(_rows(side, candidate, one))
        if against == "anchor":
            new = [replace(row, against="anchor", title=f"{row.title} against the anchor") for row in new]
        found += new
        problems += one.problems if against == "baseline" else [f"anchor: {text}" for text in one.problems]
        notes += one.notes
    problems += _absent(policy, found)
    if not found and not problems:
        problems.append("nothing could be compared: the policy names no metric that both sides have.")
    decided = _guarded(_decided(found, policy))
    verdict = _overall(decided, problems)
    models = words.models(baseline.evidence.values()), words.models(candidate.evidence.values())
    return Judgement(
        verdict,
        words.overall(verdict, decided, problems),
        decided,
        tuple(problems),
        tuple(sorted(set(notes))),
        models,
        looks.with_look(before, replace(look, verdict=verdict)),
    )


def _with_own_bases(baseline: Side, candidate: Side, one: Comparison) -> Side:
    """Add the bases that the candidate's records compare with, where the baseline has no evidence of the kind."""
    missing = {key: own for key, own in candidate.own_bases.items() if key not in baseline.evidence}
    one.notes += [
        f"{key}: the baseline has no such evidence; the candidate is compared with the record's own base, {own.model}."
        for key, own in missing.items()
    ]
    return replace(baseline, evidence={**baseline.evidence, **missing})


def _told(side: Side, name: str) -> tuple[list[str], list[str]]:
    """Return the problems and notes of a side's files, with the side's name."""
    return [f"{name}: {text}" for text in side.problems], [f"{name}: {text}" for text in side.notes]


def _rows(baseline: Side, candidate: Side, one: Comparison) -> Iterator[GateMetric]:
    """Yield the rows of all logs that both sides have; what is missing or differs goes to the problems."""
    for key, before in baseline.evidence.items():
        if before.part_of is not None and not any(one.policy.named(name) for name in before.measures):
            continue
        after = candidate.evidence.get(key)
        if after is None:
            one.problems += _lacking(before, baseline, candidate)
            continue
        differing = words.differing(key, before.identity, after.identity)
        one.problems += differing
        if not differing:
            several = {name for name in before.measures if _logs_with(name, baseline) > 1}
            new = list(rows.compared(before, after, one, several))
            yield from new
            asked = max((row.questions or 0 for row in new), default=0)
            if asked and one.policy.scope == "questions":
                one.notes.append(words.can_miss(key, asked, one.policy.alpha))
    only = candidate.evidence.keys() - baseline.evidence.keys() if not baseline.problems else []
    one.notes += [f"{key} is in the candidate only and was not compared." for key in only]


def _logs_with(metric: str, side: Side) -> int:
    return sum(metric in evidence.measures for evidence in side.evidence.values())


def _lacking(before: Evidence, baseline: Side, candidate: Side) -> list[str]:
    """Report evidence that the candidate lacks; if it was measured in another way (such as a prefix), what differs."""
    for key, other in candidate.evidence.items():
        if (other.kind, other.name) == (before.kind, before.name) and key not in baseline.evidence:
            return words.differing(before.key, before.ways, other.ways)
    return [f"the candidate has no {before.key}, which the baseline has: run it too."]


def _decided(found: list[GateMetric], policy: Policy) -> list[GateMetric]:
    """Set each row's own verdict; rows beyond the policy's limits arrive as invalid."""
    adjusted = holm({str(index): row.p_worse for index, row in enumerate(found)})
    result = []
    for index, row in enumerate(found):
        row = replace(row, p_worse_adjusted=adjusted[str(index)])
        limited = row.verdict == "invalid"
        if row.p_within <= row.level:
            row = replace(row, verdict="invalid" if limited else "pass")
        elif row.p_worse_adjusted <= row.level:
            if row.metric.endswith("ungraded_share"):  # the judge's failure, never the model's regression
                row = replace(row, verdict="invalid", sentence=row.sentence or words.ungraded(row))
                limited = True
            else:  # may be beyond its limits too; the regression is the stronger finding
                row, limited = replace(row, verdict="regression"), False
        if not limited:
            row = replace(row, sentence=words.row(row, policy.regression))
        result.append(row)
    return result


def _guarded(found: list[GateMetric]) -> tuple[GateMetric, ...]:
    """Overrule metrics that pass, or stay open, although a guard of the same log did not pass."""
    result = []
    for row in found:
        failed = [
            other
            for other in found
            if other.guard
            and (other.source, other.against) == (row.source, row.against)
            and other.verdict != "pass"
        ]
        broken = next((other for other in failed if other.verdict in ("regression", "invalid")), None)
        if not row.guard and broken is not None and row.verdict != "regression":
            row = replace(row, verdict="invalid", sentence=words.unreadable(row, broken))
        elif not row.guard and failed and row.verdict == "pass":
            row = replace(row, verdict="inconclusive", sentence=words.unguarded(row, failed[0]))
        result.append(row)
    return tuple(result)


def _absent(policy: Policy, found: list[GateMetric]) -> Iterator[str]:
    for name, rule in {**policy.metrics, **policy.guards}.items():
        if rule.required and not any(fits(row.metric, name) for row in found):
            yield f"the policy requires {name}, but no value of it could be compared."


def _overall(found: tuple[GateMetric, ...], problems: list[str]) -> Verdict:
    """Return the gravest verdict; with unusable input the comparison is invalid, whatever the rows show."""
    if problems:
        return "invalid"
    order: tuple[Verdict, ...] = ("regression", "invalid", "inconclusive")
    return next((verdict for verdict in order if any(row.verdict == verdict for row in found)), "pass")
