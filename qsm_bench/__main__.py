"""``python -m qsm_bench`` and ``qsm-bench``."""

from qsm_bench.signals import answer, leave


def main() -> None:
    """Run the command line; Ctrl-C ends it from the first moment on, without a word."""
    answer(leave)  # before the imports, which take a second
    from qsm_bench.cli import main as command_line

    command_line()


if __name__ == "__main__":
    main()
