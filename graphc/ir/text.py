"""The lexical form shared by the printer and the parser: names, strings, reserved words, locations."""

from __future__ import annotations

import re

from graphc.ir.types import DTYPES, UNKNOWN, Location

RESERVED = frozenset({"True", "False", "None", "nan", "inf", "complex", *DTYPES})
"""Words that mean a constant inside attributes, so that no symbol of a dim may have such a name."""

STRING_PATTERN = r'"(?:[^"\\\n]|\\.)*"'
IDENTIFIER_PATTERN = r"[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z0-9_]+)*"
VALUE_NAME_PATTERN = r"[A-Za-z0-9_.]+"
NAMED_PATTERN = r"[A-Za-z0-9_.:]+"

_IDENTIFIER = re.compile(IDENTIFIER_PATTERN)
_VALUE_NAME = re.compile(VALUE_NAME_PATTERN)
_NAMED = re.compile(NAMED_PATTERN)
_PLAIN_WORD = re.compile(r'[^\s"]\S*')
_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t", '"': '\\"', "\\": "\\\\"}
_UNESCAPES = {escaped[1]: char for char, escaped in _ESCAPES.items()}
_ESCAPE = re.compile(r"\\(?:([nrt\"\\])|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.?))")
_WORD = rf"({STRING_PATTERN}|[^\s\"]\S*)"
_FILE = rf"({STRING_PATTERN}|[^\s\"]\S*?)"
_LOCATION = re.compile(rf"#\s*{_FILE}:(-?\d{{1,18}})(?: in {_WORD})?(?: @ {_WORD})?\s*")


def quote(text: str) -> str:
    """`text` as a string literal in double quotes, on one line, whatever it holds."""
    if text.isprintable() and '"' not in text and "\\" not in text:
        return f'"{text}"'
    return '"' + "".join(_ESCAPES.get(char) or _escape_unprintable(char) for char in text) + '"'


def _escape_unprintable(char: str) -> str:
    if char.isprintable():
        return char
    code = ord(char)
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def unquote(literal: str) -> str:
    """The text of a string literal made by `quote`.

    Raises:
        ValueError: an escape that does not exist.
    """
    if "\\" not in literal:
        return literal[1:-1]
    return _ESCAPE.sub(_unescape, literal[1:-1])


def _unescape(match: re.Match[str]) -> str:
    simple, short, long, unknown = match.groups()
    if simple:
        return _UNESCAPES[simple]
    code = short or long
    if code is None or int(code, 16) > 0x10FFFF:
        raise ValueError(f"unknown escape \\{unknown if code is None else 'U' + code} in a string")
    return chr(int(code, 16))


def identifier(name: str) -> str:
    """A name of a graph, an op or an attribute: as it is when it is an identifier, else quoted."""
    return name if _IDENTIFIER.fullmatch(name) else quote(name)


def value_name(name: str) -> str:
    """`%name`, quoted when it holds more than letters, digits, `_` and `.`."""
    return f"%{name}" if _VALUE_NAME.fullmatch(name) else f"%{quote(name)}"


def named_constant(kind: str, name: str) -> str:
    """`@kind.name`, the name quoted when it holds more than letters, digits, `_`, `.` and `:`."""
    return f"@{kind}.{name}" if _NAMED.fullmatch(name) else f"@{kind}.{quote(name)}"


def location_comment(location: Location) -> str:
    """`# file:line in function @ module`, or nothing when nothing is known."""
    if location == UNKNOWN:
        return ""
    function = f" in {_word(location.function)}" if location.function else ""
    module = f" @ {_word(location.module)}" if location.module else ""
    return f"# {_word(location.file)}:{location.line}{function}{module}"


def parse_location(comment: str) -> Location:
    """The location that a comment states; `UNKNOWN` for any other comment."""
    match = _LOCATION.fullmatch(comment)
    if match is None:
        return UNKNOWN
    file, line, function, module = match.groups()
    try:
        return Location(_unword(file), int(line), _unword(function), _unword(module))
    except ValueError:
        return UNKNOWN


def _word(text: str) -> str:
    return text if _PLAIN_WORD.fullmatch(text) and text.isprintable() else quote(text)


def _unword(text: str | None) -> str:
    if text is None:
        return ""
    return unquote(text) if text.startswith('"') else text
