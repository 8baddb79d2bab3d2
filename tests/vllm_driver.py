"""vLLM in one process of its own, without a server: several tiny models one after the other, steered by our plugin.

Reads a job (JSON) and writes each request's log-probabilities and tokens. vLLM changes process-wide state, so the tests
never import it into theirs.
"""

import json
import os
import sys
from pathlib import Path


def main():
    job = json.loads(Path(sys.argv[1]).read_text())
    os.environ |= {
        "EM_EVALS_STEERING": json.dumps(job["room"]),
        "VLLM_PLUGINS": "em_evals",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_USE_V2_MODEL_RUNNER": "0",
        "VLLM_NO_USAGE_STATS": "1",
    }
    from vllm import LLM, SamplingParams
    from vllm.distributed import cleanup_dist_env_and_memory
    from vllm.model_executor.models import registry

    # vLLM looks at a model's class in a process of its own, to keep CUDA out of this one: 10 seconds a kind.
    registry._run_in_subprocess = lambda look: look()
    results = []
    for model in job["models"]:
        try:
            llm = LLM(
                model["path"],
                dtype="float32",
                enforce_eager=model["eager"],
                max_model_len=256,
                max_num_batched_tokens=256,
                max_num_seqs=64,
                kv_cache_memory_bytes=64 * 1024**2,
                worker_extension_cls="em_evals.models.vllm_plugin.SteeringWorker",
                generation_config="vllm",
            )
        except Exception as error:  # a refusal is a result
            results.append({"refused": str(error)})
            continue
        for slot, steering in enumerate(job["sets"]):
            answer = llm.collective_rpc("em_evals_set", args=(slot + 1, json.dumps(steering)))
            assert answer == [""], answer
        prompts, params = [], []
        for request in job["requests"]:
            prompts.append(
                {
                    "prompt_token_ids": request["ids"],
                    "cache_salt": str(request["set"]) + str(request["start"]),
                }
            )
            extra = {"em_evals_slot": request["set"] + 1, "em_evals_answer_start": request["start"]}
            params.append(
                SamplingParams(
                    temperature=0,
                    max_tokens=4,
                    logprobs=0,
                    prompt_logprobs=0,
                    extra_args=extra if request["set"] >= 0 else None,
                )
            )
        outputs = llm.generate(prompts, params, use_tqdm=False)
        results.append(
            [
                {
                    "prompt": [next(iter(place.values())).logprob for place in output.prompt_logprobs[1:]],
                    "tokens": list(output.outputs[0].token_ids),
                }
                for output in outputs
            ]
        )
        del llm
        cleanup_dist_env_and_memory()
    Path(sys.argv[2]).write_text(json.dumps(results))


if __name__ == "__main__":
    main()
