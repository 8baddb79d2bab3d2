"""How fast these cores multiply and read: the limit that a speed is a share of.

Shapes are those of a decoding step: a few rows times many different weights, more of them together than caches hold; or
those of reading texts, with as many rows as a pass has tokens.
"""

import time

_BYTES = 160 * 2**20
"""Bytes of weights that one round reads."""
_ROUNDS = 8


def dtypes() -> list[str]:
    """Return float32, and bfloat16 where the processor computes in it."""
    import torch

    own = (
        getattr(torch.cpu, "_is_avx512_bf16_supported", bool)()
        or getattr(torch.cpu, "_is_amx_tile_supported", bool)()
    )
    return ["float32", *(["bfloat16"] if own else [])]


def probe(dtype: str, rows: int = 64, wide: int = 1536, narrow: int = 576) -> dict:
    """Return GFLOP/s of products of rows with weights [wide, narrow], and GB/s of reading: the best round counts.

    Args:
        dtype: of the products, as torch names it.
        rows: of a product.
        wide: features out.
        narrow: features in.
    """
    import torch

    with torch.inference_mode():
        kind = getattr(torch, dtype)
        count = _BYTES // (wide * narrow * kind.itemsize)
        weights = torch.randn(count, wide, narrow).to(kind)
        given = torch.randn(rows, narrow).to(kind)
        took = _best(lambda: [torch.nn.functional.linear(given, weight) for weight in weights.unbind()])
        bits = weights.view(torch.int32)
        read = _best(lambda: bits.sum(dtype=torch.int32))
    return {
        "dtype": dtype,
        "gflops": round(2 * rows * wide * narrow * count / took / 1e9, 1),
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
