"""Numbers, times and settings as text for people."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any


def number(value: int | float) -> str:
    """12,345"""
    return f"{value:,}"


def score(value: float) -> str:
    return f"{value:.3f}"


def signed(value: float) -> str:
    """+0.139 or −0.020; more decimals if the value would be rounded to 0."""
    decimals = next((d for d in (3, 4, 5, 6) if round(value, d)), 3)
    return f"{value:+.{decimals}f}".replace("-", "−") if round(value, decimals) else "0.000"


def bounds(row: Mapping[str, Any]) -> str:
    """The interval of a row of `scores.parquet`."""
    return "none" if row["low"] is None else f"{signed(row['low'])} to {signed(row['high'])}"


def duration(seconds: float) -> str:
    """0.41 s · 12.3 s · 8 min 45 s · 3 h 12 min"""
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60:,} h {minutes % 60:02d} min"


def date(text: str) -> str:
    """24 November 2026, 08:52 UTC"""
    moment = datetime.fromisoformat(text)
    return f"{moment.day} {moment:%B %Y, %H:%M} UTC"


def setting(value: Any) -> str:
    """A field's value as in the YAML file."""
    if isinstance(value, str):
        return value
    if isinstance(value, Sequence) and all(isinstance(v, str) for v in value):
        return ", ".join(value)
    return json.dumps(value, ensure_ascii=False)


FILTERS = {
    "n": number,
    "score": score,
    "signed": signed,
    "bounds": bounds,
    "duration": duration,
    "date": date,
    "setting": setting,
}
"""Filters of the template."""
