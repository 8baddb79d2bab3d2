"""Directions from activations: contrasts of texts, means over tokens, differences of means."""
