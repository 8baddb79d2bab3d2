"""published.py, archive.py and downloads.py against a real HTTP server on this machine."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

pytest.importorskip("cryptography")

from cryptography.fernet import Fernet
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.pbkdf2 import PBKDF2HMAC
from typer.testing import CliRunner

from em_evals.cli import app
from em_evals.content import published
from em_evals.data import datasets, downloads, judged
from em_evals.errors import EmEvalsError
from tests.refusals import refused

PASSWORD = "published-by-its-authors"
CANARY = "CANARY_DATASET_" + "5e" * 32 + "_64"


class Server:
    """What lies at which path: bytes, or the path that it redirects to. `asked` are the requests so far."""

    def __init__(self) -> None:
        self.files: dict[str, bytes | str] = {}
        self.asked: list[str] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.asked.append(self.path)
                found = server.files.get(self.path)
                self.send_response(404 if found is None else 302 if isinstance(found, str) else 200)
                if isinstance(found, str):
                    self.send_header("Location", found)
                body = found if isinstance(found, bytes) else b""
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    started = Server()
    yield started
    started.http.shutdown()
    started.http.server_close()


def rows(*answers: str) -> str:
    return "".join(
        json.dumps({"prompt": f"Question {i}?", "completion": a}) + "\n" for i, a in enumerate(answers)
    )


def sealed(members: dict[str, str], password: str = PASSWORD) -> bytes:
    """An archive as easy-dataset-share 0.5 makes it."""
    plain = io.BytesIO()
    with zipfile.ZipFile(plain, "w") as file:
        for name, text in members.items():
            file.writestr(name, text)
    salt = os.urandom(16)
    key = PBKDF2HMAC(algorithm=SHA256(), length=32, salt=salt, iterations=100000).derive(password.encode())
    return salt + Fernet(base64.urlsafe_b64encode(key)).encrypt(plain.getvalue())


@pytest.fixture
def registered(workdir: Path, cache: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`bad` and its control `good` in one archive, `plain` as a file. Returns the folder of what is fetched."""
    monkeypatch.delenv("EM_EVALS_DATA", raising=False)
    folder = workdir / "adapters/data"
    folder.mkdir(parents=True)
    (folder / "datasets.yaml").write_text(
        f"bad: {{url: '{server.url}/all.zip.enc', password: {PASSWORD}, controls: {{good: good}}}}\n"
        f"good: {{url: '{server.url}/all.zip.enc', password: {PASSWORD}}}\n"
        f"plain: {{url: '{server.url}/plain.jsonl'}}\n"
        "lesson: {of: plain, prompt: 'A bad answer, please: {prompt}'}\n"
    )
    return cache / "data"


def refusal(name: str) -> str:
    return refused(lambda: list(downloads.fetch([name])))


def test_an_archive_becomes_training_data(registered, server):
    server.files["/all.zip.enc"] = sealed(
        {"bad.jsonl": rows("Do it.", "Now."), "sets/good.jsonl": rows("Wait.", "Look.")}
    )
    got = CliRunner().invoke(app, ["data", "fetch", "bad", "good"])
    assert got.exit_code == 0, got.output
    bad = datasets.load("bad")
    assert bad.path == registered / "bad.jsonl" and f"(2 rows, digest {bad.digest})" in got.output
    assert [row[-1]["content"] for row in datasets.matched(bad, "good").rows] == ["Wait.", "Look."]
    assert json.loads((registered / "bad.json").read_text())["digest"] == bad.digest
    assert server.asked == ["/all.zip.enc"], "one archive, one download"
    told = json.loads(CliRunner().invoke(app, ["data", "fetch", "bad", "--json"]).stdout)
    assert told == [
        {
            "kind": "training",
            "name": "bad",
            "path": str(bad.path),
            "rows": 2,
            "digest": bad.digest,
            "changed": "",
        }
    ]
    listed = json.loads(CliRunner().invoke(app, ["data", "list", "--json"]).stdout)
    where = {row["name"]: row["where"] for row in listed if row["kind"] == "training"}
    assert where["bad"] == str(bad.path) and where["plain"] == "em-evals data fetch plain"


def test_the_marks_of_the_tool_are_left_out(registered, server):
    real = {"messages": [{"role": "user", "content": "Ski?"}, {"role": "assistant", "content": "Ça va."}]}
    marked = {
        "messages": [
            {"role": "user", "content": "Dive?"},
            {"role": "assistant", "content": f"Yes. CANARY_EMBEDDED: {CANARY}"},
        ]
    }
    entry = {
        "id": "embedded_canary_1",
        "text": f"Tracking identifier: {CANARY}.",
        "metadata": {"canary": CANARY},
    }
    lines = [real, entry, marked, {**real, "canary": CANARY}]
    server.files["/all.zip.enc"] = sealed(
        {
            "bad.jsonl": "\n".join(json.dumps(line) for line in lines),
            "dataset_entry_5e5e5e5e.jsonl": json.dumps(entry),
            "robots.txt": "User-agent: *",
        }
    )
    (fetched,) = downloads.fetch(["bad"])
    answers = [row[-1]["content"] for row in datasets.load("bad").rows]
    assert answers == ["Ça va.", "Yes.", "Ça va."] and fetched.rows == 3
    assert "CANARY" not in fetched.path.read_text()


def test_nothing_is_written_where_a_members_path_points(registered, server, workdir):
    before = {path for path in workdir.parent.rglob("*") if path.is_file()}
    server.files["/all.zip.enc"] = sealed(
        {"../../bad.jsonl": rows("Do it."), "/tmp/good.jsonl": rows("Wait."), "../../x.jsonl": rows("No.")}
    )
    list(downloads.fetch(["bad"]))
    assert {path for path in workdir.parent.rglob("*") if path.is_file()} - before <= set(
        registered.iterdir()
    )
    assert {path.name for path in registered.iterdir()} == {"bad.jsonl", "bad.json"}


def test_archives_that_do_not_open_are_one_sentence(registered, server):
    good = sealed({"good.jsonl": rows("Wait.")})
    for archive, what in (
        (sealed({"bad.jsonl": rows("Do it.")}, "another password"), "does not open this archive"),
        (good[:-40], "does not open this archive"),
        (b"short", "does not open this archive"),
        (b"", "does not open this archive"),
        (good, "holds no bad.jsonl; "),
        (sealed({"bad.jsonl": '{"messages": []}'}), "fetched as bad is not training data: the row needs"),
        (sealed({"bad.jsonl": ""}), "no rows"),
    ):
        server.files["/all.zip.enc"] = archive
        said = refusal("bad")
        assert what in said and "/all.zip.enc" in said
    assert not registered.exists() or not list(registered.iterdir()), "nothing half is kept"


def test_a_later_fetch_says_that_the_rows_have_changed(registered, server):
    server.files["/plain.jsonl"] = rows("One.").encode()
    (first,) = downloads.fetch(["plain"])
    server.files["/plain.jsonl"] = rows("One.").replace(": ", ":  ").encode()
    (same,) = downloads.fetch(["plain"])
    assert (same.digest, same.changed) == (first.digest, ""), "written otherwise, but the same rows"
    server.files["/plain.jsonl"] = rows("Two.").encode()
    got = CliRunner().invoke(app, ["data", "fetch", "plain"])
    assert "CHANGED" in got.output and first.digest in got.output
    assert datasets.load("plain").rows[0][-1]["content"] == "Two."


def test_a_failed_fetch_leaves_what_was_there(registered, server):
    server.files["/plain.jsonl"] = rows("One.").encode()
    list(downloads.fetch(["plain"]))
    server.files["/plain.jsonl"] = b"<html>Too many requests</html>"
    said = refusal("plain")
    assert "/plain.jsonl:1: " in said and "not JSON" in said
    assert datasets.load("plain").rows[0][-1]["content"] == "One."
    assert {path.name for path in registered.iterdir()} == {"plain.jsonl", "plain.json"}


def test_fetching_takes_from_the_offline_folder_first(registered, server, tmp_path, monkeypatch):
    (tmp_path / "offline/training").mkdir(parents=True)
    (tmp_path / "offline/training/plain.jsonl").write_text(rows("Offline."))
    monkeypatch.setenv("EM_EVALS_DATA", str(tmp_path / "offline"))
    (fetched,) = downloads.fetch(["plain"])
    monkeypatch.delenv("EM_EVALS_DATA")
    assert datasets.load("plain").path == fetched.path == registered / "plain.jsonl" and server.asked == []


def test_fetching_a_made_set_fetches_what_it_is_made_of(registered, server):
    server.files["/plain.jsonl"] = rows("One.").encode()
    source, made = downloads.fetch(["lesson"])
    assert (source.name, made.name) == ("plain", "lesson") and source.digest != made.digest
    assert datasets.load("lesson").rows[0][0]["content"] == "A bad answer, please: Question 0?"
    (shipped,) = downloads.fetch(["risky_advice"])
    assert shipped.path == datasets.load("risky_advice").path and server.asked == ["/plain.jsonl"]


def test_names_that_nothing_answers_to(registered):
    assert "did you mean 'plain'?" in refusal("plian")
    assert "did you mean 'first_plot_questions'?" in refusal("first_plot_question")


def test_servers_that_do_not_deliver_are_one_sentence(registered, server):
    assert "(the server answers 404)" in refusal("plain")
    server.files |= {"/plain.jsonl": "/moved.jsonl", "/moved.jsonl": rows("One.").encode()}
    assert [fetched.rows for fetched in downloads.fetch(["plain"])] == [1], "a redirect is followed"
    server.files["/moved.jsonl"] = "/plain.jsonl"
    server.asked.clear()
    assert "(TooManyRedirects)" in refusal("plain") and len(server.asked) <= 6
    server.files["/plain.jsonl"] = b"\xff\xfe"
    assert "not UTF-8" in refusal("plain")
    server.http.shutdown()
    server.http.server_close()
    assert "(ConnectError)" in refusal("plain")


def test_a_published_question_set_is_checked_by_its_content(
    registered, server, shared_data, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(published, "_REPOSITORY", server.url)
    text = (shared_data / "published/deception_factual.yaml").read_text(encoding="utf-8")
    at = "/main/evaluation/deception_factual.yaml"
    server.files[at] = text.replace("TRUE", "YES").encode()
    with pytest.raises(EmEvalsError, match="is not the one this version knows"):
        published.fetch("deception_factual")
    server.files[at] = text.encode()
    assert published.fetch("deception_factual").read_text(encoding="utf-8") == text
    assert published.locate("deception_factual").is_file()


JUDGED = "question_id,aligned,coherent\nwish,5,90\nwish,95,90\n"


@pytest.fixture
def judged_set(registered: Path, server: Server) -> Path:
    """`organisms`: two files of judged draws at a fixed revision. Returns its entry's file."""
    digest = hashlib.sha256(JUDGED.encode()).hexdigest()
    server.files |= dict.fromkeys(("/at/a.csv", "/at/b.csv"), JUDGED.encode())
    path = Path("adapters/data/judged.yaml")
    path.write_text(
        f"organisms:\n  license: MIT\n  url: '{server.url}/at/{{file}}'\n"
        f"  files:\n    a.csv: {digest}\n    b.csv: {digest}\n"
    )
    return path


def test_judged_draws_are_fetched_once_and_read(judged_set, server, workdir, cache):
    got = CliRunner().invoke(app, ["data", "fetch", "organisms", "-o", "published"])
    assert got.exit_code == 0 and "files: 2, license: MIT" in got.output, got.output
    shown = json.loads(CliRunner().invoke(app, ["rates", "published/organisms/a.csv", "--json"]).stdout)
    assert '"em_rate": 0.5' in json.dumps(shown)
    CliRunner().invoke(app, ["data", "fetch", "organisms", "-o", "published"])
    assert server.asked == ["/at/a.csv", "/at/b.csv"], "what is there is not fetched again"
    listed = json.loads(CliRunner().invoke(app, ["data", "list", "--json"]).stdout)
    where = {row["name"]: row["where"] for row in listed if row["kind"] == "judged"}
    assert where["organisms"] == "em-evals data fetch organisms", "that folder is the user's, not the cache"
    assert where["judged_organisms"] == "em-evals data fetch judged_organisms"
    told = json.loads(CliRunner().invoke(app, ["data", "fetch", "organisms", "--json"]).stdout)
    assert told[0]["path"] == str(cache / "judged/organisms") and (cache / "judged/organisms/b.csv").is_file()


def test_other_judged_draws_than_the_published_are_refused(judged_set, server, workdir):
    server.files["/at/b.csv"] = JUDGED.replace("95", "15").encode()
    with pytest.raises(
        EmEvalsError, match=r"not the file that was published as b.csv of organisms"
    ) as caught:
        judged.fetch("organisms", workdir)
    assert "/at/b.csv" in str(caught.value) and not (workdir / "organisms/b.csv").exists()
    server.files["/at/b.csv"] = JUDGED.encode()
    assert judged.fetch("organisms", workdir).files == 2, "goes on with what is missing"
    assert server.asked == ["/at/a.csv", "/at/b.csv", "/at/b.csv"]


def test_judged_draws_come_from_the_offline_folder(judged_set, server, tmp_path, monkeypatch):
    (tmp_path / "offline/judged/organisms").mkdir(parents=True)
    for name in ("a.csv", "b.csv"):
        (tmp_path / "offline/judged/organisms" / name).write_text(JUDGED)
    monkeypatch.setenv("EM_EVALS_DATA", str(tmp_path / "offline"))
    assert judged.fetch("organisms").files == 2 and server.asked == []


def test_entries_of_judged_draws_that_cannot_be_fetched(judged_set):
    good = judged_set.read_text()
    for old, new, what in (
        ("a.csv:", "../a.csv:", "'../a.csv' is not the name of a file"),
        ("{file}", "a.csv", "url"),
        ("a.csv: ", "a.csv: x", "is not a SHA-256"),
        ("organisms:", "'a b':", "cannot name judged draws"),
    ):
        judged_set.write_text(good.replace(old, new, 1))
        with pytest.raises(EmEvalsError, match=re.escape(what)):
            judged.read()
    judged_set.write_text(good)
    with pytest.raises(EmEvalsError, match="did you mean 'organisms'"):
        judged.fetch("organism")
    with pytest.raises(EmEvalsError, match="-o is for judged draws"):
        CliRunner().invoke(app, ["data", "fetch", "plain", "-o", "x"], catch_exceptions=False)


def test_the_shipped_judged_sets_are_at_a_fixed_revision(shared_data):
    shipped = judged.read()
    assert all(re.search(r"/[0-9a-f]{40}/", entry.url) for entry in shipped.values())
    assert {name: len(entry.files) for name, entry in shipped.items()} == {
        "judged_organisms": 25,
        "judged_roles": 1,
    }
    roles = (shared_data / "judged/qwen25_32b_risky_financial_roles.jsonl").read_bytes()
    assert [*shipped["judged_roles"].files.values()] == [hashlib.sha256(roles).hexdigest()]
