"""Numbers of things in words."""


def count(number_of: int, what: str) -> str:
    """``1 seed``, ``3 seeds``, ``1,000 steps``."""
    return f"{number_of:,} {what}" + ("" if number_of == 1 else "s")
