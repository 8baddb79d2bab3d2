"""lm-evaluation-harness: our models inside it, its command line with our tasks, and what a finetune cost."""
