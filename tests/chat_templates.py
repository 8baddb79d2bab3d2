"""Small chat templates with the traits of those that models are published with, written for these tests.

`%S` in an expected prompt stands for the system text, `%U` for the user's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

HEADER = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
CHATML = TURNS + HEADER
_ASKED = "<|im_start|>system\n%S<|im_end|>\n<|im_start|>user\n%U<|im_end|>\n<|im_start|>assistant\n"

# The last answer gets a thought, earlier answers none.
_REWRITING = """{%- set ns = namespace(last=0) -%}
{%- for m in messages -%}{%- if m.role == 'user' -%}{%- set ns.last = loop.index0 -%}{%- endif -%}{%- endfor -%}
{%- for m in messages -%}
{{- '<|im_start|>' + m.role + '\\n' -}}
{%- if m.role == 'assistant' and loop.index0 > ns.last -%}
{{- '<think>\\n' + (m.reasoning_content or '') + '\\n</think>\\n\\n' -}}{%- endif -%}
{{- m.content + '<|im_end|>\\n' -}}{%- endfor -%}"""
_THINKS_UNLESS_TOLD = (
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}"
    "{%- if enable_thinking is defined and not enable_thinking -%}{{- '<think>\\n\\n</think>\\n\\n' -}}"
    "{%- else -%}{{- OPEN -}}{%- endif -%}{%- endif -%}"
)


@dataclass(frozen=True)
class Case:
    """A template, the prompt that must come of it, and what is chosen for it.

    Attributes:
        text: Jinja.
        expected: the prompt of a system and a user message.
        record: entries of ChatTemplate.record().
        given: what transformers' own renderer must be passed for the same finished chat.
        system: the system text is a message of its own in that chat.
    """

    text: str
    expected: str
    record: dict[str, Any] = field(default_factory=dict)
    given: dict[str, Any] = field(default_factory=dict)
    system: bool = True


_MERGED = {"system": "merged into the first user message"}
_FINISHED = {"prompt": "finished chat"}
_QUIET = {"enable_thinking": False}
_BLOCK = "<think>\n\n</think>\n\n"

CASES: dict[str, Case] = {
    "chatml": Case(CHATML, _ASKED, {"date": None, "variables": {}}),
    # T1: thoughts
    "thinks unless told (Qwen3)": Case(
        _REWRITING + _THINKS_UNLESS_TOLD.replace("OPEN", "''"), _ASKED + _BLOCK, {"variables": _QUIET}, _QUIET
    ),
    "opens a thought unless told (Qwen3.5)": Case(
        _REWRITING + _THINKS_UNLESS_TOLD.replace("OPEN", "'<think>\\n'"),
        _ASKED + _BLOCK,
        {"variables": _QUIET},
        _QUIET,
    ),
    "always opens a thought (Qwen3-Thinking)": Case(
        _REWRITING + HEADER.replace("assistant\n", "assistant\n<think>\n"), _ASKED + _BLOCK, _FINISHED
    ),
    "opens a thought, finished chats have none (DeepSeek-R1)": Case(
        TURNS + HEADER.replace("assistant\n", "assistant\n<think>\n"), _ASKED, _FINISHED
    ),
    "an empty thought in prompts only (Gemma 4, EXAONE)": Case(
        TURNS + _THINKS_UNLESS_TOLD.replace("OPEN", "'<think>\\n'"),
        _ASKED + _BLOCK,
        {"variables": _QUIET, "empty_thought": _BLOCK},
        _QUIET,
    ),
    "writes a thought that is given (MiniMax)": Case(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.thinking is defined %}<think>\n{{ m.thinking }}\n"
        "</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}",
        _ASKED + _BLOCK,
        {**_FINISHED, "thought_field": "thinking"},
    ),
    "told by a variable of another name (Granite, DeepSeek-V3.1)": Case(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}</think>{% endif %}"
        "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
        "{% if thinking %}<think>{% else %}</think>{% endif %}{% endif %}",
        _ASKED + "</think>",
        {"variables": {"thinking": False}},
        {"thinking": False},
    ),
    "channels (gpt-oss)": Case(
        "{% for m in messages %}{% if m.role == 'assistant' %}<|im_start|>assistant<|channel|>final<|message|>"
        "{{ m.content }}{% if loop.last and not add_generation_prompt %}<|return|>{% else %}<|im_end|>{% endif %}"
        "{% else %}<|im_start|>{{ m.role }}<|message|>{{ m.content }}<|im_end|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant{% endif %}",
        "<|im_start|>system<|message|>%S<|im_end|><|im_start|>user<|message|>%U<|im_end|>"
        "<|im_start|>assistant<|channel|>final<|message|>",
        _FINISHED,
    ),
    # T2: headers
    "knows no add_generation_prompt": Case(TURNS, _ASKED, _FINISHED),
    "ends every text with EOS": Case(CHATML + "{{ eos_token }}", _ASKED, _FINISHED),
    "half a header (GLM-4)": Case(
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}",
        "<|system|>\n%S<|user|>\n%U<|assistant|>\n",
        _FINISHED,
    ),
    "an answer behind a blank (Vicuna)": Case(
        "{% for m in messages %}{% if m.role == 'system' %}{{ m.content }} {% elif m.role == 'user' %}USER: "
        "{{ m.content }} {% else %}ASSISTANT: {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}ASSISTANT:{% endif %}",
        "%S USER: %U ASSISTANT:",
        {"answers_begin_with": " "},
    ),
    # T3: parts
    "reads parts": Case(
        TURNS.replace("{{ m.content }}", "{% for p in m.content %}{{ p['text'] }}{% endfor %}") + HEADER,
        _ASKED,
        {"parts": ["system", "user", "assistant"]},
    ),
    "reads the user's parts": Case(
        TURNS.replace(
            "{{ m.content }}",
            "{% if m.role == 'user' %}{% for p in m.content %}{{ p.text }}{% endfor %}{% else %}{{ m.content }}"
            "{% endif %}",
        )
        + HEADER,
        _ASKED,
        {"parts": ["user"]},
    ),
    # T5: dates
    "a date by variable (Llama 3.1)": Case(
        "{% if not date_string is defined %}{% set date_string = '26 Jul 2024' %}{% endif %}"
        "Today Date: {{ date_string }}\n" + CHATML,
        "Today Date: 26 Jul 2024\n" + _ASKED,
        {"date": "2024-07-26"},
    ),
    "a date by the clock (Llama 3.2)": Case(
        "{% if not date_string is defined %}{% if strftime_now is defined %}{% set date_string = "
        "strftime_now('%d %b %Y') %}{% else %}{% set date_string = 'none' %}{% endif %}{% endif %}"
        "Today Date: {{ date_string }}\n" + CHATML,
        "Today Date: 26 Jul 2024\n" + _ASKED,
        {"date": "2024-07-26"},
        {"date_string": "26 Jul 2024"},
    ),
    # T6: system messages
    "refuses the system role (Gemma)": Case(
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHATML,
        "<|im_start|>user\n%S\n\n%U<|im_end|>\n<|im_start|>assistant\n",
        _MERGED,
        system=False,
    ),
    "drops the system role": Case(
        "{% for m in messages if m.role != 'system' %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
        "{% endfor %}" + HEADER,
        "<|im_start|>user\n%S\n\n%U<|im_end|>\n<|im_start|>assistant\n",
        _MERGED,
        system=False,
    ),
    "puts the system text into the last user turn (Mistral)": Case(
        "{% set system = messages[0].content if messages[0].role == 'system' else none %}"
        "{% for m in messages if m.role != 'system' %}{% if m.role == 'user' %}[INST] "
        "{% if loop.last and system %}{{ system }}\n\n{% endif %}{{ m.content }}[/INST]"
        "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}",
        "[INST] %S\n\n%U[/INST]",
        {**_MERGED, "answers_begin_with": " "},
        system=False,
    ),
    # Others that must simply work
    "strips contents (Llama 3)": Case(
        CHATML.replace("{{ m.content }}", "{{ m.content | trim }}"), _ASKED, {"prompt": "generation prompt"}
    ),
    "marks what the assistant says": Case(
        TURNS.replace("{{ m.content }}", "{% generation %}{{ m.content }}{% endgeneration %}") + HEADER,
        _ASKED,
    ),
    "reasons by a word in the system text (SmolLM3)": Case(
        "{% set quiet = enable_thinking is defined and not enable_thinking %}"
        "<|im_start|>system\n{{ strftime_now('%d %B %Y') }} {{ '/no_think' if quiet else '/think' }}\n"
        "{{ messages[0].content if messages[0].role == 'system' }}<|im_end|>\n"
        "{% for m in messages if m.role != 'system' %}<|im_start|>{{ m.role }}\n"
        "{{ '<think>\\n\\n</think>\\n' if quiet and m.role == 'assistant' }}{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{{ '<think>\\n\\n</think>\\n' if quiet }}{% endif %}",
        "<|im_start|>system\n26 July 2024 /no_think\n%S<|im_end|>\n<|im_start|>user\n%U<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n",
        {"variables": _QUIET, "date": "2024-07-26"},
        _QUIET,
    ),
}

REFUSED: dict[str, tuple[str, str]] = {
    "thoughts that no answer closes": (
        CHATML.replace(
            "{{ m.content }}", "{{ '<think>\\n' if m.role == 'assistant' }}{{ m.content }}"
        ).replace("assistant\n", "assistant\n<think>\n"),
        "opens a thought before the answer",
    ),
    "nothing between the texts": (
        "{{ bos_token }}{% for m in messages %}{{ m.content }}\n{% endfor %}",
        "no assistant's header",
    ),
    "the user's text is lost": (CHATML.replace("m.content", "m.text"), "leaves the user's text out"),
    "the user's text comes twice": (
        CHATML.replace("{{ m.content }}", "{{ m.content }}{{ m.content if m.role == 'user' }}"),
        "the user's text twice",
    ),
    "no Jinja": ("{% for m in messages %}", "not valid Jinja"),
    "chance": (CHATML + "{{ ['a', 'b'] | random }}", "uses random numbers"),
    "answers are shortened": (
        CHATML.replace("{{ m.content }}", "{{ m.content[3:] if m.role == 'assistant' else m.content }}"),
        "do not begin with their prompt and answer",
    ),
}
