"""Inspect's `eval_set` leaves its last model active; a task that is made afterwards is for another."""

from inspect_ai import Task, eval_set
from inspect_ai.dataset import Sample
from inspect_ai.model import ModelOutput, ModelUsage, get_model
from inspect_ai.model._model import active_model
from inspect_ai.solver import generate

from em_evals.inspect_plugin.arguments import measured
from em_evals.inspect_plugin.tasks import freeform


def test_a_task_that_is_made_after_a_set_is_not_for_the_sets_model(workdir):
    from contextvars import copy_context

    def both():
        reply = ModelOutput.from_content("mockllm/model", "Hello.")
        reply.usage = ModelUsage()  # else the mock counts tokens with a vocabulary from the network
        model = get_model("mockllm/model", custom_outputs=[reply], memoize=False)
        # A digest as local/ models have: it must not get into the next task's log.
        model.api.card_digest = "0123"
        asked = Task(dataset=[Sample(input="Hi")], solver=generate())
        eval_set(asked, model=model, log_dir=str(workdir / "logs"), display="none")
        assert active_model() is not None, "this is what Inspect leaves behind"
        freeform()  # the judge is named when it is evaluated
        assert measured() == {}

    copy_context().run(both)
