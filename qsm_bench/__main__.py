"""``python -m qsm_bench`` and ``qsm-bench``."""

from qsm_bench.signals import exit_now, on_stop_signals


def main() -> None:
    """Run the command line; Ctrl-C ends it from the first moment on, without a word."""
    on_stop_signals(exit_now)  # before the imports, which take a second
    from qsm_bench.cli import main as command_line

    command_line()


if __name__ == "__main__":
    main()
