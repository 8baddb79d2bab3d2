"""Sweeps: a plan expanded to a graph of commands, run on processes of this machine, on Ray or on Slurm."""
