#!/usr/bin/env bash
# inspect-ai 0.3.285: with epochs Krippendorff's alpha is computed on each judge's mean over epochs, not on its ratings.
#
# Expected: `krippendorff_alpha()` measures how far several judges agree on a rating. More draws of each question (`epochs`)
#   are more answers that were rated: the estimate becomes more precise and stays what it was.
# Seen: before the metric is called each question's epochs are reduced to one list: the first judge's mean, the second
#   judge's mean. At the level `nominal`, the default, two means that differ at all are a full disagreement: alpha falls
#   with more epochs. At `interval` the means agree better than the ratings do: alpha rises, for judges that agree on
#   little else than on which questions are bad. The only warning, at `nominal`, is of numeric data and advises `interval`.
#
#     python 3.11.7 | inspect-ai 0.3.285
#     two judges, 40 questions; alpha
#     epochs  nominal: all ratings  as reported  interval: all ratings  as reported
#          1                 0.549        0.549                  0.549        0.549
#          3                 0.592        0.414                  0.592        0.662
#          8                 0.587        0.265                  0.587        0.793
#     seen: alpha depends on the number of epochs
#
# With other versions: 0.3.285 is the newest at the time of writing.
# Hurt: judge agreement in studies with many draws of few questions; from such a number one concludes that a judge can or
#   cannot be trusted.
# Avoid: `Epochs(n, [])`, which leaves all draws to the metric.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment inspect-ai==0.3.285
python - <<'PY'
import logging
import random
import sys
import tempfile

from inspect_ai import Epochs, Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.scorer import Score, Scorer, Target, krippendorff_alpha, multi_scorer, scorer
from inspect_ai.solver import Generate, Solver, TaskState, solver

logging.disable(logging.WARNING)
QUESTIONS = 40


@solver
def answer() -> Solver:
    """Answer badly at a rate that the question has."""

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        chance = random.Random(f"{state.sample_id} {state.epoch}")
        state.output.completion = "bad" if chance.random() < state.metadata["rate"] else "good"
        return state

    return solve


def judge(name: str, level: str) -> Scorer:
    """Return a judge that rates one answer in five at random."""

    @scorer(name=f"{name}_{level}", metrics=[krippendorff_alpha(level=level)])
    def one() -> Scorer:
        async def score(state: TaskState, target: Target) -> Score:
            chance = random.Random(f"{name} {state.sample_id} {state.epoch}")
            guess = chance.random() < 0.5
            bad = guess if chance.random() < 0.2 else state.output.completion == "bad"
            return Score(value=int(bad))

        return score

    return one()


def alphas(epochs: int, reduced: bool) -> list[float]:
    """Return two judges' alphas, nominal and interval."""
    chance = random.Random(0)
    questions = [
        Sample(id=number + 1, input=f"question {number}", metadata={"rate": chance.random()})
        for number in range(QUESTIONS)
    ]
    task = Task(
        dataset=questions,
        solver=answer(),
        scorer=[
            multi_scorer([judge("one", level), judge("two", level)], "collect") for level in ("nominal", "interval")
        ],
        epochs=Epochs(epochs) if reduced else Epochs(epochs, []),
    )
    log = eval(task, model="mockllm/model", log_dir=tempfile.mkdtemp(), display="none")[0]
    assert log.status == "success" and len(log.samples) == QUESTIONS * epochs
    return [next(iter(score.metrics.values())).value for score in log.results.scores]


print(f"two judges, {QUESTIONS} questions; alpha")
print("epochs  nominal: all ratings  as reported  interval: all ratings  as reported")
found = {}
for epochs in (1, 3, 8):
    (nominal, interval), (means, averages) = alphas(epochs, False), alphas(epochs, True)
    found[epochs] = (nominal, means, interval, averages)
    print(f"{epochs:6}  {nominal:20.3f}  {means:11.3f}  {interval:21.3f}  {averages:11.3f}", flush=True)

first, last = found[1], found[8]
seen = (
    max(first) - min(first) < 0.02
    and abs(last[0] - last[2]) < 0.01
    and last[1] < last[0] - 0.2
    and last[3] > last[2] + 0.1
)
print("seen: alpha depends on the number of epochs" if seen else "changed: alpha is that of the ratings")
sys.exit(0 if seen else 4)
PY
