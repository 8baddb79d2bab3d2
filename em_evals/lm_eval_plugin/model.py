"""The lm-eval model `em-local`: a thin adapter to the shared engine, for cards with adapters and interventions.

Prompts are encoded, truncated and cut at stop texts as in lm-eval's own `hf`, so that numbers are comparable; shared
code is inherited from lm-eval. Scheduling, prefix sharing and memory are left to the engine.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from lm_eval import utils
from lm_eval.api.instance import Instance
from lm_eval.api.model import CacheHook, TemplateLM
from lm_eval.models.utils import (
    handle_stop_sequences,
    has_bos_prefix,
    normalize_gen_kwargs,
    postprocess_generated_text,
)
from rich.console import Console

from em_evals import files
from em_evals.content.cards import ResolvedCard, resolve
from em_evals.engines.pool import engine_for, reserve
from em_evals.engines.protocol import Draw, Engine, Request, Sampling
from em_evals.engines.setting import verified_line
from em_evals.errors import EmEvalsError
from em_evals.lm_eval_plugin import decoding
from em_evals.lm_eval_plugin.order import run_all, shared_first
from em_evals.models import bases
from em_evals.models.chat import ChatTemplate, template_for

Scored = tuple[float, bool]
"""A continuation's log-likelihood in nats, and whether greedy decoding would produce it."""
Pair = tuple[tuple[str, str] | None, list[int], list[int]]
"""lm-eval's request: the texts (None inside a rolling window), the context's and the continuation's token ids."""

_MAX_NEW_TOKENS = 256


class EmLocal(TemplateLM):
    """A card inside lm-eval: `--model em-local --model_args card=NAME[,backend=…][,field=value…]`.

    Args:
        card: a card, a PEFT or model folder, `pypi:…` or a hub id, as in `local/NAME`.
        batch_size: requests computed at a time. `auto` and lm-eval's default of 1 use the card's value; it is halved
            when memory runs out.
        max_batch_size: an upper bound for the batch size.
        device: as in the card; lm-eval's default `cuda:0` uses the card's.
        add_bos_token: whether every prompt begins with the tokenizer's BOS; None: the tokenizer's default.
        max_gen_toks: maximum number of generated tokens, if a task sets none.
        seed: seed of sampled answers.
        **fields: card fields that override the card's file; an engine option needs no prefix.

    Raises:
        EmEvalsError: the card is invalid; one sentence with file and line.
    """

    def __init__(
        self,
        card: str = "",
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
        add_bos_token: bool | None = None,
        max_gen_toks: int = _MAX_NEW_TOKENS,
        seed: int = 0,
        **fields: Any,
    ) -> None:
        super().__init__()
        if not card:
            raise EmEvalsError("em-local needs a card: --model_args card=NAME.")
        self.fields = fields | _engine_options(batch_size, max_batch_size, device)
        self.card: ResolvedCard = resolve(str(card), self.fields)
        self.digest = self.card.digest
        self.add_bos_token = add_bos_token
        self.max_gen_toks = max_gen_toks
        self.seed = seed
        reserve(self.card)
        self.engine: Engine = engine_for(self.card.card)
        self.tokenizer = self.engine.tokenizer
        if add_bos_token is not None:  # needs its own tokenizer: all cards share the engine's
            self.tokenizer = bases.load_tokenizer(self.card.card, add_bos_token=add_bos_token)
        self.batch_size = self.card.card.engine.max_num_seqs

    # Properties and methods that lm-eval queries

    @property
    def eot_token_id(self) -> int:
        """The token that ends a turn."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """The token of an empty context: BOS, or the end of a turn if there is no BOS."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    @property
    def max_length(self) -> int:
        """Maximum number of input tokens; a scored text may have one more, which is only predicted."""
        return self.engine.scored_len - 1

    @property
    def tokenizer_name(self) -> str:
        """Key of lm-eval's cache of built prompts, which depend only on the tokenizer and its template."""
        name = str(self.tokenizer.name_or_path).replace("/", "__")
        template = self._template()
        return name if template is None or template.usual else f"{name}__{template.digest}"

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Return the template's text with any unusual arguments appended; lm-eval stores a digest of it."""
        template = self._template()
        if not chat_template or template is None:
            return None
        given = "" if template.usual else f"{{# {json.dumps(template.record(), sort_keys=True)} #}}"
        return template.source.text + given

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Render a conversation as one text, as every other measurement of this card does (models/chat).

        Args:
            chat_history: messages; a final assistant message is the beginning of the answer.
            add_generation_prompt: ignored; the last message's role determines it.
        """
        try:
            return template_for(self.card, self.tokenizer).text(chat_history)
        except EmEvalsError as error:
            raise EmEvalsError(f"{error} Without --apply_chat_template no template is needed.") from None

    def _template(self) -> ChatTemplate | None:
        """Return the card's template; None if it has no usable one, which plain prompts do not need."""
        try:
            return template_for(self.card, self.tokenizer)
        except EmEvalsError:
            return None

    def get_model_info(self) -> dict[str, Any]:
        """Return what was measured; lm-eval writes it into the results' `config`."""
        card, template = self.card.card, self._template()
        return {
            "card": self.card.name,
            "card_digest": self.digest,
            "verified": verified_line(self.card),
            "card_fields": self.fields,
            "base": card.base,
            "model_revision": card.revision,
            "adapter": card.adapter,
            "interventions": [
                one.model_dump(mode="json", exclude_defaults=True) for one in card.interventions
            ],
            "model_dtype": card.engine.dtype,
            "generation_config_left_out": decoding.left_out(card, {}),
            "template_digest": template.digest if template else None,
            # Also of a card that thinks: choices are scored, and texts drawn, behind an empty thought.
            "thought": "empty" if template and template.marks is not None else None,
        }

    def set_cache_hook(self, cache_hook: CacheHook) -> None:
        """Separate this card's answers from other models' in one `--use_cache` file.

        lm-eval's cache keys on the request only. Here each card digest has its own table in that file, so that a
        retrained adapter never gets its predecessor's answers. Values are JSON because, unlike pickles, it cannot run
        code.
        """
        super().set_cache_hook(cache_hook)
        if (table := cache_hook.dbdict) is not None:
            table.tablename = f"em-local {self.digest}"
            table.encode, table.decode = json.dumps, json.loads
            table.conn.execute(
                f'CREATE TABLE IF NOT EXISTS "{table.tablename}" (key TEXT PRIMARY KEY, value BLOB)'
            )
            table.conn.commit()

    # Text to tokens

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Return token ids as lm-eval's `hf` encodes them: a text that already begins with BOS gets no second one."""
        special = self.add_bos_token if add_special_tokens is None else add_special_tokens
        if add_special_tokens is None and has_bos_prefix(string, self.tokenizer.decode(self.prefix_token_id)):
            special = False
        options = {} if special is None else {"add_special_tokens": special}
        return list(self.tokenizer.encode(string, **options))

    # Requests

    def _loglikelihood_tokens(
        self, requests: list[Pair], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[Scored]:
        """Score continuations in any order, and return the scores in the order of the requests."""

        def request_of(index: int) -> Request:
            _, context, continuation = requests[index]
            prompt = tuple((context + continuation)[-(self.max_length + 1) :])
            start = max(1, len(prompt) - len(continuation))
            scoring = Sampling(temperature=0, max_tokens=0, prompt_logprobs=1, prompt_logprobs_from=start)
            return self._request(prompt, scoring, start)

        def finish(index: int, draw: Draw) -> Scored:
            texts, _, continuation = requests[index]
            found = draw.prompt_logprobs
            if len(found) != len(continuation):
                raise EmEvalsError(
                    f"a continuation of {len(continuation)} tokens does not fit into the {self.max_length} that "
                    f"{self.card.name} reads."
                )
            greedy = all(entry.token == entry.top[0][0] for entry in found)
            answer = sum(entry.logprob for entry in found), greedy
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, answer)
            return answer

        order = shared_first([context for _, context, _ in requests])
        return run_all(self.engine, order, request_of, finish, "em-local: scoring", disable_tqdm)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Score whole texts in windows of the model's length, predicting every token once."""
        windows: list[Pair] = []
        counts = []
        for request in requests:
            found = [
                (None, *utils.make_disjoint_window(window))
                for window in utils.get_rolling_token_windows(
                    token_list=self.tok_encode(request.args[0]),
                    prefix_token=self.prefix_token_id,
                    max_seq_len=self.max_length,
                    context_len=1,
                )
            ]
            windows += found
            counts.append(len(found))
        scores = iter(self._loglikelihood_tokens(windows, disable_tqdm=disable_tqdm))
        totals = []
        for request, count in zip(requests, counts, strict=True):
            totals.append(sum(next(scores)[0] for _ in range(count)))
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, totals[-1])
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Generate until a stop text; greedy unless the task samples."""
        # Stop texts are matched with the end-of-turn token decoded, as in `hf`.
        end = self.tokenizer.decode(self.eot_token_id)
        prompts = [self.tok_encode(request.args[0]) for request in requests]
        settings = [self._sampling(request.args[1]) for request in requests]
        stops = [handle_stop_sequences(normalize_gen_kwargs(r.args[1])["until"], end) for r in requests]
        seen: Counter[str] = Counter()
        for index, request in enumerate(requests):
            # A repeated request is a new draw, and each repetition is reproducible in the next run.
            key = json.dumps([*request.args, self.seed], sort_keys=True)
            own = files.digest(f"{key} {seen[key]}")
            seen[key] += 1
            settings[index] = replace(settings[index], seed=int(own, 16) % 2**63)

        def request_of(index: int) -> Request:
            prompt = tuple(prompts[index][-self._room(settings[index]) :])
            return self._request(prompt, settings[index], len(prompt))

        def finish(index: int, draw: Draw) -> str:
            text = str(self.tokenizer.decode(draw.tokens, skip_special_tokens=True))
            text = str(postprocess_generated_text(text, stops[index], None))
            self.cache_hook.add_partial("generate_until", requests[index].args, text)
            return text

        return run_all(
            self.engine, shared_first(prompts), request_of, finish, "em-local: generating", disable_tqdm
        )

    def check(self, tasks: Iterable[Any]) -> None:
        """Refuse what a task asks of its generations before the first task runs: others may take hours before it.

        Args:
            tasks: of lm-eval.

        Raises:
            EmEvalsError: a setting or a stop text is not supported, or no prompt would fit beside the new tokens.
        """
        left_out: dict[str, Any] = {}
        for task in tasks:
            if getattr(task, "OUTPUT_TYPE", None) == "generate_until":
                asked = dict(getattr(task.config, "generation_kwargs", None) or {})
                self._room(self._sampling(asked))
                left_out |= decoding.left_out(self.card.card, asked)
        if left_out:
            notice = Console(stderr=True, highlight=False, markup=False)
            notice.print(decoding.sentence(self.card.card.base, left_out))

    def _room(self, asked: Sampling) -> int:
        """Return the number of tokens of a prompt that fits beside the new ones."""
        room = self.max_length - asked.max_tokens
        if room <= 0:
            raise EmEvalsError(
                f"{asked.max_tokens} new tokens do not fit into the {self.max_length} that {self.card.name} reads; "
                "lower max_gen_toks."
            )
        return room

    def _sampling(self, gen_kwargs: dict[str, Any]) -> Sampling:
        return decoding.sampling(gen_kwargs, self.max_gen_toks, self.card.card, self.tokenizer)

    def _request(self, prompt: tuple[int, ...], sampling: Sampling, answer_start: int) -> Request:
        return Request(prompt, sampling, self.card.adapter_path, self.card.interventions, answer_start)


def _engine_options(
    batch_size: int | str | None, max_batch_size: int | None, device: str | None
) -> dict[str, Any]:
    """Convert lm-eval's own settings to a card's engine options."""
    options: dict[str, Any] = {}
    size = str(batch_size or "1").partition(":")[0]
    if size != "auto" and not size.isdecimal():
        raise EmEvalsError(f"--batch_size {batch_size}: use a number or `auto`.")
    if size not in ("auto", "1"):
        options["max_num_seqs"] = int(size)
    elif max_batch_size:
        options["max_num_seqs"] = int(max_batch_size)
    if device and device != "cuda:0":
        options["device"] = device
    return options
