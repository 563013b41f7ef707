"""Lines of C with indentation and nested scopes, and the text of single statements."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from graphc.codegen.c.scalar_text import c_type, expression, index_text, number
from graphc.errors import CodegenError
from graphc.ir.dims import Dim, bounds, symbols
from graphc.ir.types import f32, f64, i32, i64
from graphc.loopir.analysis import KernelFacts
from graphc.loopir.kernel import Compute, Const, Define, Index, Load, Store


@dataclass
class Scope:
    """What one pair of braces declares: names that are gone after it."""

    available: set[str] = field(default_factory=set)
    names: dict[str, str] = field(default_factory=dict)


class Writer:
    """C text under construction.

    Attributes:
        facts: of the kernel being written.
        lines: what was written so far.
        helpers: names of prelude functions used so far.
    """

    def __init__(self, facts: KernelFacts, buffer_names: Mapping[str, str]) -> None:
        self.facts = facts
        self.buffer_names = buffer_names
        self.lines: list[str] = []
        self.helpers: set[str] = set()
        self.scopes: list[Scope] = [Scope()]
        self._fresh = 0
        self.ranges: dict[str, tuple[int, int | None]] = dict(facts.ranges)
        self._constants = {
            name: number(s.value, s.dtype)
            for name, s in facts.by_id.items()
            if isinstance(s, Const) and s.dtype.kind == "int"
        }

    def fresh(self, stem: str) -> str:
        """A name that no other variable of the function has."""
        self._fresh += 1
        return f"{stem}_{self._fresh}"

    def use(self, helper: str) -> str:
        self.helpers.add(helper)
        return helper

    def line(self, *texts: str) -> None:
        pad = "  " * len(self.scopes)
        self.lines += [pad + text for text in texts]

    def pragma(self, text: str) -> None:
        self.lines.append("  " * len(self.scopes) + f"#pragma omp {text}")

    def open(self, text: str) -> None:
        """Write `text {` and enter its scope."""
        self.line(f"{text} {{")
        self.scopes.append(Scope())

    def close(self) -> None:
        self.scopes.pop()
        self.line("}")

    @property
    def available(self) -> set[str]:
        """Values that can be read here without computing them."""
        return set().union(*(scope.available for scope in self.scopes))

    def declare(self, name: str, text: str | None = None) -> None:
        """From here to the end of the scope the value can be read, as `text` or by its own name."""
        self.scopes[-1].available.add(name)
        if text is not None:
            self.scopes[-1].names[name] = text

    @property
    def names(self) -> dict[str, str]:
        """C text of values that are not C variables of the same name."""
        found = dict(self._constants)
        for scope in self.scopes:
            found.update(scope.names)
        return found

    def read(self, name: str) -> str:
        """C text of a value: a name, a constant, or an array element."""
        for scope in reversed(self.scopes):
            text = scope.names.get(name)
            if text is not None:
                return text
        source = self.facts.by_id[name]
        return number(source.value, source.dtype) if isinstance(source, Const) else name

    def index(self, expr: Dim) -> str:
        return index_text(expr, self.ranges, self.use, self.names)

    def element(self, buffer: str, index: Dim) -> str:
        text = self.index(index)
        if self._holds_truth(index):
            text = f"{self.use('gc_plain')}({text})"
        return f"{self.buffer_names[buffer]}[{text}]"

    def _holds_truth(self, index: Dim) -> bool:
        """A place that is found by a bool as a number.

        gcc (12, with AVX-512) narrows the vector of such places to the bool, whose lanes are -1 where it is true, and
        reads other places.
        """
        waiting = [name for name in symbols(index) if name in self.facts.by_id]
        seen: set[str] = set()
        while waiting:
            name = waiting.pop()
            s = self.facts.by_id[name]
            if name in seen or not isinstance(s, Compute):
                continue
            seen.add(name)
            kinds = [self.facts.dtypes[arg].kind for arg in s.args]
            chosen = [self.facts.by_id[arg] for arg in s.args[1:]] if s.op == "where" else []
            if (s.op == "cast" and kinds == ["bool"]) or (chosen and all(isinstance(arg, Const) for arg in chosen)):
                return True
            waiting += s.args
        return False

    def value_text(self, s: Define) -> str:
        """C expression of a value that is neither a reduction nor a scan."""
        if isinstance(s, Const):
            return number(s.value, s.dtype)
        if isinstance(s, Load):
            return self._load(s)
        if isinstance(s, Index):
            return self.index(s.expr)
        if isinstance(s, Compute):
            args = [self.read(name) for name in s.args]
            source = self.facts.by_id[s.args[-1]]
            if s.op == "cast" and isinstance(source, Index) and s.dtype.kind != "bool" and self._is_small(source):
                args = [f"(int32_t){args[0]}"]  # there is no vector instruction from i64 to floats in AVX2
            whole = self._truncated(s)
            if whole is not None:
                return f"{self.use(f'gc_whole_{source.dtype.name}_{s.dtype.name}')}({self.read(whole)})"
            return expression(s.op, args, source.dtype, s.dtype, self.use)
        raise CodegenError(f"{s.id} is no plain value")

    def _truncated(self, s: Compute) -> str | None:
        """The float behind a cast from float to integer to the same float, or None.

        gcc turns such a pair into `trunc`, which gives -0.0 for -0.5 where the pair gives 0.0.
        """
        source = self.facts.by_id[s.args[0]]
        if s.op != "cast" or not isinstance(source, Compute) or source.op != "cast" or source.dtype not in (i32, i64):
            return None
        name = source.args[0]
        return name if self.facts.dtypes[name] == s.dtype and s.dtype in (f32, f64) else None

    def _is_small(self, s: Index) -> bool:
        low, high = bounds(s.expr, self.ranges)
        return low is not None and high is not None and low >= -(1 << 31) and high < 1 << 31

    def _load(self, s: Load) -> str:
        text = self.element(s.buffer, s.index)
        if s.dtype.kind == "bool":
            text += " != 0"
        if s.mask is None:
            return text
        return f"{self.read(s.mask)} ? {text} : {number(s.other, s.dtype)}"

    def define(self, s: Define) -> None:
        """Declare a value here; constants are written where they are used."""
        if isinstance(s, Const):
            if not isinstance(self.facts.by_id[s.id], Const):
                self.declare(s.id, number(s.value, s.dtype))
            return
        self.line(f"const {c_type(s.dtype)} {s.id} = {self.value_text(s)};")
        self.declare(s.id)

    def guard(self, s: Store) -> str:
        return f"if ({self.read(s.mask)}) " if s.mask is not None else ""

    def store(self, s: Store) -> None:
        if s.mode == "max":
            self.line(
                f"{self.guard(s)}{self.use('gc_cell_max')}(&{self.element(s.buffer, s.index)}, {self.read(s.value)});"
            )
            return
        guard = self.guard(s)
        operator = "+=" if s.mode == "add" else "="
        self.line(f"{guard}{self.element(s.buffer, s.index)} {operator} {self.read(s.value)};")
