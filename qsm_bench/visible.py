"""Make text safe to show: no control characters for a terminal, no formulas for a spreadsheet."""

import re

FORMULA = re.compile(
    r"\s*[=+\-@\N{FULLWIDTH EQUALS SIGN}\N{FULLWIDTH PLUS SIGN}"
    r"\N{FULLWIDTH HYPHEN-MINUS}\N{FULLWIDTH COMMERCIAL AT}]"
)
NUMBER = re.compile(r"[+-]?(\d[\d,]*\.?\d*(e[+-]?\d+)?|inf|nan)", re.IGNORECASE)


def visible(text: str, *, keep: str = "") -> str:
    r"""``text`` with every control character written as an escape sequence, such as ``\x1b``.

    Characters in ``keep`` stay, such as the line breaks of a text with several lines.
    """
    return "".join(c if c in keep or c.isprintable() else _escaped(c) for c in text)


def safe_csv_cell(text: str) -> str:
    """``text`` as a CSV cell that is no formula for any spreadsheet. Numbers are not changed."""
    text = visible(text)
    return f"'{text}" if FORMULA.match(text) and not NUMBER.fullmatch(text) else text


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")
