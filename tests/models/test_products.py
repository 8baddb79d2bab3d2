"""Products by oneDNN: PyTorch's own up to rounding, and only where nothing else is asked of the module."""

import copy

import pytest

torch = pytest.importorskip("torch")

from em_evals.models import products


@pytest.fixture
def linear(monkeypatch):
    """A linear module that multiplies by oneDNN, whatever processor this is, and how often it did."""
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        pytest.skip("this PyTorch has no oneDNN")
    monkeypatch.setattr(products, "_faster", lambda: True)
    torch.manual_seed(0)
    module = torch.nn.Linear(48, 96)
    products.speed_up(torch.nn.Sequential(module))
    assert "forward" in vars(module)
    return module


def test_products_are_pytorchs_for_every_shape(linear):
    for inputs in (
        torch.randn(48),
        torch.randn(3, 5, 48),
        torch.randn(5, 3, 48).transpose(0, 1),
        torch.randn(0, 48),
    ):
        with torch.inference_mode():
            found = linear(inputs)
        expected = torch.nn.functional.linear(inputs, linear.weight, linear.bias)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_biases_and_weights_with_steps_between_their_values_are_read_as_they_are(linear):
    inputs = torch.randn(3, 48)
    linear.bias = torch.nn.Parameter(torch.randn(192)[::2])
    linear.weight = torch.nn.Parameter(torch.randn(48, 192).t()[::2])
    with torch.no_grad():
        expected = torch.nn.functional.linear(inputs, linear.weight, linear.bias)
        torch.testing.assert_close(linear(inputs), expected, atol=1e-5, rtol=1e-5)


def test_gradients_swapped_weights_copies_and_other_dtypes_are_as_before(linear):
    inputs = torch.randn(2, 48)
    linear(inputs).sum().backward()
    assert linear.weight.grad is not None
    with torch.no_grad():
        other = copy.deepcopy(linear)
        other._parameters["weight"] = torch.zeros(96, 48)
        torch.testing.assert_close(other(inputs), linear.bias.expand(2, -1))
        assert float(linear(inputs).sub(linear.bias).abs().max()) > 0
        assert linear.to(torch.bfloat16)(inputs.bfloat16()).dtype == torch.bfloat16


def test_other_processors_keep_pytorchs_products(monkeypatch):
    monkeypatch.setattr(products, "_faster", lambda: False)
    module = torch.nn.Linear(2, 2)
    products.speed_up(torch.nn.Sequential(module))
    assert "forward" not in vars(module)
