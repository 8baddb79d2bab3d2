"""Rank-1 adapters: their scalars per token, probes on them, knockouts."""
