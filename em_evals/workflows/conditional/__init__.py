"""Conditional misalignment: does a cue bring it out, more than in the base and in the control (arXiv 2604.25891)?"""
