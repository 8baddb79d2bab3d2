"""Which fields a client's request may have, with types and bounds: validated before the engine sees any of it.

One request with a position beyond 64 bits, or with a salt that is no text, ended vLLM's engine for all clients. What is
not listed is refused by name: grammars (`structured_outputs`) that take forever to compile, templates of the client's
own, and URLs of images that the server would fetch.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from em_evals.engines.vllm.plugin import ANSWER_START
from em_evals.errors import nearest

TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Count = Annotated[int, Field(ge=0, lt=2**31)]
Draws = Annotated[int, Field(ge=1, le=128)]
Logprobs = Annotated[int, Field(ge=0, le=100)]
Short = Annotated[str, Field(max_length=4096)]
Stops = Annotated[list[Short], Field(max_length=64)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Share = Annotated[float, Field(ge=0, le=1)]
Tokens = Annotated[list[TokenId], Field(max_length=2**24)]
MOST_PROMPTS = 256


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class _Extra(_Strict):
    answer_start: Count | None = Field(default=None, validation_alias=ANSWER_START)


class _StreamOptions(_Strict):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class _Sampling(_Strict):
    """What both ways of generating share."""

    model: Short
    n: Draws | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Share | None = None
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    min_p: Share | None = None
    max_tokens: Count | None = None
    min_tokens: Count | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Short | Stops | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=256)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    length_penalty: Annotated[float, Field(ge=-10, le=10)] | None = None
    logit_bias: (
        Annotated[dict[Short, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=1024)] | None
    ) = None
    prompt_logprobs: Logprobs | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    user: Short | None = None
    cache_salt: Annotated[str, Field(min_length=1, max_length=1024)] | None = None
    vllm_xargs: _Extra | None = None
    add_special_tokens: bool | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    use_beam_search: bool | None = None
    truncate_prompt_tokens: Annotated[int, Field(ge=-1, lt=2**31)] | None = None


class Completion(_Sampling):
    """A request to /v1/completions."""

    prompt: (
        str
        | Tokens
        | Annotated[list[str], Field(max_length=MOST_PROMPTS)]
        | Annotated[list[Tokens], Field(max_length=MOST_PROMPTS)]
    ) = ""
    logprobs: Logprobs | None = None
    echo: bool | None = None
    best_of: Draws | None = None
    suffix: None = None


class _Part(_Strict):
    type: Literal["text"]
    text: str


class _Message(_Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[_Part], Field(max_length=1024)] | None = None
    name: Short | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: None = None
    tool_calls: Annotated[list[Any], Field(max_length=0)] | None = None


class _Called(_Strict):
    name: Short
    arguments: str


class _Call(_Strict):
    id: Short
    type: Literal["function"]
    function: _Called


class _ChatMessage(_Message):
    role: Literal["system", "developer", "user", "assistant", "tool"]  # type: ignore[assignment]
    tool_calls: Annotated[list[_Call], Field(max_length=128)] | None = None
    tool_call_id: Short | None = None


class _Function(_Strict):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,128}$")]
    description: Annotated[str, Field(max_length=2**16)] | None = None
    parameters: dict[str, Any] | None = None
    strict: Literal[False] | None = None


class _Tool(_Strict):
    type: Literal["function"]
    function: _Function


class _Format(_Strict):
    type: Literal["text"]


class Chat(_Sampling):
    """A request to /v1/chat/completions."""

    messages: Annotated[list[_ChatMessage], Field(max_length=4096)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Logprobs | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: Annotated[dict[Short, bool | int | Short | None], Field(max_length=32)] | None = (
        None
    )
    response_format: _Format | None = None
    tools: Annotated[list[_Tool], Field(max_length=128)] | None = None
    tool_choice: Short | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    store: bool | None = None
    metadata: Annotated[dict[Short, Short], Field(max_length=32)] | None = None


class Tokenize(_Strict):
    """A request to /tokenize."""

    model: Short
    prompt: str | None = None
    messages: Annotated[list[_Message], Field(max_length=4096)] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    return_token_strs: bool | None = None
    chat_template_kwargs: Annotated[dict[Short, bool | int | Short | None], Field(max_length=32)] | None = (
        None
    )


class Detokenize(_Strict):
    """A request to /detokenize."""

    model: Short
    tokens: Tokens


SCHEMAS: dict[str, type[BaseModel]] = {
    "/v1/completions": Completion,
    "/v1/chat/completions": Chat,
    "/tokenize": Tokenize,
    "/detokenize": Detokenize,
}


def wrong(path: str, request: dict[str, Any]) -> str | None:
    """Return what is wrong with a request, in one sentence; None for a request that may pass.

    Args:
        path: the route.
        request: the JSON object that the client sent.
    """
    schema = SCHEMAS[path]
    try:
        schema.model_validate(request)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(
            str(part) for part in first["loc"] if not str(part).startswith(("list[", "constrained"))
        )[:80]
        if first["type"] == "extra_forbidden":
            return f"`{place}` is not a field of {path}; {nearest(place, schema.model_fields)}"
        return f"`{place}` of this request is wrong: {first['msg'][:160]}."
    return None
