#!/usr/bin/env bash
# torch 2.13.0: after a restart by torchrun, processes read the addresses of killed ones, and the group may not connect.
#
# Expected: `--max-restarts`: "when a worker process fails, all are restarted", and the new ones meet. torch's
#   `_create_c10d_store` says why no prefix is needed: "We create a new TCPStore for every retry".
# Seen: torchrun keeps one store for all rounds (`next_rendezvous` of both rendezvous, `static` and `c10d`), with the
#   addresses that gloo's, or the unique id that NCCL's, earlier processes left under the same keys. A process that is
#   faster than another reads that one's old address: "Gloo connectFullMesh failed ... Connection refused", or a wait.
#   Here the first process is 5 seconds later than the second after the restart: about two of three restarts fail.
#
#     python 3.11.7 | torch 2.13.0
#                                              keys of the first round  five restarts
#     torchrun --standalone                                          3  some did not connect
#     TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 …                         0  all connected
#     seen: a restart reads what the killed processes left
#
# Upstream: pytorch#135712 (closed); its mend was to make a new store in each round.
# Hurt: elastic trainings, which end or wait instead of going on.
# Avoid: TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 with --standalone or --rdzv-backend c10d: each round's first process has a
#   store of its own. `static`, torchrun's default and that of --master-port, knows no such switch.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment torch==2.13.0 numpy
work="$(mktemp -d)"
cat > "$work/worker.py" <<'PY'
import os
import signal
import sys
import time
from datetime import timedelta

import torch
import torch.distributed as dist


def say(line):
    sys.stdout.write(line + "\n")  # at once: torchrun's processes are not buffered, and share a file


rank, round = os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"]
if round == "1" and rank == "0":
    time.sleep(5)
if round == "1" and rank == "1" and os.environ["TORCHELASTIC_USE_AGENT_STORE"] == "True":
    store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    say(f"KEYS {store.num_keys()}")
try:
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    dist.all_reduce(torch.ones(1))
except RuntimeError:
    say("FAILED")
    raise SystemExit(1)
if round == "0":
    time.sleep(1)
    if rank == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)
say("CONNECTED")
PY
run() {
    for number in 1 2 3 4 5; do
        python -m torch.distributed.run --standalone --max-restarts 1 --nproc-per-node 2 "$work/worker.py" 2>/dev/null || true
        echo END
    done
}
run > "$work/shared"
TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 run > "$work/own"
python - "$work" <<'PY'
import sys
from pathlib import Path

print("                                         keys of the first round  five restarts")
met = {}
for name, way in {"shared": "torchrun --standalone", "own": "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 …"}.items():
    said = Path(sys.argv[1], name).read_text()
    keys = next((line.split()[1] for line in said.splitlines() if line.startswith("KEYS")), "0")
    rounds = [one.split().count("CONNECTED") == 2 and "FAILED" not in one for one in said.split("END\n")[:5]]
    met[name] = all(rounds)
    print(f"{way:39}{keys:>25}  {'all connected' if met[name] else 'some did not connect'}")
seen = not met["shared"] and met["own"]
print("seen: a restart reads what the killed processes left" if seen else "changed: the processes meet")
sys.exit(0 if seen else 4)
PY
