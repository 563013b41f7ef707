"""Sizes in C text: what a library is told of the inputs of the program that runs, under the names that expressions use.

k_add(...) {                                  k_add(...) {
  for (i < size0*64) ...            ->          const int64_t size0 = graphc_sizes[0];
                                                for (i < size0*64) ...
"""

from __future__ import annotations

import re

from graphc.ir.sizes import NAME

_SIZE = re.compile(rf"\b{NAME}(\d+)\b")
_TABLE = "graphc_sizes"

HIDDEN = '__attribute__((visibility("hidden")))'


def has_sizes(text: str) -> bool:
    """Whether C text mentions sizes."""
    return _SIZE.search(text) is not None


def storage(text: str) -> str:
    """How an array of numbers is kept: for good, or made anew per call where sizes are in it."""
    return "const" if has_sizes(text) else "static const"


def with_sizes(function: str) -> str:
    """The text of a C function with the sizes that it mentions declared in it."""
    numbers = sorted({int(number) for number in _SIZE.findall(function)})
    if not numbers:
        return function
    head, brace, body = function.partition("{\n")
    return head + brace + "".join(f"  const int64_t {NAME}{n} = {_TABLE}[{n}];\n" for n in numbers) + body


def declaration(text: str) -> str:
    """What a source whose functions have sizes needs in front of them."""
    return f"extern {HIDDEN} int64_t {_TABLE}[];\n" if f"{_TABLE}[" in text else ""


def definition(text: str) -> str:
    """The table of sizes of a library, of which this is all text, and the function that fills it; or nothing."""
    numbers = [int(number) for number in re.findall(rf"\b{_TABLE}\[(\d+)\]", text)]
    if not numbers:
        return ""
    count = max(numbers) + 1
    return (
        f"{HIDDEN} int64_t {_TABLE}[{count}];\n\n"
        "/* Tell the sizes of inputs, and what is made of them by divisions: once, before anything runs. */\n"
        f"void graphc_set_sizes(const int64_t *sizes) {{\n  memcpy({_TABLE}, sizes, sizeof {_TABLE});\n}}\n"
    )
