"""Places are lent, kept while in use, and never filled anew under a user."""

import asyncio

import pytest

from em_evals.engines.vllm.leases import Leases


def run(story):
    return asyncio.run(asyncio.wait_for(story, 5))


class Slots:
    def __init__(self, capacity):
        self.filled = []
        self.held = Leases(capacity, self.fill)

    async def fill(self, place, key):
        if key == "broken":
            raise ValueError(key)
        await asyncio.sleep(0)
        self.filled.append((place, key))


def test_a_key_keeps_its_place_and_the_longest_idle_one_is_given_away():
    async def story():
        slots = Slots(2)
        for key in ("a", "b", "a", "c", "a", "b"):
            async with slots.held.hold(key):
                pass
        return slots.filled

    assert run(story()) == [(0, "a"), (1, "b"), (1, "c"), (1, "b")]


def test_a_place_in_use_is_waited_for():
    async def story():
        slots, order = Slots(1), []

        async def use(key, seconds):
            async with slots.held.hold(key):
                order.append(f"{key} in")
                await asyncio.sleep(seconds)
                order.append(f"{key} out")

        await asyncio.gather(use("a", 0.02), use("b", 0), use("a", 0.02))
        return order, slots.filled

    order, filled = run(story())
    assert order.index("b in") > max(i for i, entry in enumerate(order[:-2]) if entry == "a out")
    assert filled == [(0, "a"), (0, "b")]


def test_many_keys_on_few_places_all_have_their_turn_alone():
    async def story():
        slots, inside, done = Slots(3), {}, []

        async def use(key):
            async with slots.held.hold(key) as place:
                assert place not in inside, "two keys in one place"
                inside[place] = key
                await asyncio.sleep(0.001)
                done.append(inside.pop(place))

        await asyncio.gather(*[use(f"k{n}") for n in range(9)])
        return done

    assert len(set(run(story()))) == 9


def test_what_cannot_be_filled_leaves_its_place_empty():
    async def story():
        slots = Slots(1)
        for _ in range(3):
            with pytest.raises(ValueError, match="broken"):
                async with slots.held.hold("broken"):
                    pass
        async with slots.held.hold("a") as place:
            return place

    assert run(story()) == 0
