"""Steps that could start now, and which of them a worker gets."""

from __future__ import annotations

from collections import deque
from itertools import count

from em_evals.sweep.steps import Step


class Queue:
    """Ready steps by base, each base's in the order in which they became ready. Every operation is O(bases).

    Example:
        >>> queue = Queue()
        >>> for name, base in [("a", "qwen"), ("b", "llama"), ("c", "qwen")]:
        ...     queue.add(Step(name, "measure", (), base=base))
        >>> queue.take("llama").name, queue.take("").name, len(queue)
        ('b', 'a', 1)
    """

    def __init__(self) -> None:
        self._by_base: dict[str, deque[tuple[int, Step]]] = {}
        self._numbers = count()

    def __len__(self) -> int:
        return sum(map(len, self._by_base.values()))

    def has(self, base: str) -> bool:
        """Return whether a step waits that loads this base."""
        return bool(self._by_base.get(base))

    def add(self, step: Step) -> None:
        """Add a step behind the others."""
        self._by_base.setdefault(step.base, deque()).append((next(self._numbers), step))

    def take(self, base: str) -> Step:
        """Return the first step for a worker that holds `base` ("" holds none), and forget it.

        Steps on the same base, and those that load none, come before steps for which the worker would load another.

        Raises:
            LookupError: no step waits.
        """
        own = [self._by_base[name] for name in {base, ""} if base and self.has(name)]
        waiting = own or [steps for steps in self._by_base.values() if steps]
        if not waiting:
            raise LookupError("no step waits")
        return min(waiting, key=lambda steps: steps[0][0]).popleft()[1]

    def clear(self) -> list[Step]:
        """Return all steps that wait, in order, and forget them."""
        every = sorted((one for steps in self._by_base.values() for one in steps), key=lambda one: one[0])
        self._by_base.clear()
        return [step for _, step in every]
