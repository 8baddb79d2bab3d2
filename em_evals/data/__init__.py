"""Training data: what there is, its formats, checks and downloads. No torch."""
