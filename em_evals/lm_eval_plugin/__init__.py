"""The lm-eval model `em_evals` and how lm-eval is called."""
