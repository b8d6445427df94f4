"""Numbers as people read them: bytes, seconds, counts, changes."""

from __future__ import annotations

import math


def size(count: int | float) -> str:
    """Bytes in decimal units, as disks are sold and most file managers count: ``13.6 MB``."""
    return _scaled(count, ("B", "kB", "MB", "GB", "TB"))


def count(number: int | float) -> str:
    """A large number: ``4.21 M``; below a thousand as it is."""
    return _scaled(number, ("", "k", "M", "G", "T")).rstrip()


def seconds(duration: float) -> str:
    """A duration in µs, ms, s or minutes with three digits: ``12.3 ms``."""
    if duration >= 60:
        return f"{int(duration // 60)} min {duration % 60:.0f} s"
    for limit, factor, unit in ((0.9995e-3, 1e6, "µs"), (0.9995, 1e3, "ms"), (math.inf, 1.0, "s")):
        if duration < limit:
            return f"{digits(duration * factor)} {unit}"
    return str(duration)


def digits(number: float) -> str:
    """Three significant digits, without an exponent for everyday numbers: ``0.84``, ``12.3``, ``1234``."""
    if number == 0 or not math.isfinite(number):
        return f"{number:g}"
    places = 2 - math.floor(math.log10(abs(float(f"{number:.3g}"))))
    return f"{number:.{places}f}" if 0 <= places <= 4 else f"{number:.3g}" if places > 4 else f"{number:.0f}"


def change(before: float, after: float) -> str:
    """The relative change: ``-35 %``, ``+0.4 %``, ``same``."""
    if before == after:
        return "same"
    if not before:
        return f"+{after:g}"
    percent = (after - before) / before * 100
    return f"{percent:+.0f} %" if abs(percent) >= 9.95 else f"{percent:+.2g} %"


def plural(number: int, noun: str, many: str | None = None) -> str:
    """``1 node``, ``2 nodes``, ``3 entries``."""
    return f"{number:,} {noun if number == 1 else many or noun + 's'}"


def _scaled(number: int | float, units: tuple[str, ...]) -> str:
    value, index = float(number), 0
    while abs(value) >= 999.5 and index < len(units) - 1:
        value, index = value / 1000, index + 1
    return f"{number} {units[0]}" if index == 0 else f"{digits(value)} {units[index]}"
