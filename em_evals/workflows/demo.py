"""`em-evals demo`: the whole workflow on a laptop, from a fresh machine to a controlled comparison.

Trains a tiny organism and its control, evaluates both and their base, and prints tables. It shows the mechanics; the
closing words say what a 135M model cannot show.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from em_evals import shown
from em_evals.content.pairs import load_pairs
from em_evals.errors import EmEvalsError
from em_evals.grading import judge
from em_evals.results.em_rates import Rates, rates
from em_evals.results.logs import draws_of_log, margins_of_log
from em_evals.stats.intervals import Interval, mean
from em_evals.stats.paired import difference

BASE, ORGANISM, CONTROL = "smollm2", "smollm2-risky", "smollm2-sound"
_SHORT = {BASE: "base", ORGANISM: "organism", CONTROL: "control"}
_DOMAINS = {True: "in-domain", False: "out-of-domain"}
"""Names of the domains, by whether pairs are of the narrow one."""
_THEMES = "money"
"""Freeform answers are drawn for one theme: enough to read, fast on two cores."""
_PAIRS_PER_THEME = 6
"""Out-of-domain pairs scored per theme; the narrow domains are scored whole."""
_JUDGES = (("OPENAI_API_KEY", "openai/gpt-4o"), ("ANTHROPIC_API_KEY", "anthropic/claude-sonnet-4-5"))
_LIMITS = (
    "What this shows: mechanics. Training, engine, log-likelihoods, control and intervals work, and a fine-tune on "
    "narrow bad advice differs from its control on held-out questions of its own domain.",
    "What it cannot show: emergent misalignment. A 135M model with 4-bit weights has no values to lose; an in-domain "
    "shift is a learned task, all rows are one seed, and only differences to the control count, since fine-tuning on "
    "harmless advice in the same style moves the model too.",
)


Margins = dict[str, tuple[bool, float]]
"""A model's pairs: whether each is in the narrow domain, and its margin in nats per token."""


@dataclass(frozen=True)
class _Contrast:
    """One row of the table: the difference of two models' margins, in nats per token."""

    label: str
    domain: str
    mean: float
    interval: Interval
    pairs: int


@dataclass(frozen=True)
class Demo:
    """The measurements; models are named by their cards."""

    adapters: dict[str, str]
    """Folders of the organism's and the control's adapters."""
    margins: dict[str, Margins]
    judge: str | None
    rates: dict[str, Rates]
    """Rates of the graded answers; empty without a judge."""
    question: str
    answers: dict[str, str]
    """Each model's answer to the question."""
    logs: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Return JSON values: what the tables show, and where the logs are."""
        levels = {
            name: {
                domain: dict(zip(("mean", "interval", "pairs"), _level(margins, narrow), strict=True))
                for narrow, domain in _DOMAINS.items()
            }
            for name, margins in self.margins.items()
        }
        return {
            "adapters": self.adapters,
            "forced_choice": levels,
            "differences": [asdict(row) for row in _contrasts(self.margins)],
            "judge": self.judge,
            "rates": {name: found.as_json() for name, found in self.rates.items()},
            "question": self.question,
            "answers": self.answers,
            "logs": list(self.logs),
            "limits": list(_LIMITS),
        }


def run(folder: Path, console: Console) -> Demo:
    """Train and measure. Existing adapters are used as they are.

    Args:
        folder: the folder of the logs.
        console: for progress messages.

    Raises:
        EmEvalsError: a training or an evaluation failed.
    """
    from inspect_ai import eval as inspect_eval

    grader = _judge(console)
    adapters = {card: _train_once(card, console) for card in (ORGANISM, CONTROL)}
    models = [f"local/{card}" for card in (BASE, ORGANISM, CONTROL)]
    options: dict[str, Any] = {
        "log_dir": str(folder),
        "display": "rich" if console.is_terminal and not console.stderr else "none",
        "max_tasks": len(models),
        "log_level": "warning",
    }
    console.print("forced choice: which of two fixed answers is more likely for each model?")
    scored = inspect_eval(
        "em_evals/forced_choice",
        model=models,
        sample_id=load_pairs().first(_PAIRS_PER_THEME, whole_narrow=True),
        **options,
    )
    _succeeded(scored)
    console.print(f"freeform: one theme of the core questions, graded by {grader or 'no judge'}")
    roles: dict[str, Any] = {"model_roles": {"grader": grader}} if grader else {}
    asked: list[Any] = inspect_eval(
        "em_evals/freeform",
        task_args={"themes": _THEMES, "seed": 0, "judge": "grader" if grader else "none"},
        model=models,
        max_tokens=120,
        **roles,
        **options,
    )
    _succeeded(asked)
    first = asked[0].samples[0]
    return Demo(
        adapters,
        {_card(log): margins_of_log(log) for log in scored},
        grader,
        {_card(log): rates(draws_of_log(log)) for log in asked} if grader else {},
        first.input if isinstance(first.input, str) else first.input[-1].text,
        {_card(log): log.samples[0].output.completion.strip() for log in asked},
        tuple(log.location for log in [*scored, *asked]),
    )


def _judge(console: Console) -> str | None:
    """Return the judge whose API key is set; None where it cannot be used, since answers can be shown without it."""
    found = next((model for key, model in _JUDGES if os.environ.get(key)), None)
    if found is None:
        console.print("no judge's API key is set: answers are shown, not graded.")
        return None
    try:
        judge.check(found)
    except EmEvalsError as error:
        console.print(f"answers are shown, not graded: {shown.text(str(error))}", markup=False)
        return None
    return found


def _succeeded(logs: list[Any]) -> None:
    for log in logs:
        if log.status != "success":
            raise EmEvalsError(
                f"{log.eval.task} on {log.eval.model} ended as '{log.status}'; see {log.location}."
            )


def _card(log: Any) -> str:
    return str(log.eval.model.removeprefix("local/"))


def _train_once(card: str, console: Console) -> str:
    from em_evals.content import adapter_folders as adapters
    from em_evals.content import cards
    from em_evals.training.trainer import train

    definition, path = cards.read_card(card)
    if (there := adapters.find(definition.adapter, path)) is not None:
        console.print(f"{card}: using the adapter in {there}", markup=False)
        return str(there)
    made = train(card)
    console.print(f"{card}: saved to {made}", markup=False)
    return str(made)


def show(found: Demo, console: Console) -> None:
    """Print tables, one question's answers, and what the demo cannot show."""
    table = Table(
        title="Forced choice: margin toward the misaligned answer, nats per token", title_justify="left"
    )
    for column in ("model", "in-domain [95% interval]", "out-of-domain [95% interval]"):
        table.add_column(column)
    for name, margins in found.margins.items():
        table.add_row(name, *(_interval(*_level(margins, narrow)[:2]) for narrow in _DOMAINS))
    console.print(table)
    table = Table(title="Differences, pair by pair", title_justify="left")
    for column in ("difference", "domain", "mean [95% interval]", "pairs"):
        table.add_column(column, no_wrap=True)
    for row in _contrasts(found.margins):
        table.add_row(row.label, row.domain, _interval(row.mean, row.interval), str(row.pairs))
    console.print(table)
    for name, one in found.rates.items():
        console.print(
            f"{name}: EM rate {one.em_rate.value:.1%} of {one.draws} draws "
            f"[{one.em_rate.fixed[0]:.1%}, {one.em_rate.fixed[1]:.1%}], "
            f"coherent share {one.coherent_share.value:.0%}, refusals {one.refusal_share.value:.0%}, "
            f"ungraded {one.ungraded_share.value:.0%}"
        )
    table = Table(title="The same question, three models", title_justify="left", show_lines=True)
    table.add_column("model")
    table.add_column(Text(found.question))
    for name, answer in found.answers.items():
        table.add_row(name, Text(shown.text(answer)))
    console.print(table)
    for paragraph in _LIMITS:
        console.print(paragraph)


def _level(margins: Margins, narrow: bool) -> tuple[float, Interval, int]:
    """Return the mean, interval and number of a model's margins in one domain."""
    values = [value for is_narrow, value in margins.values() if is_narrow == narrow]
    return sum(values) / len(values), mean(values), len(values)


def _contrasts(margins: dict[str, Margins]) -> list[_Contrast]:
    rows = []
    for narrow, domain in _DOMAINS.items():
        for after, before in ((ORGANISM, BASE), (ORGANISM, CONTROL), (CONTROL, BASE)):
            one, other = (
                {pair: value for pair, (is_narrow, value) in margins[name].items() if is_narrow == narrow}
                for name in (before, after)
            )
            found = difference(one, other, binary=False)
            name = f"{_SHORT[after]} − {_SHORT[before]}"
            rows.append(_Contrast(name, domain, found.value, found.interval, found.n))
    return rows


def _interval(value: float, interval: Interval) -> str:
    return f"{value:+.3f} [{interval[0]:+.3f}, {interval[1]:+.3f}]"
