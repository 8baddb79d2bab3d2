#!/usr/bin/env bash
# ppi-python 0.2.3: with a good judge and a few dozen labels a 95% interval holds the true rate in 59 to 79% of all studies.
#
# Expected: `ppi_mean_ci` corrects the judge's verdicts on many answers by people's labels of a few; its 95% interval holds
#   the true rate in about 95% of all studies, and is no worse than the interval of the labels alone (`classical_mean_ci`).
# Seen: the spread of the judge's errors is taken from the labels. A good judge often makes no error in 20 or 50 of them:
#   the errors' share is then estimated as exactly 0, and the interval is that of the judged answers, as narrow as their
#   number makes it, around a rate that the judge gets wrong. With a judge that misses a tenth nearly all misses are
#   rates that are too low. No warning; the guarantee is for many labels, and the documentation names no number.
#
#     python 3.11.7 | ppi-python 0.2.3 | numpy 1.26.4
#     true rate 30%, 4000 judged answers, 2000 studies: how often the 95% interval
#     judge                  labels  holds the rate  ends below it  of labels alone holds  judge agrees with all labels
#     finds 70%, 10% false       20           0.887          0.095                  0.945                         0.033
#     finds 70%, 10% false       50           0.932          0.050                  0.935                         0.001
#     finds 70%, 10% false      100           0.940          0.044                  0.950                         0.000
#     finds 70%, 10% false      400           0.947          0.029                  0.948                         0.000
#     finds 90%, 1% false        20           0.587          0.412                  0.945                         0.474
#     finds 90%, 1% false        50           0.794          0.203                  0.935                         0.152
#     finds 90%, 1% false       100           0.905          0.088                  0.950                         0.022
#     finds 90%, 1% false       400           0.938          0.046                  0.948                         0.000
#     finds 95%, 0.2% false      20           0.660          0.340                  0.945                         0.734
#     finds 95%, 0.2% false      50           0.766          0.233                  0.935                         0.440
#     finds 95%, 0.2% false     100           0.864          0.133                  0.950                         0.186
#     finds 95%, 0.2% false     400           0.940          0.043                  0.948                         0.001
#     seen: the better judge has the worse interval
#
# With other versions: 0.2.3 is the newest at the time of writing.
# Hurt: misalignment rates with a strong judge and a few dozen labels, as most studies have: the interval ends below the rate.
# Avoid: 400 labels and more, or the labels' interval alone where the judge agrees with every label.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment ppi-python==0.2.3 numpy==1.26.4
python - <<'PY'
import sys

import numpy as np
from ppi_py import classical_mean_ci, ppi_mean_ci

STUDIES, JUDGED = 2000, 4000
JUDGES = {
    "finds 70%, 10% false": (0.7, 0.1),
    "finds 90%, 1% false": (0.9, 0.01),
    "finds 95%, 0.2% false": (0.95, 0.002),
}


def study(random: np.random.Generator, rate: float, judge: tuple[float, float], labels: int) -> tuple[np.ndarray, ...]:
    """Return people's labels, the judge's verdicts on these answers, and those on the other ones."""
    truth = random.random(labels + JUDGED) < rate
    verdict = random.random(labels + JUDGED) < np.where(truth, *judge)
    return truth[:labels].astype(float), verdict[:labels].astype(float), verdict[labels:].astype(float)


def measure(rate: float, judge: tuple[float, float], labels: int) -> tuple[float, float, float, float]:
    """Return how often 95% intervals hold the rate and end below it, those of the labels hold it, and the judge agrees."""
    random = np.random.default_rng(0)
    held = below = alone = agreed = 0
    for _ in range(STUDIES):
        people, verdict, others = study(random, rate, judge, labels)
        low, high = (float(np.ravel(end)[0]) for end in ppi_mean_ci(people, verdict, others, alpha=0.05))
        least, most = (float(np.ravel(end)[0]) for end in classical_mean_ci(people, alpha=0.05))
        held += low <= rate <= high
        below += high < rate
        alone += least <= rate <= most
        agreed += (people == verdict).all()
    return held / STUDIES, below / STUDIES, alone / STUDIES, agreed / STUDIES


print(f"true rate 30%, {JUDGED} judged answers, {STUDIES} studies: how often the 95% interval")
print(
    "judge                  labels  holds the rate  ends below it  of labels alone holds  judge agrees with all labels"
)
found = {}
for name, judge in JUDGES.items():
    for labels in (20, 50, 100, 400):
        held, below, alone, agreed = found[name, labels] = measure(0.3, judge, labels)
        print(f"{name:21}  {labels:6}  {held:14.3f}  {below:13.3f}  {alone:21.3f}  {agreed:28.3f}")

weak, good, best = JUDGES
seen = (
    found[weak, 50][0] > 0.9
    and found[good, 20][0] < 0.7
    and found[best, 50][0] < 0.82
    and min(found[good, 50][1], found[best, 50][1]) > 0.15
    and all(row[2] > 0.9 for row in found.values())
)
print("seen: the better judge has the worse interval" if seen else "changed: intervals hold what they say")
sys.exit(0 if seen else 4)
PY
