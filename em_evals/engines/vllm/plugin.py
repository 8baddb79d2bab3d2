"""Interventions inside vLLM: the formula of models/interventions.py at every decoder block, for every row at once.

vLLM loads `register` in each of its processes (entry point `vllm.general_plugins`); it does nothing unless
EM_EVALS_STEERING gives the capacity to reserve. Then every block's output passes through

    h + on · (add + min(target - h·unit, limit) unit)          in float32

with tables [steps, sets, width] and, for each token, its request's set and class (first token or not, prompt or
answer). No branch depends on a request, so different sets and the base share a batch, compiled and in CUDA graphs.
Sets are written into the tables by `SteeringWorker.em_evals_set`; requests name a set's slot in `extra_args`, which
only app.py writes. What cannot be steered exactly refuses to start: never silently unsteered.

h is the sum of a block's (hidden, residual), or its first output where that is the stream already:
models/vllm_blocks.py says which, after a comparison with transformers (docs/vllm.md).

Internals of vLLM that this relies on, all of the V1 runner: decoder layers by class, `load_model`, `_prepare_inputs`,
`VllmConfig.compute_hash`. vLLM's minor version is therefore pinned (pyproject.toml).
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from em_evals.content.intervention import Intervention
from em_evals.engines.vllm import patches
from em_evals.engines.vllm import tables as vllm_tables
from em_evals.engines.vllm.package import TESTED
from em_evals.engines.vllm.tables import CLASSES, Tables
from em_evals.errors import EmEvalsError
from em_evals.models.changes import changes
from em_evals.models.families import FAMILIES
from em_evals.models.interventions import load

ENABLE = "EM_EVALS_STEERING"
"""Environment variable: JSON with `sets` and `steps`, the capacity to reserve."""
PLAN = "EM_EVALS_PLAN"
"""Environment variable: set where em-evals started the server (app.py reads it)."""
SLOT, ANSWER_START = "em_evals_slot", "em_evals_answer_start"
"""Keys of a request's `extra_args`."""

_SPARE_ROWS = 1024
"""Rows beyond the largest batch, for batches padded to a CUDA graph's size."""
STREAMS = {
    block: one.vllm.stream for one in FAMILIES.values() if one.vllm is not None for block in one.vllm.classes
}
"""What a block returns, by its class (vllm_blocks.Blocks)."""
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)$")


class Armed:
    """A runner whose blocks have tables.

    Args:
        runner: vLLM's V1 model runner, its model loaded.
        sets: maximum number of sets of interventions, besides the empty one.
        steps: maximum number of steps at one block: one for each direction.

    Raises:
        RuntimeError: this engine cannot be steered exactly.
    """

    def __init__(self, runner: Any, sets: int, steps: int) -> None:
        blocks = _blocks(runner)
        config = runner.vllm_config
        self._runner = runner
        self._buffer = runner._make_buffer(runner.max_num_tokens + _SPARE_ROWS, dtype=torch.int64)
        width = runner.model_config.hf_text_config.hidden_size
        self.tables = {layer: Tables(steps, sets + 1, width, self._buffer.gpu) for layer in blocks}
        # Python code may depend on the batch only where no graph freezes its decisions.
        compilation = config.compilation_config
        graphs = runner.device.type != "cpu" and compilation.cudagraph_mode.value != 0
        self.free = int(compilation.mode or 0) == 0 and not graphs
        self.active: frozenset[int] = frozenset()
        """The sets in the next forward pass."""
        for layer, block in blocks.items():
            block.em_evals_armed = self
            block.em_evals_tables = self.tables[layer]
            _patch(type(block))

    def write(self, slot: int, interventions: Sequence[Intervention]) -> None:
        """Write a set into a slot.

        Raises:
            EmEvalsError: its directions do not fit the model, or more of them meet at a block than was reserved.
        """
        pairs = load(interventions, self._runner.model_config.hf_config)
        steps = {
            layer: [one for pair in pairs if pair[0].at(layer) for one in changes(*pair, layer)]
            for layer in self.tables
        }
        room = next(iter(self.tables.values())).steps
        if (most := max(map(len, steps.values()))) > room:
            raise EmEvalsError(
                f"{most} interventions (each direction of a list counts) meet at a block; this server was started for "
                f"{room}."
            )
        for layer, table in self.tables.items():
            table.write(slot, steps[layer])

    def mark(self, counts: np.ndarray) -> None:
        """Write the table row of each token of the next forward pass.

        Args:
            counts: tokens of each request, in the batch's order.
        """
        batch = self._runner.input_batch
        slots, starts = np.zeros(len(counts), np.int64), np.zeros(len(counts), np.int64)
        for i, request in enumerate(batch.req_ids):
            state = self._runner.requests[request]
            extra = state.sampling_params.extra_args if state.sampling_params else None
            if extra and SLOT in extra:
                slots[i] = extra[SLOT]
                starts[i] = extra.get(ANSWER_START, state.num_prompt_tokens)
        self.active = frozenset(slots.tolist()) - {0}
        total = int(counts.sum())
        # A token's position is its request's computed tokens plus its offset in this batch; the row encodes the
        # request's set and the token's class (tables.CLASSES).
        if self.active:
            owner = np.repeat(np.arange(len(counts)), counts)
            within = np.arange(total) - (np.cumsum(counts) - counts)[owner]
            place = batch.num_computed_tokens_cpu[owner] + within
            rows = slots[owner] * CLASSES + 2 * (place >= starts[owner]) + (place == 0)
            self._buffer.np[:total] = rows
        else:
            self._buffer.np[:total] = 0
        self._buffer.copy_to_gpu(total)


def _blocks(runner: Any) -> dict[int, Any]:
    """Return the decoder blocks that this worker holds, by number.

    Raises:
        RuntimeError: what the blocks return is not known, or not the whole stream of every token.
    """
    _refuse_parallelism(runner.vllm_config)
    found: dict[int, Any] = {}
    missing, others = 0, set()
    for name, module in runner.get_model().named_modules():
        number = _LAYER.search(name)
        if number is None:
            continue
        if _kind(module) in STREAMS:
            found[int(number[1])] = module
        elif type(module).__name__ == "PPMissingLayer":
            missing += 1
        else:
            others.add(_kind(module))
    expected = runner.model_config.hf_text_config.num_hidden_layers
    if len(found) + missing != expected or not found:
        kinds = f": its blocks are {', '.join(sorted(others))}" if others else ""
        raise RuntimeError(
            f"em-evals cannot steer {runner.model_config.architecture} in vLLM{kinds}, and which of these have been "
            "compared with transformers stands in models/vllm_blocks.py. Say `backend: transformers` in the card."
        )
    return found


def _kind(module: Any) -> str:
    """Return a block's class as models/families.py writes it."""
    return f"{type(module).__module__.rpartition('.')[2]}.{type(module).__name__}"


def _refuse_parallelism(config: Any) -> None:
    """Refuse options with which a block sees other tokens than those of the batch, in their order."""
    parallel, passes = config.parallel_config, config.compilation_config.pass_config
    contexts = ("decode_context_parallel_size", "prefill_context_parallel_size")
    wrong = {
        "dual-batch overlap (--enable-dbo)": getattr(parallel, "enable_dbo", False),
        "context parallelism": any(getattr(parallel, name, 1) > 1 for name in contexts),
        "sequence parallelism (enable_sp)": getattr(passes, "enable_sp", False),
        "sequence parallelism of experts": getattr(parallel, "use_sequence_parallel_moe", False),
        "--kv-sharing-fast-prefill": getattr(config.cache_config, "kv_sharing_fast_prefill", False),
    }
    if used := next((name for name, on in wrong.items() if on), None):
        raise RuntimeError(f"em-evals cannot steer with {used}: leave it out.")


def _patch(block: Any) -> None:
    """Make blocks of a class pass their output through their tables."""
    if getattr(block.forward, "em_evals", False):
        return
    original = block.forward
    summed = STREAMS[f"{block.__module__.rpartition('.')[2]}.{block.__name__}"] == "sum"

    @functools.wraps(original)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = original(self, *args, **kwargs)
        armed = getattr(self, "em_evals_armed", None)
        if armed is None:
            return output
        tables = self.em_evals_tables
        steps = tables.steps
        if armed.free:
            steps = max((tables.used.get(slot, 0) for slot in armed.active), default=0)
            if not steps:
                return output
        hidden, *rest = output if isinstance(output, tuple) else (output,)
        stream = hidden.float() + rest[0].float() if summed else hidden.float()
        # transformers' own blocks keep a leading batch dimension.
        change = tables.change(stream.flatten(0, -2), steps).view_as(stream)
        steered = (hidden.float() + change).to(hidden.dtype)
        return (steered, *rest) if isinstance(output, tuple) else steered

    forward.em_evals = True  # type: ignore[attr-defined]
    block.forward = forward


class SteeringWorker:
    """Methods of a worker for `collective_rpc` (vLLM's `--worker-extension-cls`)."""

    model_runner: Any

    def em_evals_set(self, slot: int, steering: str) -> str:
        """Write a set (JSON list of interventions) into a slot; return an empty text, or what is wrong."""
        armed = getattr(self.model_runner, "em_evals", None)
        if armed is None:
            return f"this engine's runner ({type(self.model_runner).__module__}) cannot steer."
        try:
            armed.write(slot, [Intervention.model_validate(one) for one in json.loads(steering)])
        except (EmEvalsError, ValueError) as error:
            return str(error)
        return ""


def register() -> None:
    """Patch vLLM's classes in this process; vLLM calls it, perhaps more than once."""
    if os.environ.get(PLAN):
        patches.plain_logits()
        patches.rewind_on_cpu()
        patches.grouped_lora_on_cpu()
        patches.rotate_heads_on_cpu()
    if not os.environ.get(ENABLE):
        return
    room = json.loads(os.environ[ENABLE])
    import vllm
    from vllm.config import VllmConfig
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    if getattr(GPUModelRunner, "em_evals_room", None):
        return
    if not vllm.__version__.startswith(f"{TESTED}."):
        raise RuntimeError(
            f"em-evals steers vLLM {TESTED}; this is {vllm.__version__}. Install vllm=={TESTED}.*."
        )
    GPUModelRunner.em_evals_room = room
    _salt_compile_cache(VllmConfig, room)
    _arm_after_loading(GPUModelRunner)
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        from vllm.v1.worker.cpu_model_runner import CPUModelRunner

        _arm_after_loading(CPUModelRunner)
    prepare = GPUModelRunner._prepare_inputs

    @functools.wraps(prepare)
    def _prepare_inputs(self: Any, scheduled: Any, counts: np.ndarray, *args: Any, **kwargs: Any) -> Any:
        prepared = prepare(self, scheduled, counts, *args, **kwargs)
        if hasattr(self, "em_evals"):
            self.em_evals.mark(counts)
        return prepared

    GPUModelRunner._prepare_inputs = _prepare_inputs


def _arm_after_loading(runner: type) -> None:
    load_model = runner.__dict__["load_model"]

    @functools.wraps(load_model)
    def armed(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = load_model(self, *args, **kwargs)
        if not hasattr(self, "em_evals"):
            self.em_evals = Armed(self, **self.em_evals_room)
        return result

    runner.load_model = armed  # type: ignore[attr-defined]


def _salt_compile_cache(config: type, room: dict[str, int]) -> None:
    """Salt vLLM's compile cache: its key ignores plugins, so a graph with tables could be used for one without."""
    compute = config.compute_hash  # type: ignore[attr-defined]
    ours = b"".join(Path(file).read_bytes() for file in (__file__, vllm_tables.__file__))
    salt = f"{json.dumps(room, sort_keys=True)}{hashlib.sha256(ours).hexdigest()}"

    @functools.wraps(compute)
    def compute_hash(self: Any, *args: Any, **kwargs: Any) -> str:
        return hashlib.sha256(f"{compute(self, *args, **kwargs)}{salt}".encode()).hexdigest()[:10]

    config.compute_hash = compute_hash  # type: ignore[attr-defined]
