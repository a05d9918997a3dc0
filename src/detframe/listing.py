"""Long lists in short: the first entries, and how many more there are."""

from __future__ import annotations

from collections.abc import Sequence


def in_a_row(entries: Sequence[str], most: int = 5) -> str:
    """Within a sentence: ``a, b and 3 more``."""
    more = f" and {len(entries) - most} more" if len(entries) > most else ""
    return ", ".join(entries[:most]) + more


def below(entries: Sequence[str], most: int = 5) -> str:
    """Below a sentence: each on an indented line of its own, and then ``and 3 more``."""
    more = [f"and {len(entries) - most} more"] if len(entries) > most else []
    return "".join(f"\n  {line}" for line in [*entries[:most], *more])
