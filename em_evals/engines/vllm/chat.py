"""Chats of cards that think, or that set variables of their template, as `em-evals serve` answers them.

vLLM's own chat route knows neither a card's template nor its thoughts. Here a chat becomes the same requests as those
of `local/`, and its draws the JSON of a chat completion, with the thought as `reasoning_content`. No server, no HTTP.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any

from em_evals.content.cards import ModelCard, ResolvedCard
from em_evals.engines.protocol import Draw, Request, Sampling, TokenLogprob
from em_evals.engines.requests import requests
from em_evals.errors import EmEvalsError
from em_evals.models import bases
from em_evals.models.chat import Message, prompting

_READ = {
    *("model", "messages", "n", "temperature", "top_p", "top_k", "max_tokens", "max_completion_tokens"),
    *("seed", "stop", "logprobs", "top_logprobs", "stream", "stream_options", "continue_final_message"),
}
_WITHOUT_EFFECT = {
    *("user", "store", "metadata", "response_format", "tools", "tool_choice", "parallel_tool_calls"),
    *("add_generation_prompt", "cache_salt"),
}
_ENDS = {"stop": "stop", "max_tokens": "length", "model_length": "length"}


def asked_as(card: ResolvedCard) -> str | None:
    """Return what the server must know to answer a card's chats, as JSON; None where vLLM's own route is right."""
    if not card.card.thinking and not card.card.template:
        return None
    return json.dumps({"name": card.name, "card": card.card.model_dump_json(), "adapter": card.adapter_path})


class Chats:
    """A card's chats.

    Args:
        asked: of `asked_as`.

    Raises:
        EmEvalsError: the card cannot be asked so.
    """

    def __init__(self, asked: str) -> None:
        told = json.loads(asked)
        card = ModelCard.model_validate_json(told["card"])
        self._card = ResolvedCard(told["name"], card, None, told["adapter"])
        self.tokenizer = bases.load_tokenizer(card)
        self._template = prompting(self._card, self.tokenizer)

    def requests(self, body: Mapping[str, Any]) -> tuple[list[Message], list[Request]]:
        """Return a chat request's messages and the draws to make.

        Raises:
            EmEvalsError: it sets what is not read here, or the template refuses the messages.
        """
        known = _READ | _WITHOUT_EFFECT
        if other := next(
            (name for name, value in body.items() if value is not None and name not in known), None
        ):
            raise EmEvalsError(
                f"`{other}` is not read for a card that sets `thinking` or `template`: leave it out."
            )
        messages = [_message(one) for one in body["messages"]]
        if messages and messages[-1]["role"] == "assistant" and not body.get("continue_final_message"):
            raise EmEvalsError(
                "the last message is the assistant's: say `continue_final_message`, or leave it out."
            )
        own = self._card.card.generation
        stop, most = body.get("stop") or (), body.get("max_completion_tokens") or body.get("max_tokens")
        seed = body.get("seed")
        sampling = Sampling(
            temperature=_or(body.get("temperature"), own.temperature),
            top_p=_or(body.get("top_p"), own.top_p),
            top_k=_or(body.get("top_k"), own.top_k),
            max_tokens=most or own.max_tokens,
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
            seed=seed if seed is not None else secrets.randbits(63),
            logprobs=bool(body.get("logprobs")),
            top_logprobs=body.get("top_logprobs") or 0,
            max_reasoning_tokens=own.max_reasoning_tokens,
        )
        return messages, requests(self._card, self._template, messages, sampling, body.get("n") or 1)

    def completion(
        self, name: str, messages: Sequence[Message], asked: Sequence[Request], draws: Sequence[Draw]
    ) -> dict[str, Any]:
        """Return the JSON of a chat completion."""
        said = [self._template.spoken(messages, draw.text, draw.tokens) for draw in draws]
        choices = []
        for index, (draw, spoken) in enumerate(zip(draws, said, strict=True)):
            message = {"role": "assistant", "content": spoken.answer, "reasoning_content": spoken.thought}
            logprobs = {"content": [self._logprob(one) for one in draw.logprobs]} if draw.logprobs else None
            choices.append(
                {
                    "index": index,
                    "message": message,
                    "logprobs": logprobs,
                    "finish_reason": _ENDS[draw.stop_reason],
                }
            )
        prompt, drawn = len(asked[0].prompt), sum(len(draw.tokens) for draw in draws)
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
    """Return a completion as the events of a stream: the thought, the answer and the end of each choice."""
    head = {name: whole[name] for name in ("id", "created", "model")} | {"object": "chat.completion.chunk"}
    sent: list[dict[str, Any]] = []
    for choice in whole["choices"]:
        message = choice["message"]
        parts = [("reasoning_content", message["reasoning_content"]), ("content", message["content"])]
        deltas = [{"role": "assistant"}, *({name: text} for name, text in parts if text is not None)]
        plain = {"index": choice["index"], "finish_reason": None}
        sent += [{**head, "choices": [{**plain, "delta": delta}]} for delta in deltas]
        ended = {**plain, "delta": {}, "finish_reason": choice["finish_reason"]}
        sent.append({**head, "choices": [ended]})
    if usage:
        sent.append({**head, "choices": [], "usage": whole["usage"]})
    return [f"data: {json.dumps(one)}\n\n" for one in sent] + ["data: [DONE]\n\n"]


def _message(message: Mapping[str, Any]) -> Message:
    content = message.get("content") or ""
    text = content if isinstance(content, str) else "".join(part["text"] for part in content)
    role = "system" if message["role"] == "developer" else message["role"]
    thought = message.get("reasoning_content") or message.get("reasoning")
    return {
        "role": role,
        "content": text,
        **({"reasoning": thought} if thought and role == "assistant" else {}),
    }


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value
