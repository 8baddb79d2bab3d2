"""What is drawn, scored, adapted and steered, one cell of the table each.

A cell returns when it is exact, and raises otherwise: an `AssertionError` is a wrong number, an `EmEvalsError` a
refusal, everything else a crash. The other side of each comparison is plain: one row, one forward pass of
transformers, with PEFT or hooks of our own.
"""

from __future__ import annotations

from dataclasses import replace

from em_evals.content.intervention import Intervention
from em_evals.engines.protocol import Request
from tests.architectures.checks import ask, check, engine, greedy, scored
from tests.architectures.edits import intervened, projected
from tests.architectures.lab import Lab, tokens

HEAD = tokens(20, 1)
PROMPTS = (
    (*HEAD, *tokens(5, 2)),
    tokens(4, 3),
    (*HEAD, *tokens(9, 4)),
    tokens(33, 5),
    (*HEAD, *tokens(9, 6)),
    tokens(17, 7),
)
ANSWERS = ((6, 21, 8), (6, 30, 9), (11, 31, 0), (3, 32, 33))
"""Length, seed, and another seed of the answer's end (0: none)."""


def draws(lab: Lab) -> None:
    """Prompts of several lengths, some with one head, in a batch that rows join and leave."""
    counts = (9, 3, 14, 6, 2, 11)
    requests = [greedy(prompt, count) for prompt, count in zip(PROMPTS, counts, strict=True)]
    for seed, request in enumerate(requests[:2]):
        sampling = replace(request.sampling, temperature=0.8, top_p=0.9, seed=seed)
        requests.append(replace(request, sampling=sampling))
    with engine(lab, max_num_seqs=3) as running:
        first = ask(running, requests[:1])
        made = first + ask(running, requests[1:])
    for request, draw in zip(requests, made, strict=True):
        check(lab, request, draw, lab.says)


def _answers() -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    pairs = []
    for prompt in PROMPTS[:4]:
        for length, seed, end in ANSWERS:
            pairs.append((prompt, (*tokens(length, seed), *(tokens(4, end) if end else ()))))
    return pairs


def scoring(lab: Lab) -> None:
    """Answers that begin alike, to prompts that begin alike, beside rows that are drawn."""
    requests = [scored(prompt, answer) for prompt, answer in _answers()]
    requests += [scored(PROMPTS[3][:1], PROMPTS[3][1:]), greedy(PROMPTS[0], 4)]
    with engine(lab) as running:
        made = ask(running, requests)
    for request, draw in zip(requests, made, strict=True):
        check(lab, request, draw, lab.says)


def adapters(lab: Lab) -> None:
    """Two adapters and the base in one batch, drawn and scored."""
    folders = [lab.adapter("attention"), lab.adapter("experts" if lab.has_experts else "mlp")]
    with engine(lab) as running:
        plans = {
            folder: [
                greedy(PROMPTS[0], 5, adapter=folder),
                greedy(PROMPTS[3], 3, adapter=folder),
                *(scored(prompt, answer, adapter=folder) for prompt, answer in _answers()[:5]),
            ]
            for folder in (None, *folders)
        }
        mixed = [request for several in zip(*plans.values(), strict=True) for request in several]
        made = dict(zip(map(id, mixed), ask(running, mixed), strict=True))
    for folder, requests in plans.items():
        says = lab.says if folder is None else lab.adapted(folder)
        for request in requests:
            check(lab, request, made[id(request)], says)


def interventions(lab: Lab) -> None:
    """Add, ablate and clamp, each in rows of its own beside the base's, one of them with an adapter."""
    add, ablate, clamp = _three(lab)
    adapter = lab.adapter("attention")
    plans = ((add, None), (ablate, None), (clamp, None), (add, adapter), (None, None))
    rows = ((PROMPTS[0], greedy, 5), (PROMPTS[3], greedy, 3), (PROMPTS[2], scored, tokens(7, 9)))
    requests = [
        make(prompt, more, adapter=folder, interventions=() if one is None else (one,))
        for one, folder in plans
        for prompt, make, more in rows
    ]
    with engine(lab) as running:
        made = ask(running, requests)
    for request, draw in zip(requests, made, strict=True):
        model = lab.model if request.adapter is None else lab.peft(request.adapter)
        with intervened(lab, model, request.interventions, _answer_start(request)) as says:
            check(lab, request, draw, says)


def _three(lab: Lab) -> list[Intervention]:
    place = {"direction": lab.direction, "layers": (1,)}
    return [
        Intervention(op="add", scale=0.7, relative=True, **place),
        Intervention(op="ablate", reference="mean", skip="sink", direction=lab.direction),
        Intervention(op="clamp", value=2.5, positions="answer", **place),
    ]


def _answer_start(request: Request) -> int:
    return len(request.prompt) if request.answer_start is None else request.answer_start


WRITES = {"op": "ablate", "site": "writes", "from_layer": 1}


def writes(lab: Lab) -> None:
    """`site: writes` beside the base: every write is projected, so that nothing is left of the direction in any block."""
    one = Intervention(direction=lab.direction, **WRITES)
    kinds = ((), (one,))
    with engine(lab) as running:
        requests = [
            make(prompt, more, interventions=kind)
            for kind in kinds
            for prompt, make, more in ((PROMPTS[0], greedy, 4), (PROMPTS[2], scored, tokens(7, 9)))
        ]
        made = ask(running, requests)
    half = len(requests) // 2
    for request, draw in zip(requests[:half], made[:half], strict=True):
        check(lab, request, draw, lab.says)
    with projected(lab) as says:
        for request, draw in zip(requests[half:], made[half:], strict=True):
            check(lab, request, draw, says)
