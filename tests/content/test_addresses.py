"""Passwords in URLs: refused in files of ours without being quoted, and never printed."""

from pathlib import Path

import pytest

from em_evals import shown
from em_evals.content import cards, judge_cards
from em_evals.data import catalogue
from em_evals.errors import EmEvalsError

SECRET = "hunter2"
URLS = [f"https://me:{SECRET}@host/v1", f"http://{SECRET}@host:8000", f"https://[me:{SECRET}@host/v1"]


@pytest.mark.parametrize("url", URLS)
def test_a_password_in_a_url_is_refused_and_not_quoted(url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("adapters/data").mkdir(parents=True)
    Path("card.yaml").write_text(f"base: a/b\nbackend: server\nbase_url: '{url}'\n")
    Path("judge.yaml").write_text(f"model: openai/a\nbase_url: '{url}'\n")
    Path("adapters/data/datasets.yaml").write_text(f"mine:\n  url: '{url}'\n")
    server = {"base": "a/b", "backend": "server", "base_url": url}
    Path("plain.yaml").write_text("base: a/b\n")
    for read, where in (
        (lambda: cards.resolve("card.yaml"), "card.yaml:3"),
        (lambda: cards.resolve("plain.yaml", server), "-M base_url"),
        (lambda: judge_cards.load("judge.yaml"), "judge.yaml:2"),
        (catalogue.read, "datasets.yaml:2"),
    ):
        with pytest.raises(EmEvalsError, match="a user or a password") as caught:
            read()
        assert where in str(caught.value) and SECRET not in str(caught.value)


def test_addresses_without_passwords_are_taken(tmp_path):
    for url in ("http://host:8000", "https://host/a@b", "https://[::1]:80/v1?api-version=1"):
        (tmp_path / "judge.yaml").write_text(f"model: openai/a\nbase_url: '{url}'\n")
        assert judge_cards.load(str(tmp_path / "judge.yaml")).base_url == url


@pytest.mark.parametrize("url", URLS)
def test_what_is_printed_holds_no_password_of_a_url(url):
    said = f"ConnectError: no answer from {url}, nor from http://host/a@b"
    for show in (shown.text, shown.line, shown.sentence):
        assert SECRET not in show(said) and show(said).endswith("nor from http://host/a@b")
        assert show(show(said)) == show(said)
