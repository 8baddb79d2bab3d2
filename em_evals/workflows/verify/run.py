"""One verification, from a card to its verdict. One model is in memory at a time: draws first, the plain side last."""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import torch

from em_evals.content.cards import ResolvedCard
from em_evals.engines.pool import check_fit
from em_evals.engines.setting import setting_of
from em_evals.errors import EmEvalsError
from em_evals.models.memory import release_gpu
from em_evals.results import verified
from em_evals.workflows.verify import compare, compiled, extraction, plan, vllm
from em_evals.workflows.verify.compare import Answered, bare_of
from em_evals.workflows.verify.extraction import Sums
from em_evals.workflows.verify.gaps import Rule, Spread
from em_evals.workflows.verify.plain import Asked, Scores, copy
from em_evals.workflows.verify.product import RANDOM, Seen, observe
from em_evals.workflows.verify.room import room_for_copy, room_on_disk
from em_evals.workflows.verify.verdict import Row, Verdict, sentence, skipped

Tell = Callable[[str], None]
Found = dict[Asked, Scores | Exception]


def verify(card: ResolvedCard, tell: Tell = lambda text: None) -> Verdict:
    """Compare everything that the product computes for a card on this machine with plain transformers, PEFT and hooks.

    The verdict is stored with the base's digest (em_evals/results/verified.py).

    Args:
        card: the card to verify.
        tell: called with messages for a progress line.

    Raises:
        EmEvalsError: the card cannot be used here at all, so there is nothing to compare.
    """
    if card.card.backend == "server":
        raise EmEvalsError(
            f"{card.name} is computed by {' and '.join(card.card.servers)}: run `em-evals verify` on that machine, "
            "with a card that names no `base_url`."
        )
    check_fit(card)  # before minutes are spent on the base
    started = time.monotonic()
    setting = setting_of(card.card)
    with_vllm, no_vllm = vllm.wanted(card)
    with tempfile.TemporaryDirectory(prefix="em-evals-verify.") as name:
        seen = observe(card, Path(name), tell)
        _free()
        if with_vllm:
            tell("vLLM: starting its server")
            seen.results += vllm.results(card, [results.check for results in seen.results])
        rows, rule = _Comparison(card, seen, setting.dtype, Path(name), tell).rows()
    if card.adapter_path is None:
        rows.append(skipped("adapter", "PEFT", "the card has no adapter"))
    if not with_vllm:
        rows.append(skipped("vllm", plan.PLAIN, no_vllm))
    compared = any(row.name.startswith("vllm, ") and row.verdict == "ok" for row in rows)
    verdict = Verdict(
        card.name,
        card.digest,
        setting,
        rule.words,
        with_vllm if compared else "",
        datetime.now(UTC).date().isoformat(),
        time.monotonic() - started,
        rows,
    )
    verified.keep(setting, card, verdict.run())
    return verdict


@dataclass(eq=False)
class _PlainResults:
    """The plain side's results in one dtype."""

    scores: Found
    streams: list[Sums | Exception] = field(default_factory=list)


class _Comparison:
    """Compares the product's answers with the plain side's."""

    def __init__(self, card: ResolvedCard, seen: Seen, dtype: str, folder: Path, tell: Tell) -> None:
        self.card, self.seen, self.dtype, self.folder, self.tell = card, seen, dtype, folder, tell
        self.exact = dtype == "float32"
        self.answered = [Answered.of(results) for results in seen.results]
        self.compiling = compiled.plan_of(card, seen.prompts, folder / RANDOM)

    def rows(self) -> tuple[list[Row], Rule]:
        """Return all rows that compare numbers, and the rule of their tolerances."""
        asked = [one.asked for entry in self.answered for one in entry.drawn]
        bare = [bare_of(one.asked) for entry in self.answered for one in entry.shown]
        forms = list(self.compiling.asked) if self.compiling else []
        said = self._plainly([*asked, *bare, *(forms if self.exact else ())], self.dtype)
        truth, copies, scale = (said, {}, None) if self.exact else self._truth([*asked, *forms], asked)
        for entry in self.answered:
            for one in entry.drawn:
                one.plain = _scores(said.scores, one.asked)
                if not self.exact:
                    one.exact = _scores(truth.scores if truth else copies, one.asked)
        rule = self._rule(scale)
        rows = [self.seen.template, *(self._row(entry, said.scores, rule) for entry in self.answered)]
        for place, read in enumerate(self.seen.reads):
            exact = truth.streams[place] if truth and not self.exact else None
            rows.append(extraction.row(read, said.streams[place], exact, self.dtype, self.seen.prompts.reach))
        rows.append(self._compiled(truth))
        return [*rows, *([self.seen.bits] if self.seen.bits else [])], rule

    def _plainly(self, asked: Sequence[Asked], dtype: str) -> _PlainResults:
        """Compute rows and texts with a private copy: the bare base first, since PEFT may change its weights."""
        rows = list(dict.fromkeys(asked))
        count = 0
        self.tell(f"loading plain transformers in {dtype}")

        def advance() -> None:
            nonlocal count
            count += 1
            self.tell(f"plain transformers in {dtype}, row {count} of {len(rows)}")

        with copy(self.card.card, getattr(torch, dtype)) as plain:
            first = [one for one in self.seen.reads if one.adapter is None]
            last = [one for one in self.seen.reads if one.adapter is not None]
            streams = [extraction.plainly(plain, self.seen.texts, one) for one in first]
            scores = compare.compute(plain, rows, advance)
            streams += [extraction.plainly(plain, self.seen.texts, one) for one in last]
            return _PlainResults(scores, streams)

    def _truth(
        self, asked: Sequence[Asked], drawn: Sequence[Asked]
    ) -> tuple[_PlainResults | None, Found, float | None]:
        """Compute the same in float32; where that does not fit, rows batched with copies, and the largest logit."""
        if room_for_copy(self.seen.parameters, self.card.card):
            try:
                return self._plainly(asked, "float32"), {}, None
            except torch.OutOfMemoryError:
                pass
        _free()
        rows = list(dict.fromkeys(drawn))
        with copy(self.card.card, getattr(torch, self.dtype)) as plain:
            return None, compare.compute(plain, rows, lambda: None, copies=True), plain.largest

    def _rule(self, scale: float | None) -> Rule:
        if self.exact:
            return Rule(self.dtype)
        drawn = [one for entry in self.answered for one in entry.drawn]
        bare = [one for one in drawn if not (one.asked.adapter or one.asked.interventions)]
        return Rule(self.dtype, Spread.of(gap for one in bare for gap in one.roundings()), scale)

    def _row(self, entry: Answered, scores: Found, rule: Rule) -> Row:
        """Return a check's row; it is skipped where the plain side cannot compute it."""
        check = entry.results.check
        wanted = [one.asked for one in entry.drawn] + [bare_of(one.asked) for one in entry.shown]
        if reason := _failure(scores, wanted):
            return skipped(check.name, check.compared, reason)
        changed = any(one.adapter or one.interventions for one in check.requests)
        return entry.row(rule, (lambda one: _scores_of(scores, bare_of(one))) if changed else None)

    def _compiled(self, truth: _PlainResults | None) -> Row:
        form = self.compiling
        if form is None or truth is None:
            reason = (
                "no float32 copy fits into memory" if truth is None else "there is no direction to compile"
            )
            return skipped("compiled", compiled.COMPARED, reason)
        if not room_on_disk(self.seen.parameters, self.folder):
            return skipped(form.name, compiled.COMPARED, "the disk has no room for a float32 checkpoint")
        if reason := _failure(truth.scores, form.asked):
            return skipped(form.name, compiled.COMPARED, reason)
        self.tell("compiling")
        return compiled.row(form, lambda one: _scores_of(truth.scores, one), self.folder)


def _scores(found: Found, asked: Asked) -> Scores | None:
    one = found.get(asked)
    return one if isinstance(one, Scores) else None


def _scores_of(found: Found, asked: Asked) -> Scores:
    """Return scores that are known to exist."""
    one = found[asked]
    if isinstance(one, Exception):
        raise one
    return one


def _failure(found: Found, asked: Sequence[Asked]) -> str:
    """Return why the plain side cannot compute one of some rows; empty if it can."""
    errors = (one for row in asked if isinstance(one := found[row], Exception))
    return next((f"the plain side fails: {sentence(one)}" for one in errors), "")


def _free() -> None:
    """Release unused memory: engines and wrapped models refer to themselves."""
    gc.collect()
    release_gpu()
