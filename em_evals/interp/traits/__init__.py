"""Traits: directions from contrastive prompts, their geometry, monitoring and the screening of training data."""
