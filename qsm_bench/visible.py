"""Text from anywhere, made safe to print: what a terminal or a spreadsheet would obey is shown."""

import re

FORMULA = re.compile(
    r"\s*[=+\-@\N{FULLWIDTH EQUALS SIGN}\N{FULLWIDTH PLUS SIGN}"
    r"\N{FULLWIDTH HYPHEN-MINUS}\N{FULLWIDTH COMMERCIAL AT}]"
)
NUMBER = re.compile(r"[+-]?(\d[\d,]*\.?\d*(e[+-]?\d+)?|inf|nan)", re.IGNORECASE)


def visible(text: str, *, keep: str = "") -> str:
    r"""``text`` with every character that a terminal would obey written out, as in ``\x1b``.

    Those in ``keep`` stay, such as the line breaks of a text that may have several lines.
    """
    return "".join(c if c in keep or c.isprintable() else _escaped(c) for c in text)


def safe_csv_cell(text: str) -> str:
    """``text`` as a CSV cell that no spreadsheet takes for a formula; numbers stay as they are."""
    text = visible(text)
    return f"'{text}" if FORMULA.match(text) and not NUMBER.fullmatch(text) else text


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")
