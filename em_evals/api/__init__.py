"""The public API: models, directions and results for notebooks and scripts. `import em_evals as em` is its face.

Every function calls what the command line calls; nothing is computed here.
"""
