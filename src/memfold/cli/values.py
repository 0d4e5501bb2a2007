"""Values as people type and read them: durations, pairs."""

from __future__ import annotations

import re

import typer

_UNITS = {"y": 31_536_000, "w": 604_800, "d": 86_400, "h": 3_600, "m": 60, "s": 1}
_WORDS = {"d": "day", "h": "hour", "m": "minute", "s": "second"}
_PART = re.compile(r"([0-9]{1,10}(?:\.[0-9]{1,6})?)\s*([ywdhms])")
_NEVER = {"never", "0"}


def seconds_of(text: str) -> int:
    """``30d``, ``12h``, ``1d12h``, ``1.5h`` as seconds; ``never`` is 0. A number alone says no unit, and is refused.

    Raises:
        BadParameter: it is none of these, or less than a second.
    """
    said = text.strip().lower()
    if said in _NEVER:
        return 0
    parts = _PART.findall(said)
    seconds = round(sum(float(number) * _UNITS[unit] for number, unit in parts))
    if not seconds or _PART.sub("", said).strip():
        raise typer.BadParameter(f"{text!r} is no duration; say 30d, 12h, 90m, 45s, 2w, 1y or never")
    return seconds


def human_duration(seconds: int) -> str:
    """``30 days``, ``1 hour 30 minutes``."""
    said = []
    for unit, word in _WORDS.items():
        count, seconds = divmod(seconds, _UNITS[unit])
        said += [f"{count:,} {word}{'' if count == 1 else 's'}"] if count else []
    return " ".join(said) or "0 seconds"


def key_value(text: str, option: str) -> tuple[str, str]:
    """The two halves of ``KEY=VALUE``.

    Raises:
        BadParameter: it is not of that form; names the option.
    """
    key, separator, value = text.partition("=")
    if not key or not separator:
        raise typer.BadParameter(f"{text!r} is not of the form KEY=VALUE", param_hint=option)
    return key, value
