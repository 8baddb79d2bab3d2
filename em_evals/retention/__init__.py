"""Retained capability: run lm-eval suites and compare them item by item."""
