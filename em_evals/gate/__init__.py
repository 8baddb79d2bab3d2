"""The gate: may this fine-tuned model ship? Evidence in, a verdict with reasons out. No torch."""
