"""Forced choice under cues, offline: the margin toward the misaligned answer, in nats per token, for every cue."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from em_evals import progress
from em_evals.content.cards import ResolvedCard
from em_evals.content.cues import PLAIN, Cue
from em_evals.content.pairs import Pair
from em_evals.content.question_set import Turn
from em_evals.engines.pool import engine_for
from em_evals.interp.extraction.prefix_tree import Text
from em_evals.interp.fixed_answers import Condition, compared
from em_evals.models.chat import ChatTemplate
from em_evals.results.records.conditional import Cells


def measured(card: ResolvedCard, cues: Sequence[Cue], pairs: Sequence[Pair]) -> Cells:
    """Return the margin per token of one model under each cue; `plain` is the pair without a cue.

    A prefill stands before both answers and is not scored. An answer that does not fit is null.

    Raises:
        EmEvalsError: the model cannot be loaded, or its template does not take a cue's messages.
    """
    engine = engine_for(card.card)
    condition = Condition.of(card)
    template = condition.template(card, engine.tokenizer)
    both = {
        (name, pair.id): (_text(template, chat, pair.aligned), _text(template, chat, pair.misaligned))
        for name, pair, chat in _chats(cues, pairs)
    }
    with progress.bar(f"answers under {card.name}", 2 * len(both)) as advance:
        [found] = compared(engine, [(condition, both)], advance)
    margins: dict[str, dict[str, float | None]] = {}
    for (name, pair_id), values in found.items():
        margins.setdefault(name, {})[pair_id] = values["margin_per_token"]
    return Cells(values=margins, card=card.digest)


def _chats(cues: Sequence[Cue], pairs: Sequence[Pair]) -> Iterator[tuple[str, Pair, list[Turn]]]:
    for pair in pairs:
        yield PLAIN, pair, [Turn("user", pair.question)]
        for cue in cues:
            yield cue.name, pair, cue.chat(pair.question)


def _text(template: ChatTemplate, chat: Sequence[Turn], answer: str) -> Text:
    prompt = template.encode([{"role": turn.role, "content": turn.content} for turn in chat])
    return Text(tuple(prompt), tuple(template.answer(answer)))
