"""Order lm-eval's requests for the engine, and return results in the requests' order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TypeVar

from tqdm import tqdm

from em_evals.engines.protocol import Draw, Engine, Request

Result = TypeVar("Result")

_SHARED_BEGINNING, _WORTH_A_GROUP = 32, 32
"""Minimum prefix length in tokens, and minimum number of requests, for a group that shares a prefix. A group is sent
consecutively, so that the engine computes its prefix once."""


def shared_first(contexts: Sequence[list[int]]) -> list[int]:
    """Return the order for sending requests: groups with a shared prefix together, then longest first.

    Longest first, because running out of memory then shows immediately and batches need little padding.
    """
    # Sorting by the common prefix makes its requests consecutive; small groups would only break the order by length.
    beginnings = [tuple(context[:_SHARED_BEGINNING]) for context in contexts]
    counts = Counter(beginnings)

    def key(index: int) -> tuple[tuple[int, ...], int, list[int]]:
        beginning = beginnings[index] if counts[beginnings[index]] >= _WORTH_A_GROUP else ()
        return beginning, -len(contexts[index]), contexts[index]

    return sorted(range(len(contexts)), key=key)


def run_all(
    engine: Engine,
    order: Sequence[int],
    request: Callable[[int], Request],
    finish: Callable[[int, Draw], Result],
    title: str,
    quiet: bool,
) -> list[Result]:
    """Submit all requests in `order`, and return their results in the requests' own order."""
    futures: list[tuple[int, Future[Draw]]] = []
    results: dict[int, Result] = {}
    try:
        submitted = engine.submit_all([request(index) for index in order])
        futures.extend(zip(order, submitted, strict=True))
        for index, future in tqdm(futures, desc=title, disable=quiet):
            results[index] = finish(index, future.result())
    finally:
        for _, future in futures:
            future.cancel()
    return [results[index] for index in range(len(results))]
