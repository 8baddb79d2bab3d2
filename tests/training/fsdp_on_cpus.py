"""`em-evals train` under FSDP on CPUs: accelerate 1.15 shards on accelerators alone, and ignores its settings on CPUs.

So these processes count as GPUs' where accelerate chooses how to distribute; all that follows is what runs there, with
gloo in place of NCCL.
"""

import sys
from typing import Any

from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType

from em_evals.cli import main

_plain = PartialState.__init__


def _as_gpus(self: Any, *arguments: Any, **options: Any) -> None:
    _plain(self, *arguments, **options)
    if self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type = DistributedType.MULTI_GPU


PartialState.__init__ = _as_gpus
try:
    main()
finally:
    plugin = AcceleratorState().fsdp_plugin
    print("FSDP version", plugin and plugin.fsdp_version, file=sys.stderr)
