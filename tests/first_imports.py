"""Import what several processes of the tests import, so that its bytecode is there: `make test` calls it beside mypy.

In a fresh environment this is most of the time of a start. What is not installed is left out.
"""

import contextlib
import importlib
import io
import warnings

MODULES = (
    *("inspect_ai._cli.main", "inspect_ai.model", "lm_eval.evaluator", "lm_eval.models.openai_completions"),
    *(
        "transformers.generation",
        "transformers.trainer",
        "peft",
        "trl.trainer.sft_trainer",
        "datasets",
        "accelerate",
    ),
    *(
        f"transformers.models.{kind}.modeling_{kind}"
        for kind in ("llama", "qwen2", "gemma", "gemma2", "gpt_neox")
    ),
    *("torch.distributed.run", "altair", "sklearn.metrics", "statsmodels.stats.api", "hypothesis", "openai"),
    *("em_evals.cli", "em_evals.training.trainer", "em_evals.workflows.study", "em_evals.report.report"),
    *("vllm.entrypoints.launchers.api_server.entry", "vllm.v1.engine.core", "vllm.v1.worker.cpu_worker"),
)


def main() -> None:
    """Import each module; what one of them prints is of no interest here."""
    warnings.simplefilter("ignore")
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        for name in MODULES:
            with contextlib.suppress(Exception):
                importlib.import_module(name)


if __name__ == "__main__":
    main()
