"""The gate: may this finetune ship? Evidence in, a verdict in words out. No torch."""
