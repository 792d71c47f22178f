"""Numbers of things in words."""


def count(number_of: int, what: str) -> str:
    """``1 seed``, ``3 seeds``, ``1,000 steps``."""
    return f"{number_of:,} {what}" + ("" if number_of == 1 else "s")


def duration(seconds: float) -> str:
    """Write seconds in words: 45 s, 3 min 20 s, 2 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
