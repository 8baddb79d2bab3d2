"""Steering studies: layers and coefficients chosen on one half of the questions, measured on the other."""
