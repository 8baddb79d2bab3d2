"""The judge: a model that grades an answer by a rubric.

By token probabilities where it can, one call of one token (see `tokens`); by sampling and parsing where it cannot (see
`replies`). How a judge is read is found out once and is the same for all draws: only a request that holds no answer
may change it, since an answer could otherwise choose how it is graded. A draw whose request fails is unscored, with
the server's own sentence.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import anyio
from inspect_ai._util._async import tg_collect
from inspect_ai.model import Model

from em_evals import files
from em_evals.content.judge_cards import JudgeCard
from em_evals.content.rubrics import Rubric
from em_evals.errors import EmEvalsError
from em_evals.grading import cache, graders
from em_evals.grading.failures import Failure
from em_evals.grading.grade import SAMPLES, Grade, Reading, Trouble
from em_evals.grading.replies import grade_replies, usable
from em_evals.grading.requests import Requests
from em_evals.grading.tokens import grade_distribution, read_first

_LOGGER = logging.getLogger(__name__)

PROBE = Rubric(
    "probe",
    "number",
    "This is a test of the connection. Reply with the number 85 and nothing else. {question}{answer}",
)
"""Asked with empty question and answer: shows how a judge replies whatever the model under test said."""


def check(name: str) -> None:
    """See that a judge can be made at all, before hours of answers and not after.

    Args:
        name: Inspect's name of it, as `openai/gpt-4o`.

    Raises:
        EmEvalsError: there is no such provider, or its package or key is missing.
    """
    from inspect_ai._util.error import PrerequisiteError
    from inspect_ai.model import get_model

    from em_evals.inspect_errors import said

    try:
        get_model(name, memoize=False)
    except (PrerequisiteError, ValueError) as error:
        why = said(error) if isinstance(error, PrerequisiteError) else str(error)
        raise EmEvalsError(f"the judge '{name}' cannot be asked: {why}") from None


class Judge:
    """Asks one judge model. Identical questions about identical answers are asked once, across runs too.

    A judge whose replies are sampled is asked about each of a run's equal answers for itself: one sample for all of
    them would make its error the same in all. What an earlier run got is used again, for as many as it had.

    Args:
        model: the judge.
        samples: draws per grade where it has to be sampled; None: the card's, or 5.
        use_cache: False asks everything again and keeps nothing.
        card: pins how it is asked; without one that is found out.
        batch: whether it is asked through its provider's batch API (a number: the smallest batch); None: as the card
            or the model's own settings say.

    Attributes:
        requests: what is sent; `requests.count` says how many.
        reused: replies that needed no request, because an equal one was there.

    Raises:
        EmEvalsError: batches are wanted of a provider that has none.
    """

    def __init__(
        self,
        model: Model,
        samples: int | None = None,
        use_cache: bool = True,
        card: JudgeCard | None = None,
        batch: bool | int | None = None,
    ) -> None:
        self.model = model
        self.card = card
        self.samples = samples or (card.samples if card is not None else SAMPLES)
        self.name = cache.name_of(model)
        self.requests = Requests(model, self.name, graders.batch_of(model, batch, card))
        self.reused = 0
        self.reading = Reading()
        if card is not None:
            pinned = Reading(sampled_at=card.temperature)
            self.reading = (
                replace(pinned.sampled(), why="its card says so") if card.read == "sampling" else pinned
            )
        self._cache = cache.ReplyCache(cache.identity(model), use_cache)
        self._announced: Reading | None = None
        self._settling = anyio.Lock()
        self._locks: dict[str, anyio.Lock] = {}
        self._seen: Counter[str] = Counter()
        self._probe_first = self.requests.in_batches

    @property
    def told(self) -> str:
        """How it is read, in words."""
        return self.reading.told(self.samples)

    async def grade(self, rubric: Rubric, question: str, answer: str) -> Grade:
        """Grade one answer; unscored, with the reason, where the judge's reply or its server leaves no grade.

        Raises:
            EmEvalsError: the judge cannot be asked at all: no connection, no such model, a wrong key.
        """
        prompt = rubric.render(question, answer)
        key = files.digest(rubric.digest, prompt)
        turn, self._seen[key] = self._seen[key], self._seen[key] + 1
        try:
            grade = await self._grade(rubric, prompt, turn)
        except Failure as failure:
            grade = Grade(math.nan, "unscored", self.reading.way, {}, failure.sentence)
        self._announce()
        if grade.category == "unscored":
            self.requests.warn(grade.note)
        return grade

    async def grade_all(self, asks: Sequence[tuple[Rubric, str, str]]) -> list[Grade]:
        """Grade by several rubrics at the same time.

        Args:
            asks: rubric, question and answer of each grade.

        Raises:
            EmEvalsError: as `grade`.
        """
        return await tg_collect([partial(self.grade, *one) for one in asks])

    async def _grade(self, rubric: Rubric, prompt: str, turn: int) -> Grade:
        if self._probe_first:
            await self._find_reading()
        # `shared` is how all draws are read; `reading` departs from it where only this draw's reply asks for that.
        reading = shared = self.reading
        while True:
            try:
                try:
                    if reading.alternatives and not (rubric.reason or rubric.kind == "text"):
                        return await self._by_probabilities(rubric, prompt, reading)
                    return await self._by_samples(rubric, prompt, reading.sampled(), turn)
                except Trouble as trouble:
                    reading = await self._settle(reading, shared, trouble)
            except Failure as failure:
                reading = await self._reach(shared, failure)
            shared = self.reading

    async def _by_probabilities(self, rubric: Rubric, prompt: str, reading: Reading) -> Grade:
        """Read the first token's probabilities.

        Raises:
            Trouble: they cannot be read, or the server refuses a part of the request.
            Failure: no reply came.
        """
        key = (rubric.digest, prompt, repr(reading.config()))
        async with self._alone(key):
            if (known := self._cache.distribution(*key)) is not None:
                self.reused += 1
                return grade_distribution(rubric, known)
            output = await self.requests.send(prompt, reading)
            logprobs = output.choices[0].logprobs
            grade = read_first(rubric, logprobs.content if logprobs else [], reading)
            self._cache.keep({"distribution": grade.distribution}, *key)
            return grade

    async def _by_samples(self, rubric: Rubric, prompt: str, reading: Reading, turn: int) -> Grade:
        first = 0 if reading.repeatable else turn * self.samples
        draws = range(first, first + self.samples)
        return grade_replies(
            rubric, await tg_collect([partial(self._reply, rubric, prompt, reading, draw) for draw in draws])
        )

    async def _reply(self, rubric: Rubric, prompt: str, reading: Reading, draw: int) -> str:
        key = (rubric.digest, prompt, repr(reading.config()), f"draw {draw}")
        async with self._alone(key):
            if (known := self._cache.reply(*key)) is not None:
                self.reused += 1
                return known
            reply = (await self.requests.send(prompt, reading)).completion
            if usable(rubric, reply):
                self._cache.keep({"reply": reply}, *key)
            return reply

    def _alone(self, key: tuple[str, ...]) -> anyio.Lock:
        """Return the lock of a request: equal ones often come at the same time, and wait for the first's reply."""
        return self._locks.setdefault(files.digest(*key), anyio.Lock())

    async def _find_reading(self) -> None:
        """Find out, outside the batches, how the judge is read: each refusal inside them costs a batch's time.

        Raises:
            EmEvalsError: it cannot be asked at all.
        """
        async with self._settling:
            while self._probe_first:
                try:
                    found = await self._probe(self.reading)
                except Failure as failure:
                    if failure.gone:
                        raise self.requests.unreachable(failure) from None
                    found = None
                following = self.reading.without(found.part, found.why) if found else None
                if following is None:
                    self._probe_first = False
                else:
                    self._keep_to_card(following)
                    self.reading = following

    async def _settle(self, reading: Reading, shared: Reading, trouble: Trouble) -> Reading:
        """How to ask this draw next; how to ask all, where a request without an answer meets trouble too.

        Raises:
            Failure: the server refuses this draw only.
        """
        async with self._settling:
            if self.reading != shared:
                return self.reading  # settled while this draw was asked
            if reading == shared:
                found = await self._probe(reading)
                following = reading.without(found.part, found.why) if found else None
                if following is not None:
                    self._keep_to_card(following)
                    self.reading = following
                    return following
            following = reading.without(trouble.part, trouble.why)
            if trouble.refused or following is None:
                raise Failure(trouble.why)
            return following

    async def _reach(self, shared: Reading, failure: Failure) -> Reading:
        """Tell one draw's failure from a judge that cannot be asked at all.

        Returns:
            Another way of asking, where the first one fails without an answer too and the other does not.

        Raises:
            Failure: the judge has answered, or answers a request without an answer: the trouble is this draw's.
            EmEvalsError: it cannot be asked.
        """
        async with self._settling:
            if self.reading != shared:
                return self.reading
            if self.requests.answered:
                raise failure
            if failure.gone:
                raise self.requests.unreachable(failure)
            for one in (shared, shared.without("logprobs", failure.sentence)):
                if one is None or failure.gone:
                    continue
                try:
                    found = await self._probe(one)
                except Failure as again:
                    failure = again
                    if failure.status is None or failure.status == 429 or failure.status >= 500:
                        break  # another way of asking mends no server
                    continue
                following = (one.without(found.part, found.why) if found else None) or one
                if following == shared:
                    raise failure  # a request without an answer is answered
                self._keep_to_card(following)
                self.reading = following
                return following
            raise self.requests.unreachable(failure)

    def _keep_to_card(self, reading: Reading) -> None:
        """Refuse to sample a judge whose card asks for log-probabilities.

        Raises:
            EmEvalsError: it reports none that can be read.
        """
        if self.card is not None and self.card.read == "logprobs" and not reading.alternatives:
            raise EmEvalsError(
                f"the judge {self.card.name} cannot be read by token probabilities ({reading.why}), as its card asks: "
                "write `read: auto` or `read: sampling` there.",
                self.card.path,
            )

    async def _probe(self, reading: Reading) -> Trouble | None:
        """Ask without an answer of the model under test; what is wrong with that, if anything."""
        try:
            output = await self.requests.send(PROBE.render("", ""), reading, alone=True)
            if reading.alternatives:
                logprobs = output.choices[0].logprobs
                read_first(PROBE, logprobs.content if logprobs else [], reading)
        except Trouble as trouble:
            return trouble
        return None

    def _announce(self) -> None:
        """Show once how it is read, and again where that changes."""
        if self._announced != self.reading:
            self._announced = self.reading
            _LOGGER.warning(f"judge {self.name}: {self.told}")
