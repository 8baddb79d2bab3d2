"""One verification, from a card to its verdict. One model is in memory at a time: what is asked first is compared last."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from em_evals import directions, verified
from em_evals.cards import ResolvedCard
from em_evals.errors import EmEvalsError
from em_evals.insight.activations import GroupSums
from em_evals.insight.lines import Text
from em_evals.intervention import Intervention
from em_evals.models.memory import release_gpu
from em_evals.models.setting import setting_of
from em_evals.verify import asking, compare, compiled, extraction, plan, template, vllm
from em_evals.verify.asking import Subject, Told, ask, refused
from em_evals.verify.compare import Answered, bare_of
from em_evals.verify.gaps import Rule, Spread
from em_evals.verify.plain import Asked, Plain, Scores, copy
from em_evals.verify.plan import Check
from em_evals.verify.prompts import Prompts
from em_evals.verify.verdict import Row, Verdict, failed, skipped

BITS = "base unchanged"
Tell = Callable[[str], None]


def verify(card: ResolvedCard, tell: Tell = lambda text: None) -> Verdict:
    """Compare everything that the product computes for a card here with plain transformers, PEFT and hooks.

    Args:
        card: what to verify.
        tell: hears what is being done, for a progress line.

    Raises:
        EmEvalsError: the card cannot be used here at all, so that there is nothing to compare.
    """
    if card.card.backend == "server":
        raise EmEvalsError(
            f"{card.name} is computed by {card.card.base_url}: run `em-evals verify` on that machine, with a card "
            "that names no `base_url`."
        )
    return _Verification(card, tell).run()


@dataclass(eq=False)
class _Seen:
    """What the product computed."""

    prompts: Prompts
    told: list[Told]
    texts: list[Text] = field(default_factory=list)
    sums: GroupSums | Exception | None = None
    changed: list[str] = field(default_factory=list)
    tensors: int = 0
    parameters: int = 0


@dataclass(eq=False)
class _Said:
    """What the plain side says in one dtype."""

    scores: dict[Asked, Scores | Exception]
    streams: Any = None


class _Verification:
    def __init__(self, card: ResolvedCard, tell: Tell) -> None:
        self.card = card
        self.tell = tell
        self.setting = setting_of(card.card)
        self.exact = self.setting.dtype == "float32"
        self.rows: list[Row] = []
        self.vllm, self.no_vllm = vllm.wanted(card)

    def run(self) -> Verdict:
        started = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="em-evals-verify.") as name:
            seen = self._product(Path(name))
            if self.vllm:
                self.tell("vLLM: starting its server")
                seen.told += vllm.told(self.card, [told.check for told in seen.told])
            rule = self._compare(seen, Path(name))
        date = datetime.now(UTC).date().isoformat()
        compared = self.vllm if any(row.name.startswith("vllm") for row in self.rows) else ""
        verdict = Verdict(
            self.card.name,
            self.card.digest,
            self.setting,
            rule.words,
            compared,
            date,
            time.monotonic() - started,
            self.rows,
        )
        verified.keep(self.setting, self.card, verdict.run())
        return verdict

    # The side under test

    def _product(self, folder: Path) -> _Seen:
        """Ask the product's engine everything, and let it go."""
        self.tell(f"loading {self.card.card.base}")
        subject = Subject(self.card.card)
        try:
            found, reason = template.template(self.card, subject.tokenizer)
            self.rows.append(template.row(found, reason))
            device = subject.model.device.type
            prompts = Prompts(subject.tokenizer, found, subject.model.config, subject.model_len, device)
            before = asking.bits(subject.model)
            seen = _Seen(prompts, [])
            seen.parameters = sum(one.numel() for one in subject.model.parameters())
            self._ask(subject, seen, plan.engine(prompts))
            seen.texts = extraction.texts_of(prompts)
            seen.sums = self._extract(subject, seen.texts)
            self._ask(subject, seen, self._own(prompts, folder, seen.sums))
            after = asking.bits(subject.model)
            seen.changed = [name for name in before if after.get(name) != before[name]]
            seen.tensors = len(before)
            return seen
        finally:
            subject.model = None
            subject.close()
            release_gpu()

    def _ask(self, subject: Subject, seen: _Seen, checks: Sequence[Check]) -> None:
        for check in checks:
            self.tell(check.name)
            told = ask(subject, check)
            if told.error is not None and check.own and refused(told.error):
                raise told.error
            seen.told.append(told)

    def _extract(self, subject: Subject, texts: Sequence[Text]) -> GroupSums | Exception:
        self.tell(extraction.NAME)
        try:
            return extraction.read(subject.model, texts)
        except Exception as error:
            return error

    def _own(self, prompts: Prompts, folder: Path, sums: GroupSums | Exception) -> list[Check]:
        """The checks of the card's adapter and interventions; of random ones where it has none."""
        card, checks = self.card, []
        scales = tuple(one for one in card.interventions if one.op == "scale_adapter")
        if card.adapter_path is not None:
            checks += plan.adapter(prompts, card.adapter_path, scales)
        if any(one.op != "scale_adapter" for one in card.interventions):
            ops = ", ".join(dict.fromkeys(one.op for one in card.interventions))
            name = f"interventions: the card's ({ops})"
            checks.append(plan.steered(prompts, name, card.interventions, card.adapter_path, own=True))
        elif isinstance(sums, GroupSums):
            for one in _random_ones(sums, folder):
                checks.append(plan.steered(prompts, f"interventions: random {one.op}", (one,)))
        return checks

    # The plain side

    def _compare(self, seen: _Seen, folder: Path) -> Rule:
        """Compute everything again, plainly, and make the rows."""
        answered = [Answered.of(told) for told in seen.told]
        asked = dict.fromkeys(one.asked for entry in answered for one in entry.drawn)
        compiling = self._compiling(seen, folder)
        in_float32 = dict.fromkeys(compiling[1]) if compiling else {}
        bare = [bare_of(one.asked) for entry in answered for one in entry.shown]
        said = self._plainly(seen, [*asked, *bare, *(in_float32 if self.exact else ())])
        truth: _Said | None = None
        copies: dict[Asked, Scores | Exception] = {}
        if not self.exact:
            truth, copies = self._truth(seen, [*asked, *in_float32])
        for entry in answered:
            for one in entry.drawn:
                one.plain = self._scores(said.scores, one.asked)
                other = truth.scores if truth else copies
                one.exact = self._scores(other, one.asked)
        rule = self._rule(answered, truth is None)
        self.rows += [self._row(entry, said, rule) for entry in answered]
        self.rows.append(self._extraction(seen, said, truth))
        self.rows.append(self._compiled(compiling, said if self.exact else truth, folder, seen))
        self.rows.append(_bits(seen))
        if self.card.adapter_path is None:
            self.rows.append(skipped("adapter", "PEFT", "the card has no adapter"))
        if not self.vllm:
            self.rows.append(skipped("vllm", plan.PLAIN, self.no_vllm))
        return rule

    def _plainly(self, seen: _Seen, asked: Sequence[Asked], dtype: str | None = None) -> _Said:
        rows = list(dict.fromkeys(asked))
        count, label = 0, dtype or self.setting.dtype
        self.tell(f"loading plain transformers in {label}")

        def advance() -> None:
            nonlocal count
            count += 1
            self.tell(f"plain transformers in {label}, row {count} of {len(rows)}")

        with copy(self.card.card, getattr(torch, label)) as plain:
            streams = extraction.plainly(plain, seen.texts) if isinstance(seen.sums, GroupSums) else None
            return _Said(compare.compute(plain, rows, advance), streams)

    def _truth(
        self, seen: _Seen, asked: Sequence[Asked]
    ) -> tuple[_Said | None, dict[Asked, Scores | Exception]]:
        """The same in float32; where it does not fit into memory, rows beside copies of themselves."""
        if _room(seen.parameters, self.card):
            try:
                return self._plainly(seen, asked, "float32"), {}
            except torch.OutOfMemoryError:
                pass
        release_gpu()
        with copy(self.card.card, getattr(torch, self.setting.dtype)) as plain:
            return None, compare.compute(plain, asked, lambda: None, copies=True)

    def _rule(self, answered: Sequence[Answered], copies: bool) -> Rule:
        if self.exact:
            return Rule(self.setting.dtype)
        bare = [
            gap
            for entry in answered
            for one in entry.drawn
            if not (one.asked.adapter or one.asked.interventions)
            for gap in one.roundings()
        ]
        return Rule(self.setting.dtype, Spread.of(bare), copies)

    def _scores(self, found: dict[Asked, Scores | Exception], asked: Asked) -> Scores | None:
        one = found.get(asked)
        return one if isinstance(one, Scores) else None

    def _row(self, entry: Answered, said: _Said, rule: Rule) -> Row:
        """A check's row; without a plain side that can compute it there is nothing to compare."""
        check = entry.told.check
        for one in entry.drawn:
            if isinstance(error := said.scores[one.asked], Exception):
                return skipped(check.name, check.compared, f"the plain side fails: {error}")

        def bare(asked: Asked) -> Scores:
            found = said.scores[bare_of(asked)]
            if isinstance(found, Exception):
                raise found
            return found

        changed = any(one.adapter or one.interventions for one in check.requests)
        return entry.row(rule, bare if changed else None)

    def _extraction(self, seen: _Seen, said: _Said, truth: _Said | None) -> Row:
        if not isinstance(seen.sums, GroupSums):
            error = seen.sums or RuntimeError("it was not made")
            return failed(extraction.NAME, extraction.COMPARED, error, "relative")
        exact = truth.streams if truth else None
        return extraction.row(seen.sums, said.streams, exact, self.setting.dtype, seen.prompts.reach)

    # Compiled forms

    def _compiling(self, seen: _Seen, folder: Path) -> tuple[ResolvedCard, list[Asked], bool] | None:
        """The card to compile in float32, and what it is asked; with a random direction where it has nothing."""
        card, required = compiled.in_float32(self.card), True
        if not card.interventions:
            file = folder / "random.safetensors"
            if not file.is_file():
                return None
            one = Intervention(op="ablate", direction=str(file), site="writes", from_layer=_middle(file))
            card = replace(
                card,
                interventions=(one,),
                card=card.card.model_copy(update={"interventions": (one,)}),
                adapter_path=None,
            )
            required = False
        return card, compiled.rows_of(seen.prompts, card), required

    def _compiled(
        self,
        compiling: tuple[ResolvedCard, list[Asked], bool] | None,
        said: _Said | None,
        folder: Path,
        seen: _Seen,
    ) -> Row:
        name = compiled.name_of("card")
        if compiling is None or said is None:
            return skipped(name, compiled.COMPARED, "no float32 copy fits into memory")
        card, asked, required = compiling
        if _free_disk(folder) < 8 * seen.parameters:
            return skipped(name, compiled.COMPARED, "the disk has no room for a float32 checkpoint")
        for one in asked:
            if isinstance(error := said.scores[one], Exception):
                return skipped(name, compiled.COMPARED, f"the plain side fails: {error}")
        self.tell("compiling")

        def hooks(asked: Asked) -> Scores:
            found = said.scores[asked]
            assert isinstance(found, Scores)  # noqa: S101 - looked at above
            return found

        return compiled.row(card, asked, hooks, folder, required)


def _random_ones(sums: GroupSums, folder: Path) -> list[Intervention]:
    """One of each op along a random direction, large enough to be seen."""
    made = extraction.random_direction(sums)
    file = folder / "random.safetensors"
    directions.write(made, file)
    layer = made.layers // 2
    place: dict[str, Any] = {"direction": str(file), "layers": (layer,)}
    return [
        Intervention(op="add", scale=0.3, relative=True, **place),
        Intervention(op="ablate", reference="mean", skip="sink", direction=str(file)),
        Intervention(op="clamp", value=0.3 * float(made.mean_norm[layer]), positions="answer", **place),
        *([Intervention(op="cap", value=0.0, direction=str(file))] if "cap" in _ops() else []),  # type: ignore[arg-type]
    ]


def _ops() -> tuple[str, ...]:
    from typing import get_args

    return get_args(Intervention.model_fields["op"].annotation)


def _middle(file: Path) -> int:
    return directions.read(file).layers // 2


def _bits(seen: _Seen) -> Row:
    """The base before and after everything that was asked of it."""
    compared = "sha256 of every parameter and buffer before and after all draws"
    count = len(seen.changed)
    reason = f"changed: {seen.changed[0]}" if count else ""
    return Row(BITS, compared, float(count), 0.0, "tensors", seen.tensors, "wrong" if count else "ok", reason)


def _room(parameters: int, card: ResolvedCard) -> bool:
    """Whether a float32 copy fits into memory, with a fifth to spare; True where nobody can tell."""
    need = 4.8 * parameters
    from em_evals.models.bases import choose_device

    device = choose_device(card.card.engine.device)
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] > need
    file = Path("/proc/meminfo")
    if not file.is_file():
        return True
    free = next(line for line in file.read_text().splitlines() if line.startswith("MemAvailable"))
    return int(free.split()[1]) * 1024 > need


def _free_disk(folder: Path) -> int:
    state = os.statvfs(folder)
    return state.f_bavail * state.f_frsize
