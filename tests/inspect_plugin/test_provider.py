"""`local/…` as Inspect sees it: cards on one base, their adapters, real logs."""

import asyncio
import contextvars
import threading

import numpy as np
import pytest

pytest.importorskip("torch")

import yaml
from inspect_ai import Task, eval
from inspect_ai._eval.loader import resolve_tasks
from inspect_ai._util.error import PrerequisiteError
from inspect_ai.dataset import Sample
from inspect_ai.model import (
    CachePolicy,
    ChatMessageAssistant,
    ChatMessageUser,
    ContentImage,
    ContentText,
    GenerateConfig,
    get_model,
)
from inspect_ai.model._model import init_active_model, resolve_models
from inspect_ai.solver import generate
from inspect_ai.tool import ToolCall

from em_evals.content import directions
from em_evals.content.cards import ModelCard
from em_evals.engines import pool
from em_evals.engines.hf.batch import Batch
from em_evals.inspect_plugin.tasks import forced_choice, freeform
from em_evals.models import bases
from tests.tiny_models import card, make_adapter, tiny

PIXEL = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A working folder with a card `plain` on a tiny base and two with adapters."""
    root = tmp_path_factory.mktemp("work")
    base = tiny("llama", root / "base")
    fields = {"base": base, "engine": {"dtype": "float32"}}
    for seed, name in enumerate(("one", "two")):
        make_adapter(base, root / "adapters" / name, 4, ["down_proj"], seed=seed, strength=1)
        more = {"adapter": name, "generation": {"max_tokens": 8, "temperature": 0}}
        (root / "adapters" / f"{name}.yaml").write_text(yaml.safe_dump(fields | more))
    (root / "adapters" / "plain.yaml").write_text(yaml.safe_dump(fields))
    return root


@pytest.fixture(autouse=True)
def work(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("INSPECT_CACHE_DIR", str(folder / "cache"))


def ask(model, text="Hello, who are you?", **config):
    return asyncio.run(model.generate(text, config=GenerateConfig(**config)))


def test_reports_true_usage_stop_reason_and_logprobs_of_the_sampled_token():
    out = ask(get_model("local/plain"), temperature=1, max_tokens=6, logprobs=True, top_logprobs=3, seed=3)
    assert out.stop_reason == "max_tokens" and out.usage.output_tokens == 6
    entries = out.choices[0].logprobs.content
    assert len(entries) == 6 and "".join(entry.token for entry in entries) == out.completion
    sampled = [entry for entry in entries if entry.token != entry.top_logprobs[0].token]
    assert sampled, "at temperature 1 some token differs from the likeliest"
    assert all(entry.logprob <= entry.top_logprobs[0].logprob for entry in entries)


def test_num_choices_are_different_draws_and_seeds_repeat_them():
    model = get_model("local/plain")
    first = ask(model, temperature=1, max_tokens=8, num_choices=3, seed=11)
    again = ask(model, temperature=1, max_tokens=8, num_choices=3, seed=11)
    texts = [choice.message.text for choice in first.choices]
    assert len(set(texts)) == 3 and texts == [choice.message.text for choice in again.choices]
    unseeded = ask(model, temperature=1, max_tokens=8)
    assert unseeded.metadata["sampling"]["max_tokens"] == 8
    repeated = ask(model, temperature=1, max_tokens=8, seed=unseeded.metadata["seeds"][0])
    assert unseeded.completion == repeated.completion, "an unseeded draw can be made again from its log"


def test_a_direction_that_does_not_fit_a_base_just_fetched_is_refused_before_its_weights(folder, monkeypatch):
    monkeypatch.setattr(directions, "shape_of", lambda *_: None)  # its configuration was not here before
    monkeypatch.setattr(bases, "load_model", lambda _: pytest.fail("weights were loaded"))
    wide = np.zeros((3, 63), np.float32)
    directions.write(directions.Direction(wide, wide, wide[:, 0]), folder / "narrow.safetensors")
    step = {"op": "add", "direction": str(folder / "narrow.safetensors")}
    with pytest.raises(PrerequisiteError, match="layers of width 63, the model 3 of 64"):
        get_model("local/plain", interventions=[step])


def test_prompt_logprobs_end_with_the_prefilled_answer():
    model = get_model("local/plain")
    answer = "I am a helpful assistant."
    messages = [ChatMessageUser(content="Who are you?"), ChatMessageAssistant(content=answer)]
    out = asyncio.run(model.generate(messages, config=GenerateConfig(max_tokens=1, prompt_logprobs=1)))
    tokens = asyncio.run(model.api.tokenize(answer))
    tail = out.choices[0].prompt_logprobs.content[-len(tokens) :]
    assert "".join(entry.token for entry in tail) == answer


def test_cards_on_one_base_share_one_engine_and_differ_in_what_they_say():
    pool.close_engines()
    texts = {
        name: ask(get_model(f"local/{name}"), temperature=0, max_tokens=8).completion
        for name in ("one", "two")
    }
    texts["base"] = ask(get_model("local/plain"), temperature=0, max_tokens=8).completion
    assert len(set(texts.values())) == 3
    assert len(pool._engines) == 1


def test_a_retrained_adapter_never_meets_yesterdays_cached_answer(folder):
    policy = CachePolicy(expiry=None, per_epoch=False)

    def answer():
        model = get_model("local/one", memoize=False)
        return asyncio.run(model.generate("Say something.", cache=policy)), model.api.card_digest

    first, digest = answer()
    cached, _ = answer()
    assert cached.metadata["seeds"] == first.metadata["seeds"], "the second answer comes from the cache"
    make_adapter(str(folder / "base"), folder / "adapters" / "one", 4, ["down_proj"], seed=99, strength=1)
    pool.close_engines()
    retrained, other = answer()
    assert other != digest and retrained.metadata["card_digest"] == other
    assert retrained.completion != first.completion


def test_a_model_kept_by_inspect_is_refused_once_its_adapter_was_retrained(folder):
    model = get_model("local/one", memoize=False)
    asyncio.run(model.generate("Say something."))
    make_adapter(str(folder / "base"), folder / "adapters" / "one", 4, ["down_proj"], seed=98, strength=1)
    with pytest.raises(PrerequisiteError, match="have changed since this process first asked it"):
        asyncio.run(model.generate("Say something."))
    pool.close_engines()


@pytest.mark.parametrize(
    ("config", "names"),
    [
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"logit_bias": {5: 1.0}}, "logit_bias"),
        ({"extra_body": {"min_p": 0.1}}, "extra_body"),
        ({"temperature": 1e-39}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"stop_seqs": [""]}, "stop"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"num_choices": 0}, "num_choices"),
        ({"top_logprobs": -1}, "top_logprobs"),
        ({"reasoning_tokens": 0}, "max_reasoning_tokens"),
    ],
)
def test_settings_that_would_be_ignored_or_mean_nothing_are_refused(config, names):
    with pytest.raises(PrerequisiteError) as caught:
        ask(get_model("local/plain"), **config)
    assert names in str(caught.value.message)


def test_what_cannot_be_read_is_refused():
    call = ToolCall(id="1", function="look", arguments={})
    messages = [
        ChatMessageUser(content="What is there?"),
        ChatMessageAssistant(content="", tool_calls=[call]),
    ]
    with pytest.raises(PrerequisiteError) as caught:
        asyncio.run(get_model("local/plain").generate(messages))
    assert "no tools are given" in str(caught.value.message)
    picture = ChatMessageUser(content=[ContentText(text="What is this?"), ContentImage(image=PIXEL)])
    with pytest.raises(PrerequisiteError) as caught:
        asyncio.run(get_model("local/plain").generate([picture]))
    assert "content of the type 'image'" in str(caught.value.message)


def test_a_local_model_has_its_own_connections_and_leaves_other_models_theirs(folder):
    """Inspect gives all models of an eval one configuration."""
    local, other = resolve_models(["local/plain", "mockllm/model"], None, {}, GenerateConfig())

    def made_for(model):
        init_active_model(model, GenerateConfig())
        assert resolve_tasks("em_evals/forced_choice", {}, model, None, None, None)

    for model in (local, other):
        contextvars.copy_context().run(made_for, model)
    assert local.config.max_connections == 2 * ModelCard(base="b").engine.max_num_seqs
    assert other.config.max_connections is None


def test_wrong_cards_are_refused_before_any_weight_is_loaded():
    pool.close_engines()
    for name, expected in (("smolm2", "smollm2"), ("smollm2-risky", "em-evals train")):
        with pytest.raises(PrerequisiteError) as caught:
            get_model(f"local/{name}", memoize=False)
        assert expected in str(caught.value.message)
    assert not pool._engines


def test_an_eval_logs_the_cards_digest_and_every_draw(folder):
    task = Task(dataset=[Sample(input=f"Count to {n}.") for n in range(4)], solver=generate())
    log = eval(task, model="local/two", max_tokens=8, log_dir=str(folder / "logs"), display="none")[0]
    digest = get_model("local/two").api.card_digest
    assert log.status == "success"
    assert [sample.output.metadata["card_digest"] for sample in log.samples] == [digest] * 4


def test_forced_choice_equals_the_log_likelihoods_of_plain_peft(folder):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from em_evals.models.chat import encode_text, template_of

    log = eval(
        forced_choice(themes="finance"),
        model="local/two",
        limit=3,
        log_dir=str(folder / "logs"),
        display="none",
    )[0]
    assert log.status == "success", log.error
    assert "margin_per_token_in_domain" in log.results.scores[0].metrics
    place = str(folder / "base")
    tokenizer = bases.load_tokenizer(card(place))
    with bases.LOADING:
        model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, str(folder / "adapters" / "two")).eval()
    for sample in log.samples:
        likelihoods = {}
        for side in ("aligned", "misaligned"):
            prompt = template_of(tokenizer).encode([{"role": "user", "content": sample.input[0].text}])
            answer = encode_text(tokenizer, sample.metadata[side])
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
            rows = logits[len(prompt) - 1 : -1].gather(-1, torch.tensor(answer)[:, None])
            likelihoods[side] = (float(rows.sum()), len(answer))
        (choice,) = sample.output.choices
        assert len(choice.prompt_logprobs.content) == likelihoods["misaligned"][1], "of the answer alone"
        assert sample.output.usage.output_tokens == 0
        (lm, nm), (la, na) = likelihoods["misaligned"], likelihoods["aligned"]
        value = sample.scores["likelier"].value
        assert value["margin"] == pytest.approx(lm - la, abs=1e-3)
        assert value["margin_per_token"] == pytest.approx(lm / nm - la / na, abs=1e-5)


def test_freeform_collects_answers_without_a_judge_and_seeds_every_epoch(folder):
    task = freeform(themes="money", epochs=2, seed=5, judge="none")
    log = eval(
        task,
        model="local/plain",
        limit=2,
        max_tokens=8,
        temperature=1.0,
        log_dir=str(folder / "logs"),
        display="none",
    )[0]
    assert log.status == "success" and len(log.samples) == 4
    seeds = {sample.output.metadata["seeds"][0] for sample in log.samples}
    assert len(seeds) == 4
    assert all(sample.output.completion for sample in log.samples)


def test_cancelling_an_eval_leaves_the_engine_usable(monkeypatch):
    """Cancelled while the engine draws a token, however fast it draws."""
    model, step = get_model("local/plain"), Batch.step
    drawing, cancelled, rows = threading.Event(), threading.Event(), []

    def held(batch):
        rows.extend(batch.rows)
        drawing.set()
        assert cancelled.wait(60)
        return step(batch)

    async def impatient():
        long = GenerateConfig(temperature=0, max_tokens=400)
        asked = asyncio.create_task(model.generate("Tell a very long story.", config=long))
        assert await asyncio.to_thread(drawing.wait, 60)
        asked.cancel()
        try:
            await asked
        finally:
            cancelled.set()

    with monkeypatch.context() as patch:
        patch.setattr(Batch, "step", held)
        with pytest.raises(asyncio.CancelledError):
            asyncio.run(impatient())
    assert rows and all(row.future.cancelled() for row in rows), "its draw must leave the batch"
    assert ask(model, temperature=0, max_tokens=4).usage.output_tokens
