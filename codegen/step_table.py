"""Steps of a native program as a table, which a short loop walks.

    DO_K_ADD, 6, 56, 57,            /* model.py:59 blocks.0 */      what is called, then the buffers it works on
    DO_MATMUL_FLOAT, 7, 60, 61,     /* model.py:61 blocks.0.proj */
    RELEASE, 60,

The layers of a model differ in nothing but their buffers, so each distinct statement becomes one C function that finds
its buffers through the row, and the text that a compiler must work for does not grow with depth: rows are mere data.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from graphc.codegen.loop_text import LOOP
from graphc.codegen.size_text import with_sizes

_PLACE = re.compile(r"\bp\[(\d+)\]|\bAT\((\d+), (\d+)\)")

TYPES = """\
/* What a row of a table of steps calls, and how many numbers it takes: `b[0]`, `b[1]`, ... */
typedef int Call(void **p, AtenTensorHandle *h, const int64_t *b);
"""

WALK_PROTOTYPE = "static int walk(int number, const int64_t *row, const int64_t *end, void **p, AtenTensorHandle *h)"

# CALLS is the table of functions
WALK = """\
static const struct {
  Call *call;
  int takes;
} calls[] = {
CALLS};

/* Do the steps of a table, of which the first has this number; gives 0, or 1 + the number of the step that failed. */
static int walk(int number, const int64_t *row, const int64_t *end, void **p, AtenTensorHandle *h) {
  while (row < end) {
    const int64_t what = *row++;
    if (calls[what].call(p, h, row)) return number + 1;
    row += calls[what].takes;
    number += what != RELEASE;
  }
  return 0;
}
"""


class StepTable:
    """Collects the functions that rows call.

    Attributes:
        functions: C name of each function by its body; equal bodies are one function.
    """

    def __init__(self) -> None:
        self.functions: dict[str, str] = {}
        self._takes: dict[str, int] = {}
        self._releases = False
        self.loops = False  # some function walks rows of its own

    def row(self, name: str, body: str, numbers: Sequence[int]) -> str:
        """A row that calls a function of this body.

        Args:
            name: what the function is to be called, for readers.
            body: C statements over `p`, `h` and the numbers of the row, `b[0]`, `b[1]`, ...; returns 0 or failure.
            numbers: those numbers.
        """
        function = self.functions.get(body)
        if function is None:
            function = self.functions[body] = self._unique(name)
            self._takes[function] = len(numbers)
        return _row(f"DO_{function.upper()}", numbers)

    def statement(self, name: str, text: str, fallible: bool = False) -> str:
        """A row for a statement that names its buffers (`p[7]`, `AT(7, 512)`), or for a condition, true on failure."""
        numbers: list[int] = []

        def place(match: re.Match[str]) -> str:
            first = len(numbers)
            if match[1] is not None:
                numbers.append(int(match[1]))
                return f"p[b[{first}]]"
            numbers.extend((int(match[2]), int(match[3])))
            return f"AT(b[{first}], b[{first + 1}])"

        text = _PLACE.sub(place, text)
        return self.row(name, f"  return {text};" if fallible else f"  {text}\n  return 0;", numbers)

    def release(self, index: int) -> str:
        """A row, itself no step, that lets go of the libtorch tensor in which a buffer lives."""
        self._releases = True
        return _row("RELEASE", (index,))

    def functions_text(self) -> str:
        """C of the functions and of the loop."""
        named = {name: body for body, name in self.functions.items()}
        parts = [TYPES, f"enum {{ RELEASE{''.join(f', DO_{name.upper()}' for name in named)} }};\n"]
        if self.loops:
            parts += [f"{WALK_PROTOTYPE};\n", LOOP]
        entries = []
        if self._releases:
            parts.append(_function("release", "  release(h, b[0]);\n  return 0;"))
            entries.append("  [RELEASE] = {do_release, 1},\n")
        for name, body in named.items():
            parts.append(_function(name, body))
            entries.append(f"  [DO_{name.upper()}] = {{do_{name}, {self._takes[name]}}},\n")
        parts.append(WALK.replace("CALLS", "".join(entries)))
        return "\n".join(parts)

    def _unique(self, name: str) -> str:
        taken = {other.upper() for other in self._takes} | {"RELEASE"}
        name = re.sub(r"\W+", "_", name)
        unique, count = name, 1
        while unique.upper() in taken:
            count += 1
            unique = f"{name}_{count}"
        return unique


def _row(what: str, numbers: Sequence[int]) -> str:
    return f"{', '.join((what, *map(str, numbers)))},"


def _function(name: str, body: str) -> str:
    return with_sizes(
        f"STRAIGHT static int do_{name}(void **p, AtenTensorHandle *h, const int64_t *b) {{\n{body}\n}}\n"
    )
