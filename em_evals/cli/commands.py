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
        "Score 12 forced-choice pairs on a model, beside its base where it has one: a first result, without a judge.",
    ),
    "demo": Command(
        "first:demo",
        "Train a tiny organism and its control, evaluate both and their base, and print one table.",
    ),
    "train": Command(
        "training:train",
        "Train a card's model by its recipe, with TRL and PEFT. Repeat the same command to resume.",
    ),
    "compile": Command(
        "models:compile_card",
        "Compile a card's interventions into weights where that is exact; refuse others by name.",
    ),
    "verify": Command(
        "verify:verify",
        "Compare a card with plain transformers, PEFT and hooks. Exit code 0: all ok, 1: wrong, 2: could not run.",
    ),
    "steer": Command(
        "steering:steer",
        "Steer with a direction in both signs, against a random and the control's direction; detect damaged answers.",
    ),
    "conditional": Command(
        "conditional:conditional",
        "Measure (organism cued - plain) - (base cued - plain) for each cue, with intervals over prompts and seeds.",
    ),
    "study": Command(
        "study:study",
        "Study three organisms and their controls: directions, convergence, transfer, scalars, and a page of figures.",
    ),
    "sweep": Command(
        "sweep:sweep",
        "Train and measure a matrix of models. Repeat the same command to go on; finished steps are not repeated.",
    ),
    "rates": Command(
        "rates:rates",
        "Print EM rates with 95% intervals, by both conventions, with the shares of coherent, refused and "
        "ungraded draws.",
    ),
    "gate": Command(
        "gate:gate",
        "Compare a candidate with a baseline. Exit code 0 pass, 1 regression, 2 invalid input, 3 inconclusive.",
    ),
    "lm-eval": Command(
        "retention:lm_eval",
        "Run lm-evaluation-harness with our models (--model em-local --model_args card=NAME) and our tasks.",
        {"context_settings": _UNTOUCHED, "add_help_option": False},
    ),
    "retention": Command(
        "retention:retention",
        "Compare capability with a baseline, item by item: accuracy, paired differences, intervals.",
    ),
    "report": Command(
        "report:report", "Write one self-contained page (HTML) of the results; it needs no network."
    ),
    "schema": Command(
        "schema:schema",
        "Print the JSON Schema of a kind of file (always JSON), so that an editor checks and completes it.",
    ),
    "serve": Command(
        "serving:serve",
        "Serve cards with vLLM at one OpenAI-compatible URL, including adapters and interventions.",
    ),
    "doctor": Command(
        "serving:doctor",
        "Report what is installed, which engine is used and why, which cards are verified, and available memory.",
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
                "List question sets, published sets, training data and published judged draws.",
            ),
            "fetch": Command(
                "data:data_fetch",
                "Fetch published question sets, training data and judged draws from their authors (or EM_EVALS_DATA).",
            ),
            "convert": Command(
                "data:data_convert",
                "Write training data of any format that training reads as JSONL of chats.",
            ),
            "check": Command(
                "data:data_check",
                "Check questions, pairs, a rubric, a card or training data; exit code 2 with file and line if invalid.",
            ),
            "screen": Command(
                "screening:data_screen",
                "Rank the rows of training data by their projection difference on a direction.",
            ),
        },
    ),
    "direction": Group(
        "Directions in the residual stream.",
        {
            "extract": Command(
                "direction:direction_extract",
                "Extract a direction as a difference of mean activations, layer by layer.",
            ),
            "show": Command(
                "direction:direction_show",
                "Show how a direction was made, and its reliability layer by layer.",
            ),
            "compare": Command(
                "direction:direction_compare",
                "Print cosines between directions, layer by layer, and whether they exceed their null distributions.",
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
                "Measure misalignment over training steps, the rotation of B vectors, and the step of the transition.",
            ),
            "convergence": Command(
                "insight:insight_convergence",
                "Test whether organisms share a direction: cosines by layer, and each direction ablated from every "
                "organism.",
            ),
            "lora-scalars": Command(
                "insight:insight_lora_scalars",
                "Measure the scalars of rank-1 adapters: what they discriminate, and which domain each adapter serves.",
            ),
            "drift": Command(
                "drift:insight_drift",
                "Compare the drift of monitored trainings with a control and with nulls; learn or apply an alarm.",
            ),
            "scaling": Command(
                "scaling:scaling",
                "Relate EM rates to parameters, training tokens and parameters per token, or plan such a study.",
            ),
            "lens": Command(
                "lens:lens",
                "Read what a finetune is about: activation differences on plain texts through the logit lens.",
            ),
            "diff": Command(
                "diff:diff",
                "Rank tokens and contexts by the shift of next-token probabilities between an organism and its base.",
            ),
            "forecast": Command(
                "forecast:forecast",
                "Order questions by their distance to training prompts in the base; compare with what came.",
            ),
            "same": Command(
                "provenance:same",
                "Tell whether two adapters, logs or data files are identical, a copy, a reseed, or different.",
            ),
        },
    ),
    "trait": Group(
        "Traits: directions, geometry, monitoring.",
        {
            "list": Command("trait:trait_list", "List traits with their kinds and descriptions."),
            "extract": Command(
                "trait:trait_extract",
                "Extract directions from contrastive system prompts: from judged answers, or from the prompts alone.",
            ),
            "draft": Command(
                "trait:trait_draft",
                "Let a model write a trait file: 5 pairs of prompts, 20 + 20 questions, a rubric. Validated; never "
                "overwrites.",
            ),
            "map": Command(
                "trait_measures:trait_map",
                "Compare traits: cosines with intervals, clusters, dimensions, and which trait is specific.",
            ),
            "monitor": Command(
                "trait_measures:trait_monitor",
                "Project the samples of logs on a direction; correlate with a judged score beside null directions.",
            ),
            "shift": Command(
                "trait_measures:trait_shift",
                "Measure finetuning shifts along traits, and whether they tell what the finetunes show better than "
                "chance does.",
            ),
            "bases": Command(
                "trait_measures:trait_bases",
                "Relate how separated concepts are in several bases to their rates of emergent misalignment.",
            ),
        },
    ),
    "judges": Group(
        "Compare two judges, or judges and people (`judges A B`); `calibrate` stores a judge's errors.",
        {
            "calibrate": Command(
                "grading:calibrate",
                "Store a judge's sensitivity and specificity at the thresholds, for `em-evals rates --corrected`.",
            ),
            "compare": Command(
                "grading:judges",
                "Compare the grades of two judges on the same answers, or of judges and people.",
            ),
        },
        default="compare",
    ),
}
