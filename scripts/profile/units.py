"""Figures as text: with a unit, and with few digits."""

from __future__ import annotations


def seconds(value: float) -> str:
    """A duration: `0.3 ms`, `84 ms`, `12.3 s`, `7 min 5 s`, `2 h 3 min`."""
    if value < 0.0005:
        return f"{value * 1e3:.2g} ms" if value > 0 else "0 s"
    if value < 0.9995:
        return f"{value * 1e3:.1f} ms" if value < 0.00995 else f"{value * 1e3:.0f} ms"
    if value < 99.95:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 300:
        return f"{whole} s"
    if whole < 7200:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def size(count: float) -> str:
    """Bytes, in powers of 1000: `640 B`, `9.7 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 99.5 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def number(value: float) -> str:
    """A count or a measure: a whole number, or three significant digits."""
    if value == int(value):
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def share(part: float, whole: float) -> str:
    """A part of a whole in percent; empty if the whole is 0."""
    return f"{100 * part / whole:.0f}%" if whole else ""


def measure(name: str, value: float) -> str:
    """A metric's value in the unit at the end of its name (`_s`, `_bytes`, `_rate`), otherwise the bare number."""
    if name.endswith("_per_s"):
        return f"{number(value)}/s"
    if name.endswith("_s"):
        return seconds(value)
    if name.endswith("_bytes"):
        return size(value)
    return f"{100 * value:.0f}%" if name.endswith("_rate") else number(value)


def title(name: str) -> str:
    """A metric's name in words, without the unit that `measure` adds."""
    for unit in ("_per_s", "_s", "_bytes"):
        name = name.removesuffix(unit)
    return name.replace("_", " ")
