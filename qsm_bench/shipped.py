"""Data that comes with the program: the record, published scores, the regression's baseline."""

from pathlib import Path

INSTALLED = Path(__file__).parent / "shipped"
CHECKOUT = Path(__file__).parent.parent / "results"


def shipped(name: str) -> Path:
    """The folder ``name`` of the data: in an installed package, or else in the checkout.

    It need not exist: a checkout may have no record yet.
    """
    return (INSTALLED if INSTALLED.exists() else CHECKOUT) / name
