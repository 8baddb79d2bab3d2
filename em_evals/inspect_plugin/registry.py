"""Entry points for Inspect. Every `inspect` command loads this module, so it imports nothing heavy."""

from __future__ import annotations

from inspect_ai.model import ModelAPI, modelapi

from em_evals.errors import install
from em_evals.grading.scorers import em_rates, forced_choice_means, judge
from em_evals.inspect_errors import refusal
from em_evals.inspect_plugin.conditional import conditional
from em_evals.inspect_plugin.consistency import consistency, consistency_means, consistent
from em_evals.inspect_plugin.projection import projection, projection_means
from em_evals.inspect_plugin.solvers import likelier
from em_evals.inspect_plugin.tasks import forced_choice, freeform, narrow
from em_evals.inspect_plugin.traits import trait

__all__ = [
    "conditional",
    "consistency",
    "consistency_means",
    "consistent",
    "em_rates",
    "forced_choice",
    "forced_choice_means",
    "freeform",
    "judge",
    "likelier",
    "local",
    "narrow",
    "projection",
    "projection_means",
    "trait",
]


@modelapi(name="local")
def local() -> type[ModelAPI]:
    """Return the provider `local/…`; torch is imported when a local model is first used."""
    from importlib.util import find_spec

    missing = [name for name in ("torch", "transformers", "peft", "jinja2") if find_spec(name) is None]
    if missing:
        raise refusal(f"local models need the package '{missing[0]}': {install('local')}.")
    from em_evals.inspect_plugin.provider import LocalAPI

    return LocalAPI
