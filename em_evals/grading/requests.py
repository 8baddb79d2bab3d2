"""Requests to a judge's server: counted, repeated while it says 429, and its troubles told apart."""

from __future__ import annotations

import logging
import time

from inspect_ai.model import GenerateConfig, Model, ModelOutput

from em_evals.errors import EmEvalsError
from em_evals.grading import failures
from em_evals.grading.failures import Failure
from em_evals.grading.grade import Reading, Trouble

_LOGGER = logging.getLogger(__name__)
_RETRIES = 5
LONGEST_WAIT = 3600.0
"""Seconds without a single reply after which a rate limit counts as a failure."""


class Requests:
    """The requests of one judge.

    Args:
        model: the judge.
        name: what messages call it.
        batch: Inspect's setting; None leaves it to the model.

    Attributes:
        count: requests sent so far, refused ones included; not those that Inspect or a client repeated by itself.
        answered: whether one was.
    """

    def __init__(self, model: Model, name: str, batch: bool | int | None) -> None:
        self.count = 0
        self.answered = False
        self._model = model
        self._name = name
        self._batch = batch
        self._warned: set[str] = set()
        self._last_reply = time.monotonic()

    @property
    def in_batches(self) -> bool:
        """Whether they go through the provider's batch API."""
        return bool(self._model.config.batch if self._batch is None else self._batch)

    async def send(self, prompt: str, reading: Reading, alone: bool = False) -> ModelOutput:
        """Send one; rate limits are waited for.

        Args:
            prompt: the whole prompt.
            reading: the way of asking.
            alone: not in a batch, whatever the others do.

        Raises:
            Trouble: the server refuses a part of the request that can be left out.
            Failure: it does not reply.
        """
        retries = self._model.config.max_retries
        sending = GenerateConfig(
            max_retries=_RETRIES if retries is None else retries,
            batch=False if alone and self.in_batches else self._batch,
        )
        config = reading.config().merge(sending)
        while True:
            self.count += 1
            try:
                # Inspect's own cache would keep replies that cannot be used, and mixes judges up by their names.
                output = await self._model.generate(prompt, config=config, cache=False)
                break
            except Exception as error:
                if type(error).__name__ == "LimitExceededError":
                    raise  # the user's limit on the sample
                failure = failures.of(error, self._model.api.api_key)
                waiting = time.monotonic() - self._last_reply < LONGEST_WAIT
                if not (failure.limited and retries is None and waiting):
                    if part := failures.blamed(failure, reading):
                        raise Trouble(part, failure.sentence, refused=True) from None
                    raise failure from None
                self.warn(f"waiting for its rate limit ({failure.sentence})")
        self._last_reply = time.monotonic()
        if not output.choices:
            raise Failure("its reply holds no choices")
        written = output.usage.output_tokens if output.usage else 0
        if output.stop_reason == "content_filter":
            raise Failure(f"its provider filtered the request: {failures.one_line(output.completion)}")
        if output.stop_reason == "model_length" and not written:
            raise Failure(f"too long for the judge: {failures.one_line(output.completion)}")
        self.answered = True
        return output

    def warn(self, why: str) -> None:
        """Show each kind of trouble once; all are in the log."""
        kind = "".join(character for character in why if not character.isdigit())[:60]
        if kind not in self._warned and len(self._warned) < 20:
            self._warned.add(kind)
            _LOGGER.warning(f"judge {self._name}: {why} (further ones like this are counted, not shown)")

    def unreachable(self, failure: Failure) -> EmEvalsError:
        """Return the sentence for a judge that cannot be asked at all."""
        status = f"{failure.status}: " if failure.status else ""
        return EmEvalsError(
            f"the judge {self._name} could not be asked ({status}{failure.sentence}): check its name, key and address; "
            "finished draws stay in the log, grade them with `inspect score LOG --model-role grader=MODEL`."
        )
