"""Scores of agents, their intervals, and verdicts on pairs of agents.

Point estimates and stratified bootstrap intervals are rliable's (Agarwal et al., "Deep
Reinforcement Learning at the Edge of the Statistical Precipice", NeurIPS 2021). Verdicts use an
exact permutation test instead: bootstrap intervals from a few seeds are too narrow, and the test
keeps its false-alarm rate with any number of seeds.

The score of a run (one agent on one task with one seed) is its mean return over the episodes of its
last evaluation, not of its best one. The same data give exactly the same numbers.
"""
