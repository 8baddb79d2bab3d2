"""Options of a card as people type them: what would have no effect, or another one, is a sentence before anything loads."""

import pytest

from em_evals.content.card_schema import ModelCard
from em_evals.content.cards import resolve
from em_evals.errors import EmEvalsError


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "adapters").mkdir()
    (tmp_path / "adapters" / "mine.yaml").write_text("base: org/base\n")


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"thinking": "low"}, "'low' would be what each thought begins with"),
        ({"thinking": "enabled"}, "say `on` or `off`"),
        ({"generation": {"max_reasoning_tokens": True}}, "this is a number, not true"),
        ({"generation": {"top_k": False}}, "this is a number, not false"),
        ({"train": {"data": ["x"], "learning_rate": True}}, "this is a number, not true"),
        ({"train": {"data": ["x"], "checkpoints": True}}, "this is a list of numbers, not true"),
        ({"train": {"data": ["x"], "method": {"layers": [True, 2]}}}, "this is a list of numbers, not true"),
        ({"interventions": [{"op": "scale_adapter", "scale": True}]}, "this is a number, not true"),
        (
            {"interventions": [{"op": "scale_adapter", "layers": [False]}]},
            "this is a list of numbers, not false",
        ),
        ({"train": {"data": ["x"], "start_from": ""}}, "'start_from': String should have at least 1"),
        ({"max_reasoning_tokens": 5}, "say generation.max_reasoning_tokens=…."),
        ({"optimizer": "sgd"}, "say train.optimizer=…."),
        ({"device_map": "cuda"}, "one device for all of it is `device: cuda`"),
        ({"device_map": {}}, "say auto, balanced, sequential"),
        ({"device_map": {"": "meta"}}, "the device of '' is 'meta'"),
        ({"device_map": {"": -1}}, "the device of '' is -1"),
        ({"device_map": "auto", "max_memory": {}}, "say it for each device"),
        ({"device_map": "auto", "max_memory": {"gpu": "1GiB"}}, "'gpu' is no device here"),
        ({"device_map": "auto", "max_memory": {"cpu": "lots"}}, "'lots' is no size for cpu"),
        ({"device_map": "auto", "max_memory": {"cpu": -1}}, "-1 is no size for cpu"),
    ],
)
def test_what_cannot_be_meant_is_one_sentence(fields, says):
    with pytest.raises(EmEvalsError) as caught:
        resolve("mine", fields)
    assert says in str(caught.value) and "literal[" not in str(caught.value)


def test_what_is_meant_is_kept():
    card = resolve("mine", {"device_map": "auto", "max_memory": {"0": "20 GB", "cpu": 0}}).card
    assert card.engine.max_memory == {0: "20GB", "cpu": 0}
    own = ModelCard.model_validate({"base": "b", "thinking": "Low tide,", "trust_remote_code": False})
    assert own.thinking == "Low tide," and own.trust_remote_code is False
