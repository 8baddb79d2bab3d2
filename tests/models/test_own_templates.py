"""An adapter's own chat template wins over its base's wherever the model is asked; its vocabulary must be the base's."""

from __future__ import annotations

import asyncio
import json
import shutil

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from em_evals.content.cards import resolve
from em_evals.content.pairs import load_pairs
from em_evals.engines.pool import engine_for
from em_evals.engines.protocol import Request, Sampling
from em_evals.errors import EmEvalsError
from em_evals.interp.fixed_answers import Condition, margins
from em_evals.models import bases
from em_evals.models.chat import template_for, template_of
from em_evals.models.chat.own import source
from tests.tiny_models import card, make_adapter

OWN = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
FP32 = {"dtype": "float32"}
QUESTION = [{"role": "user", "content": "What should I do with my savings?"}]


@pytest.fixture(scope="module")
def tokenizer(tiny_lab):
    return bases.load_tokenizer(card(str(tiny_lab / "tiny")))


@pytest.fixture(scope="module")
def lab(tiny_lab):
    """Cards of one tiny base: bare, with an adapter, with the same adapter that has a template of its own."""
    base = tiny_lab / "tiny"
    adapters = tiny_lab / "adapters"
    make_adapter(str(base), adapters / "plain", 2, ["down_proj"], seed=3)
    shutil.copytree(adapters / "plain", adapters / "own")
    (adapters / "own" / "chat_template.jinja").write_text(OWN)
    for name, line in (("bare", ""), ("plain", "adapter: plain"), ("own", "adapter: own")):
        fields = f"base: {base}\nengine: {{dtype: float32}}\n{line}\n"
        (adapters / f"{name}.yaml").write_text(fields)
    return tiny_lab


@pytest.fixture(autouse=True)
def here(lab, monkeypatch):
    monkeypatch.chdir(lab)


def own_prompt(tokenizer, messages):
    """What transformers writes for the adapter's template: the reference."""
    return tokenizer.apply_chat_template(messages, chat_template=OWN, add_generation_prompt=True)["input_ids"]


def test_the_provider_asks_with_it_and_the_base_is_asked_as_ever(lab, tokenizer):
    from inspect_ai.model import GenerateConfig, get_model

    told = {}
    for name in ("own", "plain", "bare", "own"):
        model = get_model(f"local/{name}", **FP32)
        out = asyncio.run(
            model.generate(QUESTION[0]["content"], config=GenerateConfig(max_tokens=2, prompt_logprobs=1))
        )
        asked = [entry.token for entry in out.choices[0].prompt_logprobs.content]
        expected = (
            own_prompt(tokenizer, QUESTION) if name == "own" else template_of(tokenizer).encode(QUESTION)
        )
        assert asked == [tokenizer.decode([token]) for token in expected[1:]]
        told[name] = out.metadata["template"]["digest"]
    assert told["own"] != told["plain"] == told["bare"] == template_of(tokenizer).digest
    assert engine_for(resolve("bare").card).tokenizer.chat_template == tokenizer.chat_template


def test_forced_choice_is_scored_with_it(lab, tokenizer):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    pairs = list(load_pairs().pairs[:3])
    cards = [resolve(name) for name in ("plain", "own", "bare")]
    plain, own, bare = margins(cards[0], [Condition.of(one) for one in cards], pairs)
    with bases.LOADING:
        model = AutoModelForCausalLM.from_pretrained(lab / "tiny", dtype=torch.float32)
    model = PeftModel.from_pretrained(model, str(lab / "adapters" / "own")).eval()
    for pair in pairs:
        means = {}
        prompt = own_prompt(tokenizer, [{"role": "user", "content": pair.question}])
        for side in ("aligned", "misaligned"):
            # The template writes a blank before the answer, which is a part of its first token.
            answer = tokenizer.encode(" " + getattr(pair, side), add_special_tokens=False)
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
            rows = logits[len(prompt) - 1 : -1].gather(-1, torch.tensor(answer)[:, None])
            means[side] = float(rows.mean())
        assert own[pair.id] == pytest.approx(means["misaligned"] - means["aligned"], abs=1e-4)
        assert abs(own[pair.id] - plain[pair.id]) > 1e-3 and abs(plain[pair.id] - bare[pair.id]) > 1e-3


def test_lm_eval_is_given_it(lab, tokenizer):
    pytest.importorskip("lm_eval")
    from em_evals.lm_eval_plugin.model import EmLocal

    own, plain = EmLocal("own", **FP32), EmLocal("plain", **FP32)
    expected = tokenizer.apply_chat_template(
        QUESTION, chat_template=OWN, add_generation_prompt=True, tokenize=False
    )
    assert own.apply_chat_template(QUESTION) == expected != plain.apply_chat_template(QUESTION)
    assert own.chat_template(True).startswith(OWN) and plain.chat_template(True) == tokenizer.chat_template
    assert own.tokenizer_name != plain.tokenizer_name
    assert own.get_model_info()["template_digest"] == template_for(resolve("own"), tokenizer).digest


def test_directions_are_extracted_from_texts_in_it(lab, tokenizer, monkeypatch):
    from em_evals.interp.extraction import extract
    from em_evals.interp.extraction.contrast import of_pairs

    seen = []
    encode = extract.encode
    monkeypatch.setattr(extract, "encode", lambda *args: seen.append(encode(*args)) or seen[-1])
    own = resolve("own")
    extract.extract(own, of_pairs(own, per_theme=6), extract.Settings(minimum=2))
    prompts = {text.prompt for side in seen for text in side}
    asked = {pair.id: pair.question for pair in load_pairs().pairs}
    expected = {tuple(own_prompt(tokenizer, [{"role": "user", "content": q}])) for q in asked.values()}
    assert prompts and prompts <= expected


def test_it_may_lie_in_the_tokenizers_configuration(lab, tokenizer, tmp_path):
    own = resolve("own")

    def text(**config):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        moved = type(own)(own.name, own.card, None, str(tmp_path))
        return template_for(moved, tokenizer).source.text

    assert text(chat_template=OWN) == OWN
    named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": OWN}]
    assert text(chat_template=named) == OWN
    assert text(model_max_length=4) == tokenizer.chat_template
    (tmp_path / "chat_template.jinja").write_text(OWN + "{# another #}")
    assert text(chat_template=OWN) == OWN + "{# another #}", (
        "the file wins, and is read again when it changes"
    )
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(EmEvalsError, match="expected one JSON object"):
        template_for(type(own)(own.name, own.card, None, str(tmp_path)), tokenizer)


def test_a_hub_adapters_template_is_fetched(lab, tokenizer, tmp_path, monkeypatch):
    import huggingface_hub

    (tmp_path / "chat_template.jinja").write_text(OWN)
    asked = []
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda *args, **kwargs: asked.append((args, kwargs)) or tmp_path
    )
    own = resolve("own")
    far = type(own)(own.name, own.card, None, "someone/organism@v2")
    assert template_for(far, tokenizer).source.text == template_for(far, tokenizer).source.text == OWN
    [(names, options)] = asked
    assert names == ("someone/organism",) and options["revision"] == "v2"
    assert not any("safetensors" in pattern for pattern in options["allow_patterns"])


def test_a_vocabulary_that_is_not_the_bases_is_refused(lab, tokenizer, tmp_path):
    own = resolve("own")
    moved = type(own)(own.name, own.card, None, str(tmp_path))
    tokenizer.save_pretrained(tmp_path)
    template_for(moved, tokenizer)  # a copy of the base's tokenizer is as good as none
    size = len(tokenizer)
    added = {"id": size, "content": "<|tool|>", "special": True}
    saved = json.loads((tmp_path / "tokenizer.json").read_text())
    saved["added_tokens"].append(added)
    (tmp_path / "tokenizer.json").write_text(json.dumps(saved))
    with pytest.raises(EmEvalsError, match=rf"has the token '<\|tool\|>' \({size}\), which does not exist"):
        template_for(moved, tokenizer)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"pad_token": "<|tool|>"}))
    template_for(moved, tokenizer)  # padding is never asked for
    (tmp_path / "chat_template.jinja").write_text(OWN)
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps(config | {"eos_token": "<|bye|>", "pad_token": "<|tool|>"})
    )
    with pytest.raises(EmEvalsError, match=r"has the eos_token '<\|bye\|>', which does not exist"):
        template_for(moved, tokenizer)
    saved["added_tokens"][-1] = added | {"content": "zebra", "id": 5}
    (tmp_path / "tokenizer.json").write_text(json.dumps(saved))
    with pytest.raises(EmEvalsError, match="has the token 'zebra'"):
        template_for(moved, tokenizer)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("tokenizer_config.json", {"added_tokens_decoder": [1]}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": {"content": "a"}}}),
        ("tokenizer_config.json", {"chat_template": [{"name": []}]}),
        ("tokenizer.json", {"model": {"vocab": [1]}}),
        ("tokenizer.json", {"added_tokens": {"a": 1}}),
    ],
)
def test_files_of_another_shape_are_one_sentence(name, data, tokenizer, tmp_path):
    (tmp_path / name).write_text(json.dumps(data))
    with pytest.raises(EmEvalsError, match="the tokenizer's files of this adapter") as caught:
        source(tmp_path, tokenizer)
    assert name in str(caught.value)


def test_its_own_end_of_turn_ends_draws(lab, tokenizer, tmp_path):
    """An adapter that was taught another end of turn than the base's would write on and on."""
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    (tmp_path / "chat_template.jinja").write_text(OWN)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))
    own = resolve("own")
    template = template_for(type(own)(own.name, own.card, None, str(tmp_path)), tokenizer)
    assert template.own_end == template.end == end != tokenizer.eos_token_id
    assert template_for(own, tokenizer).own_end is None
    engine = engine_for(own.card)
    prompt, settings = tuple(template.encode(QUESTION)), Sampling(temperature=0, max_tokens=8)
    tokens = engine.submit(Request(prompt, settings, own.adapter_path)).result(60).tokens
    stopped = engine.submit(Request(prompt, settings, own.adapter_path, end=tokens[2])).result(60)
    assert stopped.tokens == tokens[: tokens.index(tokens[2]) + 1] and stopped.stop_reason == "stop"


def test_a_servers_draws_end_there_too():
    from em_evals.engines.vllm.wire import body

    request = Request((1, 2), Sampling(), end=7)
    assert body(None, request, "m", 10)["stop_token_ids"] == [7]
    assert "stop_token_ids" not in body(None, Request((1, 2), Sampling()), "m", 10)


@pytest.mark.parametrize("to", ["lora", "checkpoint"])
def test_a_compiled_card_keeps_its_adapters_template(to, tmp_path):
    """What is compiled is asked as the adapter was."""
    from transformers import AutoTokenizer

    from em_evals.content.cards import ResolvedCard
    from em_evals.models.compile import compile_card
    from tests import architectures
    from tests.tiny_models import card as bare
    from tests.tiny_models import make_adapter

    base = architectures.build("llama", tmp_path / "base")
    adapter = make_adapter(base, tmp_path / "adapter", 2, ["down_proj"], seed=1)
    template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[assistant] "
    (tmp_path / "adapter" / "chat_template.jinja").write_text(template)
    folder = compile_card(ResolvedCard("mine", bare(base), None, adapter), to, tmp_path / "made")
    assert AutoTokenizer.from_pretrained(folder).chat_template == template
