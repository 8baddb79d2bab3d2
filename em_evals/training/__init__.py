"""Train the models under test: data, tokens and masks, LoRA training on TRL and PEFT."""
