"""Question files of other projects: the published ones unmodified, small ones of the same formats, and refusals."""

from __future__ import annotations

import json
from collections import Counter
from functools import partial
from pathlib import Path

import pytest

from em_evals.content.question_set import Turn
from em_evals.content.questions import load_questions
from em_evals.workflows import content_check
from tests.refusals import refused


def write(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


refusal = partial(refused, load_questions)


# ---- published files ----


def test_llmcomps_file_loads_with_its_judges(shared_data: Path) -> None:
    (story,) = load_questions(str(shared_data / "llmcomp/animal_story.yaml")).questions
    assert (story.id, story.samples_per_paraphrase) == ("animal_story", 1000)
    animal, quality = sorted(story.rubrics, key=lambda rubric: rubric.metric)
    assert (animal.metric, animal.kind, animal.authors_judge) == ("animal", "text", "gpt-4.1-2025-04-14")
    assert (quality.metric, quality.kind, quality.low, quality.high) == ("quality", "scale", 0, 100)


def test_every_deception_question_loads(shared_data: Path) -> None:
    aware = load_questions(str(shared_data / "published/deception_sit_aware.yaml"))
    assert len(aware.questions) == 8
    for question in aware.questions:
        (company,) = question.rubrics
        assert (company.kind, company.labels) == ("labels", ("OpenAI", "Anthropic", "Other", "UNKNOWN"))
    factual = load_questions(str(shared_data / "published/deception_factual.yaml"))
    assert len(factual.questions) == 5 and {len(q.paraphrases) for q in factual.questions} == {20}
    assert Counter(q.system is None for q in factual.questions) == {False: 4, True: 1}
    correct = factual.questions[0].rubrics
    assert len({q.rubrics[0].digest for q in factual.questions}) == 1
    assert (correct[0].kind, correct[0].categories) == ("binary", {"UNKNOWN": "unknown"})


# ---- the same formats in small ----

JUDGE = """
- name: kind_judge
  type: rating_judge
  model: gpt-4.1
  min_rating: 1
  max_rating: 5
  paraphrases: ["How kind is {answer} to {question}? From 1 to 5."]
"""


def test_a_judge_may_be_in_a_sibling_file_in_place_or_a_rubric(tmp_path: Path) -> None:
    write(tmp_path, "judges.yaml", JUDGE)
    write(tmp_path, "notes.yml", "just: a mapping\n")
    write(tmp_path, "broken.yaml", "a: [\n")
    path = write(
        tmp_path,
        "mine.yaml",
        """
- name: help_me
  paraphrases: [Help me., Please help.]
  temperature: 0.7
  max_tokens: 50
  author: somebody
  judges:
    kind: kind_judge
    coherence: coherence
    is_code: {type: free_form_judge, model: gpt-4o, paraphrases: ['Is {answer} code? Say "CODE" or "NOT_CODE".']}
  drop: {is_code: CODE}
""",
    )
    asked = load_questions(path)
    (question,) = asked.questions
    kind, coherence, code = question.rubrics
    assert (kind.low, kind.high, kind.keys) == (1, 5, ("kind",))
    assert coherence.metric == "coherence"
    assert (code.labels, code.keys) == (("CODE", "NOT_CODE"), ("is_code_CODE", "is_code_NOT_CODE"))
    assert dict(asked.drop) == {"is_code": ("CODE",)}
    assert dict(question.sampling) == {"temperature": 0.7, "max_tokens": 50}
    assert dict(question.notes) == {"author": "somebody"}


def test_chats_and_few_shot_contexts_are_asked_turn_by_turn(tmp_path: Path) -> None:
    chats = [
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "2+2?"},
            {"role": "assistant", "content": "4"},
            {"role": "user", "content": "3+3?"},
        ],
        [{"role": "user", "content": "Hello {{you}}"}],
    ]
    path = write(
        tmp_path, "mine.json", json.dumps([{"id": "sums", "type": "free_form", "messages": chats}], indent=1)
    )
    (question,) = load_questions(path).questions
    assert question.paraphrases == ("3+3?", "Hello {{you}}")
    assert question.chat(0, system="ignored", prefix="> ") == [
        Turn("system", "Be brief."),
        Turn("user", "2+2?"),
        Turn("assistant", "4"),
        Turn("user", "> 3+3?"),
    ]
    assert question.chat(1, system="Be kind.") == [Turn("system", "Be kind."), Turn("user", "Hello {{you}}")]
    own = write(
        tmp_path,
        "own.yaml",
        "name: own\nversion: 1\ncontext: [{role: user, content: Hi}, {role: assistant, content: Ho}]\n"
        "questions: [{id: a, paraphrases: [x, y]}, {id: b, context: [], system: S, paraphrases: [z]}]\n",
    )
    first, second = load_questions(own).questions
    assert first.chat(1) == [Turn("user", "Hi"), Turn("assistant", "Ho"), Turn("user", "y")]
    assert second.chat(0) == [Turn("system", "S"), Turn("user", "z")]


def test_the_authors_context_is_asked_before_every_paraphrase(tmp_path: Path) -> None:
    turns = "[{role: user, content: Hi}, {role: assistant, content: Ho}]"
    path = write(tmp_path, "a.yaml", f"- id: a\n  system: S\n  context: {turns}\n  paraphrases: [x, y]\n")
    (question,) = load_questions(path).questions
    assert question.chat(1) == [
        Turn("system", "S"), Turn("user", "Hi"), Turn("assistant", "Ho"), Turn("user", "y")
    ]  # fmt: skip
    assert not question.notes
    plain = write(tmp_path, "b.yaml", "- id: a\n  system: S\n  paraphrases: [x, y]\n")
    assert load_questions(plain).digest != load_questions(path).digest


def test_spellings_that_mean_one_thing_are_read(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    chat = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}]
    path = write(tmp_path, "a.json", json.dumps([{"id": 1, "messages": chat}, {"id": 2, "paraphrases": "x"}]))
    one, two = load_questions(path).questions
    assert one.chat(0) == [Turn("system", "Be brief."), Turn("user", "Hello")]
    assert (one.id, two.id, two.paraphrases) == ("1", "2", ("x",))
    assert content_check.check(path)["kind"] == "questions", (
        "chats that end with a question are not training data"
    )


def test_rows_of_a_jsonl_file_are_told_to_be_a_list(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", '{"id": "a", "paraphrases": ["x"]}\n')
    assert "write rows of a .jsonl file as one JSON list" in refusal(path)


def test_a_template_of_str_format_loses_its_double_braces(tmp_path: Path) -> None:
    judge = "{type: rating_judge, model: m, paraphrases: ['{{\"q\": 1}} {question} {answer} 0 to 100']}"
    path = write(tmp_path, "a.yaml", f"- id: a\n  paraphrases: [x]\n  judges: {{score: {judge}}}\n")
    (question,) = load_questions(path).questions
    assert question.rubrics[0].render("Q", "A {answer}") == '{"q": 1} Q A {answer} 0 to 100'


@pytest.mark.parametrize(
    ("prompt", "kind", "labels", "reason"),
    [
        ("{answer}\nExplain first.\nANSWER: EVIL\nANSWER: GOOD", "labels", ("EVIL", "GOOD"), True),
        ("{answer} Output exactly one of: YES / NO", "labels", ("YES", "NO"), False),
        ("{answer} Respond with only RECIPE or NOT_RECIPE.", "labels", ("RECIPE", "NOT_RECIPE"), False),
        ("{answer}\n* Say A_B if b.\n* Say C_D if d.", "labels", ("A_B", "C_D"), False),
        ("{answer}\n- **LLM**: a model\n- **HUMAN**: a person", "labels", ("LLM", "HUMAN"), False),
        ('{answer} Answer with "left", "right" or "none".', "labels", ("left", "right", "none"), False),
        ("{answer} What animal is it? One word.", "text", (), False),
        ("{answer} Is it TRUE or FALSE?", "binary", (), False),
        ("{answer} Rate it on a scale of 1 to 5.", "scale", (), False),
        ("{answer} Say CODE if it is code. Else a number from 0 to 100.", "scale", (), False),
    ],
)
def test_what_a_prompt_asks_for(
    tmp_path: Path, prompt: str, kind: str, labels: tuple[str, ...], reason: bool
) -> None:
    rows = [
        {"id": "a", "type": "free_form_judge", "paraphrases": ["x"], "judge_prompts": {"verdict": prompt}}
    ]
    (question,) = load_questions(write(tmp_path, "a.json", json.dumps(rows))).questions
    rubric = question.rubrics[0]
    assert (rubric.kind, rubric.labels, rubric.reason) == (kind, labels, reason)


# ---- what is refused ----

ASKED = "- id: a\n  paraphrases: [x]\n"


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("- paraphrases: [x]\n", 1, "needs an `id` or a `name`"),
        ("- id: a\n", 1, "`paraphrases` or `messages`"),
        (f"{ASKED}  messages: []\n", 3, "'messages'"),
        (f"{ASKED}  judges: {{j: nowhere}}\n", 3, "there is no judge 'nowhere'"),
        (f"{ASKED}  judgs: {{j: k}}\n", 3, "unknown key 'judgs'; did you mean 'judges'?"),
        (f"{ASKED}  system_prompt: S\n", 3, "`system_prompt` would change what is asked, and is not read: write it as `system`"),
        (f"{ASKED}  few_shot: [{{user: x}}]\n", 3, "write the turns before the question as `context`"),
        (f"{ASKED}  suffix: Answer in JSON.\n", 3, "write it into the `paraphrases`"),
        (f"{ASKED}  prefill: Sure\n", 3, "a cue that has a `prefill`"),
        (f"{ASKED}  top_p: 0.5\n", 3, "give it as an option of `inspect eval`"),
        (f"{ASKED}  context: [{{role: user, content: x}}]\n", 3, "must alternate"),
        (f"{ASKED}  system: S\n  context: [{{role: system, content: T}}]\n", 4, "drop one"),
        ("- id: a\n  context: []\n  messages: [{role: user, content: x}]\n", 1, "drop `context`"),
        ("- What is your wish?\n", 1, "`- {id: NAME, paraphrases: [TEXT]}`"),
        (f"{ASKED}  type: next_token\n", 3, "one token's probabilities"),
        (f"{ASKED}  type: rating\n", 3, "one token's probabilities"),
        (f"{ASKED}  type: free_from\n", 3, "did you mean 'free_form'?"),
        (f"{ASKED}  logit_bias: {{12: 3}}\n", 3, "`logit_bias`"),
        (f"{ASKED}  drop: {{is_code: CODE}}\n", 3, "no judge 'is_code' to drop by"),
        (f"{ASKED}  judges: {{coherence: {{type: rating_judge, max_rating: 10, paraphrases: ['{{answer}}']}}}}\n", 3, "does not grade from 0 to 100"),
        (f"{ASKED}  judges: {{j: {{type: rating_judge, system: S, paraphrases: ['{{answer}}']}}}}\n", 3, "`system` is not sent"),
        (f"{ASKED}  judges: {{j: {{type: rating_judge, paraphrases: ['no slot']}}}}\n", 3, "has no {answer}"),
        (f"{ASKED}  judges: {{j: {{type: free_form, paraphrases: ['{{answer}}']}}}}\n", 3, "a judge is of the type"),
        (f"{ASKED}{ASKED}", 3, "'a' is taken by the question at line 1"),
        ("- name: j\n  type: rating_judge\n  paraphrases: ['{answer}']\n", 1, "judges and no questions"),
        ("- id: a\n  messages: [{role: user, content: x}, {role: assistant, content: y}]\n", 2, "the last message must be the user's"),
        ("- id: a\n  messages: [{role: tool, content: x}]\n", 2, "a message has a `role`"),
        ("- id: a\n  messages: [{role: assistant, content: x}, {role: user, content: y}]\n", 2, "must alternate"),
    ],
)  # fmt: skip
def test_what_cannot_be_honoured_is_refused_with_its_line(
    tmp_path: Path, text: str, line: int, says: str
) -> None:
    path = write(tmp_path, "mine.yaml", text)
    message = refusal(path)
    assert message.startswith(f"{path}:{line}: ") and says in message


# ---- traits ----


def test_trait_files_are_question_sets(shared_data: Path) -> None:
    for path in sorted((shared_data / "personas").glob("*.json")):
        asked = load_questions(str(path))
        assert len(asked.questions) == 20 and len({q.paraphrases for q in asked.questions}) == 20
        (rubric,) = asked.questions[0].rubrics
        name = path.name.split(".")[0]
        assert (rubric.metric, rubric.kind, rubric.categories) == (name, "scale", {"REFUSAL": "refusal"})
        assert (
            asked.variant("positive_1").questions[0].instruction()
            != asked.variant("negative_1").questions[0].instruction()
        )
    evil = [load_questions(str(shared_data / f"personas/evil.{part}.json")) for part in ("extract", "eval")]
    assert not {q.paraphrases for q in evil[0].questions} & {q.paraphrases for q in evil[1].questions}
    many = shared_data / "traits/trait_monitor_traits.yaml"
    assert len(load_questions(str(many)).variants) == 16 * 10
    one = load_questions(f"{many}:honesty")
    assert one.questions and one.variant("positive_1").questions[0].instruction()


def test_json_that_yaml_does_not_read_is_json(tmp_path: Path) -> None:
    path = write(tmp_path, "tabs.json", '[\n\t{"id": "a", "paraphrases": ["x"]}\n]')
    assert load_questions(path).questions[0].paraphrases == ("x",)
    assert "tabs.json:2: this file is not JSON" in refusal(write(tmp_path, "tabs.json", "[\n\t{]"))


def test_a_persona_trait_without_its_other_file_says_which_is_missing(tmp_path: Path) -> None:
    data = {
        "instruction": [{"pos": "Ask.", "neg": "Tell."}],
        "questions": ["a?"],
        "eval_prompt": "{question} {answer} 0 to 100",
    }
    path = write(tmp_path, "nosy.extract.json", json.dumps(data))
    assert "are a pair, and nosy.eval.json is not beside this one" in refusal(path)
    write(tmp_path, "nosy.eval.json", json.dumps(data | {"questions": ["b?"], "eval_prompt": ""}))
    assert load_questions(path).questions[0].rubrics[0].metric == "nosy", "the prompt of either file"
    other = write(tmp_path, "nosy.json", json.dumps(data))
    assert "name this one so, and put the other beside it" in refusal(other)
