"""Chats that vLLM's own route would not answer as `local/` does, as `em-evals serve` answers them.

vLLM's route knows neither a card's template nor its thoughts, and needs a parser by name for each model's calls of
tools. Here a chat becomes the same requests as those of `local/`, and its draws the JSON of a chat completion, with the
thought as `reasoning_content` and calls as `tool_calls`. No server, no HTTP.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from em_evals.content.cards import ModelCard, ResolvedCard
from em_evals.engines.protocol import Draw, Request, Sampling, TokenLogprob
from em_evals.engines.requests import requests
from em_evals.engines.vllm.chat_messages import about_tools, calls_of, messages_of, tools_of
from em_evals.errors import EmEvalsError
from em_evals.models import bases
from em_evals.models.chat import ChatTemplate, Message, prompting

_READ = {
    *("model", "messages", "n", "temperature", "top_p", "top_k", "max_tokens", "max_completion_tokens"),
    *("seed", "stop", "logprobs", "top_logprobs", "stream", "stream_options", "continue_final_message"),
    *("tools", "tool_choice", "parallel_tool_calls"),
}
_WITHOUT_EFFECT = {"user", "store", "metadata", "response_format", "add_generation_prompt", "cache_salt"}
_USER, _SAID = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}
_PROBES = ([_USER], [{"role": "system", "content": "Be brief."}, _USER], [_USER, _SAID, _USER])
"""Chats whose prompts are compared with those of vLLM's route."""
_ENDS = {"stop": "stop", "max_tokens": "length", "model_length": "length"}


def asked_as(card: ResolvedCard) -> str:
    """Return what the server must know to answer a card's chats, as JSON."""
    # Only what the card says: `add` and other parts refuse fields that they do not read, defaults included.
    own = card.card.model_dump_json(exclude_unset=True)
    return json.dumps({"name": card.name, "card": own, "adapter": card.adapter_path})


@dataclass(frozen=True)
class Asked:
    """A chat that is to be answered.

    Attributes:
        template: that wrote the prompt, and splits the draws.
        messages: the chat.
        draws: to make.
        calling: whether calls of tools are looked for.
    """

    template: ChatTemplate
    messages: list[Message]
    draws: list[Request]
    calling: bool = True


class Chats:
    """A card's chats.

    Args:
        asked: of `asked_as`.

    Raises:
        EmEvalsError: the card sets `thinking` or `template`, and cannot be asked so.
    """

    def __init__(self, asked: str) -> None:
        told = json.loads(asked)
        card = ModelCard.model_validate_json(told["card"])
        self._card = ResolvedCard(told["name"], card, None, told["adapter"])
        self.tokenizer = _tokenizer(card.base, card.revision, card.trust_remote_code)
        self._differs = self._asked_differently()

    def takes(self, body: Mapping[str, Any]) -> bool:
        """Return whether a chat request is answered here; vLLM's own route is right for the others."""
        return about_tools(body) or self._differs

    def _asked_differently(self) -> bool:
        """Return whether vLLM's route would prompt otherwise: an adapter's template, no thought, a mended layout."""
        own = bool(self._card.card.thinking or self._card.card.template)
        try:
            template = prompting(self._card, self.tokenizer)
        except EmEvalsError:
            if own:
                raise
            return False  # vLLM's route has a sentence of its own
        if own:
            return True
        return any(template.encode(chat) != _plainly(self.tokenizer, chat) for chat in _PROBES)

    def requests(self, body: Mapping[str, Any]) -> Asked:
        """Return what a chat request asks for.

        Raises:
            EmEvalsError: it sets what is not read here, or the template refuses the messages or the tools.
        """
        known = _READ | _WITHOUT_EFFECT
        if other := next(
            (name for name, value in body.items() if value is not None and name not in known), None
        ):
            raise EmEvalsError(
                f"`{other}` is not read for a chat with tools, or with a card whose prompts are not vLLM's own "
                "(`thinking`, `template`, an adapter's template): leave it out."
            )
        messages = messages_of(body["messages"])
        if messages and messages[-1]["role"] == "assistant" and not body.get("continue_final_message"):
            raise EmEvalsError(
                "the last message is the assistant's: say `continue_final_message`, or leave it out."
            )
        template = prompting(self._card, self.tokenizer, tools_of(body))
        if template.calls and template.calls.several and body.get("parallel_tool_calls") is False:
            raise EmEvalsError(
                "this model's template writes several calls at once: leave `parallel_tool_calls` out."
            )
        draws = requests(self._card, template, messages, self._sampling(body), body.get("n") or 1)
        return Asked(template, messages, draws, body.get("tool_choice") != "none")

    def _sampling(self, body: Mapping[str, Any]) -> Sampling:
        """Return a request's sampling, with the card's in the place of what it leaves out."""
        own = self._card.card.generation
        stop, seed = body.get("stop") or (), body.get("seed")
        most = _or(body.get("max_completion_tokens"), _or(body.get("max_tokens"), own.max_tokens))
        if most == 0:
            raise EmEvalsError("`max_tokens` is 0: no answer has so few; ask for 1 or more, or leave it out.")
        return Sampling(
            temperature=_or(body.get("temperature"), own.temperature),
            top_p=_or(body.get("top_p"), own.top_p),
            top_k=_or(body.get("top_k"), own.top_k),
            max_tokens=most,
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
            seed=seed if seed is not None else secrets.randbits(63),
            logprobs=bool(body.get("logprobs")),
            top_logprobs=body.get("top_logprobs") or 0,
            max_reasoning_tokens=own.max_reasoning_tokens,
        )

    def completion(self, name: str, asked: Asked, draws: Sequence[Draw]) -> dict[str, Any]:
        """Return the JSON of a chat completion; calls that cannot be read stay in its content."""
        said = [
            asked.template.spoken(asked.messages, draw.text, draw.tokens, asked.calling) for draw in draws
        ]
        choices = []
        for index, (draw, spoken) in enumerate(zip(draws, said, strict=True)):
            message: dict[str, Any] = {
                "role": "assistant",
                "content": spoken.answer,
                "reasoning_content": spoken.thought,
            }
            if calls := calls_of(spoken.calls, asked.draws[index].sampling.seed):
                message |= {"content": spoken.answer or None, "tool_calls": calls}
            logprobs = {"content": [self._logprob(one) for one in draw.logprobs]} if draw.logprobs else None
            choices.append(
                {
                    "index": index,
                    "message": message,
                    "logprobs": logprobs,
                    "finish_reason": "tool_calls" if calls else _ENDS[draw.stop_reason],
                }
            )
        prompt, drawn = len(asked.draws[0].prompt), sum(len(draw.tokens) for draw in draws)
        usage = {
            "prompt_tokens": prompt,
            "completion_tokens": drawn,
            "total_tokens": prompt + drawn,
            "completion_tokens_details": {"reasoning_tokens": sum(spoken.tokens for spoken in said)},
        }
        identity = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": name}
        return {**identity, "object": "chat.completion", "choices": choices, "usage": usage}

    def _logprob(self, entry: TokenLogprob) -> dict[str, Any]:
        def of(token: int, value: float) -> dict[str, Any]:
            text = str(self.tokenizer.decode([token]))
            return {"token": text, "logprob": value, "bytes": list(text.encode())}

        return {**of(entry.token, entry.logprob), "top_logprobs": [of(*one) for one in entry.top]}


def events(whole: Mapping[str, Any], usage: bool) -> list[str]:
    """Return a completion as the events of a stream: the thought, the answer, the calls and the end of each choice."""
    head = {name: whole[name] for name in ("id", "created", "model")} | {"object": "chat.completion.chunk"}
    sent: list[dict[str, Any]] = []
    for choice in whole["choices"]:
        message = choice["message"]
        parts = [("reasoning_content", message["reasoning_content"]), ("content", message["content"])]
        deltas: list[dict[str, Any]] = [{"role": "assistant"}]
        deltas += [{name: text} for name, text in parts if text is not None]
        deltas += [
            {"tool_calls": [{"index": i, **call}]} for i, call in enumerate(message.get("tool_calls", ()))
        ]
        plain = {"index": choice["index"], "finish_reason": None}
        sent += [{**head, "choices": [{**plain, "delta": delta}]} for delta in deltas]
        ended = {**plain, "delta": {}, "finish_reason": choice["finish_reason"]}
        sent.append({**head, "choices": [ended]})
    if usage:
        sent.append({**head, "choices": [], "usage": whole["usage"]})
    return [f"data: {json.dumps(one)}\n\n" for one in sent] + ["data: [DONE]\n\n"]


@lru_cache(maxsize=8)
def _tokenizer(base: str, revision: str | None, trusted: bool) -> Any:
    """Return a base's tokenizer, which all cards of a server share: a server may have hundreds."""
    return bases.load_tokenizer(ModelCard(base=base, revision=revision, trust_remote_code=trusted))


def _plainly(tokenizer: Any, chat: Sequence[Message]) -> list[int] | None:
    """Return a chat's prompt as vLLM's route renders it; None where the template refuses it."""
    try:
        text = tokenizer.apply_chat_template(list(chat), tokenize=False, add_generation_prompt=True)
    except Exception:  # a template can raise anything
        return None
    return list(tokenizer.encode(text, add_special_tokens=False))


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value
