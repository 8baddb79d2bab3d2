"""One engine a base in a process: cards on the same base share its weights, whoever asks first pays for loading.

Which engine: what the card says; `auto` takes vLLM where it is installed beside a free GPU and does what is asked for.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from typing import TYPE_CHECKING, Literal, cast

from em_evals.content.cards import ModelCard, ResolvedCard
from em_evals.engines.protocol import Engine, no_activations
from em_evals.errors import EmEvalsError

if TYPE_CHECKING:
    from em_evals.engines.hf.engine import HFEngine

Kind = Literal["transformers", "vllm", "server"]

_TAKEN = 0.92
"""The share of a GPU's memory that vLLM takes unless told otherwise; it refuses to start where less is free."""

_engines: dict[str, Engine] = {}
_expected: dict[str, list[ResolvedCard]] = defaultdict(list)
_lock = threading.Lock()


def reserve(card: ResolvedCard) -> None:
    """Reserve engine capacity for a card before sampling; what cannot be measured is refused before weights are loaded.

    Raises:
        EmEvalsError: the card's backend cannot be used here, or cannot do what the card asks for, or its base, adapter
            or a direction is not what the others were made for.
    """
    kind, _ = choose(card.card)
    if kind != "server":
        check_fit(card, kind)
    if kind == "transformers":
        return
    from em_evals.engines.vllm.engine import VLLMEngine
    from em_evals.engines.vllm.variants import variant

    variant(card.card, card.adapter_path, card.interventions)
    key = _key(card.card, kind)
    with _lock:
        _expected[key].append(card)
        engine = _engines.get(key)
    if isinstance(engine, VLLMEngine):
        engine.reserve(card.adapter_path, card.interventions)


def check_fit(card: ResolvedCard, kind: Kind = "transformers") -> None:
    """Compare a card's adapter and directions with its base's configuration; no weight is loaded.

    `resolve` compared with what is on this machine; a base of the hub may not have been until now. vLLM reads some
    quantized bases that transformers does not.

    Raises:
        EmEvalsError: one of them was made for another base, or the base cannot be measured.
    """
    from em_evals.models import bases, interventions, lora

    config = bases.check(card.card) if kind == "transformers" else bases.check_class(card.card)
    interventions.load(card.interventions, config)
    if card.adapter_path is not None:
        lora.check(card.adapter_path, config)


def engine_for(card: ModelCard, api_key: str | None = None) -> Engine:
    """Return the process's engine for a card's base, started on first use (its weights load in the background).

    Args:
        card: whose draws will be asked for.
        api_key: of the server that the card names (`backend: server`).

    Raises:
        EmEvalsError: the card's backend cannot be used here.
    """
    kind, _ = choose(card)
    key = _key(card, kind)
    with _lock:
        if key not in _engines:
            _engines[key] = _make(card, kind, api_key, _expected[key])
        return _engines[key]


def base_in_memory(card: ModelCard) -> HFEngine:
    """Return the process's transformers engine for a card's base, to read activations: the one that draws, if any.

    Raises:
        EmEvalsError: the card asks for another engine.
    """
    if card.backend in ("vllm", "server"):
        raise no_activations(card.backend)
    key = _key(card, "transformers")
    with _lock:
        if key not in _engines:
            _engines[key] = _make(card, "transformers", None, [])
        return cast("HFEngine", _engines[key])


def choose(card: ModelCard) -> tuple[Kind, str]:
    """Return the engine that serves a card here, and why that one: vLLM only where it is transformers' equal.

    Raises:
        EmEvalsError: the card asks for one that cannot be used here, or not for its base.
    """
    kind, reason = possible(card)
    if kind == "vllm":
        from em_evals.engines.vllm.scope import refusal

        if wrong := refusal(card):
            if card.backend == "vllm":
                raise EmEvalsError(f"{wrong}; or say `backend: transformers` in the card.")
            return "transformers", wrong
    return kind, reason


def possible(card: ModelCard) -> tuple[Kind, str]:
    """Return the engine that a card gets on this machine, whatever its base, and why that one.

    Raises:
        EmEvalsError: the card asks for one that cannot be used here.
    """
    from em_evals.engines.vllm import package
    from em_evals.models import devices

    if card.backend == "server":
        return (
            "server",
            f"the card names {'a server' if len(card.servers) == 1 else 'servers'}, {' and '.join(card.servers)}",
        )
    if card.backend == "transformers":
        return "transformers", "the card says so"
    reason = package.unusable()
    if card.backend == "vllm":
        if reason:
            raise EmEvalsError(f"{reason}; or say `backend: transformers` in the card.")
        return "vllm", "the card says so"
    if reason:
        return "transformers", reason
    if devices.kind(card.engine.device) != "cuda":
        return "transformers", "there is no CUDA GPU (`backend: vllm` takes vLLM all the same)"
    if any(one.site == "writes" for one in card.interventions):
        return "transformers", "vLLM does not take `site: writes`"
    kind: Literal["transformers", "vllm"]
    for kind in ("vllm", "transformers"):  # whatever became of the memory since it started
        if _key(card, kind) in _engines:
            return kind, "it runs already"
    taken = card.engine.gpu_memory_utilization or _TAKEN
    from em_evals.models import memory

    if (free := memory.free_on_gpu(devices.choose_device(card.engine.device))) < taken:
        return "transformers", (
            f"{free:.0%} of the GPU's memory is free, and vLLM takes {taken:.0%} (`gpu_memory_utilization`)"
        )
    return "vllm", "vLLM is installed beside a GPU"


def close_engine(card: ModelCard) -> None:
    """Stop the engine of a card's base, if it runs, and free its memory."""
    kinds = [_key(card, kind) for kind in ("transformers", "vllm", "server")]
    with _lock:
        engines = [_engines.pop(key) for key in kinds if key in _engines]
        for key in kinds:
            _expected.pop(key, None)
    for engine in engines:
        engine.close()


def close_engines() -> None:
    """Stop every engine and free its memory."""
    with _lock:
        engines = list(_engines.values())
        _engines.clear()
        _expected.clear()
    for engine in engines:
        engine.close()


def _make(card: ModelCard, kind: str, api_key: str | None, expected: list[ResolvedCard]) -> Engine:
    if kind == "transformers":
        from em_evals.engines.hf.engine import HFEngine

        return HFEngine(card)
    from em_evals.engines.vllm.engine import VLLMEngine

    engine = VLLMEngine(card, api_key)
    for other in expected:
        engine.reserve(other.adapter_path, other.interventions)
    return engine


def _key(card: ModelCard, kind: str) -> str:
    fields = card.model_dump_json(
        include={"base", "revision", "quantize", "engine", "trust_remote_code", "base_url"}
    )
    return f"{kind} {fields}"
