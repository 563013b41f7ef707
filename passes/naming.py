"""Names of kernels and of their buffers, from what they compute; and the user's lines that they come from."""

from __future__ import annotations

import keyword
import re
from collections.abc import Sequence
from typing import Protocol

from graphc.ir.graph import Input, Op, Value
from graphc.ops.registry import Kind, get
from graphc.passes.group import Group

MAX_WORDS, MAX_NOTES = 4, 12
_QUIET = frozenset(("cast", "full", "iota", "where", "to_tensor"))
_RESERVED = frozenset((
    "auto", "break", "case", "char", "const", "continue", "default", "do", "double", "else", "enum", "extern",
    "float", "for", "goto", "if", "inline", "int", "long", "register", "restrict", "return", "short", "signed",
    "sizeof", "static", "struct", "switch", "typedef", "union", "unsigned", "void", "volatile", "while", "tl",
    "triton", "min", "max", "exp", "log", "sqrt", "abs", "pow", "floor", "ceil", "round", "sin", "cos", "tan",
    "tanh", "erf", "index",
))  # fmt: skip


class HasValue(Protocol):
    """An argument of a kernel call."""

    @property
    def value(self) -> Value: ...

    @property
    def stored(self) -> bool: ...


def kernel_name(ops: Sequence[Op], group: Group) -> str:
    """A name such as `softmax`, `add_layer_norm` or `mul_exp`: composite ops by the name they have in the program."""
    if group.sums:
        return _chain_name({op.name for op in ops})
    loud = [op for op in ops if op.name not in _QUIET and get(op.name).kind is not Kind.VIEW]
    plain = [op.name for op in loud if not op.origin]
    known = _row_pattern(plain) if group.rows else []
    known = known or _activations(list(dict.fromkeys(plain)))
    words = _in_order([op.origin for op in loud], known)
    if not words:
        words = list(dict.fromkeys(op.origin or op.name for op in ops if op.name not in ("full", "iota")))
    if not words:
        filled = any(op.name in ("full", "iota") for op in ops)
        words = ["fill" if filled else "update" if group.stores else "copy"]
    if len(words) > MAX_WORDS:
        words = [*words[: MAX_WORDS - 1], "etc"]
    return "_".join(words)


def _chain_name(found: set[str]) -> str:
    """The name of a product of products; gradients of attention divide by sums that they read."""
    if "exp" not in found:
        return "products"
    return "attention" if "amax" in found else "attention_gradient"


def _in_order(origins: list[str], known: list[str]) -> list[str]:
    """Composite ops in the order of the program, and what the others make up in the place of the first of them."""
    words: list[str] = []
    for origin in origins:
        for word in (origin,) if origin else known:
            if word not in words:
                words.append(word)
    return words


def _activations(words: list[str]) -> list[str]:
    """Words with the ops of a well-known activation replaced by its name."""
    found, gone, added = set(words), set[str](), list[str]()
    for parts, name in ((("neg", "exp", "add", "div"), "sigmoid"), (("erf", "mul", "add"), "gelu")):
        if found.issuperset(parts):
            gone.update(parts)
            added.append(name)
    return [word for word in words if word not in gone] + added


def _row_pattern(names: list[str]) -> list[str]:
    """The well-known row computation that these ops make up, with what comes before it."""
    found, sums = set(names), names.count("sum")
    if {"amax", "exp", "sum", "sub"} <= found:
        return ["log_softmax"] if "log" in found and "div" not in found else ["softmax"]
    if "rsqrt" in found or "sqrt" in found:
        if sums >= 2 and "sub" in found:
            return ["norm"] if sums > 2 else ["layer_norm"]
        if sums == 1 and "mul" in found and "sub" not in found:
            return ["rms_norm"]
    return []


def buffer_names(arguments: Sequence[HasValue]) -> list[str]:
    """One C and Python identifier per argument: the input's own name, the op that made it, or `out`."""
    taken: set[str] = set()
    names: list[str] = []
    for argument in arguments:
        base = "out" if argument.stored else _value_word(argument.value)
        name, count = base, 1
        while name in taken:
            count += 1
            name = f"{base}_{count}"
        taken.add(name)
        names.append(name)
    return names


def _value_word(value: Value) -> str:
    if isinstance(value, Input):
        word = re.sub(r"\W+", "_", value.path.rsplit(".", 1)[-1]).strip("_") or value.name
    else:
        assert value.op is not None
        word = value.op.name
        if word == "extern":
            word = str(value.op.attrs.get("op", "extern")).split(".")[1 if "." in str(value.op.attrs.get("op")) else 0]
    word = re.sub(r"\W", "_", word).strip("_") or "x"
    if word[0].isdigit() or keyword.iskeyword(word) or word in _RESERVED or re.fullmatch(r"[virg]\d+[hl_]*", word):
        word = f"{word}_in" if not word[0].isdigit() else f"x_{word}"
    return word


def notes(ops: Sequence[Op]) -> tuple[str, ...]:
    """The user's source lines behind some ops, in order, each once."""
    lines: dict[str, None] = {}
    for op in ops:
        where = op.location
        if where:
            lines[f"{where.file.rsplit('/', 1)[-1]}:{where.line} {where.module or where.function}".rstrip()] = None
    found = list(lines)
    return tuple(
        found if len(found) <= MAX_NOTES else [*found[: MAX_NOTES - 1], f"and {len(found) - MAX_NOTES + 1} more"]
    )
