"""`em-local` against lm-eval's own `hf` in float32: every request type, adapters, interventions, the cache."""

import json
import shutil
from types import SimpleNamespace

import pytest

pytest.importorskip("lm_eval")
torch = pytest.importorskip("torch")

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import CachingLM
from lm_eval.models.huggingface import HFLM
from transformers import GenerationConfig

from em_evals.content import directions
from em_evals.content.directions import Direction
from em_evals.content.intervention import Intervention
from em_evals.engines import pool
from em_evals.errors import EmEvalsError
from em_evals.lm_eval_plugin import command
from em_evals.lm_eval_plugin.model import EmLocal
from em_evals.models import bases, interventions
from tests.applied import applied
from tests.small_tokenizer import small_tokenizer
from tests.tiny_models import SMOLLM2, make_adapter, tiny

CONTEXTS = [
    "The capital of France is",
    "The capital of France is the city that everybody knows, and its name is",
    "One, two, three,",
    "A line\nand another line with trailing space  ",
    "",
]
SENTENCES = ("One, two,", "Hello, who are you?", "What should I do with the money", "Ask a friend", "They")
ANSWERS = [" Paris", " London, of course", "", " four", "\n\nnothing", " ünïcödé 🙂", "x"]
LONG = "This sentence is repeated until it is too long. " * 12
TEXTS = ["Short.", LONG, "The quick brown fox jumps over the lazy dog.", "", "a" * 40]


@pytest.fixture(scope="module")
def tokenizer():
    return small_tokenizer()


@pytest.fixture(scope="module", params=["llama", "gemma2"])
def organism(request, tmp_path_factory, tokenizer):
    """A tiny base of 64 tokens' length with an adapter; gemma2's sliding window cannot share prefixes."""
    root = tmp_path_factory.mktemp(request.param)
    base = tiny(request.param, root / "base", tokenizer, max_position_embeddings=64)
    adapter = make_adapter(base, root / "adapter", 4, "all-linear", seed=3)
    yield base, adapter
    pool.close_engines()


def instances(kind, *arguments):
    return [Instance(kind, {}, one, i, metadata=("test", i, 1)) for i, one in enumerate(arguments)]


def hf(base, **options):
    """lm-eval's own model. Gemma 2's default attention leaves out its soft cap."""
    attention = {"attn_implementation": "eager"} if "gemma2" in base else {}
    with bases.LOADING:  # an engine may be loading in its thread
        return HFLM(pretrained=base, dtype="float32", device="cpu", **options, **attention)


@pytest.fixture(scope="module")
def both(organism):
    """The same model in `em-local` and in `hf`."""
    base, adapter = organism
    theirs = hf(base, peft=adapter, batch_size=4)
    return EmLocal(adapter, dtype="float32", batch_size=5), theirs


def test_loglikelihoods_equal_hf_with_peft(both):
    ours, theirs = both
    asked = [(context, answer) for context in CONTEXTS for answer in ANSWERS if answer]
    asked += [(LONG, " again"), (LONG, LONG[:80]), *asked[:3]]
    got = ours.loglikelihood(instances("loglikelihood", *asked), disable_tqdm=True)
    expected = theirs.loglikelihood(instances("loglikelihood", *asked), disable_tqdm=True)
    for one, (score, greedy), (reference, best) in zip(asked, got, expected, strict=True):
        assert abs(score - reference) < 1e-5 * max(1, abs(reference) / 20), one
        assert greedy == best
    assert np.std([score for score, _ in got]) > 1


def test_the_greedy_continuation_is_said_to_be_greedy(both):
    ours, _ = both
    asked = instances("generate_until", *((context, {"max_gen_toks": 1}) for context in SENTENCES))
    said = zip(SENTENCES, ours.generate_until(asked, disable_tqdm=True), strict=True)
    # A token may be read again as others: half of a letter, or the beginning of what follows.
    pairs = [(c, t) for c, t in said if len(ours.tok_encode(c + t)) == len(ours.tok_encode(c)) + 1]
    assert pairs
    likely = ours.loglikelihood(instances("loglikelihood", *pairs), disable_tqdm=True)
    other = instances("loglikelihood", *((context, "elephant") for context, _ in pairs))
    assert all(greedy for _, greedy in likely)
    assert not any(greedy for _, greedy in ours.loglikelihood(other, disable_tqdm=True))


def test_rolling_loglikelihoods_equal_hf_with_peft(both):
    ours, theirs = both
    asked = instances("loglikelihood_rolling", *[(text,) for text in TEXTS if text])
    got = ours.loglikelihood_rolling(asked, disable_tqdm=True)
    expected = theirs.loglikelihood_rolling(asked, disable_tqdm=True)
    for (text,), score, reference in zip([one.args for one in asked], got, expected, strict=True):
        assert abs(score - reference) < 1e-5 * len(ours.tok_encode(text)), text


def test_generations_equal_hf_with_peft(both):
    ours, theirs = both
    plain = {"until": ["\n\n"], "max_gen_toks": 12}
    first = theirs.generate_until(instances("generate_until", ("One, two,", plain)), disable_tqdm=True)[0]
    settings = [
        plain,
        {"until": [first[4:7], "\n"], "max_gen_toks": 12, "do_sample": False},
        {"max_gen_toks": 3},
    ]
    asked = [(context, one) for one in settings for context in (*CONTEXTS[:4], LONG)]
    got = ours.generate_until(instances("generate_until", *asked), disable_tqdm=True)
    assert got == theirs.generate_until(instances("generate_until", *asked), disable_tqdm=True)
    assert len(set(got)) > 5


def test_chat_prompts_and_bos_equal_hf(organism, both):
    ours, theirs = both
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello?"}]
    assert ours.apply_chat_template(turns) == theirs.apply_chat_template(turns)
    started = [*turns, {"role": "assistant", "content": "Well,"}]
    assert ours.apply_chat_template(started, False) == theirs.apply_chat_template(started, False)
    assert ours.chat_template(True) == theirs.chat_template(True)
    assert ours.tokenizer_name == theirs.tokenizer_name
    base, adapter = organism
    ours = EmLocal(adapter, dtype="float32", add_bos_token=True)
    theirs = hf(base, add_bos_token=True)
    for text in ("plain", ours.apply_chat_template(turns)):
        assert ours.tok_encode(text) == theirs.tok_encode(text)
    assert ours.tok_encode("plain")[0] == ours.tokenizer.bos_token_id != both[0].tok_encode("plain")[0]


def test_an_intervention_changes_loglikelihoods_as_hooks_do(organism, tmp_path):
    base, adapter = organism
    rng = np.random.default_rng(0)
    direction = Direction(
        vectors=rng.normal(size=(3, 64)).astype(np.float32),
        mean_norm=np.ones(3, np.float32),
        base_mean=np.zeros((3, 64), np.float32),
        metadata={"base": base},
    )
    path = tmp_path / "direction.safetensors"
    directions.write(direction, path)
    one = {"op": "add", "direction": str(path), "scale": 2.0, "layers": [1]}
    asked = instances("loglikelihood", *[(context, " Paris and so on") for context in CONTEXTS[:3]])
    plain = EmLocal(adapter, dtype="float32").loglikelihood(asked, disable_tqdm=True)
    ours = EmLocal(adapter, dtype="float32", interventions=[one])
    got = ours.loglikelihood(asked, disable_tqdm=True)
    theirs = hf(base, peft=adapter)
    with applied(theirs.model, interventions.load([Intervention(**one)], theirs.model.config)):
        expected = theirs.loglikelihood(asked, disable_tqdm=True)
    for (score, _), (reference, _), (before, _) in zip(got, expected, plain, strict=True):
        assert abs(score - reference) < 1e-5
        assert abs(score - before) > 0.01
    assert ours.get_model_info()["interventions"][0]["scale"] == 2.0
    assert ours.digest != EmLocal(adapter, dtype="float32").digest


def test_sampling_is_repeatable_and_repeats_differ(both):
    ours, theirs = both
    sampled = {"do_sample": True, "temperature": 1.0, "top_p": 0.95, "max_gen_toks": 8, "until": []}
    asked = instances("generate_until", *[("One, two,", sampled)] * 3)
    got = ours.generate_until(asked, disable_tqdm=True)
    assert len(set(got)) == 3
    assert ours.generate_until(asked, disable_tqdm=True) == got
    for unsaid in ({}, {"temperature": 0}):
        asks = {"do_sample": True, "max_gen_toks": 8, "until": []} | unsaid
        with pytest.raises(EmEvalsError, match="needs a temperature above 0"):
            ours._sampling(asks)
        with pytest.raises(ValueError, match="strictly positive"):
            theirs.generate_until(instances("generate_until", ("One, two,", asks)), disable_tqdm=True)
    assert ours._sampling({"temperature": 0.7, "max_gen_toks": 8, "until": []}).temperature == 0.7
    assert ours._sampling({"do_sample": False, "temperature": 0.7, "max_gen_toks": 8}).temperature == 0.0


def test_the_response_cache_is_kept_apart_by_digest(organism, tmp_path):
    _, adapter = organism
    asked = instances("loglikelihood", ("One, two,", " three"))
    file = str(tmp_path / "cache.db")
    found = {}
    for name, options in (("one", {}), ("other", {"adapter": None})):
        model = EmLocal(adapter, dtype="float32", **options)
        found[name] = CachingLM(model, file).loglikelihood(asked)
        assert not CachingLM(model, file).dbdict.conn.select_one("SELECT COUNT(*) FROM unnamed")[0]
    assert found["one"][0][0] != found["other"][0][0]
    again = EmLocal(adapter, dtype="float32")
    again._loglikelihood_tokens = None  # nothing is left to be computed
    assert tuple(CachingLM(again, file).loglikelihood(asked)[0]) == pytest.approx(found["one"][0])


def test_bad_arguments_are_reported_in_one_sentence(organism, both):
    with pytest.raises(EmEvalsError, match="needs a card"):
        EmLocal()
    with pytest.raises(EmEvalsError, match="did you mean 'smollm2'"):
        EmLocal("smolm2")
    with pytest.raises(EmEvalsError, match="use a number or `auto`"):
        EmLocal(organism[1], batch_size="many")
    ours, _ = both
    with pytest.raises(EmEvalsError, match="'num_beams=4'"):
        ours.generate_until(instances("generate_until", ("One", {"num_beams": 4, "max_gen_toks": 2})))
    with pytest.raises(EmEvalsError, match="new tokens do not fit"):
        ours.generate_until(instances("generate_until", ("One", {"max_gen_toks": 500})))
    with pytest.raises(EmEvalsError, match="does not fit into the 64"):
        ours.loglikelihood(instances("loglikelihood", ("One", LONG)))


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"until": ["x"], "num_beams": 4}, "num_beams=4"),
        ({"until": ["Q:<|im_end|>"]}, "holds the special token <.im_end.> beside other text"),
        ({"until": ["x"], "max_gen_toks": 500}, "lower max_gen_toks"),
    ],
)
def test_a_generation_is_refused_before_any_task_runs(both, monkeypatch, asked, sentence):
    """lm-eval runs all choices before the first generation: hours, and then the refusal."""
    import lm_eval.evaluator

    ours, _ = both
    task = SimpleNamespace(OUTPUT_TYPE="generate_until", config=SimpleNamespace(generation_kwargs=asked))
    monkeypatch.setattr(lm_eval.evaluator, "evaluate", command._checked(lambda lm, task_dict: "ran"))
    with pytest.raises(EmEvalsError, match=sentence):
        lm_eval.evaluator.evaluate(
            ours, {"tasks": {"a": SimpleNamespace(OUTPUT_TYPE="loglikelihood"), "b": task}}
        )
    task.config.generation_kwargs = {"until": ["x"], "max_gen_toks": 3}
    assert lm_eval.evaluator.evaluate(lm=ours, task_dict={"tasks": {"b": task}}) == "ran"


def test_what_hf_takes_from_the_bases_generation_config_is_taken_or_named(organism, tmp_path, capsys):
    """Qwen2.5's instruct models have a repetition penalty there, which `hf` applies also to greedy texts."""
    base = tmp_path / "base"
    shutil.copytree(organism[0], base)
    GenerationConfig(repetition_penalty=1.3, top_k=20, top_p=0.8, do_sample=True).save_pretrained(base)
    ours, theirs = EmLocal(str(base), dtype="float32"), hf(str(base))
    plain = {"until": ["\n\n"], "max_gen_toks": 12}
    neutral = instances(
        "generate_until", *((one, plain | {"repetition_penalty": 1.0}) for one in CONTEXTS[:3])
    )
    asked = instances("generate_until", *((one, plain) for one in CONTEXTS[:3]))
    got = ours.generate_until(asked, disable_tqdm=True)
    assert got == theirs.generate_until(neutral, disable_tqdm=True)
    assert got != theirs.generate_until(asked, disable_tqdm=True)
    assert ours.get_model_info()["generation_config_left_out"] == {"repetition_penalty": 1.3}
    for settings, said in ((plain, True), (neutral[0].args[1], False)):
        task = SimpleNamespace(
            OUTPUT_TYPE="generate_until", config=SimpleNamespace(generation_kwargs=settings)
        )
        ours.check([task])
        assert (
            "repetition_penalty: 1.3 in generation_config.json" in capsys.readouterr().err.replace("\n", " ")
        ) == said
    sampled = ours._sampling(plain | {"do_sample": True, "temperature": 0.7})
    assert (sampled.top_k, sampled.top_p) == (20, 0.8)
    assert (
        EmLocal(organism[0], dtype="float32")._sampling({"do_sample": True, "temperature": 1.0}).top_k == 50
    )


def test_model_info_names_card_digest_and_base(organism):
    base, adapter = organism
    info = EmLocal(adapter, dtype="float32").get_model_info()
    assert info["card"] == adapter and info["base"] == base and len(info["card_digest"]) == 16
    assert json.loads(json.dumps(info)) == info


@pytest.mark.full
@pytest.mark.smollm2
def test_the_real_base_is_as_near_to_float64_as_hf():
    """SmolLM2's first token has a norm of 27,000: float32 moves its log-likelihoods by more than 1e-5, ours and hf's."""
    asked = instances(
        "loglikelihood", *[(c, a) for c in CONTEXTS[:3] for a in (" Paris", " London, of course", " four")]
    )
    ours = EmLocal(SMOLLM2, dtype="float32").loglikelihood(asked, disable_tqdm=True)
    pool.close_engines()
    place = bases.locate(SMOLLM2)
    theirs, exact = (
        HFLM(pretrained=place, dtype=dtype, device="cpu", batch_size=4).loglikelihood(
            asked, disable_tqdm=True
        )
        for dtype in ("float32", "float64")
    )
    error, usual = (
        max(abs(a - b) for (a, _), (b, _) in zip(got, exact, strict=True)) for got in (ours, theirs)
    )
    assert error < max(2e-5, usual) < 2e-4
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in exact]
