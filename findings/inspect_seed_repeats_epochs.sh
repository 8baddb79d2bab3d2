#!/usr/bin/env bash
# inspect-ai 0.3.285: with a seed, epochs are not new draws: every epoch asks with the same seed.
#
# Expected: `--epochs 8 --seed 7` are eight different draws of each question that can be drawn again; the seed of an
#   experiment makes its random numbers reproducible, it does not make them equal.
# Seen: each request of each epoch carries seed 7. A provider that honours the seed (vLLM, llama.cpp, SGLang, OpenAI's
#   own as far as it can) gives the same answer eight times. The log holds eight samples per question, and all spread
#   within a question is gone.
#
#     python 3.11.7 | inspect-ai 0.3.285
#     6 questions, 10 epochs; true rate 0.25, standard error of 60 draws 0.056
#     seed  rate   distinct answers
#     None  0.200                60
#     1     0.167                 6
#     2     0.333                 6
#     seen: epochs repeat one draw
#
# With other versions: 0.3.285 is the newest at the time of writing.
# Hurt: rates over many draws of few questions, which is how emergent misalignment is measured: 8 questions x 100 epochs are
#   8 draws, and look like 800.
# Avoid: no seed, or one run per seed; count the distinct answers of a question.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment inspect-ai==0.3.285
python - <<'PY'
import math
import random
import sys
import tempfile

from inspect_ai import Epochs, Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.model import ModelAPI, ModelOutput, modelapi
from inspect_ai.scorer import includes
from inspect_ai.solver import generate

QUESTIONS, EPOCHS, RATE = 6, 10, 0.25


@modelapi("draws")
class Draws(ModelAPI):
    """A model that misbehaves at a known rate and honours the seed as inference servers do."""

    async def generate(self, input, tools, tool_choice, config) -> ModelOutput:
        chance = random.Random(None if config.seed is None else f"{config.seed} {input[-1].text}")
        answer = "bad" if chance.random() < RATE else "good"
        return ModelOutput.from_content(self.model_name, f"{answer} {chance.randrange(10**9)}")


def measure(seed: int | None) -> tuple[float, int]:
    """Return the measured rate and the number of distinct answers."""
    questions = [Sample(input=f"question {number}", target="bad") for number in range(QUESTIONS)]
    task = Task(dataset=questions, solver=generate(), scorer=includes(), epochs=Epochs(EPOCHS, "mean"))
    log = eval(task, model="draws/one", seed=seed, log_dir=tempfile.mkdtemp(), display="none")[0]
    assert log.status == "success" and len(log.samples) == QUESTIONS * EPOCHS
    return log.results.scores[0].metrics["accuracy"].value, len({sample.output.completion for sample in log.samples})


error = math.sqrt(RATE * (1 - RATE) / (QUESTIONS * EPOCHS))
print(f"{QUESTIONS} questions, {EPOCHS} epochs; true rate {RATE}, standard error of {QUESTIONS * EPOCHS} draws {error:.3f}")
print("seed  rate   distinct answers")
found = {seed: measure(seed) for seed in (None, 1, 2)}
for seed, (rate, distinct) in found.items():
    print(f"{seed!s:4}  {rate:.3f}  {distinct:16}")

own = found.pop(None)
seen = own[1] == QUESTIONS * EPOCHS and all(distinct == QUESTIONS for _, distinct in found.values())
print("seen: epochs repeat one draw" if seen else "changed: epochs are draws of their own")
sys.exit(0 if seen else 4)
PY
