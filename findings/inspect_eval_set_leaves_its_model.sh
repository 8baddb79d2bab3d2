#!/usr/bin/env bash
# inspect-ai 0.3.285: after `eval_set`, `get_model()` without a name gives the set's last model for the rest of the process.
#
# Expected: as after `eval`: outside of an evaluation there is no model, and `get_model()` raises that none is specified.
# Seen: `eval` leaves nothing behind. `eval_set` leaves its last model active; an `eval` with a model of its own in between
#   does not change that. A task that asks for the model while it is made (to choose a grader, a template or a tokenizer, or
#   to write into its metadata what is tested) is given the earlier set's, though it is evaluated with another.
#
#     python 3.11.7 | inspect-ai 0.3.285
#     before                     none
#     after eval of first        none
#     after eval_set of second   mockllm/second
#     after eval of third        mockllm/second
#     evaluated third, said in its metadata: mockllm/second
#     seen: a set leaves its model to what is made later
#
# Hurt: notebooks and services that run one set after another: a base is asked as its fine-tune, and logs say so.
# Avoid: call `eval_set` in a copied context, `contextvars.copy_context().run(eval_set, ...)`, which the script shows too; and
#   name the model wherever a task needs one.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment inspect-ai==0.3.285
FOLDER="$(mktemp -d)"
unset INSPECT_EVAL_MODEL
python - "$FOLDER" <<'PY'
import contextvars
import shutil
import sys

from inspect_ai import Task, eval, eval_set, task
from inspect_ai.dataset import Sample
from inspect_ai.model import get_model
from inspect_ai.solver import generate

root = sys.argv[1]


def active() -> str:
    """Return the model that is given to who names none."""
    try:
        return str(get_model())
    except ValueError:
        return "none"


@task
def asked() -> Task:
    """A task whose metadata say which model it was made for."""
    return Task(dataset=[Sample(input="Who are you?")], solver=generate(), metadata={"made_for": active()})


def quiet(folder: str, model: str) -> dict[str, str]:
    return {"log_dir": f"{root}/{folder}", "model": f"mockllm/{model}", "display": "none"}


found = {"before": active()}
eval(asked(), **quiet("first", "first"))
found["after eval of first"] = active()
contextvars.copy_context().run(eval_set, asked(), **quiet("copied", "copied"))
copied = active()
eval_set(asked(), **quiet("second", "second"))
found["after eval_set of second"] = active()
log = eval(asked(), **quiet("third", "third"))[0]
found["after eval of third"] = active()
shutil.rmtree(root)

for when, name in found.items():
    print(f"{when:25}  {name}")
made_for = log.eval.metadata["made_for"]
print(f"evaluated {log.eval.model.rpartition('/')[2]}, said in its metadata: {made_for}")
seen = list(found.values()) == ["none", "none", "mockllm/second", "mockllm/second"]
seen = seen and made_for == "mockllm/second" and log.eval.model == "mockllm/third" and copied == "none"
print("seen: a set leaves its model to what is made later" if seen else "changed: a set leaves nothing behind")
sys.exit(0 if seen else 4)
PY
