#!/usr/bin/env bash
# inspect-ai 0.3.285: the mock model, `mockllm/model`, fetches a vocabulary from the network to count tokens.
#
# Expected: a model that replies from a list needs no network: it is what tests and offline examples use, and a test of an
#   agent or a scorer with it gives the same result everywhere.
# Seen: where a scripted reply carries no usage, each call counts tokens with tiktoken's o200k_base, which is downloaded on
#   first use from openaipublic.blob.core.windows.net. Offline the sample ends in an error of the HTTP library; with a
#   connection the test has fetched a file from a third party.
#
#     python 3.11.7 | inspect-ai 0.3.285
#     reply without usage: error, asked for openaipublic.blob.core.windows.net
#     reply with usage:    success, asked for nothing
#     seen: the mock needs the network
#
# With other versions: 0.3.285 is the newest at the time of writing.
# Hurt: tests in sandboxes and on CI without egress; they pass on a laptop that has the file in its cache.
# Avoid: give every scripted ModelOutput a usage, `output.usage = ModelUsage()`.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment inspect-ai==0.3.285
export TIKTOKEN_CACHE_DIR; TIKTOKEN_CACHE_DIR="$(mktemp -d)"
python - <<'PY'
import socket
import sys
import tempfile

from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.model import ModelOutput, ModelUsage, get_model
from inspect_ai.solver import generate

asked: list[str] = []


def offline(host, *rest, **options):
    """Resolve nothing but this machine, and note who was asked for."""
    if host in ("localhost", "127.0.0.1", "::1", None):
        return found(host, *rest, **options)
    asked.append(str(host))
    raise socket.gaierror(socket.EAI_NONAME, "no network here")


found, socket.getaddrinfo = socket.getaddrinfo, offline


def outcome(usage: ModelUsage | None) -> tuple[str, list[str]]:
    """Run one sample with one scripted reply; return the log's status and the hosts that were asked for."""
    asked.clear()
    reply = ModelOutput.from_content("mockllm/model", "It is.")
    reply.usage = usage
    model = get_model("mockllm/model", custom_outputs=[reply], memoize=False)
    task = Task(dataset=[Sample(input="What is it?")], solver=generate())
    log = eval(task, model=model, log_dir=tempfile.mkdtemp(), display="none", log_level="critical")[0]
    return log.status, sorted({host for host in asked if "inspect" not in host})


without, given = outcome(None), outcome(ModelUsage())
for name, (status, hosts) in (("without usage:", without), ("with usage:   ", given)):
    print(f"reply {name} {status}, asked for {', '.join(hosts) or 'nothing'}")
seen = without[0] == "error" and bool(without[1]) and given == ("success", [])
print("seen: the mock needs the network" if seen else "changed: the mock runs without a network")
sys.exit(0 if seen else 4)
PY
