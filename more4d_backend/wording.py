"""Words of messages."""


def counted(number: int, noun: str) -> str:
    """Return `1 window`, `2 windows`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
