"""vLLM in one process of its own, without a server: several tiny models one after the other, steered by our plugin.

Reads a job (JSON) and writes each model's answers, or its refusal. vLLM changes process-wide state, so the tests never
import it into theirs.
"""

import json
import os
import sys
import traceback
from pathlib import Path


def main():
    job = json.loads(Path(sys.argv[1]).read_text())
    os.environ |= {
        "EM_EVALS_STEERING": json.dumps(job["room"]),
        "EM_EVALS_PLAN": "{}",  # as a server of ours, faults of vLLM mended
        "VLLM_PLUGINS": "em_evals",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_USE_V2_MODEL_RUNNER": "0",
        "VLLM_NO_USAGE_STATS": "1",
    }
    from vllm.distributed import cleanup_dist_env_and_memory
    from vllm.model_executor.models import registry

    # vLLM looks at a model's class in a process of its own, to keep CUDA out of this one: 10 seconds a kind.
    registry._run_in_subprocess = lambda look: look()
    results = []
    for model in job["models"]:
        model = {"sets": job.get("sets", []), "requests": job.get("requests", []), **model}
        try:
            results.append(answers(model))
        except Exception as error:  # a refusal is a result
            results.append({"refused": str(error), "trace": traceback.format_exc()})
        Path(sys.argv[2]).write_text(json.dumps(results))  # the next one may end the process
        cleanup_dist_env_and_memory()


def answers(model):
    """What vLLM says to each request about a model."""
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    adapters = model.get("adapters", [])
    options = {
        "dtype": "float32",
        "max_model_len": 256,
        "max_num_batched_tokens": 256,
        "max_num_seqs": 64,
        "kv_cache_memory_bytes": 64 * 1024**2,
    }
    if adapters:
        options |= {"enable_lora": True, "max_loras": len(adapters) + 1, "max_lora_rank": 64}
    llm = LLM(
        model["path"],
        enforce_eager=model["eager"],
        worker_extension_cls="em_evals.engines.vllm.plugin.SteeringWorker",
        generation_config="vllm",
        **options | model.get("options", {}),
    )
    for slot, steering in enumerate(model["sets"]):
        answer = llm.collective_rpc("em_evals_set", args=(slot + 1, json.dumps(steering)))
        assert answer == [""], answer
    prompts, params, loras = [], [], []
    for request in model["requests"]:
        salt = str(request["set"]) + str(request["start"])
        prompts.append({"prompt_token_ids": request["ids"], "cache_salt": salt})
        extra = {"em_evals_slot": request["set"] + 1, "em_evals_answer_start": request["start"]}
        params.append(
            SamplingParams(
                temperature=0,
                max_tokens=model.get("count", 4),
                logprobs=0,
                prompt_logprobs=0,
                extra_args=extra if request["set"] >= 0 else None,
            )
        )
        number = request.get("adapter", -1)
        loras.append(LoRARequest(str(number), number + 1, adapters[number]) if number >= 0 else None)
    outputs = llm.generate(prompts, params, lora_request=loras if adapters else None, use_tqdm=False)
    return [read(output) for output in outputs]


def read(output):
    """An answer's tokens and log-probabilities."""
    drawn = output.outputs[0]
    prompt = zip(output.prompt_token_ids[1:], output.prompt_logprobs[1:], strict=True)
    return {
        "prompt": [place[token].logprob for token, place in prompt],
        "tokens": list(drawn.token_ids),
        "logprobs": [
            place[token].logprob for token, place in zip(drawn.token_ids, drawn.logprobs, strict=True)
        ],
    }


if __name__ == "__main__":
    main()
