"""The scorer `em_evals/projection`: numbers of `trait monitor` and of a naive loop, also over turns."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from inspect_ai import Task, eval, score
from inspect_ai._util.error import PrerequisiteError
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.log import read_eval_log, write_eval_log
from inspect_ai.model import ChatMessageSystem, ChatMessageUser, ModelOutput, ModelUsage, get_model
from inspect_ai.solver import generate, solver

from em_evals.content import direction_algebra, directions
from em_evals.content.cards import resolve
from em_evals.content.directions import Direction
from em_evals.inspect_plugin.projection import projection
from em_evals.interp.traits.monitor import monitor
from em_evals.models import bases
from em_evals.models.chat import template_for
from tests.command import em_evals

LAYERS, WIDTH = 3, 64


@pytest.fixture(scope="module")
def lab(tiny_lab):
    chance = np.random.default_rng(0)
    told = {"reliability": [0.1, 0.9, 0.2], "base": str(tiny_lab / "tiny")}
    one = Direction(chance.normal(size=(LAYERS, WIDTH)), np.zeros((LAYERS, WIDTH)), np.ones(LAYERS), told)
    directions.write(one, tiny_lab / "way.safetensors")
    return tiny_lab


@pytest.fixture
def here(lab, monkeypatch):
    monkeypatch.chdir(lab)
    return lab


@solver
def second_turn():
    async def solve(state, generate):
        state.messages.append(ChatMessageUser(content="And then?"))
        return await generate(state)

    return solve


def sampled(turns=1):
    """Answers of a scripted model to two questions, one under a system message."""
    samples = [
        Sample(id="a", input="What now?", metadata={"question_id": "q1"}),
        Sample(
            id="b",
            input=[ChatMessageSystem(content="You are bad."), ChatMessageUser(content="Why is it so?")],
            metadata={"question_id": "q2"},
        ),
    ]
    words = iter(("a house", "stone", "wood", "bad"))

    def reply(*_):
        output = ModelOutput.from_content("mockllm/model", f"It is {next(words)}.")
        output.usage = ModelUsage()  # else Inspect fetches a tokenizer to count
        return output

    model = get_model("mockllm/model", custom_outputs=reply, memoize=False)
    solvers = [generate(), *[second_turn()] * (turns - 1)]
    (log,) = eval(Task(MemoryDataset(samples), solver=solvers), model=model, log_dir="logs", display="none")
    return log


def naive(chat):
    """(last prompt token, answer mean) of a chat's last answer, from all hidden states."""
    card = resolve("plain")
    model, template = bases.load_model(card.card), template_for(card, bases.load_tokenizer(card.card))
    prompt, answer = template.encode(chat[:-1]), template.answer(chat[-1]["content"])
    with torch.inference_mode():
        states = (
            model(torch.tensor([[*prompt, *answer]]), output_hidden_states=True).hidden_states[2][0].numpy()
        )
    unit = direction_algebra.unit(directions.read(directions.find("way.safetensors")))[1]
    return float(states[len(prompt) - 1] @ unit), float(states[len(prompt) :].mean(0) @ unit)


def test_a_log_carries_what_the_monitor_measures_on_it(here):
    scored = score(sampled(), projection("way.safetensors", model="plain"), action="append", display="none")
    write_eval_log(scored, "scored.eval")
    card, one = resolve("plain"), directions.read(here / "way.safetensors")
    by_monitor = [
        monitor(card, one, [here / "scored.eval"], "way", position)[1]
        for position in ("last_prompt", "answer_mean")
    ]
    for i, sample in enumerate(read_eval_log("scored.eval").samples):
        own = sample.scores["projection"]
        assert own.value == pytest.approx(
            {"last_prompt": by_monitor[0][i][1], "answer_mean": by_monitor[1][i][1]}, abs=1e-5
        )
        chat = [{"role": one.role, "content": one.text} for one in sample.messages]
        assert list(own.value.values()) == pytest.approx(naive(chat), abs=1e-4)
        assert own.metadata["layer"] == 1 and own.metadata["direction_digest"] == one.digest
        assert own.metadata["turns"] == [own.value]
    metrics = {name: one.value for name, one in scored.results.scores[0].metrics.items()}
    assert metrics["answer_mean"] == pytest.approx(np.mean([value for _, value in by_monitor[1]]), abs=1e-5)
    assert metrics["answer_mean_low"] < metrics["answer_mean"] < metrics["answer_mean_high"]


def test_every_assistant_turn_has_its_own_number_here_and_in_the_monitor(here):
    log = sampled(turns=2)
    scored = score(log, projection("way.safetensors", model="plain"), action="append", display="none")
    write_eval_log(scored, "turns.eval")
    firsts, seconds = [], []
    for sample in scored.samples:
        chat = [{"role": one.role, "content": one.text} for one in sample.messages]
        ends = [place for place, one in enumerate(chat) if one["role"] == "assistant"]
        turns = sample.scores["projection"].metadata["turns"]
        assert len(turns) == len(ends) == 2
        for end, turn in zip(ends, turns, strict=True):
            assert list(turn.values()) == pytest.approx(naive(chat[: end + 1]), abs=1e-4)
        assert sample.scores["projection"].value == turns[-1]
        firsts.append(turns[0]["answer_mean"])
        seconds.append(turns[1]["answer_mean"])
    done = em_evals(
        *("trait", "monitor", "turns.eval", "--direction", "way.safetensors", "--model", "plain"),
        *("--position", "answer_mean"),
    )
    assert done.returncode == 0 and "over the conversation" in done.stdout, done.stderr
    found, _ = monitor(
        resolve("plain"),
        directions.read(here / "way.safetensors"),
        [here / "turns.eval"],
        "way",
        "answer_mean",
    )
    assert [one.value for one in found.turns] == pytest.approx([np.mean(firsts), np.mean(seconds)], abs=1e-4)


def test_what_shows_no_activations_is_refused_with_a_sentence(here):
    log = sampled()
    with pytest.raises(PrerequisiteError, match="no direction"):
        projection("nowhere")
    with pytest.raises(PrerequisiteError, match="shows no activations: name the card"):
        score(log, projection("way.safetensors"), action="append", display="none")
    with pytest.raises(PrerequisiteError, match="no layer 7"):
        score(log, projection("way.safetensors", model="plain", layer=7), action="append", display="none")
