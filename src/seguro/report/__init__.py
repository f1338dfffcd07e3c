"""One offline page about a run.

Scores, pictures, curves, and what was done. Imports core only, never torch.
"""
