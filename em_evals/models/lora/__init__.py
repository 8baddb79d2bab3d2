"""LoRA adapters on a base in memory, exact as in PEFT or refused by name. The base is never changed."""

from em_evals.models.lora.bank import Bank as Bank
from em_evals.models.lora.changes import LowRank as LowRank
from em_evals.models.lora.folders import locate as locate
from em_evals.models.lora.folders import rank as rank
from em_evals.models.lora.folders import written as written
from em_evals.models.lora.matching import check as check
from em_evals.models.lora.merging import merge as merge
from em_evals.models.lora.merging import untie as untie
