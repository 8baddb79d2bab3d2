"""The order in which lm-eval's requests go to the engine, and their results' way back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TypeVar

from tqdm import tqdm

from em_evals.engines.protocol import Draw

Result = TypeVar("Result")

_SHARED_BEGINNING, _WORTH_A_GROUP = 32, 32
"""Where so many requests agree in so many first tokens, they are sent one after the other: the engine computes what
they have in common once."""


def shared_first(contexts: Sequence[list[int]]) -> list[int]:
    """The order to send requests in: those with a common beginning together, long ones first, siblings side by side.

    Long ones first: memory that is too small shows at once, and batches pad little.
    """
    beginnings = [tuple(context[:_SHARED_BEGINNING]) for context in contexts]
    counts = Counter(beginnings)

    def key(index: int) -> tuple[tuple[int, ...], int, list[int]]:
        beginning = beginnings[index] if counts[beginnings[index]] >= _WORTH_A_GROUP else ()
        return beginning, -len(contexts[index]), contexts[index]

    return sorted(range(len(contexts)), key=key)


def run_all(
    order: Sequence[int],
    submit: Callable[[int], Future[Draw]],
    finish: Callable[[int, Draw], Result],
    title: str,
    quiet: bool,
) -> list[Result]:
    """Submit everything, take results as they come, and give them back in the requests' order."""
    futures: list[tuple[int, Future[Draw]]] = []
    results: dict[int, Result] = {}
    try:
        futures.extend((index, submit(index)) for index in order)
        for index, future in tqdm(futures, desc=title, disable=quiet):
            results[index] = finish(index, future.result())
    finally:
        for _, future in futures:
            future.cancel()
    return [results[index] for index in range(len(results))]
