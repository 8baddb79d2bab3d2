#!/usr/bin/env bash
# lm_eval 0.4.13: through an API all `repeats` of a document are copies of one draw, whatever `--seed` is.
#
# Expected: `repeats: 16` with temperature 1 are 16 draws, so that a majority vote or pass@k has something to count, and runs
#   with `--seed 1`, `2` and `3` are three samples.
# Seen: every request carries `"seed": 1234`, the default of the API models. Nobody asked for it, `--seed` does not set it, and
#   a server that honours seeds, as vLLM does, answers repeated requests with one text. The majority is
#   the first draw, all seeds have one result and the spread between them is zero. Nothing warns.
#
#     python 3.11.7 | lm_eval 0.4.13 | aiohttp 3.14.5 | tenacity 9.2.1 | tqdm 4.70.1 | requests 2.34.2
#     60 documents, 16 draws each at temperature 1; right in 55% of all draws
#     run                            first draw right  majority right  different draws a document  seeds sent
#     --seed 1                                  0.667           0.667                         1.0  1234
#     --seed 2                                  0.667           0.667                         1.0  1234
#     --seed 3                                  0.667           0.667                         1.0  1234
#     --seed 1, no seed is sent                 0.533           0.967                         3.7  None
#     seen: the draws of a document are copies
#
# With other versions: 0.4.13 is the newest at the time of writing. The seed came with its pull request #2149.
# Hurt: self-consistency and pass@k of served models are those of one draw, rates over repeated draws have 16 times fewer
#   answers than are counted, and "stable over seeds" holds for any model.
# Avoid: one run for each draw with `--model_args ...,seed=N`, or `--gen_kwargs seed=None`, which sends no seed. The backends that
#   run in the same process (`hf`) draw anew.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment lm_eval==0.4.13 aiohttp tenacity tqdm requests
FOLDER="$(mktemp -d)"
python - "$FOLDER" 2>"$FOLDER/stderr" <<'PY' || { code=$?; [[ $code == 4 ]] || cat "$FOLDER/stderr" >&2; rm -rf "$FOLDER"; exit $code; }
import json
import random
import statistics
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

DOCUMENTS, REPEATS = 60, 16
root = Path(sys.argv[1])
unseeded = random.Random(0)
seeds: list[Any] = []


class Served(BaseHTTPRequestHandler):
    """A model that answers every question rightly in 55% of its draws, and with one of three wrong words otherwise."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompts = body["prompt"] if isinstance(body["prompt"], list) else [body["prompt"]]
        seeds.append(body.get("seed"))
        choices = []
        for index, prompt in enumerate(prompts):
            chance = unseeded if body.get("seed") is None else random.Random(f"{body['seed']} {prompt}")
            right = prompt.split()[-1]
            text = right if chance.random() < 0.55 else chance.choice(["red", "blue", "green"])
            choices.append({"index": index, "text": f" {text}"})
        answer = json.dumps({"choices": choices}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *parts: Any) -> None:
        """Print nothing."""


server = ThreadingHTTPServer(("127.0.0.1", 0), Served)
threading.Thread(target=server.serve_forever, daemon=True).start()
(root / "test.jsonl").write_text("".join(json.dumps({"word": f"word{n}"}) + "\n" for n in range(DOCUMENTS)))
(root / "vote.yaml").write_text(f"""
task: vote
dataset_path: json
dataset_kwargs:
  data_files: {{test: {root}/test.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "Repeat: {{{{word}}}}"
doc_to_target: "{{{{word}}}}"
target_delimiter: " "
repeats: {REPEATS}
generation_kwargs: {{do_sample: true, temperature: 1.0, max_gen_toks: 8, until: ["\\n"]}}
filter_list:
  - name: first
    filter:
      - {{function: regex, regex_pattern: "(\\\\w+)"}}
      - {{function: take_first}}
  - name: majority
    filter:
      - {{function: regex, regex_pattern: "(\\\\w+)"}}
      - {{function: majority_vote}}
      - {{function: take_first}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
""")
manager = TaskManager(include_path=str(root), include_defaults=False)


def run(seed: int, settings: dict[str, Any]) -> tuple[float, float, float]:
    """Return the accuracy of the first draw and of the majority, and the mean number of different draws."""
    address = f"http://127.0.0.1:{server.server_address[1]}/v1/completions"
    found = simple_evaluate(
        "local-completions",
        model_args={
            "model": "toy",
            "base_url": address,
            "tokenizer_backend": None,
            "tokenized_requests": False,
        },
        tasks=["vote"],
        task_manager=manager,
        gen_kwargs=settings,
        random_seed=seed,
        numpy_random_seed=seed,
        torch_random_seed=seed,
        fewshot_random_seed=seed,
        bootstrap_iters=0,
        log_samples=True,
    )
    row = found["results"]["vote"]
    firsts = [sample for sample in found["samples"]["vote"] if sample["filter"] == "first"]
    different = statistics.mean(len(set(sample["resps"][0])) for sample in firsts)
    return row["exact_match,first"], row["exact_match,majority"], different


print(f"{DOCUMENTS} documents, {REPEATS} draws each at temperature 1; right in 55% of all draws")
print("run                            first draw right  majority right  different draws a document  seeds sent")
results = {}
for title, seed, settings in (
    ("--seed 1", 1, {}),
    ("--seed 2", 2, {}),
    ("--seed 3", 3, {}),
    ("--seed 1, no seed is sent", 1, {"seed": None}),
):
    seeds.clear()
    results[title] = (*run(seed, settings), set(seeds))
    first, majority, different, sent = results[title]
    print(f"{title:29}  {first:16.3f}  {majority:14.3f}  {different:26.1f}  {', '.join(map(str, sent))}")
    assert len(seeds) == DOCUMENTS * REPEATS

*runs, free = results.values()
seen = all(row[:3] == (runs[0][0], runs[0][0], 1.0) and row[3] == {1234} for row in runs) and (
    free[1] > free[0] + 0.2 and free[2] > 2 and free[3] == {None}
)
print("seen: the draws of a document are copies" if seen else "changed: the draws of a document differ")
sys.exit(0 if seen else 4)
PY
rm -rf "$FOLDER"
