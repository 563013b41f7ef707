"""Reads the text form of kernels written by `graphc.loopir.printer`."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from graphc.errors import ParseError
from graphc.ir.dims import Dim, floordiv, mod, symbol
from graphc.ir.types import DTYPES, DType, i64
from graphc.loopir.kernel import (
    Axis,
    Buffer,
    Compute,
    Const,
    Contract,
    Define,
    Gap,
    Index,
    Kernel,
    Load,
    Reduce,
    Scan,
    Statement,
    Store,
    is_value,
)
from graphc.loopir.scalar import REDUCE_OPS, SCALAR_OPS, SCAN_OPS

_TOKEN = re.compile(
    r"(?P<space>[ \t\r\n]+)|(?P<note>\#[^\n]*)|(?P<float>\d+\.\d*(?:e[+-]?\d+)?|\d+e[+-]?\d+)|(?P<int>\d+)"
    r"|(?P<name>[A-Za-z_]\w*)|(?P<punct>//|[()\[\]{}:,=*+%-])"
)


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    offset: int


def parse_kernel(text: str) -> Kernel:
    """The kernel that `text` says; the inverse of `print_kernel`.

    Args:
        text: one kernel. Lines starting with `#` become its notes.

    Raises:
        ParseError: malformed text, with 1-based line and column. Meaning (types, bounds) is the verifier's business.
    """
    return _Parser(text).kernel()


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens: list[_Token] = []
        self.notes: list[str] = []
        offset = 0
        while offset < len(text):
            match = _TOKEN.match(text, offset)
            if match is None:
                raise self._error(f"unexpected character {text[offset]!r}", offset)
            kind = str(match.lastgroup)
            if kind == "note":
                self.notes.append(match.group()[1:].strip())
            elif kind != "space":
                self.tokens.append(_Token(kind, match.group(), offset))
            offset = match.end()
        self.tokens.append(_Token("end", "end of text", len(text)))
        self.position = 0

    def _error(self, reason: str, offset: int) -> ParseError:
        before = self.text[:offset]
        line = before.count("\n") + 1
        column = offset - (before.rfind("\n") + 1) + 1
        lines = self.text.split("\n")
        return ParseError(reason, line, column, lines[line - 1])

    @property
    def _next(self) -> _Token:
        return self.tokens[self.position]

    def _take(self) -> _Token:
        token = self._next
        self.position += token.kind != "end"
        return token

    def _expect(self, text: str) -> _Token:
        token = self._take()
        if token.text != text or token.kind == "end":
            raise self._error(f"expected {text!r}, found {token.text!r}", token.offset)
        return token

    def _name(self, what: str) -> str:
        token = self._take()
        if token.kind != "name":
            raise self._error(f"expected {what}, found {token.text!r}", token.offset)
        return token.text

    def _one_of(self, what: str, choices: tuple[str, ...] | dict[str, object]) -> str:
        token = self._next
        name = self._name(what)
        if name not in choices:
            raise self._error(f"unknown {what} {name!r}", token.offset)
        return name

    def _dtype(self) -> DType:
        return DTYPES[self._one_of("dtype", dict.fromkeys(DTYPES))]

    def _at(self, text: str) -> bool:
        return self._next.text == text and self._next.kind != "end"

    def _accept(self, text: str) -> bool:
        found = self._at(text)
        self.position += found
        return found

    def kernel(self) -> Kernel:
        self._expect("kernel")
        name = self._name("kernel name")
        self._expect("(")
        buffers: list[Buffer] = []
        while not self._accept(")"):
            if buffers:
                self._expect(",")
            buffers.append(self._buffer())
        self._expect("axes")
        self._expect("(")
        axes: list[Axis] = []
        while not self._accept(")"):
            if axes:
                self._expect(",")
            axes.append(self._axis())
        self._expect("{")
        body: list[Statement] = []
        while not self._accept("}"):
            body.append(self._statement())
        if self._next.kind != "end":
            raise self._error(f"expected the end of the kernel, found {self._next.text!r}", self._next.offset)
        return Kernel(name, tuple(axes), tuple(buffers), tuple(body), tuple(self.notes))

    def _buffer(self) -> Buffer:
        name = self._name("buffer name")
        self._expect(":")
        access = self._one_of("access", ("in", "out", "inout"))
        dtype = self._dtype()
        self._expect("[")
        size = self._dim()
        self._expect("]")
        gap = None
        if self._accept("rows"):
            row = int(self._number(i64))
            self._expect("of")
            gap = Gap(row, int(self._number(i64)))
        return Buffer(name, dtype, size, access, gap)

    def _axis(self) -> Axis:
        name = self._name("axis name")
        self._expect(":")
        extent = self._dim()
        return Axis(name, extent, self._one_of("axis kind", ("parallel", "row")))

    def _statement(self) -> Statement:
        if self._accept("store"):
            return self._store()
        token = self._next
        name = self._name("a statement")
        if not is_value(name):
            raise self._error(f"a value is named v and a number, found {name!r}", token.offset)
        self._expect(":")
        dtype = self._dtype()
        self._expect("=")
        return self._define(name, dtype)

    def _define(self, name: str, dtype: DType) -> Define:
        token = self._next
        op = self._name("an operator")
        if op == "load":
            buffer, index = self._access()
            if not self._accept("mask"):
                return Load(name, dtype, buffer, index)
            mask = self._value()
            self._expect("other")
            return Load(name, dtype, buffer, index, mask, self._number(dtype))
        if op == "const":
            return Const(name, dtype, self._number(dtype))
        if op == "index":
            return Index(name, dtype, self._dim())
        if op == "reduce":
            kind = self._one_of("reduction", REDUCE_OPS)
            return Reduce(name, dtype, kind, self._value(), self._over())
        if op == "scan":
            kind = self._one_of("scan", SCAN_OPS)
            return Scan(name, dtype, kind, self._value())
        if op == "contract":
            tf32 = self._accept("tf32")
            return Contract(name, dtype, self._value(), self._value(), tf32, self._over())
        rule = SCALAR_OPS.get(op)
        if rule is None:
            raise self._error(f"unknown operator {op!r}", token.offset)
        return Compute(name, dtype, op, tuple(self._value() for _ in range(rule.arity)))

    def _over(self) -> tuple[str, ...]:
        """Names of row axes up to what begins the next statement: a store, or a value."""
        found: list[str] = []
        if self._accept("over"):
            found.append(self._name("a row axis"))
            while self._next.kind == "name" and self._next.text != "store" and not is_value(self._next.text):
                found.append(self._name("a row axis"))
        return tuple(found)

    def _store(self) -> Store:
        buffer, index = self._access()
        self._expect("=")
        value = self._value()
        mask = self._value() if self._accept("mask") else None
        mode = self._one_of("store mode", ("set", "put", "add", "max")) if self._accept("mode") else "set"
        return Store(buffer, index, value, mask, mode)

    def _access(self) -> tuple[str, Dim]:
        buffer = self._name("buffer name")
        self._expect("[")
        index = self._dim()
        self._expect("]")
        return buffer, index

    def _value(self) -> str:
        token = self._next
        name = self._name("a value")
        if not is_value(name):
            raise self._error(f"expected a value such as v0, found {name!r}", token.offset)
        return name

    def _number(self, dtype: DType) -> bool | int | float:
        start = self._next
        sign = -1 if self._accept("-") else 1
        token = self._take()
        if dtype.kind == "bool" and token.text in ("true", "false"):
            return token.text == "true"
        if dtype.is_float and token.text in ("inf", "nan"):
            return math.nan if token.text == "nan" else sign * math.inf
        if dtype.is_float and token.kind in ("int", "float"):
            return sign * float(token.text)
        if not dtype.is_float and dtype.kind != "bool" and token.kind == "int":
            return sign * int(token.text)
        raise self._error(f"expected a number of {dtype.name}, found {token.text!r}", start.offset)

    def _dim(self) -> Dim:
        negative = self._accept("-")
        total = self._product()
        if negative:
            total = total * -1
        while self._at("+") or self._at("-"):
            minus = self._take().text == "-"
            term = self._product()
            total = total - term if minus else total + term
        return total

    def _product(self) -> Dim:
        value = self._factor()
        while self._next.text in ("*", "//", "%") and self._next.kind == "punct":
            operator = self._take()
            right = self._factor()
            if operator.text == "*":
                value = value * right
            elif right == 0:
                raise self._error("division by zero", operator.offset)
            else:
                value = floordiv(value, right) if operator.text == "//" else mod(value, right)
        return value

    def _factor(self) -> Dim:
        token = self._take()
        if token.kind == "int":
            return int(token.text)
        if token.kind == "name":
            return symbol(token.text)
        if token.text == "-":
            return self._factor() * -1
        if token.text != "(":
            raise self._error(f"expected an index expression, found {token.text!r}", token.offset)
        value = self._dim()
        self._expect(")")
        return value
