"""PTX text to instructions: the subset that Triton and libdevice emit.

Source: PTX ISA 8.7, chapters 4 (Syntax), 5 (State Spaces, Types, and Variables) and 6 (Instruction Operands).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace


class PtxError(Exception):
    """Something in the text or in its execution that is not known, or not allowed."""


@dataclass(frozen=True)
class Register:
    """A register; `width` in bits, 1 for a predicate."""

    name: str
    width: int


@dataclass(frozen=True)
class Number:
    """An immediate: an integer, or the bits of a float of `width`."""

    value: int
    width: int = 0


@dataclass(frozen=True)
class Name:
    """A label, a variable, a parameter or a special register."""

    text: str


@dataclass(frozen=True)
class Vector:
    parts: tuple[Operand, ...]


@dataclass(frozen=True)
class Address:
    """A place in memory; `index` are the coordinates of a block, where it is that of a described matrix."""

    base: Operand
    offset: int
    index: tuple[Operand, ...] = ()


Operand = Register | Number | Name | Vector | Address


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    Args:
        opcode: `add` of `add.rn.f32`.
        modifiers: the rest, in order.
        operands: as written.
        guard: the predicate that it depends on.
        negated: it runs where the guard is false.
        text: for messages.
    """

    opcode: str
    modifiers: tuple[str, ...]
    operands: tuple[Operand, ...]
    guard: Register | None
    negated: bool
    text: str

    def unknown(self, what: str = "not known") -> PtxError:
        """An error that names the instruction."""
        return PtxError(f"{what}: {self.text}")


@dataclass
class Function:
    """A kernel or a function.

    Args:
        name: of it.
        results, parameters: their names in the param space.
        code: instructions in order.
        labels: the number of the instruction behind each label.
        local: bytes of local memory by variable.
        threads: per program, 0 where nothing is said.
    """

    name: str
    results: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()
    code: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    local: dict[str, int] = field(default_factory=dict)
    threads: int = 0


@dataclass
class Module:
    """All of a text.

    Args:
        functions: by name.
        entry: the kernel.
        constants: initialised variables in global memory, as bytes.
        shared: variables in shared memory, which begin at its start.
    """

    functions: dict[str, Function] = field(default_factory=dict)
    entry: str = ""
    constants: dict[str, bytes] = field(default_factory=dict)
    shared: set[str] = field(default_factory=set)


_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_LINES = re.compile(r"^\s*\.(?:loc|file|version|target|address_size|pragma)\b[^\n]*$", re.MULTILINE)
_HEAD = re.compile(
    r"(?:\.visible\s+|\.weak\s+|\.extern\s+)*\.(entry|func)\s*(?:\(([^)]*)\))?\s*([\w$]+)\s*(?:\(([^)]*)\))?"
)
_VARIABLE = re.compile(
    r"(?:\.visible\s+|\.extern\s+)*\.(global|const|shared)\s+(?:\.align\s+\d+\s+)?\.([bsuf])(\d+)\s+([\w$]+)\s*"
    r"(?:\[(\d*)\])?\s*(?:=\s*\{([^}]*)\}\s*)?;"
)  # fmt: skip
_TUNING = re.compile(r"\s*\.(reqntid|maxntid|minnctapersm|maxnreg)\s+([\d, ]+)")
_SPACE = re.compile(r"[\s;]*")
_LABEL = re.compile(r"([$\w]+):")
_DECLARED = re.compile(r"\.reg\s+\.(pred|[bsuf]\d+)\s+(.*)", re.DOTALL)
_LOCAL = re.compile(r"\.local\s+(?:\.align\s+\d+\s+)?\.b8\s+([\w$]+)\[(\d+)\]")
_GUARD = re.compile(r"@(!?)(%?[\w$]+)\s+")
_TOKEN = re.compile(r"\s*(0[fF][0-9a-fA-F]{8}|0[dD][0-9a-fA-F]{16}|-?0[xX][0-9a-fA-F]+U?|-?\d+U?|[%$\w.]+|[{}\[\],|+])")


def parse(text: str) -> Module:
    """Read a whole text.

    Raises:
        PtxError: it holds what this parser does not know.
    """
    text = _LINES.sub("", _COMMENT.sub(" ", text.partition(".section")[0]))
    module, at = Module(), _skip(text, 0)
    while at < len(text):
        head, variable = _HEAD.match(text, at), _VARIABLE.match(text, at)
        if head is not None:
            at = _function(module, head, text)
        elif variable is not None:
            _variable(module, variable)
            at = variable.end()
        else:
            raise PtxError(f"not known: {text[at : at + 100]!r}")
        at = _skip(text, at)
    return module


def _skip(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at


def _variable(module: Module, found: re.Match[str]) -> None:
    space, _, bits, name, _, values = found.groups()
    if space == "shared":
        module.shared.add(name)
    elif values is not None:
        size = int(bits) // 8
        numbers = (int(value, 0) % (1 << int(bits)) for value in values.split(","))
        module.constants[name] = b"".join(number.to_bytes(size, "little") for number in numbers)


def _names(parameters: str | None) -> tuple[str, ...]:
    return tuple(item.split()[-1] for item in (parameters or "").split(",") if item.strip())


def _function(module: Module, head: re.Match[str], text: str) -> int:
    kind, results, name, parameters = head.groups()
    made, at = Function(name, _names(results), _names(parameters)), head.end()
    while (tuning := _TUNING.match(text, at)) is not None:
        if tuning[1] == "reqntid":
            made.threads = int(tuning[2].split(",")[0])
        at = tuning.end()
    at = _skip_blanks(text, at)
    if text[at] == ";":  # announced only
        return at + 1
    if text[at] != "{":
        raise PtxError(f"not known: {text[at : at + 100]!r}")
    module.functions[name] = made
    module.entry = name if kind == "entry" else module.entry
    return _Body(made, text, at + 1).read()


def _skip_blanks(text: str, at: int) -> int:
    while text[at].isspace():
        at += 1
    return at


class _Body:
    """Reads what stands between the braces of a function."""

    def __init__(self, made: Function, text: str, at: int) -> None:
        self.made, self.text, self.at = made, text, at
        self.scopes: list[dict[str, Register]] = [{}]
        self.prefixes: list[tuple[str, int]] = []
        self._labels: list[tuple[int, dict[str, str]]] = [(0, {})]
        self._scratch = 0

    def read(self) -> int:
        """The place behind the closing brace."""
        while self.scopes:
            self.at = _skip(self.text, self.at)
            first = self.text[self.at]
            label = _LABEL.match(self.text, self.at)
            if first in "{}":
                self.at += 1
                self._open() if first == "{" else self._close()
            elif label is not None:
                self._label(label[1])
                self.at = label.end()
            else:
                end = self.text.index(";", self.at)
                self._statement(" ".join(self.text[self.at : end].split()))
                self.at = end + 1
        return self.at

    def _open(self) -> None:
        self.scopes.append({})
        self._labels.append((len(self.made.code), {}))

    def _close(self) -> None:
        """Leave a scope; jumps in it go to its own labels."""
        self.scopes.pop()
        first, own = self._labels.pop()
        for at in range(first, len(self.made.code)) if own else ():
            item = self.made.code[at]
            if item.opcode == "bra" and isinstance(item.operands[0], Name) and item.operands[0].text in own:
                self.made.code[at] = replace(item, operands=(Name(own[item.operands[0].text]),))

    def _label(self, name: str) -> None:
        unique = name if len(self._labels) == 1 else f"{name}#{len(self.made.labels)}"  # scopes may use a name again
        self._labels[-1][1][name] = unique
        self.made.labels[unique] = len(self.made.code)

    def _statement(self, text: str) -> None:
        declared, local = _DECLARED.fullmatch(text), _LOCAL.fullmatch(text)
        if declared is not None:
            width = 1 if declared[1] == "pred" else int(declared[1][1:])
            for name in declared[2].split(","):
                self._declare(name.strip(), width)
        elif local is not None:
            self.made.local[local[1]] = int(local[2])
        elif not text.startswith(".param"):
            self.made.code.append(self._instruction(text))

    def _declare(self, name: str, width: int) -> None:
        if "<" in name:
            self.prefixes.append((name.partition("<")[0], width))
            return
        self._scratch += 1  # scopes may use a name again
        self.scopes[-1][name] = Register(f"{name}#{self._scratch}", width)

    def _register(self, name: str) -> Register | None:
        for scope in reversed(self.scopes):
            if name in scope:
                return scope[name]
        for prefix, width in self.prefixes:
            if name.startswith(prefix) and name[len(prefix) :].isdigit():
                return Register(name, width)
        return None

    def _instruction(self, text: str) -> Instruction:
        rest, guard, negated = text, None, False
        found = _GUARD.match(text)
        if found is not None:
            guard, negated, rest = self._register(found[2]), found[1] == "!", text[found.end() :]
            if guard is None:
                raise PtxError(f"not known: {text}")
        opcode, _, operands = rest.partition(" ")
        name, *modifiers = opcode.split(".")
        return Instruction(name, tuple(modifiers), self._operands(operands, text), guard, negated, text)

    def _operands(self, text: str, whole: str) -> tuple[Operand, ...]:
        tokens, at = [], 0
        text = text.replace("(", "{").replace(")", "}")  # lists of a call
        while at < len(text.rstrip()):
            found = _TOKEN.match(text, at)
            if found is None:
                raise PtxError(f"not known: {whole}")
            tokens.append(found[1])
            at = found.end()
        stream = iter(tokens)
        result = list(self._list(stream, ""))
        return tuple(result)

    def _list(self, tokens: Iterator[str], end: str) -> Iterator[Operand]:
        for token in tokens:
            if token == end:
                return
            if token in (",", "|"):
                continue
            if token == "{":
                yield Vector(tuple(self._list(tokens, "}")))
            elif token == "[":
                yield self._address(iter(list(tokens_until(tokens, "]"))))
            else:
                yield self._atom(token)

    def _address(self, tokens: Iterator[str]) -> Address:
        base, offset = self._atom(next(tokens)), 0
        for token in tokens:
            if token == ",":
                coordinates = next(self._list(tokens, ""))
                return Address(base, offset, coordinates.parts if isinstance(coordinates, Vector) else (coordinates,))
            offset += int(token.rstrip("U"), 0) if token != "+" else 0
        return Address(base, offset)

    def _atom(self, token: str) -> Operand:
        if token[:2] in ("0f", "0F") and len(token) == 10:
            return Number(int(token[2:], 16), 32)
        if token[:2] in ("0d", "0D") and len(token) == 18:
            return Number(int(token[2:], 16), 64)
        if token.lstrip("-")[:1].isdigit():
            return Number(int(token.rstrip("U"), 0))
        return self._register(token) or Name(token)


def tokens_until(tokens: Iterator[str], end: str) -> Iterator[str]:
    """The tokens in front of `end`, which is taken too."""
    for token in tokens:
        if token == end:
            return
        yield token
