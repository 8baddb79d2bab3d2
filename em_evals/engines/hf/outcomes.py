"""How a row's future ends: with its draw, or with an error in one sentence. A cancelled one is left alone."""

from __future__ import annotations

from concurrent.futures import Future

from em_evals.engines.protocol import Draw
from em_evals.errors import EmEvalsError


def failure(error: Exception) -> EmEvalsError:
    """Return the error that a row gets where its computation failed; a sentence of our own stays as it is."""
    if isinstance(error, EmEvalsError):
        return error
    reason = " ".join(str(error).split())[:300] or "no reason given"
    refused = EmEvalsError(f"the model failed on this input ({type(error).__name__}: {reason}).")
    refused.__cause__ = error
    return refused


def closed() -> EmEvalsError:
    """Return the error of a closed engine."""
    return EmEvalsError("this engine is closed; make a new one.")


def resolve(future: Future[Draw], draw: Draw) -> None:
    """Hand a draw over."""
    if _wanted(future):
        future.set_result(draw)


def reject(future: Future[Draw], error: Exception) -> None:
    """Hand an error over."""
    if _wanted(future):
        future.set_exception(error)


def _wanted(future: Future[Draw]) -> bool:
    """Whether an answer may be put in: a cancellation may come at any time, and none after this."""
    return not future.done() and future.set_running_or_notify_cancel()
