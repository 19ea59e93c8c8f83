"""Text of users, libraries and other machines, made safe for error sentences and terminals."""

from typing import Any


def brief(text: object, longest: int = 200) -> str:
    """Shorten a text to one printable line of at most ``longest`` characters.

    Control characters are escaped, because they could move the cursor of a terminal or hide other text.
    """
    shown = printable(" ".join(str(text).split())[: longest + 1])
    return shown if len(shown) <= longest else f"{shown[:longest]}..."


def first_line(error: BaseException) -> str:
    """Return the first line of an error message that has letters or digits, for use in a sentence."""
    return brief(_lines(error)[0]).rstrip(" .:!")


def last_line(error: BaseException) -> str:
    """Return the last line that has letters or digits, for libraries whose messages begin with a source location."""
    return brief(_lines(error)[-1]).rstrip(" .:!")


def printable(value: Any) -> Any:
    """Escape every control character in a JSON value. Raises RecursionError if the value is nested too deeply."""
    if isinstance(value, str):
        return value if value.isprintable() else "".join(s if s.isprintable() else repr(s)[1:-1] for s in value)
    if isinstance(value, dict):
        return {printable(key): printable(item) for key, item in value.items()}
    return [printable(item) for item in value] if isinstance(value, list) else value


def _lines(error: BaseException) -> list[str]:
    lines = [line for line in str(error).splitlines() if any(character.isalnum() for character in line)]
    return lines or [type(error).__name__]
