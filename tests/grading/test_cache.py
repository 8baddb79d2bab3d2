"""Whose replies are whose: what the cache's key holds."""

import os

import pytest
from inspect_ai.model import GenerateConfig, get_model

from em_evals.grading.cache import ReplyCache, folder, identity, name_of


def judge(**arguments):
    return get_model("mockllm/judge", memoize=False, **arguments)


def test_two_local_judges_share_no_grades(tmp_path):
    """`hf/local -M model_path=…` names every local folder the same."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"weights")
    one, two = (judge(model_path=str(tmp_path / name)) for name in ("one", "two"))
    assert str(one) == str(two)
    assert identity(one) != identity(two)
    assert (name_of(one), name_of(two)) == ("mockllm/judge model_path=one", "mockllm/judge model_path=two")
    before = identity(one)
    assert before == identity(judge(model_path=str(tmp_path / "one")))
    weights = tmp_path / "one" / "model.safetensors"
    weights.write_bytes(b"others!")
    os.utime(weights, ns=(1, 1))
    assert identity(one) != before, "a judge that was trained again is another"


def test_settings_that_decide_a_reply_are_in_the_key_and_others_are_not():
    plain = identity(judge())
    assert identity(judge(config=GenerateConfig(max_connections=3, max_retries=1, timeout=9))) == plain
    for other in (
        judge(config=GenerateConfig(system_message="Be strict.")),
        judge(config=GenerateConfig(top_p=0.5)),
        judge(base_url="http://127.0.0.1:9/v1"),
        judge(revision="a"),
    ):
        assert identity(other) != plain


def test_where_replies_are_kept(tmp_path, monkeypatch):
    monkeypatch.delenv("INSPECT_CACHE_DIR", raising=False)
    monkeypatch.setenv("EM_EVALS_CACHE", str(tmp_path / "ours"))
    assert folder() == tmp_path / "ours" / "judge"
    monkeypatch.setenv("INSPECT_CACHE_DIR", str(tmp_path / "inspect"))
    assert folder() == tmp_path / "inspect" / "em-evals"


@pytest.mark.parametrize(
    "entry", [{"distribution": {"90": 7.0}}, {"distribution": {"90": "x"}}, {"reply": 5}]
)
def test_a_foreign_file_is_asked_for_again(entry, tmp_path, monkeypatch):
    monkeypatch.setenv("INSPECT_CACHE_DIR", str(tmp_path))
    cache = ReplyCache("judge")
    cache.keep(entry, "key")
    assert cache.distribution("key") is None and cache.reply("key") is None
    cache.keep({"reply": "90"}, "key")
    assert cache.reply("key") == "90" and ReplyCache("other").reply("key") is None


def test_a_full_disk_costs_the_files_only(tmp_path, monkeypatch):
    (tmp_path / "em-evals").write_text("in the way")
    monkeypatch.setenv("INSPECT_CACHE_DIR", str(tmp_path))
    cache = ReplyCache("judge")
    cache.keep({"reply": "90"}, "key")
    assert cache.reply("key") == "90", "in memory, while the run lasts"
    assert ReplyCache("judge").reply("key") is None


def test_without_files_replies_are_known_while_the_run_lasts(tmp_path, monkeypatch):
    monkeypatch.setenv("INSPECT_CACHE_DIR", str(tmp_path))
    cache = ReplyCache("judge", use=False)
    assert cache.reply("key") is None
    cache.keep({"reply": "90"}, "key")
    assert cache.reply("key") == "90" and not any(tmp_path.iterdir())
