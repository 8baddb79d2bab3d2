"""`em-evals verify`: does this machine compute what plain transformers, PEFT and hooks compute? The user's own proof.

Everything that the product puts between a card and its numbers is asked beside something plain: the engine beside
one forward pass a sequence without cache, mask or neighbours; adapters beside PEFT; interventions beside hooks written
again from their definition; compiled models beside those hooks; extraction beside one text at a time. The plain side
(plain.py, hooks.py) shares no code with the side under test.
"""

from em_evals.workflows.verify.run import verify as verify
from em_evals.workflows.verify.verdict import Row as Row
from em_evals.workflows.verify.verdict import Verdict as Verdict
