"""Look inside a model: directions, steering, rank-1 adapters, phases of training."""
