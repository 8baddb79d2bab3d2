"""How fast these cores multiply and read: the limit that a speed is a share of.

Shapes are those of a decoding step: a few rows times many different weights, more of them together than caches hold.
"""

import time

_ROWS, _BYTES = 64, 160 * 2**20
"""Rows of a step, and bytes of weights that one round reads."""
_ROUNDS = 8


def probe(dtype: str, wide: int = 1536, narrow: int = 576) -> dict:
    """Return GFLOP/s of products of 64 rows with weights [wide, narrow], and GB/s of reading: the best round counts.

    Args:
        dtype: of the products, as torch names it.
        wide: features out.
        narrow: features in.
    """
    import torch

    with torch.inference_mode():
        kind = getattr(torch, dtype)
        count = _BYTES // (wide * narrow * kind.itemsize)
        weights = torch.randn(count, wide, narrow).to(kind)
        rows = torch.randn(_ROWS, narrow).to(kind)
        took = _best(lambda: [torch.nn.functional.linear(rows, weight) for weight in weights.unbind()])
        bits = weights.view(torch.int32)
        read = _best(lambda: bits.sum(dtype=torch.int32))
    return {
        "dtype": dtype,
        "gflops": round(2 * _ROWS * wide * narrow * count / took / 1e9, 1),
        "read_gbs": round(bits.numel() * 4 / read / 1e9, 1),
    }


def _best(work) -> float:
    """Seconds of the fastest of some rounds; the first one warms up."""
    found = []
    for _ in range(_ROUNDS + 1):
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return min(found[1:])
