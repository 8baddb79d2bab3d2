"""Make the table's rows from the engine's answers and the plain side's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from em_evals.engines.protocol import Draw, Request
from em_evals.workflows.verify.asking import CheckResult, refused
from em_evals.workflows.verify.gaps import Rule, Spread
from em_evals.workflows.verify.plain import Asked, Plain, Scores, order
from em_evals.workflows.verify.verdict import Row, failed, sentence, skipped

_VISIBLE = 3.0
"""An adapter's or intervention's effect must be this many tolerances: a smaller effect proves nothing."""
_SHOWN = 2
"""Answers per check that are also computed without them, to measure the effect."""


@dataclass(eq=False)
class Drawn:
    """One answer with the plain side's scores of it.

    Attributes:
        request: the request.
        draw: the result.
        asked: the row that the plain side computes.
        plain: its scores, in the card's dtype.
        exact: the same in float32, or batched with copies; None in float32.
    """

    request: Request
    draw: Draw
    asked: Asked
    plain: Scores | None = None
    exact: Scores | None = None

    @property
    def found(self) -> list[float]:
        """The engine's log-probabilities."""
        given = self.draw.logprobs if self.asked.drawn else self.draw.prompt_logprobs
        return [one.logprob for one in given]

    def problem(self) -> str | None:
        """Return why an answer is not valid, whatever its numbers are; None if it is valid."""
        if len(self.found) != len(self.asked.tokens) - self.asked.first:
            return "another number of tokens was scored than was asked for"
        if not self.asked.drawn:
            given = tuple(one.token for one in self.draw.prompt_logprobs)
            return None if given == self.asked.tokens[self.asked.first :] else "other tokens were scored"
        if not self.draw.tokens:
            return f"nothing was drawn ({self.draw.stop_reason})"
        whole = len(self.draw.tokens) == self.request.sampling.max_tokens
        return (
            None if whole or self.draw.stop_reason == "stop" else f"a draw ended by {self.draw.stop_reason}"
        )

    def deviations(self) -> list[float]:
        """Return differences in nats; of a greedy token that is not the most likely, also half of its distance to that.

        Where two log-probabilities change their order, at least one deviates by half of their distance.
        """
        assert self.plain is not None  # noqa: S101 - computed before rows are made
        gaps = [a - b for a, b in zip(self.found, self.plain.given, strict=True)]
        if self.asked.drawn and self.request.sampling.temperature == 0:
            gaps += [(top - own) / 2 for top, own in zip(self.plain.best, self.plain.given, strict=True)]
        return gaps

    def roundings(self) -> list[float]:
        """Return the deviations of the plain side that the dtype itself causes."""
        if self.exact is None or self.plain is None:
            return []
        return [a - b for a, b in zip(self.plain.given, self.exact.given, strict=True)]


@dataclass(eq=False)
class Answered:
    """A check with all of its answers."""

    results: CheckResult
    drawn: list[Drawn] = field(default_factory=list)

    @classmethod
    def of(cls, results: CheckResult) -> Answered:
        """Pair requests with draws."""
        pairs = zip(results.check.requests, results.draws, strict=False)
        return cls(results, [Drawn(request, draw, _asked(request, draw)) for request, draw in pairs])

    def row(self, rule: Rule, bare: Callable[[Asked], Scores] | None = None) -> Row:
        """Return the check's row.

        Args:
            rule: the rule of tolerances.
            bare: returns the bare base's scores of a row, for checks that must have an effect.
        """
        check = self.results.check
        if (error := self.results.error) is not None:
            if refused(error) and bare is not None:
                return skipped(check.name, check.compared, f"refused: {sentence(error)}")
            return failed(check.name, check.compared, error)
        if problem := next((text for one in self.drawn if (text := one.problem())), None):
            return failed(check.name, check.compared, ValueError(problem))
        found = Spread.of(gap for one in self.drawn for gap in one.deviations())
        allowed = rule.tolerance([gap for one in self.drawn for gap in one.roundings()])
        reason, word = allowed.problem(found), "wrong"
        if reason is None:
            word = "ok"
            if bare is not None and (effect := self._effect(bare)) < _VISIBLE * allowed.largest:
                word, reason = "skipped", f"its effect, {effect:.1e} nats, is too small to prove anything"
        return Row(
            check.name,
            check.compared,
            found.largest,
            allowed.largest,
            "nats",
            found.n,
            word,  # type: ignore[arg-type]
            "; ".join(text for text in (reason, check.note) if text),
        )

    @property
    def shown(self) -> list[Drawn]:
        """A few answers under an adapter or interventions, to measure the effect on."""
        return [one for one in self.drawn if one.request.adapter or one.request.interventions][:_SHOWN]

    def _effect(self, bare: Callable[[Asked], Scores]) -> float:
        """Return the maximum change of a log-probability by an adapter or interventions."""
        changes = [0.0]
        for one in self.shown:
            if one.plain is not None:
                base = bare(one.asked)
                changes += [abs(a - b) for a, b in zip(one.plain.given, base.given, strict=True)]
        return max(changes)


def _asked(request: Request, draw: Draw) -> Asked:
    drawn = request.sampling.max_tokens > 0
    tokens = (*request.prompt, *draw.tokens) if drawn else request.prompt
    first = len(request.prompt) if drawn else request.sampling.prompt_logprobs_from
    start = len(request.prompt) if request.answer_start is None else request.answer_start
    return Asked(tokens, first, drawn, request.adapter, request.interventions, start)


def bare_of(asked: Asked) -> Asked:
    """Return the same row of the bare base."""
    return Asked(asked.tokens, asked.first, asked.drawn)


def compute(
    plain: Plain, asked: Sequence[Asked], advance: Callable[[], None], copies: bool = False
) -> dict[Asked, Scores | Exception]:
    """Compute the plain side's scores of rows; a row that it cannot compute has its error.

    Args:
        plain: a copy of the base.
        asked: the rows, each once.
        advance: called after each row.
        copies: compute each row of the bare base batched with copies of itself, and no others.
    """
    found: dict[Asked, Scores | Exception] = {}
    for place in order(asked):
        one = asked[place]
        if copies and (one.adapter or one.interventions):
            continue
        try:
            found[one] = plain.beside_copies(one) if copies else plain.scores(one)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            found[one] = error
        advance()
    return found
