"""Numbers and lists as text."""

from collections.abc import Iterable, Sequence

import numpy as np

from qsm_bench.statistics.estimates import CONFIDENCE, REPLICATIONS

NONE = "\N{EM DASH}"
"""The text in place of a missing number."""

BOOTSTRAP = (
    f"Intervals: {CONFIDENCE:.0%} stratified bootstrap over seeds, {REPLICATIONS:,} replications."
)


def number(value: float, digits: int = 3) -> str:
    """``value`` with so many significant digits; digits before the point are always shown."""
    if not np.isfinite(value):
        return NONE
    if value == 0:
        return "0"
    if abs(value) < 1e-3:
        return f"{value:.1e}"
    decimals = max(0, digits - 1 - int(np.floor(np.log10(abs(value)))))
    return f"{value:,.{decimals}f}"


def interval(value: float, low: float, high: float) -> str:
    """``value [low, high]``, or the value alone if a bound is missing."""
    if not (np.isfinite(low) and np.isfinite(high)):
        return number(value)
    return f"{number(value)} [{number(low)}, {number(high)}]"


def with_range(value: float, low: float, high: float) -> str:
    """``value (low to high)``, from the lowest to the highest seed; of one seed the value alone."""
    if not low < high:
        return number(value)
    return f"{number(value)} ({number(low)} to {number(high)})"


def p_value_text(p: float) -> str:
    """The p-value in words: ``p = 0.04``, or ``p < 0.001``."""
    return "p < 0.001" if p < 0.001 else f"p = {number(p, 2)}"


def listed(names: Sequence[str]) -> str:
    """The names as a list in a sentence: ``a, b and c``."""
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last


def span(numbers: Iterable[int]) -> str:
    """The smallest and the largest number, ``3 to 5``, or the only one, ``5``."""
    different = sorted({int(value) for value in numbers})
    return str(different[0]) if len(different) == 1 else f"{different[0]} to {different[-1]}"
