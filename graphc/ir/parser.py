"""Text to graph IR: the inverse of `graphc.ir.printer`.

Grammar (newlines are spaces; `#` starts a comment to the end of the line; a comment of the form
`# file:line in function @ module` right after an op is its location):

    graph     = "graph" name "(" [input ("," input)*] ")" "{" op* write* "return" [output ("," output)*] "}"
    input     = "%"name ":" type role string ["strides" "=" dims]
    op        = [result ("," result)* "="] name "(" [operand ("," operand)*] ")" ["{" [attr ("," attr)*] "}"] region*
    region    = name graph
    result    = "%"name ":" type ["strides" "=" dims]
    write     = "write" "%"name "<-" "%"name
    output    = "%"name ["as" dims "{" [dim ("," dim)*] "}" "+" dim]
    type      = dtype dims ["@"device]           dims = "[" [dim ("," dim)*] "]"
    operand   = "%"name | number | "True" | "False" | complex
    attr      = name "=" constant
    constant  = number | "True" | "False" | "None" | string | dtype | complex | "$"index | "@"kind"."name | dim
              | "[" [constant ("," constant)*] "]" | "{" [attr ("," attr)*] "}"
    complex   = "complex" "(" number "," number ")"
    dim       = sums, products, "//" and "%" of ints and symbols
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from graphc.errors import ParseError
from graphc.ir.dims import Dim, Expr, floordiv, mod, symbol
from graphc.ir.graph import Graph, Input, Named, Op, Operand, Output, Ref, Role, StridedView, Value, Write
from graphc.ir.text import (
    IDENTIFIER_PATTERN,
    NAMED_PATTERN,
    RESERVED,
    STRING_PATTERN,
    VALUE_NAME_PATTERN,
    parse_location,
    unquote,
)
from graphc.ir.types import DTYPES, UNKNOWN, Location, TensorType

_TOKEN = re.compile(
    rf"""
    (?P<space>(?:[ \t\r\n]|\#[^\n]*)+)
    |(?P<value>%(?:{VALUE_NAME_PATTERN}|{STRING_PATTERN}))
    |(?P<string>{STRING_PATTERN})
    |(?P<float>[0-9]+(?:\.[0-9]*(?:[eE][+-]?[0-9]+)?|[eE][+-]?[0-9]+)(?![A-Za-z0-9_.]))
    |(?P<int>[0-9]+(?![A-Za-z0-9_.]))
    |(?P<ident>{IDENTIFIER_PATTERN})
    |(?P<at>@{NAMED_PATTERN}(?:{STRING_PATTERN})?)
    |(?P<ref>\$[0-9]+)
    |(?P<punct><-|//|[(){{}}\[\],:=*+%-])
    """,
    re.VERBOSE,
)
_COMMENT = re.compile(r"[ \t]*(#[^\n]*)")
_MAX_DEPTH = 64
_MAX_DIGITS = 1000
_MAX_TERMS = 256
_SHOWN_AFTER = 80

Item = TypeVar("Item")


def parse(text: str) -> Graph:
    """The graph that `text` describes. Types are taken as stated; `graphc.ir.verify` checks them.

    Raises:
        ParseError: malformed text, an undefined or doubly defined value; carries line, column and reason.
    """
    return _Parser(text).graph()


def parse_dim(text: str) -> Dim:
    """The expression that `text` is, as `str` gives it.

    Raises:
        ParseError: malformed text.
    """
    return _Parser(text).whole_dim()


class _Parser:
    """Recursive descent over a list of tokens (kind, text, offset)."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = self._tokenize()
        self.position = 0
        self.depth = 0
        self.values: dict[str, Value] = {}
        self.locations: dict[str, Location] = {}
        self.types: dict[tuple[str, ...], TensorType] = {}

    # tokens

    def _tokenize(self) -> list[tuple[str, str, int]]:
        tokens: list[tuple[str, str, int]] = []
        offset, end, match = 0, len(self.text), _TOKEN.match
        while offset < end:
            found = match(self.text, offset)
            if found is None:
                self._fail_at(offset, _lexical_reason(self.text, offset))
            kind = found.lastgroup
            if kind is not None and kind != "space":
                tokens.append((kind, found.group(), offset))
            offset = found.end()
        tokens.append(("end", "", end))
        return tokens

    def _fail_at(self, offset: int, reason: str) -> NoReturn:
        start = self.text.rfind("\n", 0, offset) + 1
        stop = self.text.find("\n", offset)
        line = self.text.count("\n", 0, offset) + 1
        stop = min(len(self.text) if stop < 0 else stop, offset + _SHOWN_AFTER)
        source = self.text[start:stop].rstrip("\r")
        raise ParseError(reason, line, offset - start + 1, source)

    def _fail(self, reason: str) -> NoReturn:
        self._fail_at(self.tokens[self.position][2], reason)

    def _expected(self, what: str) -> NoReturn:
        kind, text, _ = self.tokens[self.position]
        self._fail(f"expected {what}, found {'the end of the text' if kind == 'end' else repr(text)}")

    def _at(self, text: str) -> bool:
        token = self.tokens[self.position]
        return token[1] == text and (token[0] == "punct" or token[0] == "ident")

    def _take(self, text: str) -> bool:
        if self._at(text):
            self.position += 1
            return True
        return False

    def _expect(self, text: str) -> None:
        if not self._take(text):
            self._expected(repr(text))

    def _list(self, close: str, item: Callable[[], Item]) -> list[Item]:
        """Items separated by commas up to `close`, which is taken too."""
        items: list[Item] = []
        if self._take(close):
            return items
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            self._fail("nested too deeply")
        while True:
            items.append(item())
            if self._take(close):
                self.depth -= 1
                return items
            if not self._take(","):
                self._expected(f"',' or {close!r}")

    def _string(self, literal: str) -> str:
        try:
            return unquote(literal)
        except ValueError as error:
            self._fail(str(error))

    def _name(self, what: str) -> str:
        kind, text, _ = self.tokens[self.position]
        if kind == "string":
            text = self._string(text)
        elif kind != "ident":
            self._expected(what)
        self.position += 1
        return text

    def _value_name(self, what: str) -> str:
        kind, text, _ = self.tokens[self.position]
        if kind != "value":
            self._expected(what)
        name = self._string(text[1:]) if text[1] == '"' else text[1:]
        self.position += 1
        return name

    def _int(self) -> int:
        kind, text, _ = self.tokens[self.position]
        if kind != "int":
            self._expected("an integer")
        if len(text) > _MAX_DIGITS:
            self._fail(f"an integer of more than {_MAX_DIGITS} digits")
        self.position += 1
        return int(text)

    # structure

    def graph(self) -> Graph:
        """The graph that is the whole text."""
        graph = self._graph()
        if self.tokens[self.position][0] != "end":
            self._expected("the end of the text")
        return graph

    def _graph(self) -> Graph:
        self._expect("graph")
        graph = Graph(self._name("the graph's name"))
        self._expect("(")
        graph.inputs = self._list(")", self._input)
        self._expect("{")
        while True:
            if self._starts("write"):
                graph.writes.append(self._write())
            elif self._starts("return"):
                break
            elif graph.writes:
                self._expected("'write' or 'return'")
            else:
                graph.ops.append(self._op())
        self._expect("return")
        graph.outputs = [] if self._take("}") else self._outputs()
        return graph

    def _regions(self, attrs: dict[str, Any]) -> None:
        """Regions below an op, which become attributes of it; they see no value outside them."""
        while self.tokens[self.position][0] in ("ident", "string") and self.tokens[self.position + 1][1] == "graph":
            start = self.position
            key = self._name("a region's name")
            if key in attrs:
                self.position = start
                self._fail(f"attribute {key} is given twice")
            outside, self.values = self.values, {}
            self.depth += 1
            if self.depth > _MAX_DEPTH:
                self._fail("nested too deeply")
            attrs[key] = self._graph()
            self.depth -= 1
            self.values = outside

    def _starts(self, word: str) -> bool:
        """At the statement `word`, and not at an op that happens to have this name."""
        return self._at(word) and self.tokens[self.position + 1][1] != "("

    def _outputs(self) -> list[Output]:
        return self._list("}", self._output)

    def _define(self, value: Value) -> None:
        if value.name in self.values:
            self._fail(f"%{value.name} is defined twice")
        self.values[value.name] = value

    def _input(self) -> Input:
        start = self.position
        name = self._value_name("an input such as %x")
        self._expect(":")
        type = self._type()
        kind, text, _ = self.tokens[self.position]
        if kind != "ident" or text not in Role._value2member_map_:
            self._expected(f"the input's role, one of {', '.join(role.value for role in Role)}")
        self.position += 1
        if self.tokens[self.position][0] != "string":
            self._expected("the input's path in quotes")
        path = self._name("the input's path in quotes")
        value = Input(name, type, Role(text), path, self._strides())
        end, self.position = self.position, start
        self._define(value)
        self.position = end
        return value

    def _strides(self) -> tuple[Dim, ...] | None:
        if not self._take("strides"):
            return None
        self._expect("=")
        self._expect("[")
        return tuple(self._list("]", self._dim))

    def _type(self) -> TensorType:
        kind, text, _ = self.tokens[self.position]
        if kind != "ident" or text not in DTYPES:
            self._expected(f"a dtype, one of {', '.join(DTYPES)}")
        self.position += 1
        self._expect("[")
        shape = tuple(self._list("]", self._dim))
        device = "cpu"
        kind, at, _ = self.tokens[self.position]
        if kind == "at":
            device = at[1:]
            if '"' in device:
                self._fail("a device holds letters, digits, '_' and ':' only")
            self.position += 1
        return TensorType(DTYPES[text], shape, device)

    def _op(self) -> Op:
        results: list[tuple[int, str, TensorType, tuple[Dim, ...] | None]] = []
        if self.tokens[self.position][0] == "value":
            results.append(self._result())
            while self._take(","):
                results.append(self._result())
            self._expect("=")
        elif self.tokens[self.position][0] not in ("ident", "string"):
            self._expected("an op, 'write' or 'return'")
        name = self._name("an op's name")
        self._expect("(")
        operands = self._list(")", self._operand)
        attrs = self._attrs() if self._take("{") else {}
        location = self._location()
        self._regions(attrs)
        op = Op(name, operands, attrs, [r[2] for r in results], location, [r[1] for r in results])
        end = self.position
        for (position, _, _, strides), value in zip(results, op.results, strict=True):
            value.strides = strides
            self.position = position
            self._define(value)
        self.position = end
        return op

    def _result(self) -> tuple[int, str, TensorType, tuple[Dim, ...] | None]:
        position = self.position
        name = self._value_name("a result such as %0")
        self._expect(":")
        return position, name, self._type(), self._strides()

    def _location(self) -> Location:
        """The location in the comment right after the token just taken."""
        _, text, offset = self.tokens[self.position - 1]
        match = _COMMENT.match(self.text, offset + len(text))
        if match is None:
            return UNKNOWN
        comment = match.group(1)
        found = self.locations.get(comment)
        if found is None:
            found = self.locations[comment] = parse_location(comment)
        return found

    def _use(self) -> Value:
        name = self._value_name("a value such as %0")
        value = self.values.get(name)
        if value is None:
            self.position -= 1
            self._fail(f"%{name} is not defined before its use")
        return value

    def _write(self) -> Write:
        self._expect("write")
        target = self._use()
        if not isinstance(target, Input):
            self.position -= 1
            self._fail(f"%{target.name} is not an input: only inputs can be written")
        self._expect("<-")
        return Write(target, self._use())

    def _output(self) -> Output:
        value = self._use()
        if not self._take("as"):
            return Output(value)
        self._expect("[")
        shape = tuple(self._list("]", self._dim))
        self._expect("{")
        strides = tuple(self._list("}", self._dim))
        if len(strides) != len(shape):
            self.position -= 1
            self._fail(f"a view of {len(shape)} dims with {len(strides)} strides")
        self._expect("+")
        return Output(value, StridedView(shape, strides, self._dim()))

    # operands and attributes

    def _operand(self) -> Operand:
        if self.tokens[self.position][0] == "value":
            return self._use()
        start = self.position
        literal = self._constant()
        if type(literal) not in (bool, int, float, complex):
            self.position = start
            self._expected("a value such as %0 or a number")
        return literal

    def _attrs(self) -> dict[str, Any]:
        """Attributes after the opening brace, the closing one included."""
        attrs: dict[str, Any] = {}

        def attribute() -> None:
            start = self.position
            key = self._name("an attribute's name")
            if key in attrs:
                self.position = start
                self._fail(f"attribute {key} is given twice")
            self._expect("=")
            attrs[key] = self._constant()

        self._list("}", attribute)
        return attrs

    def _constant(self) -> Any:
        kind, text, _ = self.tokens[self.position]
        if kind == "int" or text == "(":
            return self._dim()
        if kind == "float" or text == "-" or text in ("nan", "inf"):
            return self._number()
        if kind == "ident" and text in RESERVED:
            return self._reserved()
        if kind == "ident":
            return self._dim()
        if kind == "string":
            return self._name("a string")
        if text == "[":
            self.position += 1
            return tuple(self._list("]", self._constant))
        if text == "{":
            self.position += 1
            return self._attrs()
        if kind == "ref":
            if len(text) > 9:
                self._fail("an operand number of more than 8 digits")
            self.position += 1
            return Ref(int(text[1:]))
        if kind == "at":
            return self._named()
        self._expected("a constant")

    def _reserved(self) -> Any:
        text = self.tokens[self.position][1]
        self.position += 1
        if text in DTYPES:
            return DTYPES[text]
        if text != "complex":
            return {"True": True, "False": False, "None": None}[text]
        start = self.position - 1
        self._expect("(")
        real = self._number()
        self._expect(",")
        imaginary = self._number()
        self._expect(")")
        if not isinstance(real, Expr) and not isinstance(imaginary, Expr):
            with contextlib.suppress(OverflowError):
                return complex(real, imaginary)
        self.position = start
        self._fail("a complex number is made of two floats")

    def _named(self) -> Named:
        text = self.tokens[self.position][1]
        kind, dot, name = text[1:].partition(".")
        if not dot or not name or ('"' in name and not name.startswith('"')):
            self._fail("a named constant has the form @kind.name")
        if name.startswith('"'):
            name = self._string(name)
        self.position += 1
        return Named(kind, name)

    def _number(self) -> Dim | float:
        """A float, or a dim expression; both may start with a minus."""
        negative = self._at("-")
        kind, text, _ = self.tokens[self.position + negative]
        if kind != "float" and not (kind == "ident" and text in ("inf", "nan")):
            return self._dim()
        self.position += 1 + negative
        value = float(text)
        return -value if negative else value

    # dims

    def whole_dim(self) -> Dim:
        """An expression and nothing more."""
        found = self._dim()
        if self.tokens[self.position][0] != "end":
            self._fail("more than an expression")
        return found

    def _dim(self) -> Dim:
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            self._fail("nested too deeply")
        total = -self._product() if self._take("-") else self._product()
        while self._at("+") or self._at("-"):
            minus = self._at("-")
            self.position += 1
            total = total - self._product() if minus else total + self._product()
        self.depth -= 1
        return total

    def _product(self) -> Dim:
        total = self._factor()
        while True:
            start = self.position
            if self._take("*"):
                total = total * self._factor()
                if not isinstance(total, int) and len(total.terms) > _MAX_TERMS:
                    self._fail_at(self.tokens[start][2], f"a dim of more than {_MAX_TERMS} terms")
            elif self._at("//") or self._at("%"):
                operation = floordiv if self._at("//") else mod
                self.position += 1
                divisor = self._factor()
                if divisor == 0:
                    self._fail_at(self.tokens[start][2], "a dim divided by zero")
                total = operation(total, divisor)
            else:
                return total

    def _factor(self) -> Dim:
        kind, text, _ = self.tokens[self.position]
        if kind == "ident" and text not in RESERVED:
            self.position += 1
            return symbol(text)
        if self._take("("):
            inner = self._dim()
            self._expect(")")
            return inner
        if self._take("-"):
            return -self._int()
        if kind != "int":
            self._expected("a size: an integer or a symbol")
        return self._int()


def _lexical_reason(text: str, offset: int) -> str:
    char = text[offset]
    if char == '"' or text.startswith('%"', offset):
        return "a string that does not end on its line"
    if char.isdigit():
        return "a malformed number"
    return f"unexpected character {char!r}"
