"""The section on seed groups: models of one recipe as one, with intervals over questions or pairs and seeds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from em_evals.errors import EmEvalsError
from em_evals.report.answers import Measured
from em_evals.report.section import Section
from em_evals.report.tables import Cell, Estimate, Table
from em_evals.results import seed_groups
from em_evals.results.seed_groups import Groups, OverSeeds

SHARES = ("em_rate", "em_rate_coherent", "coherent_share", "refusal_share")
COLUMNS = ("group", "asked", "number", "mean over seeds", "items", "seeds", "carried by")


def sections(measured: Sequence[Measured], groups: Groups) -> list[Section]:
    """Return the section on seed groups; nothing without groups.

    Raises:
        EmEvalsError: a group's model has no numbers, or two of its models are the same.
    """
    rows: list[tuple[Cell, ...]] = []
    alike, flags = _unnamed(measured, groups)
    for (group, asked), own in _grouped(measured, {**groups, **alike}).items():
        if group in groups:
            made = {model: _made(one) for model, one in own.items()}
            digests = {model: one.digests for model, one in made.items()}
            recipes = {model: (one.recipe, one.seed) for model, one in made.items()}
            seed_groups.complete(group, groups[group], digests, recipes)
        elif len(own) < 2:
            continue
        for number, unit, found in _numbers(own):
            each = ", ".join(f"{name} {Estimate.of(value, unit=unit)}" for name, value in found.seeds.items())
            mean = Estimate.of(found.value, found.interval, unit)
            rows.append((group, asked, number, mean, found.items, each, found.carried_by or "–"))
            if found.carried_by and number in ("em_rate", "in-domain margin"):
                flags.append(
                    f"{group}: {found.carried_by} alone carries {number}; without it less than half is left."
                )
    if missing := groups.keys() - {str(row[0]) for row in rows}:
        raise EmEvalsError(
            f"there are no numbers of the group {min(missing)}: name its models as the files do."
        )
    if not rows and not flags:
        return []
    lead = (
        "Models of one recipe that differ by their training seed, as one. Each seed is a unit: intervals are over "
        "questions or pairs and seeds, so that three seeds are three models and not three times the draws."
    )
    table = Table("seeds", "Means over questions or pairs and seeds, with 95% intervals", COLUMNS, rows)
    return [Section("seeds", "Seeds", lead, tuple(flags), tables=(table,) if rows else ())]


def _unnamed(measured: Sequence[Measured], groups: Groups) -> tuple[dict[str, list[str]], list[str]]:
    """Return the groups that models' recipes form, and sentences on models with two names."""
    asked: dict[str, dict[str, seed_groups.Made]] = {}
    for entry in measured:
        name = entry.model or entry.label
        if seed_groups.member(name, groups) is None:
            asked.setdefault(f"{entry.task} {entry.asked}", {}).setdefault(name, _made(entry))
    found: dict[str, list[str]] = {}
    notes: list[str] = []
    for models in asked.values():
        own_groups, own_notes = seed_groups.by_recipe(models)
        found |= {name: [*dict.fromkeys([*found.get(name, []), *own])] for name, own in own_groups.items()}
        notes += own_notes
    return found, list(dict.fromkeys(notes))


def _made(entry: Measured) -> seed_groups.Made:
    facts = entry.facts
    digests = [digest for digest in facts.get("card", "").split(", ") if digest]
    return seed_groups.Made(facts.get("recipe", ""), facts.get("training seed", ""), digests)


def _grouped(measured: Iterable[Measured], groups: Groups) -> dict[tuple[str, str], dict[str, Measured]]:
    """Return each group's measurements of one set of questions or pairs, by the seed's model."""
    found: dict[tuple[str, str], dict[str, Measured]] = {}
    for entry in measured:
        if (own := seed_groups.member(entry.model or entry.label, groups)) is not None:
            asked = "judged CSV" if entry.task == "csv" else f"{entry.task}: {entry.asked}"
            found.setdefault((own[0], asked), {})[own[1]] = entry
    return found


def _numbers(seeds: Mapping[str, Measured]) -> Iterator[tuple[str, str, OverSeeds]]:
    """Yield (name, unit, mean) of what all seeds of a group have."""
    if all(entry.graded for entry in seeds.values()):
        draws = {name: entry.draws for name, entry in seeds.items()}
        for share in SHARES:
            yield share, "share", seed_groups.rate(draws, share)
    if all(entry.pairs for entry in seeds.values()):
        for name, narrow in (("in-domain margin", True), ("out-of-domain margin", False)):
            margins = {
                model: {pair: own.margin for pair, own in entry.pairs.items() if own.narrow == narrow}
                for model, entry in seeds.items()
            }
            if all(margins.values()):
                yield name, "signed", seed_groups.mean(margins)
