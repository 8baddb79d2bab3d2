"""Assumptions of interventions about a model, tested on a short forward pass before they are relied on.

Blocks: each block's output is the residual stream, and the next block's input. Writes: the modules that
`site: writes` hooks produce everything that is ever added to the stream.

Weights: a module's are read by its own call and nowhere else, so that an adapter's may replace them for the call.

The second is tested without any direction, and exactly in every dtype. All writes are tied in pairs of coordinates
(half of the pairs equal, half opposite), which sums and common factors preserve bit for bit. A write that is not
hooked, or a norm between a hooked module and the stream, breaks the ties. What passes keeps h·u = 0 for every u.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch

from em_evals.errors import EmEvalsError
from em_evals.models.architecture import decoder_layers, unwrapped, write_modules
from em_evals.models.placement import device_of

TOKENS = 12
"""Length of the test's forward passes."""

_APART = 1e-4
"""Tolerance on log-probabilities, in nats; a hundred-thousandth of the largest logit where that is more."""

_passed: WeakKeyDictionary[Any, set[str]] = WeakKeyDictionary()


def check_blocks(model: Any) -> None:
    """Refuse a model whose blocks do not pass on the residual stream unchanged; tested once per model.

    Args:
        model: a causal language model of transformers, bare or inside PEFT.

    Raises:
        EmEvalsError: it keeps several streams, or changes the stream between blocks.
    """
    plain = unwrapped(model)
    if "blocks" in _passed.setdefault(plain, set()):
        return
    width = plain.config.get_text_config().hidden_size
    inputs, outputs = streams(plain)
    for layer, output in enumerate(outputs):
        after = inputs[layer + 1] if layer + 1 < len(inputs) else output
        if output.shape != (1, TOKENS, width) or not same(output, after):
            raise EmEvalsError(
                f"{plain.config.model_type} cannot be steered: block {layer} ({_kind(plain, layer)}) does not hand on "
                "one residual stream to the next."
            )
    _passed[plain].add("blocks")


def check_write_modules(model: Any) -> None:
    """Refuse `site: writes` on a model with writes that are not hooked; tested once per model.

    Args:
        model: a causal language model of transformers, bare or inside PEFT.

    Raises:
        EmEvalsError: names the first block after which the stream has another write in it.
    """
    plain = unwrapped(model)
    check_blocks(plain)
    if "writes" in _passed[plain]:
        return
    order = torch.randperm(
        plain.config.get_text_config().hidden_size, generator=torch.Generator().manual_seed(0)
    )
    one, other = order[: len(order) // 2], order[len(order) // 2 : 2 * (len(order) // 2)]
    signs = torch.ones(len(one))
    signs[::2] = -1

    def tie(hidden: torch.Tensor) -> torch.Tensor:
        tied, sign = hidden.clone(), signs.to(hidden)
        tied[..., order[2 * len(one) :]] = 0
        tied[..., one] = (hidden[..., one] + sign * hidden[..., other]) / 2
        tied[..., other] = sign * tied[..., one]
        return tied

    inputs, outputs = streams(plain, tie)
    # The first block's input is what embeddings wrote.
    for layer, stream in [(0, inputs[0]), *enumerate(outputs)]:
        if not same(stream[..., other], signs.to(stream) * stream[..., one]):
            raise EmEvalsError(
                f"`site: writes` would not be exact on {plain.config.model_type}: block {layer} "
                f"({_kind(plain, layer)}) writes into the residual stream, or norms it, in ways that are not known "
                "here; use `site: block`."
            )
    _passed[plain].add("writes")


def read_past(model: Any, names: Collection[str]) -> set[str]:
    """Find the modules whose parameters or buffers the model also reads outside of their own calls.

    A Mamba mixer multiplies with the weights of its projections itself, and LongCat's router with its classifier's.
    What acts on such a module's call, or replaces its weights for the call alone, has no effect.

    Args:
        model: a causal language model of transformers, bare.
        names: of some of its modules. Those that are called alike in all blocks count as one.

    Returns:
        The names of those that are read elsewhere; tested on short forward passes.
    """
    if not names:
        return set()
    expected = logits(model)
    if _only_called(model, names, expected):
        return set()
    alike: dict[str, set[str]] = {}
    for name in names:
        alike.setdefault(name.rpartition(".")[2], set()).add(name)
    return {name for some in alike.values() if not _only_called(model, some, expected) for name in some}


def _only_called(model: Any, names: Collection[str], expected: torch.Tensor) -> bool:
    """Check that modules' own calls alone read them: with NaN in them between the calls, logits are as expected."""
    with ExitStack() as stack:
        for module in map(model.get_submodule, names):
            owns = [
                (slots, key, own)
                for slots in (module._parameters, module._buffers)
                for key, own in slots.items()
                if own is not None and own.is_floating_point()
            ]
            nothing = [(slots, key, own.new_full((), torch.nan).expand_as(own)) for slots, key, own in owns]
            stack.callback(_put, owns)
            stack.callback(module.register_forward_pre_hook(partial(_put, owns)).remove)
            stack.callback(module.register_forward_hook(partial(_put, nothing)).remove)
            _put(nothing)
        found = logits(model)
    bound = 64 * torch.finfo(model.dtype).eps * max(1.0, float(expected.abs().max()))
    return bool((found - expected).abs().max() <= bound)  # NaN is not


def _put(values: Sequence[tuple[dict[str, Any], str, torch.Tensor]], *_: Any) -> None:
    """Put tensors into their modules' slots; a hook."""
    for slots, key, value in values:
        slots[key] = value


def streams(
    model: Any, edit: Callable[[torch.Tensor], torch.Tensor] | None = None
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Record each block's input and output, [1, tokens, width], in one forward pass over random token ids.

    Args:
        model: a causal language model of transformers, bare.
        edit: applied to everything that is written into the stream; None changes nothing.

    Raises:
        EmEvalsError: the architecture's parts are not known, or its blocks do not run one after the other.
    """
    blocks = decoder_layers(model)
    inputs: list[torch.Tensor] = []
    outputs: list[torch.Tensor] = []

    def before(_: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        inputs.append(arguments[0] if arguments else named["hidden_states"])
        inputs[-1] = inputs[-1].detach().clone()  # some blocks write into their input

    def after(_: Any, __: Any, output: Any) -> None:
        outputs.append(first(output).detach().clone())

    def written(_: Any, __: Any, output: Any) -> Any:
        return replaced(output, edit(first(output))) if edit else None

    with ExitStack() as stack:
        for module in write_modules(model) if edit else ():
            stack.callback(module.register_forward_hook(written).remove)
        for block in blocks:
            stack.callback(block.register_forward_pre_hook(before, with_kwargs=True).remove)
            stack.callback(block.register_forward_hook(after).remove)
        logits(model)
    if len(outputs) != len(blocks):
        raise EmEvalsError(f"{model.config.model_type} does not run its blocks one after the other.")
    return inputs, outputs


def logits(model: Any, ids: torch.Tensor | None = None) -> torch.Tensor:
    """Compute logits for a dozen random tokens, or for `ids` [1, tokens]: float32 [tokens, vocabulary], no dropout."""
    ids = random_ids(model) if ids is None else ids.to(device_of(model))
    with torch.no_grad(), evaluating(model):
        return model(input_ids=ids, use_cache=False).logits[0].float()


def check_same(logits: torch.Tensor, expected: torch.Tensor, which: str) -> float:
    """Refuse a compiled model whose outputs differ from those of the model with hooks.

    Args:
        logits: its own, float32 [tokens, vocabulary].
        expected: those of the model with hooks.
        which: the compiled model's name in the error.

    Returns:
        The largest difference of log-probabilities, in nats.

    Raises:
        EmEvalsError: it is more than rounding explains.
    """
    found = apart(logits, expected)
    allowed = max(_APART, 0.1 * _APART * float(expected.abs().max()))
    if not found <= allowed:
        raise EmEvalsError(
            f"the {which} model differs from the model with hooks: log-probabilities of a few random tokens differ "
            f"by {found:.2g} nats, and rounding explains {allowed:.2g}; nothing was written, use the card as it is."
        )
    return found


def apart(logits: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest difference of two models' log-probabilities, in nats."""
    differences = logits.log_softmax(-1) - expected.to(logits.device).log_softmax(-1)
    return float(differences.abs().max())


def random_ids(model: Any) -> torch.Tensor:
    """Return token ids, int64 [1, tokens]: the same for every model with the same vocabulary size."""
    vocabulary = model.config.get_text_config().vocab_size
    chosen = torch.randint(vocabulary, (1, TOKENS), generator=torch.Generator().manual_seed(0))
    return chosen.to(device_of(model))


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Set evaluation mode inside the context, and restore each module's own mode after it."""
    modes: Sequence[tuple[Any, bool]] = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def first(output: Any) -> torch.Tensor:
    """Return the hidden states in a module's output."""
    return output[0] if isinstance(output, tuple) else output


def replaced(output: Any, hidden: torch.Tensor) -> Any:
    """Return a module's output with other hidden states in it."""
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Check equality bit for bit, NaN included."""
    return torch.equal(one.nan_to_num(), other.nan_to_num())


def _kind(model: Any, layer: int) -> str:
    return type(decoder_layers(model)[layer]).__name__
