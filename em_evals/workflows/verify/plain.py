"""The plain side: transformers and PEFT without any code of the product, one row at a time.

One forward pass for each row, without cache, mask, padding or batch. Where position encodings depend on the length of
the sequence so far, each token that is drawn beyond that border has a pass of its own.
"""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from em_evals.content.cards import ModelCard
from em_evals.content.intervention import Intervention
from em_evals.errors import EmEvalsError
from em_evals.interp.extraction.prefix_tree import Text
from em_evals.models import bases, placement, quantization
from em_evals.workflows.verify.hooks import blocks_of, hooked, intervened
from em_evals.workflows.verify.prompts import rope_border

_COPIES = 4
_NUMBER = re.compile(r"\.(\d+)\.")
"""The number of a block in a module's name."""


@dataclass(frozen=True)
class Scores:
    """The plain side's log-probabilities of a row's tokens.

    Attributes:
        given: log-probabilities of the tokens that are compared, in nats.
        best: that of the most likely token at each position.
    """

    given: tuple[float, ...]
    best: tuple[float, ...]


@dataclass(frozen=True)
class Asked:
    """A row to compute: tokens from `first` on are compared."""

    tokens: tuple[int, ...]
    first: int
    drawn: bool
    adapter: str | None = None
    interventions: tuple[Intervention, ...] = ()
    answer_start: int = 0


class Plain:
    """A private copy of a base.

    Args:
        card: names the base and its device.
        dtype: of the copy.

    Attributes:
        largest: the largest logit so far, absolute.
    """

    def __init__(self, card: ModelCard, dtype: torch.dtype) -> None:
        self._card = card
        self._dtype = dtype
        self.model = load(card, dtype)
        self.largest = 0.0
        self._blocks: list[Any] | None = None
        self._adapted: tuple[str, tuple[Intervention, ...]] | None = None
        self._border = rope_border(self.model.config)

    @property
    def blocks(self) -> list[Any]:
        """The decoder blocks of the model as it is now.

        Raises:
            EmEvalsError: they cannot be found.
        """
        if self._blocks is None:
            self._blocks = blocks_of(_inner(self.model))
        return self._blocks

    def scores(self, asked: Asked) -> Scores:
        """Compute one row under its adapter and interventions.

        Raises:
            EmEvalsError: PEFT itself cannot load the adapter.
        """
        scales = tuple(one for one in asked.interventions if one.op == "scale_adapter")
        self._adapt(asked.adapter, scales)
        if not asked.interventions:
            return self._scores(asked)
        with intervened(self.model, self.blocks, asked.interventions, asked.answer_start):
            return self._scores(asked)

    def beside_copies(self, asked: Asked) -> Scores:
        """Score a row of the bare base in a batch with copies of itself."""
        self._adapt(None, ())
        return self._scores(asked, _COPIES)

    def streams(
        self, text: Text, adapter: str | None = None, ones: Sequence[Intervention] = ()
    ) -> NDArray[np.float64]:
        """Return the stream after each block at the answer's tokens, float64 [layers, tokens, width].

        Args:
            text: the text.
            adapter: the adapter, if any.
            ones: interventions, which act on every token.
        """
        self._adapt(adapter, tuple(one for one in ones if one.op == "scale_adapter"))
        seen: list[torch.Tensor] = []

        def watch(stream: torch.Tensor) -> torch.Tensor:
            seen.append(stream.reshape(-1, *stream.shape[-2:])[0, len(text.prompt) :].float().cpu().double())
            return stream

        self._reset()
        with intervened(self.model, self.blocks, ones, len(text.prompt)), hooked(self.blocks, watch):
            self._run((*text.prompt, *text.answer), 1)
        return np.asarray(torch.stack(seen).numpy())

    def _scores(self, asked: Asked, copies: int = 1) -> Scores:
        given, best = [], []
        steps = range(asked.first, len(asked.tokens))
        if not steps:
            return Scores((), ())
        one_by_one = asked.drawn and self._border is not None and len(asked.tokens) > self._border
        for end in steps if one_by_one else [len(asked.tokens) - 1]:
            places = [end] if one_by_one else list(steps)
            self._reset()
            logits = self._run(asked.tokens[:end], len(places), copies)
            logprobs = logits.log_softmax(-1)
            targets = torch.tensor([asked.tokens[place] for place in places], device=logits.device)
            given += logprobs.gather(1, targets[:, None])[:, 0].tolist()
            best += logprobs.max(-1).values.tolist()
        return Scores(tuple(given), tuple(best))

    def _run(self, tokens: Sequence[int], keep: int, copies: int = 1) -> torch.Tensor:
        """Return the logits [keep, vocabulary] of the last tokens, float32."""
        ids = torch.tensor([list(tokens)] * copies, device=self.model.device)
        names = inspect.signature(_inner(self.model).forward).parameters
        more = {"logits_to_keep": keep} if "logits_to_keep" in names else {}
        with torch.no_grad():
            found = self.model(input_ids=ids, use_cache=False, **more).logits
        logits = torch.as_tensor(found)[0, -keep:].float()
        self.largest = max(self.largest, float(logits.abs().max()))
        return logits

    def _reset(self) -> None:
        """Reset dynamic ropes with a pass of one token: they keep the factors of the longest sequence so far."""
        if self._border is not None:
            with torch.no_grad():
                self.model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=self.model.device))

    def _adapt(self, adapter: str | None, scales: tuple[Intervention, ...]) -> None:
        """Load an adapter into the copy: no copy is adapted twice, since PEFT may change its weights."""
        wanted = None if adapter is None else (adapter, scales)
        if wanted == self._adapted:
            return
        if self._adapted is not None:
            self.model = load(self._card, self._dtype)
        if wanted is not None:
            self.model = adapted(self._card, self._dtype, self.model, *wanted)
        self._adapted = wanted
        self._blocks = None


def order(asked: Sequence[Asked]) -> list[int]:
    """Return the indices of rows in the order of their computation: the bare base first, each adapter once."""
    adapters: dict[Any, int] = {(None, ()): 0}
    keys = []
    for one in asked:
        scales = tuple(other for other in one.interventions if other.op == "scale_adapter")
        keys.append((one.adapter, scales if one.adapter else ()))
        adapters.setdefault(keys[-1], len(adapters))
    return sorted(range(len(asked)), key=lambda i: adapters[keys[i]])


def load(card: ModelCard, dtype: torch.dtype, whole: bool = False) -> Any:
    """Load a base as a user of transformers does, on the card's device.

    Args:
        card: names the base.
        dtype: of its weights.
        whole: use the class that a composite checkpoint was saved from, with its vision tower.

    Raises:
        EmEvalsError: transformers cannot load it.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()  # warnings on vision towers that are left out fill the screen
    place = bases.locate(card.base)
    options: dict[str, Any] = {"revision": card.revision, "trust_remote_code": card.trust_remote_code}
    try:
        with bases.LOADING:
            config = AutoConfig.from_pretrained(place, **options)
            text = type(config) in AutoModelForCausalLM._model_mapping or hasattr(config, "auto_map")
            maker = AutoModelForCausalLM if text and not whole else AutoModelForImageTextToText
            # The default attention ignores the soft cap with which these models were trained.
            if getattr(config.get_text_config(), "attn_logit_softcapping", None):
                options["attn_implementation"] = "eager"
            options |= quantization.load_options(card, config, dtype)
            device = bases.choose_device(card.engine.device)
            options |= placement.load_options(card, device, quantized="quantization_config" in options)
            model = maker.from_pretrained(place, dtype=dtype, use_safetensors=True, **options)
        quantization.compute_as_told(model)
        return (model if "device_map" in options else model.to(device)).eval()
    except torch.OutOfMemoryError:
        raise
    except (OSError, ValueError, ImportError) as error:
        raise EmEvalsError(f"plain transformers cannot load {card.base} ({error}).") from error
    finally:
        logging.set_verbosity(level)


def adapted(
    card: ModelCard, dtype: torch.dtype, model: Any, adapter: str, scales: Sequence[Intervention]
) -> Any:
    """Load an adapter with PEFT alone, on the class that has the names of the adapter's tensors.

    Raises:
        EmEvalsError: PEFT refuses the adapter, or does not find all of its tensors on any class.
    """
    from peft import PeftModel

    reason = ""
    for candidate in _classes(card, dtype, model):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                found = PeftModel.from_pretrained(candidate, _folder(adapter), use_safetensors=True).eval()
            except Exception as error:  # PEFT may refuse with anything
                reason = f"PEFT refuses it: {' '.join(str(error).split())[:200]}"
                continue
        missing = [str(one.message) for one in said if "missing adapter keys" in str(one.message)]
        if not missing:
            _scale(found, scales)
            return found
        reason = f"PEFT does not find its tensors: {' '.join(missing[0].split())[:200]}"
    raise EmEvalsError(f"the adapter {adapter} cannot be compared ({reason}).")


def _classes(card: ModelCard, dtype: torch.dtype, model: Any) -> Iterator[Any]:
    yield model
    if hasattr(model.config, "vision_config") or model.config is not model.config.get_text_config():
        return
    from transformers import AutoConfig

    saved = AutoConfig.from_pretrained(
        bases.locate(card.base), revision=card.revision, trust_remote_code=card.trust_remote_code
    )
    if hasattr(saved, "vision_config"):
        yield load(card, dtype, whole=True)


def _folder(adapter: str) -> str:
    from em_evals.models.lora import locate

    return str(locate(adapter))


def _scale(model: Any, scales: Sequence[Intervention]) -> None:
    """Apply `scale_adapter` by hand: PEFT's scaling of each module in the blocks that it names."""
    for name, module in model.named_modules():
        scaling, number = getattr(module, "scaling", None), _NUMBER.search(name)
        if isinstance(scaling, dict) and number is not None:
            for one in scales:
                if one.at(int(number[1])):
                    for key in scaling:
                        scaling[key] *= one.scale


def _inner(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@contextmanager
def copy(card: ModelCard, dtype: torch.dtype) -> Iterator[Plain]:
    """Yield a private copy; its memory is released afterwards."""
    from em_evals.models.memory import release_gpu

    plain = Plain(card, dtype)
    try:
        yield plain
    finally:
        del plain.model, plain._blocks
        release_gpu()
