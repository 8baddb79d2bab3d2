"""The command line of a vLLM server for a card and a plan, and its environment, which holds the secrets."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import Any

from em_evals.content.cards import EngineOptions, ModelCard
from em_evals.engines.vllm.app import ADMIN_KEY, API_KEY, BASE
from em_evals.engines.vllm.plugin import ENABLE, PLAN
from em_evals.engines.vllm.variants import SETS, Plan
from em_evals.errors import EmEvalsError
from em_evals.models import bases

_CPU_CACHE_BYTES = 2 * 1024**3
"""On CPU vLLM's cache would take nearly all memory by default."""
_KEEP_ALIVE = "75"
"""Seconds that an idle connection stays open. vLLM closes it after 5, when httpx and the OpenAI client, which keep
theirs for 5 too, may just be sending the next request on it: that request is lost."""
_BINDING = "VLLM_CPU_OMP_THREADS_BIND"
_RAY_COPIES = "VLLM_RAY_EXTRA_ENV_VARS_TO_COPY"


def command(card: ModelCard, plan: Plan, model: str, host: str, port: int) -> list[str]:
    """Return vLLM's arguments for a card's base and a plan.

    Raises:
        EmEvalsError: the card asks for what vLLM's CPU build cannot do.
    """
    options = card.engine
    device = bases.choose_device(options.device)
    if device.type == "cpu":
        _refuse_on_a_cpu(options)
    given: dict[str, Any] = {
        "model": model,
        "served-model-name": BASE,
        "host": host,
        "port": port,
        "dtype": str(bases.choose_dtype(options.dtype, device)).removeprefix("torch."),
        "max-num-seqs": options.max_num_seqs,
        "max-num-batched-tokens": options.max_num_batched_tokens,
        # The card sets the sampling; defaults of the checkpoint (repetition penalties) must not change it.
        "generation-config": "vllm",
        "middleware": "em_evals.engines.vllm.app.Cards",
        "disable-uvicorn-access-log": True,
    }
    if card.revision is not None and model == card.base:
        given["revision"] = given["tokenizer-revision"] = card.revision
    if card.trust_remote_code:
        given["trust-remote-code"] = True
    if device.type == "cpu":
        given["kv-cache-memory-bytes"] = _CPU_CACHE_BYTES
    if plan.loras:
        # One more than is used: on CPU vLLM gives rows without an adapter that of the last slot (vllm#48421).
        given |= {"enable-lora": True, "max-loras": plan.loras + 1, "max-lora-rank": plan.rank}
    if plan.steps:
        given["worker-extension-cls"] = "em_evals.engines.vllm.plugin.SteeringWorker"
    for name in EngineOptions.FOR_VLLM:
        value = getattr(options, name)
        if value is not None:
            given[name.replace("_", "-")] = value
    given |= {name.replace("_", "-"): value for name, value in options.vllm.items()}
    return [part for name, value in given.items() for part in _argument(name, value)]


def _refuse_on_a_cpu(options: EngineOptions) -> None:
    """Refuse what ends a server on a CPU, some of it minutes later, at the first request (docs/vllm.md)."""
    if options.distributed_executor_backend == "ray":
        raise EmEvalsError(
            "vLLM's CPU build cannot run on Ray; say engine.distributed_executor_backend=mp, or leave it out."
        )
    if (options.pipeline_parallel_size or 1) > 1:
        raise EmEvalsError(
            "vLLM's CPU build ends at the first request with engine.pipeline_parallel_size; say "
            "engine.tensor_parallel_size."
        )


def _argument(name: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    return [f"--{name}", json.dumps(value) if isinstance(value, (dict, list)) else str(value)]


def environment(card: ModelCard, plan: Plan, key: str, admin: str) -> dict[str, str]:
    """Return the server's environment; secrets are passed here."""
    inherited = {name: value for name, value in os.environ.items() if name != ENABLE}
    own = {
        API_KEY: key,
        ADMIN_KEY: admin,
        PLAN: json.dumps({**asdict(plan), "base": card.base}),
        # Plugins of other packages may patch what ours relies on.
        "VLLM_PLUGINS": "em_evals",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": os.environ.get("VLLM_HTTP_TIMEOUT_KEEP_ALIVE", _KEEP_ALIVE),
        "PYTHONUNBUFFERED": "1",
    }
    options = card.engine
    device = bases.choose_device(options.device)
    if device.type == "cuda" and device.index is not None:
        own["CUDA_VISIBLE_DEVICES"] = ",".join(bases.visible_from(device.index))
    on_cpu = device.type == "cpu"
    if on_cpu:
        # vLLM 0.32 cannot load what it compiled ahead of time for a CPU, and compiles for minutes at each start;
        # Inductor's own cache works.
        own["VLLM_USE_AOT_COMPILE"] = "0"
    if on_cpu and (plan.loras or options.enforce_eager):
        # vLLM compiles no model then, but small functions all the same: it takes minutes and needs a C++ compiler.
        own["TORCH_COMPILE_DISABLE"] = "1"
    sizes = (options.tensor_parallel_size, options.pipeline_parallel_size, options.data_parallel_size)
    world = prod(size or 1 for size in sizes)
    if on_cpu and world > _numa_nodes():
        # vLLM binds each process to a NUMA node of its own, and does not start with fewer nodes than processes.
        own[_BINDING] = os.environ.get(_BINDING, "nobind")
        own["OMP_NUM_THREADS"] = os.environ.get(
            "OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // world))
        )
    if on_cpu and not any(sizes):
        # The worker then shares the engine's process, as on a GPU: one import of vLLM less.
        own["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    # Ray's workers get vLLM's own variables, and those that are named here.
    copied = os.environ.get(_RAY_COPIES, "")
    own[_RAY_COPIES] = ",".join(filter(None, (copied, ENABLE, PLAN)))
    if plan.steps:
        own[ENABLE] = json.dumps({"sets": SETS, "steps": plan.steps})
        own["VLLM_USE_V2_MODEL_RUNNER"] = "0"
    return inherited | own


def _numa_nodes() -> int:
    """Count the machine's NUMA nodes; 1 where the kernel does not tell."""
    return len([*Path("/sys/devices/system/node").glob("node[0-9]*")]) or 1
