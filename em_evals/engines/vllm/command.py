"""The command line of a vLLM server for a card and a plan, and its environment, which holds the secrets."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from typing import Any

from em_evals.content.cards import EngineOptions, ModelCard
from em_evals.engines.vllm.app import ADMIN_KEY, API_KEY, BASE
from em_evals.engines.vllm.plugin import ENABLE, PLAN
from em_evals.engines.vllm.variants import SETS, Plan
from em_evals.models import bases

_CPU_CACHE_BYTES = 2 * 1024**3
"""On CPU vLLM's cache would take nearly all memory by default."""
_KEEP_ALIVE = "75"
"""Seconds that an idle connection stays open. vLLM closes it after 5, when httpx and the OpenAI client, which keep
theirs for 5 too, may just be sending the next request on it: that request is lost."""
_RAY_COPIES = "VLLM_RAY_EXTRA_ENV_VARS_TO_COPY"


def command(card: ModelCard, plan: Plan, model: str, host: str, port: int) -> list[str]:
    """Return vLLM's arguments for a card's base and a plan."""
    options = card.engine
    device = bases.choose_device(options.device)
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
    alone = not (options.tensor_parallel_size or options.pipeline_parallel_size or options.data_parallel_size)
    if on_cpu and alone:
        # The worker then shares the engine's process, as on a GPU: one import of vLLM less.
        own["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    # Ray's workers get vLLM's own variables, and those that are named here.
    copied = os.environ.get(_RAY_COPIES, "")
    own[_RAY_COPIES] = ",".join(filter(None, (copied, ENABLE, PLAN)))
    if plan.steps:
        own[ENABLE] = json.dumps({"sets": SETS, "steps": plan.steps})
        own["VLLM_USE_V2_MODEL_RUNNER"] = "0"
    return inherited | own
