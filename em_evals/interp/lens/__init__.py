"""Read what a finetune changed without asking it: activation differences, log-probability shifts, forecasts."""
