"""Results on disk, read in one place: Inspect logs, lm-eval files, records of studies. No torch."""
