"""`em-evals train` whose second process dies before its sixth step, the first time that the processes start.

    python -m tests.training.killed_rank process|node MODULE train …

With `node` torchrun's agent that started it dies too, as when a machine is gone.
"""

import os
import runpy
import signal
import sys
from typing import Any

from transformers import Trainer

_what, _module = sys.argv.pop(1), sys.argv.pop(1)
_step = Trainer.training_step


def _killed(self: Any, *arguments: Any, **options: Any) -> Any:
    first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and os.environ["WORLD_SIZE"] == "2"
    if first and os.environ["RANK"] == "1" and self.state.global_step == 5:
        if _what == "node":
            os.kill(os.getppid(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)
    if os.environ["RANK"] == "0":
        print("trains step", self.state.global_step + 1, file=sys.stderr, flush=True)
    return _step(self, *arguments, **options)


Trainer.training_step = _killed
runpy.run_module(_module, run_name="__main__")
