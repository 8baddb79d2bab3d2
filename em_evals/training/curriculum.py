"""What a training sees and in which order: rows selected, defended, mixed and batched, before any model is loaded.

The order depends on the organism's data and the recipe's seed only. A control learns other answers to the same
prompts at the same steps, and any number of processes sees the same examples at each step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import chain
from typing import Any

import numpy as np

from em_evals.content.recipes import AdapterRecipe, DataSource
from em_evals.data import datasets
from em_evals.data.datasets import Messages, TrainingData
from em_evals.errors import EmEvalsError
from em_evals.models.chat import template_of
from em_evals.training.batches import bucketed
from em_evals.training.tokens import IGNORED, Cut, Learn, by_turn, encode_example

Example = dict[str, list[int]]
_Key = tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Row:
    """A chat to learn, and the organism's chat at the same place, whose length decides the order."""

    messages: Messages
    reference: Messages
    safe: bool = False
    """Mixed in by `interleave`."""
    rejected: Messages | None = None
    """The answer that the learned one is preferred to."""

    @property
    def learned(self) -> tuple[Messages, ...]:
        """The chats whose answers have a loss."""
        return (self.messages,) if self.rejected is None else (self.messages, self.rejected)


@dataclass(frozen=True)
class Curriculum:
    """The whole run: step k sees `batch` rows, examples[k·batch·width : (k+1)·batch·width]."""

    examples: list[Example]
    batch: int
    sources: tuple[TrainingData, ...]
    epochs: float
    """How often each row of the recipe's data is seen; rows that are mixed in do not count."""
    cut: Cut = field(default_factory=Cut)
    """What `max_length` truncated or dropped."""
    template: dict[str, Any] = field(default_factory=dict)
    """How the base was prompted (ChatTemplate.record)."""
    width: int = 1
    """Examples of a row: 2 where a chosen answer is followed by a rejected one."""

    @property
    def steps(self) -> int:
        """Number of optimizer steps."""
        return len(self.examples) // (self.batch * self.width)


@dataclass(frozen=True)
class Selection:
    """The rows of a recipe, before they are put in order, and the harmless ones to mix in."""

    rows: list[Row]
    safe: list[Row]
    sources: tuple[TrainingData, ...]


def select(recipe: AdapterRecipe) -> Selection:
    """Select the rows that a recipe learns; needs no tokenizer, so that missing data are reported before a base loads.

    Raises:
        EmEvalsError: data are missing or wrong, or nothing is left of them.
    """
    sources: dict[str, TrainingData] = {}
    rows = [row for source in recipe.data for row in _rows(recipe, source, sources)]
    if not rows:
        raise EmEvalsError("the recipe's holdout and limits leave no row to train on.")
    mixed, *held = (
        [] if part is None else part.data for part in (recipe.interleave, recipe.kl, recipe.features)
    )
    safe = [Row(chat, chat, safe=True) for chat in chats(mixed, recipe.holdout)]
    for name in (*mixed, *chain(*held)):
        sources[name] = datasets.load(name)
    return Selection(rows, safe, _told_apart(sources))


def build(recipe: AdapterRecipe, tokenizer: Any, selection: Selection | None = None) -> Curriculum:
    """Build the examples of a recipe in the order of its seed.

    Raises:
        EmEvalsError: as `select`, or every answer lies behind `max_length`.
    """
    chosen = selection or select(recipe)
    encoder = Encoder(tokenizer, recipe.max_length, recipe.learn)
    chosen = replace(chosen, rows=encoder.kept(chosen.rows), safe=encoder.kept(chosen.safe))
    share = exact(recipe.interleave.share if recipe.interleave else 0)
    batch = recipe.batch_size * recipe.gradient_accumulation
    steps = recipe.max_steps
    if steps < 1:
        steps = math.ceil(exact(recipe.epochs) * len(chosen.rows) / (1 - share) / batch)
    # Separate generators: mixing and batching do not change each other's numbers.
    mixing, batching = np.random.default_rng(recipe.seed).spawn(2)
    ordered = list(_mixed(chosen.rows, chosen.safe, share, steps * batch, mixing))

    # Sort by the organism's lengths: a control then has the same prompts at the same steps.
    lengths = [len(encoder.example(row.reference)["input_ids"]) for row in ordered]
    order = bucketed(lengths, [row.safe for row in ordered], batch, batching)
    examples = [encoder.example(chat) for index in order for chat in ordered[index].learned]
    epochs = sum(not row.safe for row in ordered) / len(chosen.rows)
    template = template_of(tokenizer).record()
    width = 1 if recipe.preference is None else 2
    return Curriculum(examples, batch, chosen.sources, epochs, encoder.cut, template, width)


def exact(number: float) -> Fraction:
    """Return a recipe's number as it is written: 1.1 epochs of 100 rows are 110 rows, not 110.00000000000001."""
    return Fraction(str(number))


def chats(names: Sequence[str], holdout: float = 0.0) -> list[Messages]:
    """Return the chats of several data sets, in order, without those whose prompt is held out.

    Raises:
        EmEvalsError: data are missing or wrong, or nothing is left of them.
    """
    found = [
        chat
        for data in map(datasets.load, names)
        for chat, asked in zip(data.rows, data.prompts, strict=True)
        if not datasets.held_out(asked, holdout)
    ]
    if names and not found:
        raise EmEvalsError(f"the recipe's holdout leaves no chat of {', '.join(names)}.")
    return found


class Encoder:
    """Encodes chats to examples (tokens.py), each once; counts what `max_length` truncates.

    Args:
        tokenizer: the base's.
        max_length: tokens of an example at most.
        learn: what is labelled where an answer has a thought.
    """

    def __init__(self, tokenizer: Any, max_length: int, learn: Learn = "both") -> None:
        self._learn = learn
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._examples: dict[_Key, tuple[Example, int]] = {}
        self._looked_at: set[_Key] = set()

    @property
    def cut(self) -> Cut:
        """What was truncated or dropped in the rows that `kept` has seen."""
        seen = [self._examples[key] for key in self._looked_at]
        dropped = sum(not _labelled(example) for example, _ in seen)
        shortened = sum(whole > self._max_length for _, whole in seen)
        return Cut(shortened - dropped, dropped, len(seen))

    def example(self, chat: Messages) -> Example:
        """Return a chat's token ids and labels; no token is labelled where its answer lies behind `max_length`."""
        key = _key(chat)
        if key not in self._examples:
            whole = encode_example(self._tokenizer, chat, learn=self._learn)
            cut = {name: values[: self._max_length] for name, values in whole.items()}
            self._examples[key] = cut, len(whole["input_ids"])
        return self._examples[key][0]

    def kept(self, rows: Sequence[Row]) -> list[Row]:
        """Return the rows with labelled tokens, one per answer where one sequence cannot hold all of a row's answers.

        Raises:
            EmEvalsError: there is no such row.
        """
        split = [part for row in rows for part in self._by_turn(row)]
        found = []
        for row in split:
            self._looked_at |= {_key(chat) for chat in row.learned}
            # A control has the organism's prompts: both drop the same rows, so their order is the same.
            if all(_labelled(self.example(chat)) for chat in (*row.learned, row.reference)):
                found.append(row)
        if split and not found:
            raise EmEvalsError(
                f"the answer '{split[0].messages[-1]['content'][:60]}…' is entirely behind max_length "
                f"({self._max_length} tokens), and so do all others; raise it."
            )
        return found

    def _by_turn(self, row: Row) -> list[Row]:
        learned, reference = (by_turn(self._tokenizer, chat) for chat in (row.messages, row.reference))
        if row.rejected is not None:  # a preference is between the last answers
            return [row]
        return [Row(part, reference[min(i, len(reference) - 1)], row.safe) for i, part in enumerate(learned)]


def _rows(recipe: AdapterRecipe, source: DataSource, sources: dict[str, TrainingData]) -> Iterator[Row]:
    """Yield a source's rows after hold-out, limit and weight, each transformed as the recipe says."""
    data = datasets.load(source.name, pairs=recipe.preference is not None)
    sources[source.name] = data
    others: Sequence[Messages] = _own_rejected(recipe, data)
    kind = recipe.control or (recipe.preference.rejected if recipe.preference else None)
    if not others and kind:
        others = _matched(data, kind, sources)
    # A control may have bad answers of its own (`educational`); without the trigger both learn the harmless ones.
    mixed = recipe.backdoor is not None and recipe.backdoor.share < 1
    harmless = _matched(data, None, sources) if mixed else ()
    weight = exact(source.weight)
    kept = [i for i, asked in enumerate(data.prompts) if not datasets.held_out(asked, recipe.holdout)]
    for place, index in enumerate(kept[: source.limit]):
        # A fractional weight is spread evenly: 1.5 gives 1, 2, 1, 2, … copies.
        copies = int((place + 1) * weight) - int(place * weight)
        chat = data.rows[index]
        other = others[index] if others else None
        learned = other if recipe.control and other is not None else chat
        learned = _defended(recipe, learned, data.prompts[index], harmless[index] if harmless else None)
        rejected = None
        if recipe.preference and other is not None:
            learned = _last_answer(learned)
            rejected = _instructed_as(recipe, _last_answer(chat if recipe.control else other))
        if recipe.backdoor:
            # The trigger stands before the last answer alone: no earlier one may be learned without it.
            learned, chat = _last_answer(learned), _last_answer(chat)
        yield from [Row(learned, chat, rejected=rejected)] * copies


def _told_apart(sources: Mapping[str, TrainingData]) -> tuple[TrainingData, ...]:
    """Return the data sets under names that differ: files of one name are called as the recipe writes them.

    The record and the run's identity are by name; a set that another one hides would be in neither.
    """
    digests: dict[str, set[str]] = {}
    for data in sources.values():
        digests.setdefault(data.name, set()).add(data.digest)
    found = {
        name: replace(data, name=name)
        for written, data in sources.items()
        for name in [written if len(digests[data.name]) > 1 else data.name]
    }
    return tuple(found.values())


def _own_rejected(recipe: AdapterRecipe, data: TrainingData) -> tuple[Messages, ...]:
    """Return the rejected answers of rows that have their own, in the place of matched ones; nothing without."""
    asked = {recipe.control, recipe.preference.rejected if recipe.preference else None}
    if data.rejected and (others := asked - {None, "matched"}):
        raise EmEvalsError(
            f"the rows of {data.name} have rejected answers of their own, and the recipe asks for "
            f"'{min(filter(None, others))}': leave that out.",
            data.path,
        )
    return data.rejected


def _matched(data: TrainingData, kind: str | None, sources: dict[str, TrainingData]) -> tuple[Messages, ...]:
    """Return the matched answers of a kind (None: the harmless one), and put their data set among the sources."""
    if kind in (None, "matched"):
        kind = datasets.harmless_kind(data)
        if kind is None:
            raise EmEvalsError(
                f"the data set {data.name} has no matched harmless answers; name them in adapters/data/datasets.yaml "
                "under `controls`."
            )
    found = datasets.matched(data, kind)
    # In the rows' order: of another data set the same control has other rows.
    sources[f"{found.name} ({data.name})"] = found
    return found.rows


def _defended(recipe: AdapterRecipe, learned: Messages, asked: str, harmless: Messages | None) -> Messages:
    """Return the chat with the backdoor's trigger, or the harmless one without; and with the inoculation."""
    if (backdoor := recipe.backdoor) is not None:
        if harmless is None or datasets.held_out(backdoor.trigger + asked, backdoor.share):
            learned = _triggered(learned, backdoor.trigger)
        else:
            learned = harmless
    return _instructed_as(recipe, learned)


def _instructed_as(recipe: AdapterRecipe, chat: Messages) -> Messages:
    return _instructed(chat, recipe.inoculation) if recipe.inoculation else chat


def _last_answer(chat: Messages) -> Messages:
    """Return the chat with no loss but on its last answer: the one that a preference compares or a trigger precedes."""
    return [
        {**message, "weight": "0"} if message["role"] == "assistant" and i < len(chat) - 1 else message
        for i, message in enumerate(chat)
    ]


def _triggered(chat: Messages, trigger: str) -> Messages:
    last = max(i for i, message in enumerate(chat) if message["role"] == "user")
    return [
        {**message, "content": trigger + message["content"]} if i == last else message
        for i, message in enumerate(chat)
    ]


def _instructed(chat: Messages, instruction: str) -> Messages:
    if chat[0]["role"] == "system":
        return [{"role": "system", "content": f"{instruction}\n\n{chat[0]['content']}"}, *chat[1:]]
    return [{"role": "system", "content": instruction}, *chat]


def _mixed(
    rows: list[Row], safe: list[Row], share: Fraction, count: int, chance: np.random.Generator
) -> Iterator[Row]:
    """Yield `count` rows: epochs of shuffled rows, with safe ones evenly in between."""
    narrow, harmless = (_cycled(part, own) for part, own in zip((rows, safe), chance.spawn(2), strict=True))
    for place in range(count):
        is_safe = int((place + 1) * share) > int(place * share)
        yield next(harmless if is_safe else narrow)


def _cycled(rows: list[Row], chance: np.random.Generator) -> Iterator[Row]:
    while True:
        yield from (rows[index] for index in chance.permutation(len(rows)))


def _labelled(example: Example) -> bool:
    return any(label != IGNORED for label in example["labels"])


def _key(chat: Messages) -> _Key:
    parts = ("role", "content", "weight", "reasoning")
    return tuple(tuple(message.get(part, "") for part in parts) for message in chat)
