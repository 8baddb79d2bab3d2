"""Which commands `em-evals` has: each one's function, and the line that lists of commands show.

The lines are the first paragraphs of the functions' docstrings, kept here so that `em-evals --help` and a shell's
completion import no command; tests/cli/test_lazy.py compares them.
"""

from __future__ import annotations

from em_evals.cli.lazy import Command, Group

_UNTOUCHED = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
"""Pass every argument on to lm-eval."""

COMMANDS: dict[str, Command | Group] = {
    "quick": Command(
        "first:quick",
        "Score 12 forced-choice pairs, for a first result.",
    ),
    "demo": Command(
        "first:demo",
        "Train a tiny organism and its control, and measure both.",
    ),
    "train": Command(
        "training:train",
        "Train a card's model by its recipe, with TRL and PEFT. Repeat the same command to resume.",
    ),
    "compile": Command(
        "models:compile_card",
        "Compile a card's interventions into weights.",
    ),
    "verify": Command(
        "verify:verify",
        "Compare a card with plain transformers, PEFT and hooks. Exit code 0: all ok, 1: wrong, 2: could not run.",
    ),
    "steer": Command(
        "steering:steer",
        "Steer with a direction in both signs.",
    ),
    "conditional": Command(
        "conditional:conditional",
        "Measure how cues change a model, beyond its base.",
    ),
    "study": Command(
        "study:study",
        "Study three organisms and their controls in one command.",
    ),
    "sweep": Command(
        "sweep:sweep",
        "Train and measure a matrix of models. Repeat the same command to go on; finished steps are not repeated.",
    ),
    "rates": Command(
        "rates:rates",
        "Print EM rates with 95% intervals.",
    ),
    "gate": Command(
        "gate:gate",
        "Compare a candidate with a baseline. Exit code 0 pass, 1 regression, 2 invalid input, 3 inconclusive.",
    ),
    "lm-eval": Command(
        "retention:lm_eval",
        "Run lm-evaluation-harness with our models and tasks.",
        {"context_settings": _UNTOUCHED, "add_help_option": False},
    ),
    "retention": Command(
        "retention:retention",
        "Compare capability with a baseline, item by item.",
    ),
    "report": Command("report:report", "Write one self-contained page (HTML) of the results."),
    "schema": Command(
        "schema:schema",
        "Print the JSON Schema of a kind of file, for editors.",
    ),
    "serve": Command(
        "serving:serve",
        "Serve cards with vLLM at one OpenAI-compatible URL.",
    ),
    "doctor": Command(
        "serving:doctor",
        "Report what is installed and which engine is used, and why.",
    ),
    "models": Group(
        "Cards: the models under test.",
        {
            "list": Command("models:models_list", "List all cards, and whether their adapters exist."),
            "show": Command("models:models_show", "Show one card with all defaults."),
        },
    ),
    "data": Group(
        "Question sets and training data.",
        {
            "list": Command(
                "data:data_list",
                "List question sets, training data and judged draws.",
            ),
            "fetch": Command(
                "data:data_fetch",
                "Fetch published questions, training data and judged draws.",
            ),
            "convert": Command(
                "data:data_convert",
                "Write training data of any format as JSONL of chats.",
            ),
            "check": Command(
                "data:data_check",
                "Check questions, pairs, rubrics, cards or training data.",
            ),
            "screen": Command(
                "screening:data_screen",
                "Rank rows of training data by projection on a direction.",
            ),
        },
    ),
    "direction": Group(
        "Directions in the residual stream.",
        {
            "extract": Command(
                "direction:direction_extract",
                "Extract a direction: a difference of mean activations.",
            ),
            "show": Command(
                "direction:direction_show",
                "Show how a direction was made, and its reliability.",
            ),
            "compare": Command(
                "direction:direction_compare",
                "Print cosines between directions, layer by layer.",
            ),
            "combine": Command("direction:direction_combine", "Write a weighted sum of directions."),
            "export": Command("direction:direction_export", "Export a direction for another program."),
            "import": Command("direction:direction_import", "Import a direction that another program wrote."),
        },
    ),
    "insight": Group(
        "Studies of model internals.",
        {
            "phase": Command(
                "insight:insight_phase",
                "Measure misalignment over training steps.",
            ),
            "convergence": Command(
                "insight:insight_convergence",
                "Test whether organisms share a direction.",
            ),
            "lora-scalars": Command(
                "insight:insight_lora_scalars",
                "Measure the scalars of rank-1 adapters.",
            ),
            "drift": Command(
                "drift:insight_drift",
                "Compare the drift of monitored trainings with a control.",
            ),
            "scaling": Command(
                "scaling:scaling",
                "Relate EM rates to the size of models.",
            ),
            "lens": Command(
                "lens:lens",
                "Read what a fine-tune is about, without a judge.",
            ),
            "diff": Command(
                "diff:diff",
                "Rank tokens and contexts by what a fine-tune shifted.",
            ),
            "forecast": Command(
                "forecast:forecast",
                "Order questions by their distance to training prompts.",
            ),
            "same": Command(
                "provenance:same",
                "Tell whether two adapters, logs or files are the same.",
            ),
        },
    ),
    "trait": Group(
        "Traits: directions, geometry, monitoring.",
        {
            "list": Command("trait:trait_list", "List traits with their kinds and descriptions."),
            "extract": Command(
                "trait:trait_extract",
                "Extract directions from contrastive system prompts.",
            ),
            "draft": Command(
                "trait:trait_draft",
                "Let a model write a trait file.",
            ),
            "map": Command(
                "trait_measures:trait_map",
                "Compare traits with each other.",
            ),
            "monitor": Command(
                "trait_measures:trait_monitor",
                "Project the samples of logs on a direction.",
            ),
            "shift": Command(
                "trait_measures:trait_shift",
                "Measure fine-tuning shifts along traits.",
            ),
            "bases": Command(
                "trait_measures:trait_bases",
                "Relate how bases separate concepts to their EM rates.",
            ),
        },
    ),
    "judges": Group(
        "Compare two judges, or judges and people (`judges A B`).",
        {
            "calibrate": Command(
                "grading:calibrate",
                "Store a judge's sensitivity and specificity.",
            ),
            "compare": Command(
                "grading:judges",
                "Compare the grades of two judges on the same answers.",
            ),
        },
        default="compare",
    ),
}
