"""Give a template tools: they are among its variables, so its prompts with tools are checked as any others."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from em_evals.models.chat import call_formats, calls, layout
from em_evals.models.chat.rendering import Renderer, Source
from em_evals.models.chat.template import ChatTemplate, template_of

_HINT = "choose a task without tools, or put a template that knows them into the adapter's folder"


def with_tools(tokenizer: Any, source: Source, tools: Sequence[Mapping[str, Any]]) -> ChatTemplate:
    """Return a template that tells the model of tools, and whose draws are read for calls of them.

    Args:
        tokenizer: the base's.
        source: the template.
        tools: as transformers takes them: `{"type": "function", "function": {"name": …, "parameters": …}}`.

    Raises:
        EmEvalsError: the template writes no tools, or calls that cannot be read back; or as for `template_of`.
    """
    if "tools" not in source.text:
        raise layout.refusal(tokenizer, source, "knows no tools", _HINT)
    template = template_of(tokenizer, _given(source, tools))
    if template.calls is None:
        prompt = template.text([{"role": "user", "content": "Otters."}])
        if missing := next((name for name in calls.names_of(tools) if name not in prompt), None):
            raise layout.refusal(tokenizer, source, f"does not tell of the tool '{missing}'", _HINT)
        probing = Renderer(tokenizer, _given(source, [call_formats.TOOL]), template.layout)
        closing = str(tokenizer.convert_ids_to_tokens(template.end))
        template._known.calls = call_formats.of_template(probing, closing, template._known.special)
    if template.calls is None:
        raise layout.refusal(
            tokenizer, source, "writes calls of tools in a form that is not read here", _HINT
        )
    return template


def _given(source: Source, tools: Sequence[Mapping[str, Any]]) -> Source:
    return replace(source, given=json.dumps({**json.loads(source.given), "tools": list(tools)}))
