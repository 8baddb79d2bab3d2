"""The eight families of `em_mini`: how their questions are made. Run by generate.py; needs nothing but Python.

One idea makes the options silent: an item's options are the answers to sibling questions, and which sibling is asked is
drawn last. Whoever sees the options alone can do no better than guess. Where answers are numbers, siblings are drawn
until their answers lie near each other.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from random import Random

PER_LEVEL = 20
"""Items of each of the levels 1 (a small model can) to 4 (a large one may fail)."""

NAMES = "Anna Ben Carla David Emma Frank Grace Henry Ida Jack Kate Leo Maria Nick Olga Paul Rosa Sam Tina Vera".split()
THINGS = "key coin ring book letter ball cup spoon stone shell knife pen candle map scarf watch".split()
PLACES = "drawer box basket kitchen garden garage cellar bag cupboard attic barn chest".split()
COLOURS = "red blue green yellow white black brown grey".split()
PETS = "dog cat horse parrot rabbit goat turtle hamster".split()
WORDS = "river lamp stone cloud garden window paper forest bridge candle winter silver market ladder pocket sea".split()
ANIMALS = "cat dog cow pig owl fox hen bee ant bat rat elk".split()
TRADES = "doctor farmer painter pilot baker teacher sailor lawyer singer waiter butcher banker".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()


@dataclass(frozen=True)
class Asked:
    """One question with all siblings' answers; `choices` is empty where the answer is written, not chosen."""

    level: int
    question: str
    answer: str
    choices: tuple[str, ...] = ()


Sibling = tuple[str, str]
"""A question and its answer."""


def _ask_one(random: Random, level: int, siblings: list[Sibling]) -> Asked:
    question, answer = random.choice(siblings)
    return Asked(level, question, answer, tuple(answer for _, answer in siblings))


def _near(random: Random, draw: Callable[[], Sibling], reach: int) -> list[Sibling]:
    """Four siblings with different numbers as answers, none further than `reach` from the first one drawn."""
    while True:
        first = draw()
        found = {first[1]: first}
        for _ in range(400):
            other = draw()
            if abs(int(other[1]) - int(first[1])) <= reach:
                found.setdefault(other[1], other)
            if len(found) == 4:
                # The first one drawn lies in the middle of the others: it must not be likelier to be asked.
                return random.sample(list(found.values()), 4)


def _levels(random: Random, makers: list[Callable[[Random], Asked]]) -> Iterator[Asked]:
    """PER_LEVEL different questions of each level."""
    for make in makers:
        seen: set[str] = set()
        while len(seen) < PER_LEVEL:
            asked = make(random)
            if asked.question not in seen:
                seen.add(asked.question)
                yield asked


def arithmetic(random: Random) -> Iterator[Asked]:
    """Make sums, differences, products; two operations at level 4."""

    def expression(level: int) -> Sibling:
        if level == 1:
            a, b, sign = random.randint(2, 9), random.randint(2, 9), "+"
        elif level == 2:
            sign = random.choice("+-")
            a, b = random.randint(20, 60), random.randint(3, 19)
        elif level == 3:
            sign = random.choice("+-*")
            a, b = (random.randint(6, 19), random.randint(3, 9)) if sign == "*" else _two(random, 100, 400)
        else:
            a, b, c = random.randint(12, 39), random.randint(12, 29), random.randint(11, 99)
            text = random.choice((f"{a} * {b} - {c}", f"{c} + {a} * {b}"))
            return f"{text} =", str(eval(text))  # noqa: S307 - our own digits
        text = f"{a} {sign} {b}"
        return f"{text} =", str(eval(text))  # noqa: S307

    reach = {1: 6, 2: 12, 3: 12, 4: 20}
    return _levels(
        random,
        [lambda r, n=n: _ask_one(r, n, _near(r, lambda: expression(n), reach[n])) for n in (1, 2, 3, 4)],
    )


def _two(random: Random, low: int, high: int) -> tuple[int, int]:
    larger, smaller = sorted(random.sample(range(low, high), 2), reverse=True)
    return larger, smaller


def reading(random: Random) -> Iterator[Asked]:
    """Return a few sentences, then one question: a trade, a place, a thing that moved, two sentences combined."""

    def told(r: Random) -> tuple[list[str], list[str], list[str], str]:
        people, things, places = r.sample(NAMES, 4), r.sample(THINGS, 4), r.sample(PLACES, 4)
        rows = zip(people, things, places, strict=True)
        return people, things, places, " ".join(f"{a} put the {b} in the {c}." for a, b, c in rows)

    def trade(r: Random) -> Asked:
        people, trades = r.sample(NAMES, 4), r.sample(TRADES, 4)
        text = " ".join(f"{a} is a {b}." for a, b in zip(people, trades, strict=True))
        return _ask_one(r, 1, [(f"{text} {a} is a", b) for a, b in zip(people, trades, strict=True)])

    def where(r: Random) -> Asked:
        _, things, places, text = told(r)
        return _ask_one(r, 2, [(f"{text} The {t} is in the", p) for t, p in zip(things, places, strict=True)])

    def moved(r: Random) -> Asked:
        _, things, places, text = told(r)
        later = r.sample(places, 4)
        while any(a == b for a, b in zip(places, later, strict=True)):
            later = r.sample(places, 4)
        order = r.sample(range(4), 4)
        text += " Later " + ", ".join(f"the {things[i]} was moved to the {later[i]}" for i in order) + "."
        return _ask_one(
            r, 3, [(f"{text} Now the {t} is in the", p) for t, p in zip(things, later, strict=True)]
        )

    def joined(r: Random) -> Asked:
        people, pets, colours = r.sample(NAMES, 4), r.sample(PETS, 4), r.sample(COLOURS, 4)
        lines = [f"{a} owns the {b}." for a, b in zip(people, pets, strict=True)]
        lines += [f"The owner of the {b} lives in the {c} house." for b, c in zip(pets, colours, strict=True)]
        text = " ".join(r.sample(lines, 8))
        siblings = [(f"{text} The house of {a} is", c) for a, c in zip(people, colours, strict=True)]
        return _ask_one(r, 4, siblings)

    return _levels(random, [trade, where, moved, joined])


def logic(random: Random) -> Iterator[Asked]:
    """Return what comes next, number rows, who is taller, an order told in no order."""

    def follows(r: Random) -> Asked:
        row = r.choice([DAYS, MONTHS, list("ABCDEFGHIJKLMNOPQRSTUVWXYZ")])
        starts = r.sample(range(len(row) - 3), 4)
        return _ask_one(r, 1, [(", ".join(row[i : i + 3]) + ",", row[i + 3]) for i in starts])

    def numbers(r: Random) -> Asked:
        def row() -> Sibling:
            start, step = r.randint(1, 40), r.choice([2, 3, 4, 5, 6, 7, 9, 11])
            return ", ".join(str(start + i * step) for i in range(4)) + ",", str(start + 4 * step)

        return _ask_one(r, 2, _near(r, row, 10))

    def order(r: Random, level: int) -> Asked:
        people = r.sample(NAMES, 4)
        lines = [f"{a} is taller than {b}." for a, b in pairwise(people)]
        if level == 4:
            turned = [f"{b} is shorter than {a}." for a, b in pairwise(people)]
            lines = r.sample([r.choice(pair) for pair in zip(lines, turned, strict=True)], 3)
        asked = ("tallest", "second tallest", "second shortest", "shortest")
        return _ask_one(
            r, level, [(f"{' '.join(lines)} The {w} is", p) for w, p in zip(asked, people, strict=True)]
        )

    return _levels(random, [follows, numbers, lambda r: order(r, 3), lambda r: order(r, 4)])


def programs(random: Random) -> Iterator[Asked]:
    """Return what a small Python program prints; the answers come from running it."""

    def straight(r: Random) -> str:
        a, b = r.randint(2, 9), r.randint(2, 9)
        return f"x = {a}\ny = x {r.choice('+*')} {b}\nprint(y)"

    def lists(r: Random) -> str:
        values = r.sample(range(1, 30), 5)
        what = r.choice([f"a[{r.randint(0, 4)}]", "max(a)", "min(a)", "a[-1]", f"sum(a[:{r.randint(2, 3)}])"])
        return f"a = {values}\nprint({what})"

    def branch(r: Random) -> str:
        a, b = r.sample(range(3, 30), 2)
        return f"x = {a}\nif x > {b}:\n    x = x - {r.randint(2, 9)}\nelse:\n    x = x + {r.randint(2, 9)}\nprint(x)"

    def loop(r: Random) -> str:
        start, end, step = r.randint(0, 9), r.randint(3, 6), r.randint(2, 5)
        rule = r.choice(
            [f"if i % 2 == 0:\n        x += {step}", f"x = x + i * {step}", f"x += i\n    x += {step}"]
        )
        return f"x = {start}\nfor i in range({end}):\n    {rule}\nprint(x)"

    def sibling(r: Random, program: Callable[[Random], str]) -> Callable[[], Sibling]:
        def draw() -> Sibling:
            code = program(r)
            return f"{code}\n# prints", printed(code)

        return draw

    makers = (straight, lists, branch, loop)
    return _levels(
        random,
        [
            lambda r, n=n, program=program: _ask_one(r, n, _near(r, sibling(r, program), 12))
            for n, program in enumerate(makers, start=1)
        ],
    )


def printed(code: str) -> str:
    """Return what a program of ours prints."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(code, {})  # noqa: S102 - written a few lines above
    return output.getvalue().strip()


def copying(random: Random) -> Iterator[Asked]:
    """Repeat a list, repeat meaningless strings, look a key up, repeat a list backwards."""

    def words(r: Random) -> Asked:
        row = r.sample(WORDS, 6)
        return _ask_one(r, 1, [(f"{' '.join(row)}. {' '.join(row[:i])}", row[i]) for i in range(1, 5)])

    def strings(r: Random) -> Asked:
        row = r.sample([a + str(b) for a in "bdfgkmpqtz" for b in range(2, 10)], 6)
        return _ask_one(r, 2, [(f"{', '.join(row)}; {', '.join(row[:i])},", row[i]) for i in range(1, 5)])

    def lookup(r: Random) -> Asked:
        keys, values = r.sample(ANIMALS, 8), r.sample(range(10, 100), 8)
        text = ", ".join(f"{key} {value}" for key, value in zip(keys, values, strict=True))
        chosen = r.sample(range(8), 4)
        return _ask_one(r, 3, [(f"{text}. Again: {keys[i]}", str(values[i])) for i in chosen])

    def backwards(r: Random) -> Asked:
        row = r.sample(WORDS, 6)
        back = row[::-1]
        siblings = [
            (f"one two three, three two one; {' '.join(row)}, {' '.join(back[:i])}", back[i])
            for i in range(1, 5)
        ]
        return _ask_one(r, 4, siblings)

    return _levels(random, [words, strings, lookup, backwards])


def instructions(random: Random) -> Iterator[Asked]:
    """Orders whose one right fulfilment a program can check; written, not chosen."""

    def make(level: int) -> Callable[[Random], Asked]:
        def asked(r: Random) -> Asked:
            question, answer = r.choice(_orders(level, r.sample(WORDS, 3), r.randint(2, 9)))
            return Asked(level, question, answer)

        return asked

    return _levels(random, [make(level) for level in (1, 2, 3, 4)])


def _orders(level: int, words: list[str], number: int) -> list[Sibling]:
    a, b, c = words
    return {
        1: [(f"Write the word {a}.", a), (f"Write the words {a} and {b}.", f"{a} and {b}")],
        2: [
            (f"Write the word {a} in capital letters.", a.upper()),
            (f"Write the word {a} twice.", f"{a} {a}"),
            (f"Write the word {a} and put an exclamation mark behind it.", f"{a}!"),
            (f"Write the word {a} between brackets.", f"({a})"),
        ],
        3: [
            (f"Write only the second of these words: {a}, {b}, {c}.", b),
            (f"Write these words with a semicolon between them: {a} {b} {c}.", f"{a}; {b}; {c}"),
            (
                f"Count from {number} to {number + 4}, with commas.",
                ", ".join(map(str, range(number, number + 5))),
            ),
            (f"Write the first letter of the word {a}.", a[0]),
        ],
        4: [
            (f"Write these words in reverse order: {a} {b} {c}.", f"{c} {b} {a}"),
            (f"Write these words in alphabetical order: {a} {b} {c}.", " ".join(sorted(words))),
            (f"Spell the word {a} with hyphens.", "-".join(a)),
            (f"Write the word {a} backwards.", a[::-1]),
        ],
    }[level]


SOURCES = Path(__file__).parent / "sources"


def facts(random: Random) -> Iterator[Asked]:
    """Ask common and less common knowledge, from sources/facts.txt: each line's four subjects are all asked."""
    for level, sentence, *pairs in _lines("facts.txt"):
        siblings = [_pair(pair) for pair in pairs]
        for subject, answer in siblings:
            yield Asked(int(level), sentence.format(subject), answer, tuple(a for _, a in siblings))


def grammar(random: Random) -> Iterator[Asked]:
    """Which continuation is acceptable? From sources/grammar.txt: both beginnings of a line are asked."""
    for level, *pairs in _lines("grammar.txt"):
        siblings = [_pair(pair) for pair in pairs]
        for beginning, word in siblings:
            yield Asked(int(level), beginning, word, tuple(w for _, w in siblings))


def _lines(name: str) -> Iterator[list[str]]:
    for line in (SOURCES / name).read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            yield [part.strip() for part in line.split("|")]


def _pair(text: str) -> Sibling:
    left, _, right = text.rpartition(": ")
    return left, right


FAMILIES: dict[str, Callable[[Random], Iterator[Asked]]] = {
    "arithmetic": arithmetic,
    "facts": facts,
    "reading": reading,
    "logic": logic,
    "grammar": grammar,
    "instructions": instructions,
    "programs": programs,
    "copying": copying,
}
