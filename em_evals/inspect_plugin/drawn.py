"""Answers that an earlier run of the same task drew, so that grading them needs no GPU.

`EM_EVALS_DRAWS` names the folder of that run's logs. The provider `local/` then answers each sample and epoch with what
was drawn for it, and refuses where anything differs: the model, the prompt, or a setting. No base is loaded.
Everything else is the run's own: its log is the one that drawing and grading at once writes, and it resumes as any.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
from inspect_ai.log import EvalLog, EvalSample, read_eval_log, read_eval_log_samples
from inspect_ai.log._samples import sample_active
from inspect_ai.model import ChatMessage, GenerateConfig, ModelOutput

from em_evals.errors import EmEvalsError
from em_evals.inspect_plugin.solvers import ASKED

if TYPE_CHECKING:
    from em_evals.inspect_plugin.provider import LocalAPI

VARIABLE = "EM_EVALS_DRAWS"
_FREE = {"max_connections", "adaptive_connections", "max_retries", "timeout", "attempt_timeout"}
"""Settings that say how a model is asked, and not what."""
_lock = threading.Lock()


@dataclass(frozen=True)
class Drawn:
    """One answer.

    Attributes:
        asked: the prompt and the settings, comparable.
        output: JSON of Inspect's output.
        problem: why there is none.
    """

    asked: Any
    output: str
    problem: str = ""


async def replayed(api: LocalAPI, messages: list[ChatMessage], config: GenerateConfig) -> ModelOutput | None:
    """Return what was drawn for the sample that runs now; None where the model has to be asked.

    Args:
        api: the model; others than the drawn one, judges among them, are asked.
        messages: the prompt.
        config: the settings.

    Raises:
        EmEvalsError: the run before drew no such answer, or another model, prompt or setting gave it.
    """
    folder = os.environ.get(VARIABLE)
    active = sample_active() if folder else None
    if not folder or active is None:
        return None
    draws = await anyio.to_thread.run_sync(_draws, folder, api.model_name)
    if draws is None:
        return None
    where = f"sample {active.sample.id}, epoch {active.epoch}"
    found = draws.get((str(active.sample.id), active.epoch))
    if found is None or found.problem:
        raise EmEvalsError(f"{where}: {found.problem if found else 'nothing was drawn'}.", Path(folder))
    if found.asked != _asked(messages, config):
        raise EmEvalsError(f"{where} was drawn with another prompt or other settings.", Path(folder))
    output = ModelOutput.model_validate_json(found.output)
    own = (config.extra_body or {}).get(ASKED)
    digest = api.card.asked(**own).digest if own else api.card_digest
    if (output.metadata or {}).get("card_digest") != digest:
        raise EmEvalsError(
            f"{where} was drawn from another model than {api.model_name} is now.", Path(folder)
        )
    return output


def covers(model: str) -> bool:
    """Return whether a model's answers are drawn, so that it needs no engine.

    Raises:
        EmEvalsError: the folder of the draws holds no finished log.
    """
    folder = os.environ.get(VARIABLE)
    return bool(folder) and _draws(str(folder), model) is not None


def _draws(folder: str, model: str) -> Mapping[tuple[str, int], Drawn] | None:
    """Return the answers in a folder's finished logs; None if they are of another model.

    Raises:
        EmEvalsError: there are none.
    """
    logs = tuple((str(path), path.stat().st_mtime_ns) for path in sorted(Path(folder).glob("*.eval")))
    with _lock:
        return _read(folder, logs, model)


@lru_cache(maxsize=4)
def _read(
    folder: str, logs: tuple[tuple[str, int], ...], model: str
) -> Mapping[tuple[str, int], Drawn] | None:
    """Read logs; a worker of a sweep keeps running while the folder of a step gets others."""
    whole: dict[str, EvalLog] = {}
    for path, _ in logs:
        with suppress(Exception):  # the log of a killed attempt may be cut
            log = read_eval_log(path, header_only=True)
            whole |= {path: log} if log.status == "success" else {}
    if not whole:
        raise EmEvalsError(f"{VARIABLE} names this folder, and no finished log is in it.", Path(folder))
    own = [path for path, log in whole.items() if log.eval.model == f"local/{model}"]
    if not own:
        return None
    return {
        (str(sample.id), sample.epoch): _drawn(sample)
        for path in own
        for sample in read_eval_log_samples(path, resolve_attachments=True)
    }


def _drawn(sample: EvalSample) -> Drawn:
    calls = [one for one in sample.events if one.event == "model" and one.error is None and not one.pending]
    if sample.error is not None:
        return Drawn(None, "", f"drawing failed ({sample.error.message.splitlines()[0][:200]})")
    if len(calls) != 1:
        return Drawn(None, "", f"it took {len(calls)} requests, and only one answer a sample is graded apart")
    (call,) = calls
    return Drawn(_asked(call.input, call.config), call.output.model_dump_json())


def _asked(messages: list[ChatMessage], config: GenerateConfig) -> Any:
    chat = [(one.role, one.model_dump(mode="json", include={"content"})["content"]) for one in messages]
    return chat, config.model_dump(mode="json", exclude_none=True, exclude=_FREE)
