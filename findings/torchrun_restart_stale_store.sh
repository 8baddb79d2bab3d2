#!/usr/bin/env bash
# torch 2.13.0: after a restart by torchrun, processes read the addresses of killed ones, and the group may not connect.
#
# Expected: `--max-restarts`: "when a worker process fails, all are restarted", and the new ones meet. torch's
#   `_create_c10d_store` says why no prefix is needed: "We create a new TCPStore for every retry".
# Seen: torchrun keeps one store for all rounds (`next_rendezvous` of both rendezvous, `static` and `c10d`), with the
#   addresses that gloo's, or the unique id that NCCL's, earlier processes left under the same keys. A process that is
#   faster than another reads that one's old address: "Gloo connectFullMesh failed ... Connection refused", or a wait.
#   Here the first process is 5 seconds later than the second after the restart; under load a second is enough.
#
#     python 3.11.7 | torch 2.13.0
#                                              keys of the first round  the second round
#     torchrun --standalone                                          3  failed: Connection refused
#     TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 …                         0  connected
#     seen: a restart reads what the killed processes left
#
# Upstream: pytorch#135712 (closed); its mend was to make a new store in each round.
# Hurt: elastic trainings, which end instead of going on, about every second time on a busy machine.
# Avoid: TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 with --standalone or --rdzv-backend c10d: each round's first process has a
#   store of its own. `static`, torchrun's default and that of --master-port, knows no such switch.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment torch==2.13.0 numpy
work="$(mktemp -d)"
cat > "$work/worker.py" <<'PY'
import os
import signal
import time
from datetime import timedelta

import torch
import torch.distributed as dist

rank, round = os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"]
if round == "1" and rank == "0":
    time.sleep(5)
if round == "1" and rank == "1" and os.environ["TORCHELASTIC_USE_AGENT_STORE"] == "True":
    store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    print("KEYS", store.num_keys(), flush=True)
try:
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    dist.all_reduce(torch.ones(1))
except RuntimeError as error:
    print("FAILED", "Connection refused" if "refused" in str(error) else str(error)[:80], flush=True)
    raise SystemExit(1)
if round == "0":
    time.sleep(1)
    if rank == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)
print("CONNECTED", flush=True)
PY
run() { python -m torch.distributed.run --standalone --max-restarts 1 --nproc-per-node 2 "$work/worker.py" 2>/dev/null || true; }
run > "$work/shared"
TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 run > "$work/own"
python - "$work" <<'PY'
import sys
from pathlib import Path

print("                                         keys of the first round  the second round")
ended = {}
for name, way in {"shared": "torchrun --standalone", "own": "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 …"}.items():
    lines = Path(sys.argv[1], name).read_text().splitlines()
    keys = next((line.split()[1] for line in lines if line.startswith("KEYS")), "0")
    failed = next((line.partition(" ")[2] for line in lines if line.startswith("FAILED")), None)
    ended[name] = failed is None and "CONNECTED" in lines
    print(f"{way:39}{keys:>25}  {'connected' if ended[name] else f'failed: {failed}'}")
seen = not ended["shared"] and ended["own"]
print("seen: a restart reads what the killed processes left" if seen else "changed: the processes meet")
sys.exit(0 if seen else 4)
PY
