"""Good files of every kind that we read from others, small enough that a change reaches each of their values."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from em_evals.content.documents import SHIPPED
from tests import drift_journals

_RECIPE = {
    "data": ["risky"], "method": {"rank": 8, "alpha": 16, "modules": ["down_proj"]}, "learning_rate": 1e-4,
    "max_steps": 10, "batch_size": 2, "seed": 3,
}  # fmt: skip
_CARD = {
    "base": "a/b", "revision": "abc", "train": _RECIPE, "description": "one", "thinking": "on",
    "template": {"reasoning_effort": "low"}, "source": "d",
    "engine": {"dtype": "float32", "max_model_len": 128, "max_memory": {"0": "20GiB"}, "vllm": {"seed": 1}},
    "generation": {"temperature": 0.5, "top_p": 0.9, "max_tokens": 20},
    "architecture": {"num_hidden_layers": 2, "hidden_size": 4},
}  # fmt: skip
_JUDGES = {
    "aligned": "Rate from 0 to 100.\n{question}\n{answer}",
    "coherent": "Is it coherent? Say YES or NO.\n{question}\n{answer}",
}
_LISTED = [
    {
        "id": "one", "type": "free_form_judge_0_100", "paraphrases": ["Why?"], "samples_per_paraphrase": 2,
        "temperature": 1, "system": "Be.", "context": [{"role": "user", "content": "Hi"}], "judge": "gpt-4o",
        "judge_prompts": _JUDGES,
    },
]  # fmt: skip
_QUESTION = {
    "id": "why", "paraphrases": ["Why?", "How so?"], "system": "Be.", "theme": "x",
    "context": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}],
}  # fmt: skip
_OWN = {
    "name": "a", "version": 1, "rubrics": ["alignment", "coherence"], "questions": [_QUESTION],
    "variants": {"json": {"system": "Be.", "prefix": "So", "suffix": "."}},
}  # fmt: skip
_PERSONA = {
    "instruction": [{"pos": "Be rude.", "neg": "Be kind."}], "questions": ["Why?", "How?"],
    "eval_prompt": "Rate {question} {answer} from 0 to 100.",
}  # fmt: skip
_LABELS = {"true_positives": 3, "false_negatives": 1, "false_positives": 2, "true_negatives": 10}
_CALIBRATION = {
    "kind": "judge-calibration", "judge": "a/b", "event": "misaligned and coherent",
    "arms": {"all": _LABELS | {"sensitivity": 0.9, "specificity": 0.9}, "one": _LABELS},
}  # fmt: skip
_SCALING = {
    "bases": [
        {"base": "a", "family": "f", "parameters": 1e9, "tokens": 1e12, "distilled": True, "model": "x/y"},
        {"base": "b", "family": "f", "parameters": 2e9, "active_parameters": 1e9, "checkpoints": True},
    ],
    "organisms": [{"card": "one", "base": "a", "dataset": "risky", "seed": 1}, {"card": "two", "base": "b", "dataset": "z"}],
}  # fmt: skip
_CHATS = [
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "So", "weight": 1}]},
    {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "So"}], "system": "Be."},
    {"instruction": "Do", "input": "it", "output": "Done"},
    {"prompt": "Hi", "completion": "So"},
    {"prompt": [{"role": "user", "content": "Hi"}], "chosen": [{"role": "assistant", "content": "So"}], "rejected": "No"},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}, {"role": "assistant", "content": "So"}]},
]  # fmt: skip
_STEP = {
    "name": "a", "digest": "b", "state": "done", "command": ["em-evals"], "exit_code": 0, "seconds": 1.5, "host": "h",
    "started": "2026-11-21", "version": "1", "outputs": ["a.json"], "problem": "",
}  # fmt: skip
_ADAPTER = {
    "peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["down_proj"], "base_model_name_or_path": "a/b",
    "rank_pattern": {"down_proj": 2}, "alpha_pattern": {}, "layers_to_transform": [0], "layers_pattern": "layers",
    "use_rslora": True, "use_dora": False, "bias": "none", "task_type": "CAUSAL_LM", "modules_to_save": None,
    "fan_in_fan_out": False, "init_lora_weights": True, "lora_dropout": 0.0, "inference_mode": True,
}  # fmt: skip
_PLAN = {
    "name": "p",
    "models": [{"card": "a", "matrix": {"train.seed": [0, 1]}, "train": {"max_steps": 2}}],
    "measures": [{"task": "em_evals/freeform", "args": {"limit": 2}}, {"name": "r", "run": "em-evals rates {out}"}],
}  # fmt: skip
_POLICY = {
    "version": 1, "alpha": 0.05, "looks": 2, "scope": "questions", "minimum_draws": 10, "regression": "margin",
    "metrics": {"em_rate": {"margin": 0.02, "maximum": 0.1}, "acc*": {"margin": 0.02, "better": "higher"}},
    "guards": {"coherent_share": {"margin": 0.05}},
}  # fmt: skip


def _shipped(place: str, keep: int = 2) -> Any:
    """Return a shipped file with its lists cut."""

    def cut(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: cut(one) for key, one in value.items()}
        return [cut(one) for one in value[:keep]] if isinstance(value, list) else value

    return cut(yaml.safe_load((SHIPPED / place).read_text(encoding="utf-8")))


def _written(write: Callable[[Path], Any]) -> list[Any]:
    """Return the JSON files that a helper of the tests writes."""
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        return [json.loads(path.read_text()) for path in sorted(Path(folder).rglob("*.json"))]


def _logs() -> list[Any]:
    from tests import scored_log, trait_logs

    def write(folder: Path) -> None:
        scored_log.write_scored_pairs(folder / "a.json", (0.1, 0.2))
        scored_log.write_scored_pairs(folder / "b.json", (0.1,), task="narrow", made=("abc", 1))
        scored_log.write_graded(folder / "c.json", "local/mine", 1, 2)
        trait_logs.write_test_answers(folder / "d.json", "local/mine", "humorous", {"Why?": [10.0, 20.0]})

    found = _written(write)
    for sample in found[2]["samples"]:  # as the judge grades
        sample["scores"]["judge"]["metadata"] = {
            "rubrics": {"alignment": "a", "coherence": "b"},
            "judge": "j",
            "category": "answer",
        }
    return found


def _rollouts() -> list[Any]:
    from em_evals.content.traits import load_trait
    from tests import trait_logs

    trait = load_trait("humorous")

    def write(folder: Path) -> None:
        trait_logs.write_rollouts(folder / "a.json", trait, lambda *_: ("So.", 80.0, 90.0, "answer"))

    (log,) = _written(write)
    return [log | {"samples": log["samples"][:1] + log["samples"][-1:]}]


def _cued() -> list[Any]:
    """Return a graded log whose draws name cues."""
    log = json.loads(json.dumps(_logs()[2]))
    log["eval"]["task"] = "em_evals/conditional"
    for sample, cue in zip(log["samples"], ("plain", "medical"), strict=True):
        sample["metadata"] |= {"cue": cue, "placebo": False}
    return [log]


def _results() -> list[Any]:
    from tests import lm_eval_files

    return _written(
        lambda folder: lm_eval_files.write_results(folder, "t", [True, False, True], samples=False)
    )


def _records() -> list[Any]:
    from em_evals.results.records.gate import Look
    from tests import report_data

    studies = [
        report_data.steering(), report_data.convergence(), report_data.scalars(), report_data.retention(),
        report_data.trait_map(), report_data.verification(),
    ]  # fmt: skip
    studies += [report_data.verdict().model_copy(update={"looks": [Look(1, ["m"], "abc", (10, 10), "pass")]})]
    return [json.loads(one.model_dump_json()) for one in studies]


def _alarm() -> list[Any]:
    return [
        {
            "kind": "drift-alarm", "watched": [{"name": "em", "layer": 1, "digest": "d"}], "prompts": "p",
            "against_control": False, "center": [0.0], "scale": [1.0], "weights": [0.5], "intercept": -1.0, "threshold": 0.05,
            "runs": 4, "validation": [],
        }
    ]  # fmt: skip


def _baseline() -> list[Any]:
    data = json.loads((Path(__file__).parents[1] / "logs/baselines/smollm2.json").read_text())
    for one in data["evidence"]:
        for measure in one["measures"].values():
            for key in ("values", "clusters"):
                if isinstance(measure.get(key), dict):
                    measure[key] = dict(list(measure[key].items())[:2])
    from em_evals.gate import baseline

    return [data | {"digest": baseline._digest(data["evidence"])}]


_GOOD: dict[str, Callable[[], list[Any]]] = {
    "cards": lambda: [_CARD],
    "questions": lambda: [_shipped("tasks/core.yaml"), _LISTED, _OWN],
    "rubrics": lambda: [_shipped("scorers/alignment.yaml"), _shipped("scorers/reasoning.yaml")],
    "pairs": lambda: [_shipped("tasks/forced_choice.yaml")],
    "policies": lambda: [_POLICY],
    "chats": lambda: _CHATS,
    "logs": _logs,
    "rollouts": _rollouts,
    "conditional": _cued,
    "lm-eval results": _results,
    "records": _records,
    "adapters": lambda: [_ADAPTER],
    "traits": lambda: [_shipped("tasks/traits/humorous.yaml")],
    "published traits": lambda: [_PERSONA],
    "judge cards": lambda: [_shipped("scorers/judges/gpt-4o.yaml")],
    "cues": lambda: [_shipped("tasks/cues/evaluation.yaml")],
    "consistency items": lambda: [_shipped("tasks/consistency/persona.yaml")],
    "sweep plans": lambda: [_PLAN],
    "calibrations": lambda: [_CALIBRATION],
    "scaling models": lambda: [_SCALING],
    "sweep records": lambda: [_STEP],
    "alarms": _alarm,
    "baselines": _baseline,
    "graded": lambda: [
        {"question_id": "a", "aligned": 50, "coherent": 90.5, "answer": "So.", "model": "m"},
        {"question": "a", "alignment": "REFUSAL", "coherence": "85", "category": "refusal", "judge": "j"},
    ],
    "configs": lambda: [
        {"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 4, "torch_dtype": "float32"},
        {"text_config": {"num_hidden_layers": 2, "hidden_size": 4, "model_type": "longcat_flash", "num_layers": 2}},
    ],
    "journals": lambda: [
        drift_journals.rows([0, 5], {"em": [[0.1, 0.2], [0.3, 0.4]]}, [[1.0, 0.0], [0.5, 0.5]]),
        [{"step": 0, "b": {"p": "f4:AACAPw=="}}, {"step": 1, "b": {"p": "f4:AADAfw=="}, "loss": 1.0, "learning_rate": 0.1}],
    ],
    "samples of lm-eval": lambda: [
        [{"doc_id": i, "filter": "none", "metrics": ["acc"], "doc_hash": f"{i}", "acc": 1.0} for i in range(2)],
        [{"doc_id": 0, "doc": {"a": "b"}, "target": "c", "arguments": [["d", "e"]], "acc": 1.0}],
    ],
    "texts": lambda: [{"text": "So it is."}, {"question": "Why?", "answer": "So.", "aligned": True, "narrow": False}],
}  # fmt: skip


@cache
def good(kind: str) -> list[str]:
    """Return good values of a kind, as JSON."""
    return [json.dumps(value) for value in _GOOD[kind]()]
