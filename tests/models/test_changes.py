"""A cap and a subspace by hand: what `changes` says of them, step by step, against the formula in one line."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from em_evals.content.directions import Direction
from em_evals.content.intervention import Intervention
from em_evals.models.changes import changes

WIDTH = 24
CHANCE = np.random.default_rng(4)
STREAM = torch.from_numpy(CHANCE.normal(size=(40, WIDTH)) * 3)


def direction(vector, mean=None):
    vectors = np.asarray([vector], np.float32)
    means = np.zeros_like(vectors) if mean is None else np.asarray([mean], np.float32)
    return Direction(vectors, means, np.ones(1, np.float32))


def drawn():
    return CHANCE.normal(size=WIDTH).astype(np.float32)


def unit(vector):
    return torch.from_numpy(np.asarray(vector, np.float64) / np.linalg.norm(np.asarray(vector, np.float64)))


def run(fields, *directions):
    """The steps in order, in float64, as `Change` documents them."""
    names = [f"d{i}" for i in range(len(directions))]
    one = Intervention.model_validate(fields | {"direction": names if len(names) > 1 else names[0]})
    stream = STREAM.clone()
    for step in changes(one, directions, 0):
        along = (step.target - stream @ step.unit.double()).clamp(max=step.limit)
        stream = stream + step.add + step.gate * along[:, None] * step.unit
    return stream


@pytest.mark.parametrize("value", [-1.5, 0.0, 2.0])
@pytest.mark.parametrize("bound", ["upper", "lower"])
def test_a_cap_is_one_sided(bound, value):
    vector = drawn()
    u = unit(vector)
    along = STREAM @ u
    wanted = along.clamp(max=value) if bound == "upper" else along.clamp(min=value)
    capped = run({"op": "cap", "bound": bound, "value": value}, direction(vector))
    torch.testing.assert_close(capped, STREAM + (wanted - along)[:, None] * u, atol=1e-5, rtol=0)
    left_alone = (along <= value) if bound == "upper" else (along >= value)
    assert 0 < left_alone.sum() < len(STREAM)
    assert torch.equal(capped[left_alone], STREAM[left_alone]), "not even by a rounding"


def test_a_lower_cap_is_the_formula_of_the_paper():
    """h - v·min(h·v - tau, 0), Lu et al. 2026, equation 1."""
    v, tau = unit(vector := drawn()), 1.25
    expected = STREAM - torch.clamp(STREAM @ v - tau, max=0)[:, None] * v
    capped = run({"op": "cap", "bound": "lower", "value": tau}, direction(vector))
    torch.testing.assert_close(capped, expected, atol=1e-5, rtol=0)


def projector(*vectors):
    """Onto the span, by least squares rather than by a decomposition of ours."""
    columns = torch.stack([unit(v) for v in vectors], dim=1)
    return columns @ torch.linalg.pinv(columns)


def test_a_list_of_directions_is_removed_as_one_subspace():
    a, b = drawn(), drawn()
    b = b + 1.5 * a  # far from orthogonal
    removed = run({"op": "ablate"}, direction(a), direction(b))
    joint = STREAM - STREAM @ projector(a, b)
    torch.testing.assert_close(removed, joint, atol=1e-5, rtol=0)
    assert max((removed @ unit(v)).abs().max() for v in (a, b)) < 1e-5
    one_by_one = STREAM - (STREAM @ unit(a))[:, None] * unit(a)
    one_by_one = one_by_one - (one_by_one @ unit(b))[:, None] * unit(b)
    assert (one_by_one @ unit(a)).abs().max() > 0.1, "the second ablation puts a part of the first back"
    assert (one_by_one - removed).abs().max() > 0.1
    other_order = run({"op": "ablate"}, direction(b), direction(a))
    torch.testing.assert_close(other_order, removed, atol=1e-5, rtol=0)


def test_lengths_do_not_matter_and_what_spans_nothing_new_counts_once():
    a, b = drawn(), drawn()
    for same in (a * 7, -a, a + 1e-6 * b):
        once = run({"op": "ablate"}, direction(a), direction(same))
        torch.testing.assert_close(once, STREAM - STREAM @ projector(a), atol=1e-4, rtol=0)
    near = a + 0.01 * b  # half a degree: another direction
    both = run({"op": "ablate"}, direction(a * 1e4), direction(near))
    torch.testing.assert_close(both, STREAM - STREAM @ projector(a, b), atol=1e-3, rtol=0)
    rest = run({"op": "ablate"}, direction(a), direction(np.zeros(WIDTH)), direction(b))
    torch.testing.assert_close(rest, STREAM - STREAM @ projector(a, b), atol=1e-5, rtol=0)
    nothing = run({"op": "ablate"}, direction(np.zeros(WIDTH)), direction(np.zeros(WIDTH)))
    assert torch.equal(nothing, STREAM)


def test_the_mean_of_a_subspace_is_the_mean_along_each_direction():
    a, b, m, n = drawn(), drawn(), drawn(), drawn()
    b = b + a
    common = run({"op": "ablate", "reference": "mean"}, direction(a, m), direction(b, m))
    expected = STREAM - (STREAM - torch.from_numpy(m).double()) @ projector(a, b)
    torch.testing.assert_close(common, expected, atol=1e-5, rtol=0)
    own = run({"op": "ablate", "reference": "mean"}, direction(a, m), direction(b, n))
    for vector, mean in ((a, m), (b, n)):
        wanted = float(torch.from_numpy(mean).double() @ unit(vector))
        torch.testing.assert_close(
            own @ unit(vector), torch.full((len(STREAM),), wanted).double(), atol=1e-4, rtol=0
        )
    across = torch.eye(WIDTH) - projector(a, b)
    torch.testing.assert_close(own @ across, STREAM @ across, atol=1e-5, rtol=0)
