"""Answers that an earlier run drew are graded without the model, and only where nothing differs."""

from types import SimpleNamespace

import anyio
import pytest
import yaml

pytest.importorskip("torch")

from inspect_ai import eval
from inspect_ai.log import read_eval_log
from inspect_ai.model import ChatMessageUser, GenerateConfig

from em_evals.errors import EmEvalsError
from em_evals.inspect_plugin import drawn, provider
from tests.tiny_models import tiny


def ask(log_dir: str, **card):
    """Draw twice for each of two questions; a card's field makes a new model in Inspect's memory of models."""
    (log,) = eval(
        "em_evals/freeform",
        model="local/mine",
        model_args=card,
        task_args={"judge": "none", "themes": "money"},
        epochs=2,
        max_tokens=3,
        limit=2,
        log_dir=log_dir,
        display="none",
    )
    assert log.status == "success"
    return log


def outputs(log):
    return {
        (one.id, one.epoch): (one.output.completion, one.output.metadata, one.output.usage)
        for one in log.samples
    }


def test_answers_are_those_that_were_drawn_and_anything_else_is_refused(workdir, monkeypatch):
    card = {"base": tiny("llama", workdir / "base"), "engine": {"dtype": "float32", "device": "cpu"}}
    (workdir / "adapters").mkdir()
    (workdir / "adapters" / "mine.yaml").write_text(yaml.safe_dump(card))
    first = ask("draws")
    monkeypatch.setenv(drawn.VARIABLE, str(workdir / "draws"))
    with monkeypatch.context() as patched:
        patched.setattr(provider, "engine_for", lambda *_: pytest.fail("the model was asked"))
        patched.setattr(provider, "reserve", lambda *_: pytest.fail("an engine was reserved"))
        again = ask("again", max_num_seqs=3)
    assert outputs(again) == outputs(first), "with the seeds that were drawn"

    sample = read_eval_log(first.location, resolve_attachments=True).samples[0]
    (call,) = [event for event in sample.events if event.event == "model"]
    api, other = (
        SimpleNamespace(model_name="mine", card_digest=name)
        for name in (first.eval.metadata["card_digest"], "other")
    )

    def replayed(model=api, messages=call.input, config=call.config, epoch=sample.epoch):
        active = SimpleNamespace(sample=SimpleNamespace(id=sample.id), epoch=epoch)
        monkeypatch.setattr(drawn, "sample_active", lambda: active)
        return anyio.run(drawn.replayed, model, messages, config)

    assert replayed().completion == sample.output.completion
    busy = call.config.model_copy(update={"max_connections": 7})
    assert replayed(config=busy).completion == sample.output.completion
    assert replayed(SimpleNamespace(model_name="judge")) is None, "another model, a judge perhaps, is asked"
    for changed, sentence in [
        ({"config": GenerateConfig(max_tokens=4)}, "was drawn with another prompt or other settings"),
        ({"messages": [ChatMessageUser(content="?")]}, "was drawn with another prompt or other settings"),
        ({"epoch": 3}, "epoch 3: nothing was drawn"),
        ({"model": other}, "was drawn from another model than mine is now"),
    ]:
        with pytest.raises(EmEvalsError, match=sentence):
            replayed(**changed)
    monkeypatch.setenv(drawn.VARIABLE, str(workdir))
    with pytest.raises(EmEvalsError, match="no finished log is in it"):
        drawn.covers("mine")
