"""``python -m qsm_bench``."""

from qsm_bench.cli import main

main()
