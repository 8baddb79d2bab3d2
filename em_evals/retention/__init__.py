"""Retained capability: lm-eval suites run and compared item by item."""
