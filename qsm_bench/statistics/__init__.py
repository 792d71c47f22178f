"""What the runs of an experiment say about its agents: scores, intervals, pairwise verdicts.

Point estimates and stratified bootstrap intervals are rliable's (Agarwal et al., "Deep
Reinforcement Learning at the Edge of the Statistical Precipice", NeurIPS 2021). Verdicts rest on an
exact permutation test instead, because bootstrap intervals from a handful of seeds are too narrow
and the test holds its false-alarm rate with any number of seeds.

The score of a run (one seed on one task) is its mean return over the episodes of its last
evaluation, never of its best one. The same data give the same numbers, to the last bit.
"""
