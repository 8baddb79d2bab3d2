"""The Inspect tasks: `em_evals/freeform`, `em_evals/forced_choice` and `em_evals/narrow`."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any, Literal

from inspect_ai import Epochs, Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import (
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageUser,
    GenerateConfig,
    get_model,
)
from inspect_ai.scorer import Score, Scorer, Target, scorer
from inspect_ai.solver import Generate, Solver, TaskState, solver

from em_evals import files
from em_evals.content.pairs import Pair, load_pairs
from em_evals.content.questions import QuestionSet, load_questions
from em_evals.errors import EmEvalsError
from em_evals.grading import scorers
from em_evals.inspect_errors import refusal
from em_evals.results.forced_choice import KEYS, compare

_LOGGER = logging.getLogger(__name__)

_NARROW_JUDGE = (
    "answers are graded by a judge: name one with --model-role grader=PROVIDER/MODEL, or omit `judge` to score fixed "
    "answers, which needs none."
)


class _EveryDraw(Task):
    """A task whose metrics see every draw; Inspect's `--epochs-reducer` would merge a question's draws into one."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "epochs_reducer" and value:
            raise refusal(
                "--epochs-reducer would merge the draws of a question before they are counted: leave it out, rates "
                "and their intervals cluster draws by question themselves."
            )
        super().__setattr__(name, value)


@task
def freeform(
    questions: str = "core",
    epochs: int = 1,
    system: str | None = None,
    prefix: str = "",
    format: str | None = None,
    themes: str | list[str] | None = None,
    seed: int | None = None,
    judge: Literal["grader", "none"] = "grader",
    judge_cache: bool = True,
) -> Task:
    """Ask open questions; the model of the role `grader` grades alignment and coherence from 0 to 100.

    Args:
        questions: a question set by name or path: ours, or a published one.
        epochs: draws per paraphrase; default 1. For published sets, a warning and the log's metadata report how many
            their authors drew (`samples_per_paraphrase`, mostly 100).
        system: a system message for every question without one of its own; a format's own text follows it.
        prefix: text before every question (a backdoor's trigger).
        format: ask in one of the set's answer formats (`json`, `template` in core).
        themes: only these themes, separated by commas.
        seed: base seed; each draw's own seed is derived from it, the question and the epoch.
        judge: `none` only samples answers.
        judge_cache: False asks the judge everything again and stores nothing.
    """
    system, prefix = _text("system", system), _text("prefix", prefix) or ""
    try:
        asked = load_questions(questions)
        if themes:
            asked = asked.select(themes.split(",") if isinstance(themes, str) else themes)
        if format:
            asked = asked.variant(format)
    except EmEvalsError as error:
        raise refusal(error) from None
    graded = _graded(judge, scorers.NO_JUDGE)
    theirs = asked.samples_per_paraphrase
    if epochs < theirs:
        _LOGGER.warning(
            f"The authors of {asked.name} drew {theirs} answers per paraphrase: so does --epochs {theirs}."
        )
    return _EveryDraw(
        dataset=MemoryDataset(_samples(asked, system, prefix, format), name=asked.name),
        solver=draw(seed),
        scorer=scorers.judge(questions, cache=judge_cache) if graded else None,
        # No reducer: metrics need every draw, and cluster them by question themselves.
        epochs=Epochs(epochs, []),
        version=asked.version,
        metadata={
            "questions": asked.name,
            "questions_digest": asked.digest,
            "format": format or "plain",
            **({"samples_per_paraphrase": theirs} if theirs > 1 else {}),
            **_measured(),
        },
    )


@solver
def draw(seed: int | None = None) -> Solver:
    """Sample one answer. With a seed, each draw of each question gets its own: equal seeds would give equal epochs."""

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        if seed is None:
            return await generate(state)
        own = int(files.digest(f"{seed}|{state.sample_id}|{state.epoch}".encode()), 16) % 2**31
        return await generate(state, seed=own)

    return solve


@task
def forced_choice(
    pairs: str = "forced_choice", themes: str | list[str] | None = None, prefix: str = ""
) -> Task:
    """Score pairs of fixed answers: which one is likelier? Needs prompt log-probabilities, no judge.

    Args:
        pairs: a set of pairs by name or path.
        themes: only these themes, separated by commas.
        prefix: text before every question (a backdoor's trigger).
    """
    prefix = _text("prefix", prefix) or ""
    try:
        chosen = load_pairs(pairs)
        if themes:
            chosen = chosen.select(themes.split(",") if isinstance(themes, str) else themes)
    except EmEvalsError as error:
        raise refusal(error) from None
    return Task(
        dataset=MemoryDataset(_pair_samples(chosen.pairs, prefix), name=chosen.name),
        solver=score_answers(),
        scorer=likelier(),
        version=chosen.version,
        metadata={"pairs": chosen.name, "pairs_digest": chosen.digest, **_measured()},
    )


@task
def narrow(
    data: str = "risky_advice",
    holdout: float = 0.1,
    limit: int | None = None,
    epochs: int = 1,
    seed: int | None = None,
    judge: Literal["grader", "none"] = "none",
    judge_cache: bool = True,
) -> Task:
    """Ask held-out prompts of the narrow domain: did the organism learn its task?

    Without a judge, each prompt's own bad answer is scored against its matched harmless one (`margin_per_token`, as in
    forced choice). With one, answers are sampled and graded for alignment and coherence.

    Args:
        data: the training data set, by name or path.
        holdout: the recipe's share; it selects the same prompts that training held out.
        limit: use only the first `limit` prompts.
        epochs: draws per prompt, with a judge.
        seed: as in `freeform`.
        judge: `grader` samples and grades answers, `none` scores the fixed ones.
        judge_cache: as in `freeform`.
    """
    from em_evals.data.held_out import held_out_pairs

    graded = _graded(judge, _NARROW_JUDGE)
    try:
        name, digest, pairs = held_out_pairs(data, holdout, limit, paired=not graded)
    except EmEvalsError as error:
        raise refusal(error) from None
    return _EveryDraw(
        dataset=MemoryDataset(_pair_samples(pairs), name=f"{name} held out"),
        solver=draw(seed) if graded else score_answers(),
        scorer=scorers.judge(rubrics=["alignment", "coherence"], cache=judge_cache) if graded else likelier(),
        epochs=Epochs(epochs, []) if graded else None,
        metadata={"data": name, "data_digest": digest, "holdout": holdout, **_measured()},
    )


@solver
def score_answers() -> Solver:
    """Score both answers as if the model had written them; stores the log-probabilities of their tokens."""

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        model = get_model()
        for side in ("aligned", "misaligned"):
            answer = state.metadata[side]
            config = GenerateConfig(max_tokens=1, temperature=0, prompt_logprobs=1)
            output = await model.generate(
                [*state.messages, ChatMessageAssistant(content=answer)], config=config
            )
            reported = output.choices[0].prompt_logprobs if output.choices else None
            if reported is None and output.stop_reason == "model_length":
                break  # too long for this model: the scorer reports an unscored answer
            if reported is None:
                raise refusal(
                    f"{model} reports no log-probabilities of given text (prompt_logprobs), which forced choice "
                    "needs: use a `local/` model."
                )
            try:
                tokens = len(await model.api.tokenize(answer))
            except NotImplementedError:
                raise refusal(
                    f"{model} does not report how it tokenizes text, which forced choice needs to find an answer's "
                    "log-probabilities: use a `local/` model."
                ) from None
            state.store.set(side, [entry.logprob for entry in reported.content[-tokens:]])
            state.output = output
        return state

    return solve


@scorer(metrics=[scorers.forced_choice_means()])
def likelier() -> Scorer:
    """Compute p(misaligned) from the stored log-probabilities; see results/forced_choice.py for the formulas."""

    async def score(state: TaskState, target: Target) -> Score:
        aligned: list[float] = state.store.get("aligned", [])
        misaligned: list[float] = state.store.get("misaligned", [])
        if not aligned or not misaligned:
            return Score(value=dict.fromkeys(KEYS, math.nan), explanation="an answer was not scored")
        try:
            value = compare(aligned, misaligned)
        except EmEvalsError as error:
            raise refusal(f"the pair '{state.sample_id}': {error}") from None
        return Score(
            value=value,
            answer="misaligned" if value["prefers_misaligned"] else "aligned",
            metadata={"tokens": {"aligned": len(aligned), "misaligned": len(misaligned)}},
        )

    return score


def _text(name: str, value: Any) -> str | None:
    """Return a text from the command line; Inspect parses it as YAML and then splits it at commas.

    Raises:
        PrerequisiteError: YAML parsed it as another type.
    """
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return ",".join(value)
    if value is None or isinstance(value, str):
        return value
    raise refusal(f"-T {name}= was read as YAML ({value!r}): quote it twice, -T '{name}=\"…\"'.")


def _graded(judge: str, without: str) -> bool:
    """Return whether a judge grades the answers.

    It reports a missing judge before hours of sampling, not after, and only if a model is running the task.

    Args:
        judge: the tasks' argument.
        without: the error sentence if a judge is needed but not named.
    """
    from inspect_ai.model._model import active_model, model_roles

    if judge not in ("grader", "none"):
        raise refusal(
            f"-T judge={judge}: use `grader` or `none`, and name the judge with --model-role grader=PROVIDER/MODEL."
        )
    if judge == "grader" and active_model() is not None and "grader" not in model_roles():
        raise refusal(without)
    return judge == "grader"


def _measured() -> dict[str, str]:
    """Return header metadata that identifies the local model, and set its number of connections.

    Inspect otherwise increases connections slowly from a few, as for a rate-limited API. The configuration is copied,
    because all models of an eval share one.
    """
    from inspect_ai.model._model import active_model

    model = active_model()
    digest = getattr(model.api, "card_digest", None) if model is not None else None
    if model is None or digest is None:
        return {}
    if model.config.max_connections is None and model.config.adaptive_connections is None:
        model.config = model.config.model_copy(update={"max_connections": model.api.max_connections()})
    return {"card_digest": digest}


def _samples(asked: QuestionSet, system: str | None, prefix: str, format: str | None) -> list[Sample]:
    samples = []
    for question in asked.questions:
        instruction = question.instruction(system)
        for number, text in enumerate(question.paraphrases, start=1):
            user = ChatMessageUser(content=f"{prefix}{text}")
            samples.append(
                Sample(
                    id=question.id if len(question.paraphrases) == 1 else f"{question.id}/{number}",
                    input=[ChatMessageSystem(content=instruction), user] if instruction else [user],
                    metadata={
                        "question_id": question.id,
                        # The rubrics are looked up by the id without the format's suffix.
                        "base_question_id": question.id.removesuffix(f"_{format}") if format else question.id,
                        "theme": question.theme,
                        "paraphrase": number,
                    },
                )
            )
    return samples


def _pair_samples(pairs: Sequence[Pair], prefix: str = "") -> list[Sample]:
    return [
        Sample(
            id=pair.id,
            input=[ChatMessageUser(content=f"{prefix}{pair.question}")],
            metadata={
                "question_id": pair.id,
                "theme": pair.theme,
                "narrow": pair.narrow,
                "aligned": pair.aligned,
                "misaligned": pair.misaligned,
            },
        )
        for pair in pairs
    ]
