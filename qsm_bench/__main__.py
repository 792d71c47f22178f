"""``python -m qsm_bench`` and ``qsm-bench``."""

import os

from qsm_bench.signals import exit_now, on_stop_signals


def main() -> None:
    """Run the command line; Ctrl-C ends it from the first moment on, without a word."""
    on_stop_signals(exit_now)  # before the imports, which take a second
    # NumPy's products of small matrices are no faster on several threads, and eight times slower
    # where jobs or other programs use all cores: each waits for a thread that has none.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from qsm_bench.cli import main as command_line

    command_line()


if __name__ == "__main__":
    main()
