"""The plain side of `em-evals verify`: hooks by hand reach all that is written, every chat template is compared."""

import re
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from em_evals.content import directions
from em_evals.content.intervention import Intervention
from em_evals.models.chat import ChatTemplate, template_of
from em_evals.workflows.verify import hooks, template
from tests import architectures, chat_templates
from tests.architectures.lab import Lab

_TWICE = ("mlp", "self_attn.0", "self_attn.1", "mlps.0", "mlps.1")


@pytest.mark.parametrize(
    ("name", "first"),
    [
        (
            "gemma2",
            ["embed_tokens", "layers.0.post_attention_layernorm", "layers.0.post_feedforward_layernorm"],
        ),
        ("llama", ["embed_tokens", "layers.0.self_attn", "layers.0.mlp"]),
        ("gpt2", ["wte", "wpe", "h.0.attn", "h.0.mlp"]),
        ("gpt-bigcode", ["wte", "wpe", "h.0.attn", "h.0.mlp"]),
        ("gpt-neo", ["wte", "wpe", "h.0.attn", "h.0.mlp"]),
        ("opt", ["embed_tokens", "embed_positions", "layers.0.self_attn", "layers.0.fc2"]),
        ("longcat-flash", ["embed_tokens", *(f"layers.0.{part}" for part in _TWICE)]),
        ("bloom", ["word_embeddings_layernorm", "h.0.self_attention", "h.0.mlp"]),
    ],
)
def test_hooks_by_hand_find_every_writer(name, first, tmp_path):
    """By name, and in effect: nothing of a direction is left in the stream, which every block adds to."""
    small = Lab(name, tmp_path)
    model = small.model
    blocks = hooks.blocks_of(model)
    assert blocks == list(small.blocks)
    names = {id(module): name for name, module in model.named_modules()}
    found = [names[id(module)] for module in hooks.writers_of(model, blocks)]
    assert [
        re.sub(r"^(?:model|transformer)\.(?:decoder\.)?", "", one) for one in found[: len(first)]
    ] == first
    one = Intervention(op="ablate", site="writes", from_layer=1, direction=small.direction)
    unit = torch.nn.functional.normalize(
        torch.from_numpy(directions.read(Path(small.direction)).vectors[1]), dim=0
    )
    left = []

    def watch(stream):
        left.append((float((stream @ unit).abs().max()), float(stream.norm(dim=-1).min())))
        return stream

    with hooks.intervened(model, blocks, [one], 0), hooks.hooked(blocks, watch), torch.no_grad():
        model(input_ids=torch.arange(8, 20)[None], use_cache=False)
    assert len(left) == small.depth and all(along < 1e-4 * norm for along, norm in left)


def asked_with(text):
    tokenizer = architectures.tokenizer()
    tokenizer.chat_template = text
    return template_of(tokenizer)


@pytest.mark.parametrize("name", chat_templates.CASES)
def test_every_chat_template_is_compared(name):
    found = asked_with(chat_templates.CASES[name].text)
    row = template.row(found, "")
    assert row.verdict == "ok" and row.largest == 0 and row.n > 200, row
    record = found.record()
    assert ("finished chats go on" in row.reason) == (record["prompt"] == "finished chat")
    assert ("empty thought" in row.reason) == bool(record["empty_thought"])


@pytest.mark.parametrize(
    "name", ["chatml", "channels (gpt-oss)", "an empty thought in prompts only (Gemma 4, EXAONE)"]
)
@pytest.mark.parametrize("fault", ["a token is lost", "one comes twice", "another answer"])
def test_finds_prompts_that_are_off(name, fault, monkeypatch):
    found = asked_with(chat_templates.CASES[name].text)
    encode = ChatTemplate.encode
    change = {
        "a token is lost": lambda ids: [*ids[:-1]],
        "one comes twice": lambda ids: [ids[0], *ids],
        "another answer": lambda ids: [*ids[:-1], ids[-1] + 1],
    }[fault]
    monkeypatch.setattr(ChatTemplate, "encode", lambda self, chat: change(encode(self, chat)))
    row = template.row(found, "")
    assert row.verdict == "wrong" and row.largest >= 4


def test_a_template_that_is_refused_is_skipped_with_its_reason():
    row = template.row(None, "it has none")
    assert (row.verdict, row.reason) == ("skipped", "refused: it has none")
