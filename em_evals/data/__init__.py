"""Training data: catalogue, formats, checks and downloads. No torch."""
