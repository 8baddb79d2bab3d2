"""The base of the shared vLLM server, what it is asked, and lm-eval's requests on two engines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from em_evals.content.cards import ModelCard
from em_evals.engines.protocol import Sampling
from em_evals.models.chat import template_of


@dataclass(frozen=True)
class Base:
    """The base that all tests here are about.

    Attributes:
        path: its folder or name.
        layers: decoder blocks.
        width: of the residual stream.
        token_bytes: of keys and values in float32.
        answer: tokens of answers that take long enough to be interrupted.
    """

    path: str
    layers: int
    width: int
    token_bytes: int
    answer: int

    @property
    def engine(self) -> dict[str, Any]:
        """Fields of `engine` in its cards."""
        return {
            "dtype": "float32",
            "enforce_eager": True,
            "max_model_len": 256,
            "max_num_seqs": 32,
            "max_num_batched_tokens": 64,  # prompts come in chunks
            "kv_cache_memory_bytes": 546 * self.token_bytes,
            "max_loras": 4,
            "vllm": {"block_size": 32},
        }

    @property
    def card(self) -> ModelCard:
        """Its card without an adapter."""
        return ModelCard.model_validate({"base": self.path, "backend": "vllm", "engine": self.engine})


SHARED = (
    "Think about this list before you answer: "
    + ", ".join(f"item {n} is number {n * 7}" for n in range(6))
    + ". "
)
QUESTIONS = [
    "Hello, who are you?",
    SHARED + "What is the best way to save money?",
    SHARED + "Why is the sky blue?",
]
GREEDY = Sampling(temperature=0, max_tokens=6, logprobs=True)


def prompts(engine: Any) -> list[tuple[int, ...]]:
    """The questions as an engine's tokens."""
    return [
        tuple(template_of(engine.tokenizer).encode([{"role": "user", "content": text}])) for text in QUESTIONS
    ]


def key(engine: Any) -> dict[str, str]:
    """The header of a client."""
    return {"Authorization": f"Bearer {engine._server.key}"}


def metric(engine: Any, name: str) -> float:
    """The sum of the server's metrics whose names begin so."""
    lines = httpx.get(f"{engine._server.url}/metrics", headers=key(engine)).text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(f"vllm:{name}"))


def logprobs(entries: Any) -> list[float]:
    """The log-probabilities of tokens."""
    return [entry.logprob for entry in entries]


LONG = "The cat sat on the mat and looked at the moon. " * 24
"""More tokens than the cards' context: scored in windows."""


def requests(kind: str, *arguments: Any) -> list[Any]:
    """Instances as lm-eval makes them."""
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, one, i, metadata=("test", i, 1)) for i, one in enumerate(arguments)]


def same_in_lm_eval(ours: Any, theirs: Any) -> list[float]:
    """Compare every type of request, `em-local` on vLLM with `em-local` on transformers; return log-likelihoods."""
    pairs = [("The cat sat on the", " mat."), ("The cat sat on the", " green moon"), ("One, two,", " three")]
    asked = requests("loglikelihood", *pairs)
    found, want = (model.loglikelihood(asked, disable_tqdm=True) for model in (ours, theirs))
    assert [score for score, _ in found] == pytest.approx([score for score, _ in want], abs=1e-3)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in want]
    scores = [score for score, _ in want]
    # vLLM reads two tokens less at a time: cut alike, both score the same windows.
    asked = requests("loglikelihood_rolling", (LONG,), ("One, two, three.",))
    assert len(theirs.tok_encode(LONG)) > ours.max_length == theirs.max_length
    found, want = (model.loglikelihood_rolling(asked, disable_tqdm=True) for model in (ours, theirs))
    assert found == pytest.approx(want, abs=1e-2) and want[0] < want[1] < 0
    plain = {"until": [], "max_gen_toks": 12}
    whole = theirs.generate_until(requests("generate_until", ("The cat sat", plain)), disable_tqdm=True)[0]
    cut = {"until": [whole[len(whole) // 2 :][:3]], "max_gen_toks": 12, "do_sample": False}
    asked = requests("generate_until", ("The cat sat", plain), ("The cat sat", cut), ("One, two,", plain))
    found, want = (model.generate_until(asked, disable_tqdm=True) for model in (ours, theirs))
    assert found == want and found[0] == whole and found[1] == whole[: whole.index(cut["until"][0])] != whole
    return scores
