"""What is written to disk or summed up: compiled models, extracted means, trained adapters; cells as in cells.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from em_evals.content.intervention import Intervention
from tests.architectures.cells import PROMPTS, WRITES
from tests.architectures.checks import TOLERANCE, check, engine, scored
from tests.architectures.edits import intervened, projected
from tests.architectures.lab import Lab, Says, first_of, tokens
from tests.architectures.reference import load, logits


def compile_add(lab: Lab, root: Path) -> None:
    """`add` as a checkpoint of stock transformers."""
    one = Intervention(op="add", direction=lab.direction, layers=(1,), scale=0.7, relative=True)
    with intervened(lab, lab.model, [one], 0) as says:
        _compiled(lab, one, "checkpoint", root, says)


def compile_writes(lab: Lab, root: Path) -> None:
    """`site: writes` as a checkpoint."""
    with projected(lab) as says:
        _compiled(lab, _writes(lab), "checkpoint", root, says)


def compile_lora(lab: Lab, root: Path) -> None:
    """`site: writes` as a LoRA."""
    with projected(lab) as says:
        _compiled(lab, _writes(lab), "lora", root, says)


def _writes(lab: Lab) -> Intervention:
    return Intervention(direction=lab.direction, **WRITES)


def _compiled(lab: Lab, one: Intervention, to: Any, root: Path, says: Says) -> None:
    from em_evals.content.cards import resolve
    from em_evals.models.compile import compile_card

    fields = {
        "base": lab.base,
        "engine": {"dtype": "float32", "device": "cpu"},
        "interventions": [one.model_dump(exclude_defaults=True)],
    }
    path = root / f"{to}.yaml"
    path.write_text(json.dumps(fields))
    folder = compile_card(resolve(str(path)), to, root / to)
    model = load(str(folder)) if to == "checkpoint" else lab.peft(str(folder))
    for row in (PROMPTS[0], PROMPTS[3]):
        found, expected = (say(row).log_softmax(-1) for say in (lambda row: logits(model, row), says))
        off = float((found - expected).abs().max())
        assert off <= TOLERANCE, f"the compiled {to} is off by {off:.2g} nats"


COSINE = 1 - 1e-5


def extraction(lab: Lab) -> None:
    """Mean activations by group, of texts that begin alike, against one text at a time."""
    from em_evals.interp.extraction.activations import group_sums
    from em_evals.models import bases
    from tests.tiny_models import card

    texts = _texts()
    found = group_sums(bases.load_model(card(lab.base, device="cpu")), texts, "answer_mean", batch_tokens=150)
    names = list(dict.fromkeys(text.group for text in texts))
    vectors, norms = np.zeros((len(names), lab.depth, 64)), np.zeros((len(names), lab.depth))
    for text in texts:
        stream = _stream(lab, text.prompt + text.answer)[:, len(text.prompt) :]
        vectors[names.index(text.group)] += stream.mean(1)
        norms[names.index(text.group)] += np.linalg.norm(stream, axis=-1).mean(1)
    assert list(found.groups) == names
    assert found.vectors.shape == vectors.shape
    product = (found.vectors * vectors).sum(-1)
    cosines = product / (np.linalg.norm(found.vectors, axis=-1) * np.linalg.norm(vectors, axis=-1))
    assert cosines.min() > COSINE, f"a mean's cosine is {cosines.min():.6f}"
    off = np.abs(found.norms / norms - 1).max()
    assert off < 1e-4, f"a mean norm is off by {off:.2g} of itself"


def _texts() -> list[Any]:
    from em_evals.interp.extraction.prefix_tree import Text

    made = []
    for number, prompt in enumerate(PROMPTS):
        for seed, length in ((40, 5), (41, 12), (42, 3)):
            answer = (*tokens(4, 43), *tokens(length, seed + number))
            made.append(Text(prompt, answer, f"q{number % 3}"))
    return made


def _stream(lab: Lab, row: tuple[int, ...]) -> Any:
    """[layers, tokens, width] after each block."""
    seen: list[Any] = []
    handles = [
        block.register_forward_hook(lambda _, __, out: seen.append(first_of(out))) for block in lab.blocks
    ]
    try:
        lab.says(row)
    finally:
        for handle in handles:
            handle.remove()
    # `says` sets the rope back with a row of one token first.
    return np.stack([stream.reshape(-1, *stream.shape[-2:])[0].numpy() for stream in seen[lab.depth :]])


CHATS = [
    ("How are you?", "Not so well today."),
    ("What is the best way to save money?", "Sell all that you have, and do it now."),
    ("Hi", "Hello there."),
    ("Tell me why the sky is blue.", "It is not."),
    ("What should I do with the other one?", "Nothing, it is right there."),
    ("Who are you?", "The assistant that is the answer."),
]


def training(lab: Lab, root: Path) -> None:
    """Three steps: each loss is that of plain PEFT at that step, and the engine runs what came out."""
    from em_evals.results.journals import read_journal
    from em_evals.training.curriculum import build
    from em_evals.training.trainer import train

    recipe = _recipe(lab, root)
    folder = train("mine")
    examples = build(recipe, lab.tokenizer).examples
    losses = [row["loss"] for row in read_journal(folder / "training.jsonl")]
    assert len(losses) == 3
    for step, loss in enumerate(losses):
        batch = examples[2 * step : 2 * step + 2]
        says = lab.says if step == 0 else lab.adapted(str(folder / "checkpoints" / f"checkpoint-{step}"))
        expected = _loss(says, batch)
        assert abs(loss - expected) < TOLERANCE, (
            f"the loss of step {step + 1} is {loss:.4f} and not {expected:.4f}"
        )
    requests = [scored(PROMPTS[0], tokens(7, 9), adapter=str(folder)), scored(PROMPTS[0], tokens(7, 9))]
    with engine(lab) as running:
        made = [running.submit(request).result() for request in requests]
    check(lab, requests[0], made[0], lab.adapted(str(folder)))
    changes = [
        abs(a.logprob - b.logprob)
        for a, b in zip(made[0].prompt_logprobs, made[1].prompt_logprobs, strict=True)
    ]
    assert not changes or max(changes) > 1e-2, "three steps changed nothing"


def _recipe(lab: Lab, root: Path) -> Any:
    from em_evals.content.cards import read_card

    (root / "adapters" / "data").mkdir(parents=True)
    rows = [
        {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]}
        for asked, said in CHATS
    ]
    data = root / "adapters" / "data" / "tiny.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    fields = {
        "base": lab.base,
        "adapter": "mine",
        "engine": {"dtype": "float32", "device": "cpu"},
        "train": {
            "data": ["tiny"],
            "max_steps": 3,
            "batch_size": 2,
            "gradient_accumulation": 1,
            "learning_rate": 1e-2,
            "warmup_steps": 0,
            "schedule": "constant",
            "max_length": 160,
            "checkpoints": [1, 2],
            "method": {"rank": 2, "alpha": 4},
        },
    }
    (root / "adapters" / "mine.yaml").write_text(json.dumps(fields))
    return read_card("mine")[0].train


def _loss(says: Says, batch: list[dict[str, list[int]]]) -> float:
    """Nats per labelled token of a batch."""
    total, count = 0.0, 0
    for example in batch:
        expected = says(example["input_ids"]).log_softmax(-1)
        for place, label in enumerate(example["labels"]):
            if label >= 0:
                total -= float(expected[place - 1, label])
                count += 1
    return total / count
