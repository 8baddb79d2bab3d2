"""`em-evals verify`: does this machine compute what plain transformers, PEFT and hooks compute? A proof for the user.

Everything that the product puts between a card and its numbers is compared with something plain: the engine with
one forward pass per sequence without cache, mask or batch; adapters with PEFT; interventions with hooks written again
from their definition; compiled models with those hooks; extraction with one text at a time. The plain side
"""

from em_evals.workflows.verify.run import verify as verify
from em_evals.workflows.verify.verdict import Row as Row
from em_evals.workflows.verify.verdict import Verdict as Verdict
