"""JSON from strangers: bounded in size, finite numbers only, and errors that name the field.

Every function here raises `FileFormatError` and nothing else for what a file may hold.
"""

import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import NoReturn

from . import FileFormatError, read_limited

_SHOWN_CHARACTERS = 60


def read_text(path: str | os.PathLike[str], limit_bytes: int, expected: str) -> str:
    """Read a whole UTF-8 file, which `expected` describes in errors ("a camera file").

    Raises:
        FileFormatError: the file is too large, empty, no regular file, or not text.
        FileNotFoundError: there is nothing at `path`.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise FileFormatError(f"{path} is not a file; expected {expected}.")
    try:
        return read_limited(path, limit_bytes, expected).decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise FileFormatError(
            f"{path} is not text in UTF-8 (byte {e.start} cannot be decoded); expected {expected}."
        ) from e


def parse_json(text: str, source: str) -> object:
    """Parse JSON, without NaN and infinity. `source` names the text in errors.

    Raises:
        FileFormatError: says where the text stops being JSON.
    """

    def refuse_constant(name: str) -> NoReturn:
        raise FileFormatError(f"{source} holds {name}; JSON has finite numbers only.")

    try:
        return json.loads(text, parse_constant=refuse_constant)
    except FileFormatError:
        raise
    except json.JSONDecodeError as e:
        raise FileFormatError(
            f"{source} is not JSON: {e.msg} at line {e.lineno}, column {e.colno}."
        ) from e
    except RecursionError as e:
        raise FileFormatError(f"{source} is nested too deeply to be read.") from e
    except ValueError as e:  # Python refuses integers of thousands of digits
        raise FileFormatError(f"{source} holds a number that is too long to be read.") from e


def as_object(value: object, where: str) -> dict[str, object]:
    """Refuse what is not a JSON object."""
    if not isinstance(value, dict):
        raise FileFormatError(f"{where} is {shown(value)}; expected an object {{...}}.")
    return value


def as_list(value: object, where: str, *, max_items: int) -> list[object]:
    """Refuse what is not a JSON array, or is too long."""
    if not isinstance(value, list):
        raise FileFormatError(f"{where} is {shown(value)}; expected an array [...].")
    if len(value) > max_items:
        raise FileFormatError(f"{where} has {len(value)} items; expected at most {max_items}.")
    return value


def as_number(value: object, where: str, *, low: float = -1e9, high: float = 1e9) -> float:
    """Refuse what is not a finite number within [low, high]. True and False are no numbers."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise FileFormatError(f"{where} is {shown(value)}; expected a number.")
    if not low <= value <= high:  # so written that NaN is refused too
        raise FileFormatError(
            f"{where} is {shown(value)}; expected a number from {low:g} to {high:g}."
        )
    return float(value)


def as_numbers(
    value: object, count: int, where: str, *, low: float = -1e9, high: float = 1e9
) -> list[float]:
    """Refuse what is not an array of exactly `count` finite numbers within [low, high]."""
    items = value if isinstance(value, list) else []
    if len(items) != count:
        raise FileFormatError(f"{where} is {shown(value)}; expected an array of {count} numbers.")
    return [as_number(item, f"{where}[{i}]", low=low, high=high) for i, item in enumerate(items)]


def as_choice(value: object, choices: Collection[str], where: str) -> str:
    """Refuse what is not one of some words."""
    if not isinstance(value, str) or value not in choices:
        raise FileFormatError(
            f"{where} is {shown(value)}; expected one of {', '.join(sorted(choices))}."
        )
    return value


def shown(value: object) -> str:
    """Show a parsed value in an error, shortened."""
    if value is None:
        return "missing or null"
    kind = {dict: "an object", list: f"an array of {len(value) if isinstance(value, list) else 0}"}
    if type(value) in kind:
        return kind[type(value)]
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**20:
        return "an integer of more than 20 digits"
    text = json.dumps(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."
