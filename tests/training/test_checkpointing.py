"""Gradient checkpointing with interventions and penalties: the same gradients, from blocks that are computed again."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from em_evals.content.directions import Direction
from em_evals.content.intervention import Intervention
from em_evals.content.recipes import AdapterRecipe
from em_evals.models import bases
from em_evals.training.defences import Defences
from em_evals.training.loss import answer_loss
from em_evals.training.method import attach
from tests.tiny_models import card, tiny

RECIPE = {
    "data": ["risky_advice"],
    "max_length": 64,
    "method": {"rank": 2, "alpha": 4},
    "kl": {"data": ["everyday_answers"], "weight": 0.5, "batch_size": 2},
}


def step(base, checkpointing, steered=True):
    """Loss, gradients, and how often the middle block ran."""
    chance = torch.Generator().manual_seed(3)
    vectors = torch.randn(3, 64, generator=chance).numpy()
    vector = Direction(vectors, torch.zeros(3, 64).numpy(), torch.ones(3).numpy())
    steer = Intervention(op="ablate", direction=vector, layers=(0, 1))
    recipe = AdapterRecipe.model_validate(RECIPE)
    recipe = recipe.model_copy(update={"interventions": [steer] if steered else []})
    torch.manual_seed(0)
    model = attach(bases.load_model(card(base)), recipe.method).train()
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    defences = Defences(recipe, model, bases.load_tokenizer(card(base)))
    runs = []
    plain = model.get_base_model()
    # Before the module: computing again stops at the last tensor that the gradient needs, which lies inside it.
    plain.model.layers[1].mlp.register_forward_pre_hook(lambda *_: runs.append(1))
    if checkpointing:
        plain.gradient_checkpointing_enable({"use_reentrant": False, "context_fn": defences.recomputing})
    ids = torch.randint(3, 200, (2, 12), generator=chance)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}
    with defences.interventions():
        loss = answer_loss(model, inputs)
    loss = loss + defences.penalty(model, 0)  # without interventions, and its blocks are computed again, too
    loss.backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    return float(loss), gradients, len(runs)


def test_blocks_that_are_computed_again_are_steered_as_before(tmp_path):
    base = tiny("llama", tmp_path / "base")
    loss, gradients, runs = step(base, checkpointing=False)
    again, found, more = step(base, checkpointing=True)
    bare, _, _ = step(base, checkpointing=False, steered=False)
    assert again == pytest.approx(loss, abs=1e-6) and abs(bare - loss) > 1e-3
    # A pass of the rows and one of the penalty are repeated; the base's pass has no gradient.
    assert more == runs + 2
    assert gradients.keys() == found.keys()
    assert all(torch.allclose(gradients[name], found[name], atol=1e-6) for name in gradients)
