"""Which requests prove what: every way in which the engine batches rows, each with a name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from em_evals.content.intervention import Intervention
from em_evals.engines.protocol import Request, Sampling
from em_evals.workflows.verify.prompts import Prompts

ROWS = 8
"""Rows that the engine decodes at a time: fewer than `rows leave and join` requests."""
_TOKENS = 5
_LONG = 16

PLAIN = "one forward pass of plain transformers for each row: no cache, mask or neighbours"


@dataclass(frozen=True, eq=False)
class Check:
    """Requests, and how they are batched.

    Attributes:
        name: the name of its row in the table.
        compared: what is compared with what.
        waves: requests that are submitted at once; the next wave waits until the one before is finished.
        note: what it does not cover, in words.
        own: it requests what the card describes; a refusal means that the card cannot be used at all.
    """

    name: str
    compared: str
    waves: tuple[tuple[Request, ...], ...]
    note: str = ""
    own: bool = False

    @property
    def requests(self) -> list[Request]:
        """All requests, in order."""
        return [request for wave in self.waves for request in wave]


def greedy(prompt: Sequence[int], tokens: int = _TOKENS, **more: Any) -> Request:
    """Request the most likely tokens."""
    return Request(tuple(prompt), Sampling(temperature=0, max_tokens=tokens, logprobs=True), **more)


def scored(prompt: Sequence[int], answer: Sequence[int], **more: Any) -> Request:
    """Request the log-probabilities of an answer's tokens."""
    sampling = Sampling(max_tokens=0, prompt_logprobs=0, prompt_logprobs_from=len(prompt))
    return Request((*prompt, *answer), sampling, answer_start=len(prompt), **more)


def engine(prompts: Prompts) -> list[Check]:
    """Return checks of the bare base, batched in every way."""
    lengths, shared, note = prompts.lengths(), prompts.shared(), prompts.reach
    alone = [lengths[0], max(lengths, key=len), shared[0], prompts.chats[0]]
    counts = (1, 9, 3, 12, 2, 7, 5)
    coming = [*lengths[:4], *shared[4:], *prompts.chats, prompts.across(9)]
    several = [greedy(row, counts[i % len(counts)]) for i, row in enumerate(coming)]
    contexts = [shared[0], shared[3], max(lengths, key=len)]
    given = [scored(row, answer) for i, row in enumerate(contexts) for answer in prompts.answers(i)]
    return [
        Check("engine: alone", PLAIN, tuple((greedy(row),) for row in alone), note),
        Check("engine: batched, other lengths", PLAIN, (tuple(greedy(row) for row in lengths),), note),
        Check("engine: shared beginning", PLAIN, (tuple(greedy(row) for row in shared),), note),
        Check("engine: rows leave and join", PLAIN, (tuple(several),), note),
        Check("engine: scored text", PLAIN, ((*given, greedy(shared[1], 3)),), note),
        Check("engine: longer draws", PLAIN, (tuple(_draws(prompts)),), note),
    ]


def _draws(prompts: Prompts) -> list[Request]:
    """Return sampled and greedy draws of more tokens, two of which cross a border while they are drawn."""
    rows = [prompts.across(5), prompts.chats[1], prompts.across(7), prompts.chats[2]]
    made = []
    for seed, row in enumerate(rows):
        temperature = 0.8 if seed < 2 else 0.0
        sampling = Sampling(temperature=temperature, top_p=0.9, max_tokens=_LONG, logprobs=True, seed=seed)
        made.append(Request(row, sampling))
    return made


def adapter(prompts: Prompts, source: str, scales: tuple[Intervention, ...]) -> list[Check]:
    """Return checks of an adapter by itself, and of its rows among the base's.

    Args:
        prompts: the model's rows.
        source: the adapter's folder or hub id.
        scales: the card's `scale_adapter`s.
    """
    more: dict[str, Any] = {"adapter": source, "interventions": scales}
    lengths, shared = prompts.lengths(), prompts.shared()
    alone = [
        greedy(prompts.chats[0], **more),
        greedy(max(lengths, key=len), **more),
        *(scored(shared[0], answer, **more) for answer in prompts.answers(4)),
    ]
    mixed = [greedy(row, **(more if i % 2 else {})) for i, row in enumerate([*shared[:4], *lengths[2:6]])]
    mixed += [scored(shared[2], answer, **own) for answer in prompts.answers(5)[:2] for own in (more, {})]
    compared = "PEFT (PeftModel.from_pretrained), one forward pass for each row"
    return [
        Check("adapter: alone", compared, tuple((one,) for one in alone), prompts.reach, own=True),
        Check("adapter: among the base's rows", compared, (tuple(mixed),), prompts.reach, own=True),
    ]


def steered(
    prompts: Prompts, name: str, ones: tuple[Intervention, ...], source: str | None = None, own: bool = False
) -> Check:
    """Return a check of rows with interventions among the base's.

    Args:
        prompts: the model's rows.
        name: the check's name.
        ones: the interventions.
        source: the adapter under the interventions.
        own: whether they are the card's.
    """
    more: dict[str, Any] = {"interventions": ones, "adapter": source}
    lengths, shared = prompts.lengths(), prompts.shared()
    wave = []
    for kind in (more, {}):
        wave += [greedy(prompts.chats[0], **kind), greedy(shared[4], **kind), greedy(lengths[3], 3, **kind)]
        wave += [scored(shared[1], answer, **kind) for answer in prompts.answers(6)[:2]]
    compared = "hooks written from the op's definition" + (" on PEFT" if source else "")
    return Check(name, f"{compared}, one forward pass for each row", (tuple(wave),), prompts.reach, own=own)
