"""The Inspect provider `local`: a thin adapter to an engine.

`local/NAME` resolves a card, refuses invalid ones before any weights load, and sends each request to the base's shared
engine. Several cards on one base therefore share weights and batches, also across tasks and roles.
"""

from __future__ import annotations

import json
import secrets
import time
from concurrent.futures import Future
from dataclasses import replace
from functools import cached_property
from typing import Any

import anyio
from anyio.lowlevel import EventLoopToken, current_token
from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    GenerateConfig,
    Logprob,
    Logprobs,
    ModelAPI,
    ModelOutput,
    ModelUsage,
    TopLogprob,
)
from inspect_ai.tool import ToolChoice, ToolInfo

from em_evals.content import recipe_identity
from em_evals.content.cards import GenerationOptions, ResolvedCard, resolve
from em_evals.engines.pool import engine_for, reserve
from em_evals.engines.protocol import Draw, Engine, Request, Sampling, TokenLogprob
from em_evals.engines.requests import requests
from em_evals.errors import EmEvalsError
from em_evals.inspect_errors import refusal
from em_evals.inspect_plugin import drawn
from em_evals.inspect_plugin.messages import answer, chat, schemas
from em_evals.inspect_plugin.solvers import ASKED, SCORED
from em_evals.models.chat import ChatTemplate, Spoken, prompting, template_for
from em_evals.models.chat.rendering import settable

_DIGEST_PREFIX = "card:"
_SAMPLED = ("temperature", "top_p", "top_k", "max_tokens", "max_reasoning_tokens")
_UNSUPPORTED = (
    "best_of",
    "extra_body",
    "frequency_penalty",
    "logit_bias",
    "modalities",
    "presence_penalty",
    "response_schema",
)


class LocalAPI(ModelAPI):
    """Inspect's model API for one card.

    Args:
        model_name: the part after `local/`: a card, a PEFT or model folder, `pypi:…`, or a hub id.
        base_url: URL of a server of the card (`em-evals serve`), overriding the card's own `base_url`.
        api_key: that server's key, overriding EM_EVALS_API_KEY.
        config: Inspect's generation settings for this model.
        **model_args: card fields that override the card's file (`-M`).

    Raises:
        PrerequisiteError: the card is invalid; one sentence with file and line.
    """

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = GenerateConfig(),  # noqa: B008 - the signature that Inspect calls
        **model_args: Any,
    ) -> None:
        try:
            if base_url is not None:
                model_args = {**model_args, "backend": "server", "base_url": base_url}
            self.card: ResolvedCard = resolve(model_name, model_args)
            if not drawn.covers(model_name):
                reserve(self.card)
            self.card_digest = self.card.digest
            self.trained = recipe_identity.of(self.card)
        except EmEvalsError as error:
            raise refusal(error) from None
        # Inspect's response cache keys on base_url, not on model_args. With the digest in base_url, a retrained adapter
        # never gets its predecessor's cached answers, and every log identifies the measured model.
        super().__init__(model_name, f"{_DIGEST_PREFIX}{self.card_digest}", api_key, [], config)

    async def generate(
        self,
        input: list[ChatMessage],
        tools: list[ToolInfo],
        tool_choice: ToolChoice,
        config: GenerateConfig,
    ) -> ModelOutput:
        """Return one ModelOutput with `num_choices` draws; `engines.protocol.Sampling` defines the settings."""
        try:
            self._check(tool_choice, config)
            await anyio.to_thread.run_sync(self._check_same)
            if (earlier := await drawn.replayed(self, input, config)) is not None:
                return earlier
            engine = await anyio.to_thread.run_sync(engine_for, self.card.card, self.api_key)
            messages = chat(input)
            card = self.card.asked(**own) if (own := (config.extra_body or {}).get(ASKED)) else self.card
            template = prompting(card, engine.tokenizer, schemas(tools))
            _check_template(template, config)
            settings = _sampling(config, card.card.generation)
            verified = await anyio.to_thread.run_sync(lambda: self.verified)
            started = time.monotonic()
            asked = requests(card, template, messages, settings, _choices(config))
            if (config.extra_body or {}).get(SCORED):
                asked = [_scored(one) for one in asked]
            draws = await _all(engine, asked)
        except EmEvalsError as error:
            raise refusal(error) from None
        calling = tool_choice != "none"
        said = [template.spoken(messages, draw.text, draw.tokens, calling) for draw in draws]
        return ModelOutput(
            model=self.model_name,
            choices=[
                _choice(
                    template,
                    draw,
                    spoken,
                    answer(spoken, draw.text, self.model_name, tools, request.sampling.seed),
                )
                for draw, spoken, request in zip(draws, said, asked, strict=True)
            ],
            usage=_usage(asked[0].prompt, draws, said),
            time=time.monotonic() - started,
            metadata={
                "card_digest": card.digest if own else self.card_digest,
                **(
                    {"recipe": self.trained.recipe, "training_seed": self.trained.seed}
                    if self.trained
                    else {}
                ),
                "base": self.card.card.base,
                "changed": self.card.adapter_path is not None or bool(self.card.interventions),
                "verified": verified,
                "template": template.asked_with(messages),
                "seeds": [request.sampling.seed for request in asked],
                "sampling": {name: getattr(settings, name) for name in _SAMPLED},
            },
        )

    def _check_same(self) -> None:
        """Refuse a model whose files have changed: Inspect keeps models by name, and this log has the old digest."""
        if self.card.digest != self.card_digest:
            raise EmEvalsError(
                f"the files of {self.card.name} have changed since this process first asked it: start a new process, "
                f"or pass get_model('local/{self.card.name}', memoize=False)."
            )

    def _check(self, tool_choice: ToolChoice, config: GenerateConfig) -> None:
        if tool_choice not in ("auto", "none"):
            raise EmEvalsError(
                "local models cannot be forced to call a tool: choose a task whose `tool_choice` is auto."
            )
        for name in _UNSUPPORTED:
            value = getattr(config, name)
            ours = name == "extra_body" and set(value or ()) <= {ASKED, SCORED}
            if value is not None and not ours:
                raise EmEvalsError(f"local models do not support the setting '{name}'; omit it.")

    async def tokenize(self, text: str) -> list[int]:
        """Return the token ids of plain text, encoded as `generate` encodes a prefilled answer."""
        return (await self._template()).answer(text)

    async def _template(self) -> ChatTemplate:
        engine = await anyio.to_thread.run_sync(engine_for, self.card.card, self.api_key)
        return template_for(self.card, engine.tokenizer)

    @cached_property
    def verified(self) -> str:
        """The provenance line of `em-evals verify` for this card on this machine."""
        from em_evals.engines.setting import verified_line

        return verified_line(self.card)

    async def count_text_tokens(self, text: str) -> int:
        """Count tokens with the model's own tokenizer (Inspect's default downloads another model's vocabulary)."""
        return len(await self.tokenize(text))

    def max_tokens(self) -> int | None:
        """Return the card's default."""
        return self.card.card.generation.max_tokens

    def max_connections(self) -> int:
        """Return twice the number of draws that the engine decodes at a time, so that its queue stays filled."""
        return 2 * self.card.card.engine.max_num_seqs

    def connection_key(self) -> str:
        """Return a key per card: cards share no connection limit, since the engine's batch limits them."""
        return self.card_digest

    def tools_required(self) -> bool:
        """Return True: a chat with calls is written with the tools that it calls."""
        return True

    def collapse_user_messages(self) -> bool:
        """Return True: chat templates require alternating turns."""
        return True

    def collapse_system_messages(self) -> bool:
        """Return True: chat templates accept one system message."""
        return True


async def _all(engine: Engine, requests: list[Request]) -> list[Draw]:
    """Submit all requests and await all draws; on cancellation, free their rows in the batch."""
    futures = engine.submit_all(requests)
    try:
        return [await _result(future) for future in futures]
    finally:
        for future in futures:
            future.cancel()


async def _result(future: Future[Draw]) -> Draw:
    """Await a thread's future on asyncio or trio, without polling or an extra thread."""
    ready, loop = anyio.Event(), current_token()
    future.add_done_callback(lambda _: _call_soon(loop, ready))
    await ready.wait()
    return future.result()


def _call_soon(loop: EventLoopToken, ready: anyio.Event) -> None:
    native: Any = loop.native_token
    try:
        if hasattr(native, "call_soon_threadsafe"):
            native.call_soon_threadsafe(ready.set)
        else:
            native.run_sync_soon(ready.set)  # trio
    except RuntimeError:
        pass  # the event loop is closed, so nobody waits anymore


def _check_template(template: ChatTemplate, config: GenerateConfig) -> None:
    """Refuse settings that another prompt, or another reading of calls, would follow.

    Raises:
        EmEvalsError: names the setting, and where it belongs.
    """
    effort, own = config.reasoning_effort, json.loads(template.source.given).get("reasoning_effort")
    if effort not in (None, own) and "reasoning_effort" in settable(template.source.text):
        raise EmEvalsError(
            f"this model's chat template reads `reasoning_effort`, which is the card's: "
            f"`template: {{reasoning_effort: {effort}}}` there, or -M template={{reasoning_effort: {effort}}}."
        )
    if config.parallel_tool_calls is False and template.calls and template.calls.several:
        raise EmEvalsError(
            "this model's template writes several calls at once: leave `parallel_tool_calls` out."
        )


def _choices(config: GenerateConfig) -> int:
    """Return the number of draws.

    Raises:
        EmEvalsError: it is less than 1.
    """
    count = 1 if config.num_choices is None else config.num_choices
    if count < 1:
        raise EmEvalsError(f"num_choices is {count}; draw at least one answer.")
    return count


def _sampling(config: GenerateConfig, card: GenerationOptions) -> Sampling:
    def chosen(name: str) -> Any:
        value = getattr(config, name)
        return value if value is not None else getattr(card, name)

    if chosen("max_tokens") == 0:
        raise EmEvalsError("`max_tokens` is 0: no answer has so few; ask for 1 or more, or leave it out.")
    return Sampling(
        temperature=chosen("temperature"),
        top_p=chosen("top_p"),
        top_k=chosen("top_k"),
        max_tokens=chosen("max_tokens"),
        stop=tuple(config.stop_seqs or ()),
        # Unseeded draws get a recorded seed, so that every draw in a log is reproducible.
        seed=config.seed if config.seed is not None else secrets.randbits(63),
        max_reasoning_tokens=(
            config.reasoning_tokens if config.reasoning_tokens is not None else card.max_reasoning_tokens
        ),
        logprobs=bool(config.logprobs) or config.top_logprobs is not None,
        top_logprobs=config.top_logprobs or 0,
        prompt_logprobs=config.prompt_logprobs,
    )


def _scored(request: Request) -> Request:
    """Return a request that draws nothing and reports its given answer's tokens, without likelier ones."""
    start = len(request.prompt) if request.answer_start is None else request.answer_start
    sampling = replace(request.sampling, max_tokens=0, prompt_logprobs=0, prompt_logprobs_from=start)
    return replace(request, sampling=sampling, thought=None)


def _choice(
    template: ChatTemplate, draw: Draw, spoken: Spoken, message: ChatMessageAssistant
) -> ChatCompletionChoice:
    """Return a draw as Inspect's choice."""
    return ChatCompletionChoice(
        message=message,
        stop_reason="tool_calls" if spoken.calls else draw.stop_reason,
        logprobs=_logprobs(template.tokenizer, draw.logprobs),
        prompt_logprobs=_logprobs(template.tokenizer, draw.prompt_logprobs),
    )


def _logprobs(tokenizer: Any, tokens: list[TokenLogprob]) -> Logprobs | None:
    def text(token: int) -> str:
        return str(tokenizer.decode([token]))

    if not tokens:
        return None
    return Logprobs(
        content=[
            Logprob(
                token=text(entry.token),
                logprob=entry.logprob,
                bytes=list(text(entry.token).encode()),
                top_logprobs=[TopLogprob(token=text(token), logprob=value) for token, value in entry.top]
                or None,
            )
            for entry in tokens
        ]
    )


def _usage(prompt: tuple[int, ...], draws: list[Draw], said: list[Spoken]) -> ModelUsage:
    output = sum(len(draw.tokens) for draw in draws)
    thought = sum(spoken.tokens for spoken in said)
    return ModelUsage(
        input_tokens=len(prompt),
        output_tokens=output,
        total_tokens=len(prompt) + output,
        reasoning_tokens=thought or None,
    )
