"""The judge: a model that grades an answer by a rubric.

By token probabilities where it can, one call of one token (see `tokens`); by sampling and parsing where it cannot (see
`replies`). How a judge is read is found out once and is the same for all draws: only a request that holds no answer
may change it, since an answer could otherwise choose how it is graded. A draw whose request fails is unscored, with
the server's own sentence.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import replace

import anyio
from inspect_ai.model import GenerateConfig, Model, ModelOutput

from em_evals import files
from em_evals.content.judge_cards import JudgeCard
from em_evals.content.rubrics import Rubric
from em_evals.errors import EmEvalsError
from em_evals.grading import cache, failures
from em_evals.grading.failures import Failure
from em_evals.grading.grade import SAMPLES, Grade, Reading, Trouble
from em_evals.grading.replies import grade_replies, usable
from em_evals.grading.tokens import grade_distribution, read_first

_LOGGER = logging.getLogger(__name__)

PROBE = Rubric(
    "probe",
    "number",
    "This is a test of the connection. Reply with the number 85 and nothing else. {question}{answer}",
)
"""Asked with empty question and answer: shows how a judge replies whatever the model under test said."""

_RETRIES = 5
LONGEST_WAIT = 3600.0
"""Seconds without a single reply after which a rate limit counts as a failure."""


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

    Args:
        model: the judge.
        samples: draws per grade where it has to be sampled; None: the card's, or 5.
        use_cache: False asks everything again and keeps nothing.
        card: pins how it is asked; without one that is found out.
    """

    def __init__(
        self,
        model: Model,
        samples: int | None = None,
        use_cache: bool = True,
        card: JudgeCard | None = None,
    ) -> None:
        self.model = model
        self.card = card
        self.samples = samples or (card.samples if card is not None else SAMPLES)
        self.name = cache.name_of(model)
        self.reading = Reading()
        if card is not None:
            pinned = Reading(sampled_at=card.temperature)
            self.reading = (
                replace(pinned.sampled(), why="its card says so") if card.read == "sampling" else pinned
            )
        self._cache = cache.ReplyCache(cache.identity(model), use_cache)
        self._answered = False
        self._announced: Reading | None = None
        self._warned: set[str] = set()
        self._last_reply = time.monotonic()
        self._settling = anyio.Lock()
        self._locks: dict[str, anyio.Lock] = {}

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
        # Equal answers often come at the same time (empty ones, say): the second waits for the first's cache.
        key = files.digest(prompt.encode())
        lock = self._locks.setdefault(key, anyio.Lock())
        async with lock:
            try:
                grade = await self._grade(rubric, prompt)
            except Failure as failure:
                grade = Grade(math.nan, "unscored", self.reading.way, {}, failure.sentence)
        self._announce()
        if grade.category == "unscored":
            self._warn(grade.note)
        return grade

    async def _grade(self, rubric: Rubric, prompt: str) -> Grade:
        # `shared` is how all draws are read; `reading` departs from it where only this draw's reply asks for that.
        reading = shared = self.reading
        while True:
            try:
                try:
                    if reading.alternatives and not (rubric.reason or rubric.kind == "text"):
                        return await self._by_probabilities(rubric, prompt, reading)
                    return await self._by_samples(rubric, prompt, reading.sampled())
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
        if (known := self._cache.distribution(*key)) is not None:
            return grade_distribution(rubric, known)
        output = await self._ask(prompt, reading)
        logprobs = output.choices[0].logprobs
        grade = read_first(rubric, logprobs.content if logprobs else [], reading)
        self._cache.keep({"distribution": grade.distribution}, *key)
        return grade

    async def _by_samples(self, rubric: Rubric, prompt: str, reading: Reading) -> Grade:
        replies = []
        for draw in range(self.samples):
            key = (rubric.digest, prompt, repr(reading.config()), f"draw {draw}")
            reply = self._cache.reply(*key)
            if reply is None:
                reply = (await self._ask(prompt, reading)).completion
                if usable(rubric, reply):
                    self._cache.keep({"reply": reply}, *key)
            replies.append(reply)
        return grade_replies(rubric, replies)

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
            if self._answered:
                raise failure
            if failure.gone:
                raise self._sentence(failure)
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
            raise self._sentence(failure)

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
            output = await self._ask(PROBE.render("", ""), reading)
            if reading.alternatives:
                logprobs = output.choices[0].logprobs
                read_first(PROBE, logprobs.content if logprobs else [], reading)
        except Trouble as trouble:
            return trouble
        return None

    async def _ask(self, prompt: str, reading: Reading) -> ModelOutput:
        """One request; rate limits are waited for.

        Raises:
            Trouble: the server refuses a part of the request that can be left out.
            Failure: it does not reply.
        """
        retries = self.model.config.max_retries
        config = reading.config().merge(GenerateConfig(max_retries=_RETRIES if retries is None else retries))
        while True:
            try:
                # Inspect's own cache would keep replies that cannot be used, and mixes judges up by their names.
                output = await self.model.generate(prompt, config=config, cache=False)
                break
            except Exception as error:
                if type(error).__name__ == "LimitExceededError":
                    raise  # the user's limit on the sample
                failure = failures.of(error, self.model.api.api_key)
                waiting = time.monotonic() - self._last_reply < LONGEST_WAIT
                if not (failure.limited and retries is None and waiting):
                    if part := failures.blamed(failure, reading):
                        raise Trouble(part, failure.sentence, refused=True) from None
                    raise failure from None
                self._warn(f"waiting for its rate limit ({failure.sentence})")
        self._last_reply = time.monotonic()
        if not output.choices:
            raise Failure("its reply holds no choices")
        written = output.usage.output_tokens if output.usage else 0
        if output.stop_reason == "content_filter":
            raise Failure(f"its provider filtered the request: {failures.one_line(output.completion)}")
        if output.stop_reason == "model_length" and not written:
            raise Failure(f"too long for the judge: {failures.one_line(output.completion)}")
        self._answered = True
        return output

    def _announce(self) -> None:
        """Show once how it is read, and again where that changes."""
        if self._announced != self.reading:
            self._announced = self.reading
            _LOGGER.warning(f"judge {self.name}: {self.told}")

    def _warn(self, why: str) -> None:
        """Show each kind of trouble once; all are in the log."""
        kind = "".join(character for character in why if not character.isdigit())[:60]
        if kind not in self._warned and len(self._warned) < 20:
            self._warned.add(kind)
            _LOGGER.warning(f"judge {self.name}: {why} (further ones like this are counted, not shown)")

    def _sentence(self, failure: Failure) -> EmEvalsError:
        status = f"{failure.status}: " if failure.status else ""
        return EmEvalsError(
            f"the judge {self.name} could not be asked ({status}{failure.sentence}): check its name, key and address; "
            "finished draws stay in the log, grade them with `inspect score LOG --model-role grader=MODEL`."
        )
