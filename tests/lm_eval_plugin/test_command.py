"""lm-eval's own command with our model and tasks."""

import pytest

pytest.importorskip("lm_eval")
pytest.importorskip("torch")

import lm_eval.api.task
import lm_eval.tasks
from datasets import Dataset
from lm_eval.api.task import ConfigurableTask

from em_evals.errors import EmEvalsError
from em_evals.lm_eval_plugin import command


@pytest.fixture
def task(monkeypatch):
    """A task of lm-eval's with two documents, after our registration."""
    for place, name in ((lm_eval.tasks, "TaskManager"), (lm_eval.api.task, "load_from_cache")):
        monkeypatch.setattr(place, name, getattr(place, name))  # undone at the end
    command.register()
    documents = Dataset.from_list([{"q": "a rose", "a": 0}, {"q": "tea", "a": 1}])
    return ConfigurableTask(
        config={
            "task": "colors",
            "custom_dataset": lambda **_: {"test": documents},
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "{{q}}",
            "doc_to_target": "a",
            "doc_to_choice": ["red", "brown"],
        }
    )


@pytest.mark.parametrize("options", [{}, {"rewrite_requests_cache": True}])
def test_refuses_cached_prompts(task, options):
    with pytest.raises(EmEvalsError, match="`--cache_requests` can give this run the prompts of another"):
        task.build_all_requests(cache_requests=True, **options)


def test_builds_prompts_without_the_cache(task):
    task.build_all_requests()
    assert [one.args[0] for one in task.instances] == ["a rose", "a rose", "tea", "tea"]
