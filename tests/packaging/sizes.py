"""What of a wheel is data that it ships: ``python tests/packaging/sizes.py WHEEL`` prints it."""

import sys
from collections import Counter
from zipfile import ZipFile

SHIPPED = "qsm_bench/shipped/"
HEADERS = 76
"""The bytes of a zip's two headers of a file, beside its name in both."""

if __name__ == "__main__":
    taken: Counter[str] = Counter()
    with ZipFile(sys.argv[1]) as wheel:
        for member in wheel.infolist():
            inside = member.filename.removeprefix(SHIPPED)
            what = "the program" if inside == member.filename else inside.partition("/")[0]
            taken[what] += member.compress_size + HEADERS + 2 * len(member.filename)
    for what, size in taken.most_common():
        print(f"{what}: {size / 1000:,.0f} KB of the wheel")
