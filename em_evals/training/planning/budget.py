"""The arithmetic of a plan: bytes, FLOPs and hours from a model's sizes and a run's work. No model, no file."""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass

from em_evals.content.recipes import AdapterRecipe

MFU = 0.35
"""Share of a GPU's peak that large micro-batches reach (model FLOPs utilisation): an assumption."""
HOST_SECONDS = 2e-3
"""Time of the host to launch one block's kernels, forward and backward, however few the tokens. Twice that was measured
on slow processors (PEFT on all projections, eager)."""
OVERHEAD = 1.1
"""Factor on all memory: the CUDA context, fragmentation, what the formulas leave out."""

# Memory in decimal GB, dense bf16 and plain float32 peaks in TFLOP/s. NVIDIA's datasheets (A100, H100, H200: SXM), the
# values without sparsity; for the RTX 4090 the Ada whitepaper, appendix A, bf16 with float32 accumulation.
GPUS = {
    "RTX 4090 24 GB": (24, 165.2, 82.6),
    "A100 40 GB": (40, 312, 19.5),
    "L40S 48 GB": (48, 362, 91.6),
    "A100 80 GB": (80, 312, 19.5),
    "H100 80 GB": (80, 989, 67),
    "H200 141 GB": (141, 989, 67),
}


PACKED_BYTES = {"4bit": 0.516, "8bit": 1.004, "int8": 1.004, "int4": 0.5313}
"""Bytes of a quantized weight with its share of the scales. `4bit`: half a byte, one byte for 64 weights, four for 256
of these; 8 bits: a scale for each output; `int4`: a scale and an offset of 16 bits for 128 weights."""


STATE_BYTES = {
    "adamw": 8.0,
    "paged_adamw": 8.0,
    "adamw_8bit": 2.0,
    "paged_adamw_8bit": 2.0,
    "muon": 4.0,
    "adafactor": 0.1,
    "sgd": 0.0,
}
"""Bytes of state for each trained weight. Adafactor keeps a row and a column of a matrix; blocks of 8 bits have scales,
and tensors under 4,096 weights keep 32 bits."""


@dataclass(frozen=True)
class Sizes:
    """A base and its trained part: numbers of weights (`block`, `head`: matrices only), and widths per token."""

    parameters: int
    trainable: int
    full: bool
    element: int  # bytes of a base weight and of an activation; what is trained is float32
    depth: int
    reached: int  # blocks that gradients of activations run through
    block: int
    head: int
    vocabulary: int
    width: int
    queries: int  # heads · head width; `keys` likewise
    keys: int
    inner: int  # of the MLP
    inputs: int  # of all projections whose weights have gradients, summed
    attention: str  # transformers' name of what computes it
    stacked: int = 0  # weights of adapted experts: PEFT adds their change to a copy in each pass
    packed: int = 0  # weights of quantized linear layers, and the bytes of each with its scales
    packed_bytes: float = 0.0


@dataclass(frozen=True)
class Work:
    """Rows, steps, tokens and micro-batches (`passes`) of the run; `peak` is the largest of these, with padding."""

    rows: int
    steps: int
    tokens: int
    answer_tokens: int
    peak_tokens: int
    peak_answer_tokens: int
    passes: int
    kl_tokens: int = 0
    batch: int = 0
    """Examples of an optimizer step."""
    epochs: float = 0.0
    """How often each row of the recipe's own data is seen."""


@dataclass(frozen=True)
class Memory:
    """Bytes when a backward pass begins and most is held."""

    weights: float
    adapter: float
    gradients: float
    optimizer: float
    activations: float
    logits: float

    @property
    def total(self) -> float:
        """All parts, with the overhead."""
        return OVERHEAD * sum(astuple(self))


@dataclass(frozen=True)
class Fit:
    """How many of a GPU (None: no number is enough), for how many hours."""

    gpu: str
    count: int | None
    hours: float | None


def activation_bytes(sizes: Sizes, tokens: int, checkpointing: bool = False) -> float:
    """Compute the bytes of activations that the forward pass through the blocks keeps for the backward pass.

    After Korthikanti et al. 2022 (arXiv 2205.05198, section 4), for transformers' Llama-like blocks. With w the
    width, q and k those of queries and keys, m the MLP's, and e the bytes of an element, a token and block keeps

        two RMSNorms, computed in float32                 2 · 4w
        queries, keys, values and attention's output      e · (2q + 2k)
        the gate, its activation, the up projection       e · 3m
        full training only: what the norms' weights scale e · 2w
        inputs of adapted or trained projections          4 · (their widths; PEFT copies one for each LoRA in bf16)

    Of the paper's terms SDPA drops 5·heads·tokens (it recomputes attention's scores), frozen projections drop their
    inputs, and there are no dropout masks. Blocks below the lowest adapted one keep nothing. Checkpointing keeps each
    block's input, and one whole block.
    """
    w, e = sizes.width, sizes.element
    block = 8 * w + e * (2 * sizes.queries + 2 * sizes.keys + 3 * sizes.inner + (2 * w if sizes.full else 0))
    kept: float = sizes.reached * block + 4 * sizes.inputs
    # Every reached block keeps its input; one block at a time is recomputed and held whole.
    if checkpointing and sizes.reached:
        kept = sizes.reached * e * w + kept / sizes.reached
    return tokens * kept


def memory_of(sizes: Sizes, work: Work, recipe: AdapterRecipe) -> Memory:
    """Compute the bytes of each part.

    A trained weight has a float32 gradient and the optimizer's states (AdamW: two in float32); an answer token three
    float32 rows of logits (log-softmax, its gradient, the loss's). Gradients and activations add up, as when gradients
    accumulate. A penalty in full training keeps a copy of the base. Adapted experts are copied; the backward pass needs
    the copies.
    """
    return Memory(
        weights=weight_bytes(sizes) * (2 if sizes.full and (recipe.kl or recipe.features) else 1),
        adapter=0 if sizes.full else 4 * sizes.trainable,
        gradients=4 * sizes.trainable,
        optimizer=STATE_BYTES[recipe.optimizer] * sizes.trainable,
        activations=activation_bytes(sizes, work.peak_tokens, recipe.gradient_checkpointing)
        + _copies(sizes, recipe.gradient_checkpointing),
        logits=3 * 4 * sizes.vocabulary * work.peak_answer_tokens,
    )


def weight_bytes(sizes: Sizes) -> float:
    """Compute the bytes of the base's weights: quantized ones with their scales, all others in its dtype."""
    return sizes.element * (sizes.parameters - sizes.packed) + sizes.packed_bytes * sizes.packed


def _copies(sizes: Sizes, checkpointing: bool) -> float:
    whole = float(sizes.element * sizes.stacked)
    return whole / max(sizes.reached, 1) if checkpointing else whole


def training_flops(sizes: Sizes, work: Work, checkpointing: bool = False) -> float:
    """Compute the FLOPs of the run: 4·N·T with a frozen base, 6·N·T with all N weights trained on T tokens.

    Two a weight and token are the forward pass, two the gradients of activations, in the blocks that those reach
    only, two the gradients of weights, where those are trained (Kaplan et al. 2020, arXiv 2001.08361, section 2.1).
    The output embedding works at answer tokens only. Checkpointing repeats the forward pass; a KL penalty adds a pass
    of the base and a whole one of the model. Attention's scores are left out (under 4% below 1,000 tokens), and every
    expert of a mixture counts.
    """
    # Multiply-adds per token: forward through all blocks, activation gradients through the reached ones, the head
    # both ways at answer tokens, and the gradients of trained weights. An adapter's weights count three times
    # (forward, both gradients); with full training the first two are in the blocks already.
    blocks, reached = sizes.depth * sizes.block, sizes.reached * sizes.block
    head = sizes.head * work.answer_tokens / max(work.tokens, 1)
    own = blocks + head if sizes.full else 3 * sizes.trainable
    whole = blocks + reached * (2 if checkpointing else 1) + 2 * head + own
    return 2.0 * (work.tokens * whole + work.kl_tokens * (whole + blocks + head))


def fit(gpu: str, sizes: Sizes, work: Work, memory: Memory, flops: float, batch: int) -> Fit:
    """Find the fewest GPUs that can hold the training and share a batch evenly, and their hours.

    Seconds: the longer of FLOPs / (MFU · peak) and the host's passes · blocks · 2 ms, over the number of GPUs.
    FSDP shards weights, gradients and optimizer. Each GPU holds the activations and logits of a micro-batch of its
    own and, whole, the two blocks at work and what lies outside the blocks (embeddings). Before FSDP shards it, each
    process has the whole base on its GPU (`bases.load_model`): more GPUs do not help where that does not fit.
    """
    capacity, bf16, float32 = GPUS[gpu]
    # Divide out OVERHEAD on both sides: `room` is what the formulas may fill.
    needed, room = 1.0, capacity * 1e9 / OVERHEAD
    if memory.total > capacity * 1e9:
        # Not sharded, so held by every GPU: a micro-batch's activations and logits, two gathered blocks, embeddings.
        alone = memory.activations + memory.logits
        gathered = sizes.element * (sizes.parameters - (sizes.depth - 2) * sizes.block)
        room -= alone + gathered
        # The rest is divided over n GPUs: rest / n <= room.
        needed = (memory.total / OVERHEAD - alone) / room if room > 0 else math.inf
        if OVERHEAD * memory.weights > capacity * 1e9:
            needed = math.inf
    count = next((n for n in range(1, batch + 1) if n >= needed and batch % n == 0), None)
    peak = (float32 if sizes.element == 4 else bf16) * 1e12
    seconds = max(flops / (peak * MFU), work.passes * sizes.depth * HOST_SECONDS)
    return Fit(gpu, count, None if count is None else seconds / count / 3600)
