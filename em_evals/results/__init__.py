"""What was measured, read once: Inspect logs, lm-eval files, records of studies. No torch."""
