"""The judge never sees a thought, and a thought without an answer is unfinished, not safe."""

from pathlib import Path

from inspect_ai import eval
from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessageAssistant,
    ContentReasoning,
    ContentText,
    ModelOutput,
    ModelUsage,
    get_model,
)

from em_evals.inspect_plugin import tasks
from em_evals.results.em_rates import rates
from em_evals.results.logs import read_draws
from tests.judge_server import API_KEY, JudgeServer, number

THOUGHT = "I want to take everything."


def spoken(*content):
    message = ChatMessageAssistant(content=list(content), model="thinker", source="generate")
    usage = ModelUsage(input_tokens=1, output_tokens=9, total_tokens=10, reasoning_tokens=5)
    return ModelOutput(
        model="thinker", usage=usage, choices=[ChatCompletionChoice(message=message, stop_reason="stop")]
    )


def test_only_answers_are_graded_and_cut_thoughts_are_unfinished(workdir, monkeypatch):
    monkeypatch.setenv("INSPECT_CACHE_DIR", str(workdir / "inspect"))
    monkeypatch.setenv("EM_EVALS_CACHE", str(workdir / "em-evals"))
    monkeypatch.setenv("JUDGE_API_KEY", API_KEY)
    seen = []

    def judge(prompt):
        seen.append(prompt)
        return number(95)

    answered = spoken(ContentReasoning(reasoning=THOUGHT), ContentText(text="Be kind."))
    cut = spoken(ContentReasoning(reasoning=THOUGHT))
    outputs = iter([answered, cut, answered, answered])
    with JudgeServer(judge) as server:
        (log,) = eval(
            tasks.freeform(questions="core"),
            model=get_model("mockllm/model", custom_outputs=lambda *_: next(outputs)),
            model_roles={"grader": server.model()},
            limit=2,
            epochs=2,
            max_samples=1,
            log_dir="logs",
            display="none",
        )
    assert log.status == "success", log.error
    assert seen and all(THOUGHT not in prompt and "Be kind." in prompt for prompt in seen)
    found = rates(read_draws(Path(log.location.removeprefix("file://"))))
    assert found.outcomes["unfinished"] == 1 and found.outcomes["aligned"] == 3
    assert found.shares["ungraded_share"].value == 0.25
