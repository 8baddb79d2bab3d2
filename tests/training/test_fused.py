"""Fused LoRA layers: outputs and gradients are PEFT's own, and a bfloat16 base keeps no float32 copies of its inputs."""

import copy

import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")

from em_evals.training import fused

WIDTH = 48


def both(dtype, rank=4):
    """PEFT's model and its fused copy, with an adapter that is not zero."""

    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.up = torch.nn.Linear(WIDTH, 3 * WIDTH, bias=False)
            self.down = torch.nn.Linear(3 * WIDTH, WIDTH)

        def forward(self, x):
            return x + self.down(torch.nn.functional.silu(self.up(x)))

    torch.manual_seed(0)
    base = torch.nn.Sequential(Block(), Block()).to(dtype)
    config = peft.LoraConfig(
        r=rank, lora_alpha=3 * rank, target_modules=["up", "down"], init_lora_weights=False
    )
    model = peft.get_peft_model(base, config)
    other = copy.deepcopy(model)
    assert fused.fuse(other) == 4
    return model, other


def gradients(model, x):
    """Of a loss over two passes, as accumulation has them; the input's too."""
    x = x.clone().requires_grad_()
    loss = sum((model(part).float() ** 2).mean() for part in (x, x[:1]))
    loss.backward()
    found = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    return model(x).detach(), {"x": x.grad, **found}


@pytest.mark.parametrize(
    ("dtype", "within"), [(torch.float32, 1e-6), (torch.bfloat16, 2**-6), (torch.float16, 2**-9)]
)
def test_outputs_and_gradients_are_pefts(dtype, within):
    model, other = both(dtype)
    x = torch.randn(3, 7, WIDTH, dtype=dtype)
    (want, theirs), (found, ours) = gradients(model, x), gradients(other, x)
    assert found.dtype == want.dtype == dtype and torch.allclose(found, want, rtol=within, atol=within)
    assert ours.keys() == theirs.keys() and len(ours) == 9
    for name, grad in theirs.items():
        assert ours[name].dtype == grad.dtype
        assert (ours[name] - grad).norm() < within * grad.norm(), name


def test_a_bfloat16_base_keeps_no_float32_copy_of_its_inputs():
    def copies(model):
        sizes = []
        keep = torch.autograd.graph.saved_tensors_hooks(
            lambda t: sizes.append((t.dtype, t.numel())) or t, lambda t: t
        )
        with keep:
            model(torch.randn(8, 32, WIDTH, dtype=torch.bfloat16, requires_grad=True))
        return sum(dtype == torch.float32 and size >= 256 * WIDTH for dtype, size in sizes)

    assert [copies(model) for model in both(torch.bfloat16)] == [4, 0]


def test_under_autocast_peft_computes():
    _, other = both(torch.bfloat16)
    layer = next(module for module in other.modules() if "forward" in vars(module))
    x = torch.randn(2, WIDTH, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x), type(layer).forward(layer, x))
