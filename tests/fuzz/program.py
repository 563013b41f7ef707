"""A random program as text: two sets of inputs, a function of them, and how it is compiled. The text runs by itself."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

WIDE = {"float16": "float64", "bfloat16": "float64", "float32": "float64", "complex64": "complex128"}
NARROW = {"float64": "float32", "complex128": "complex64"}

_HEAD = '''"""{title}"""

import torch
import torch.nn.functional as F

NUMERICS, GRADIENTS = "{numerics}", {backward}


'''
BACKWARD = """
def backward(results):
    wanted = [result for result in results if result.requires_grad]
    torch.autograd.backward(wanted, [(torch.arange(r.numel()) % 5 - 1.5).reshape(r.shape).to(r.dtype) for r in wanted])
"""
"""Gradients from outside, with cotangents that are not all alike."""

_MAIN = '\n\n\nif __name__ == "__main__":\n'
_TAIL = f"""{_MAIN}    import graphc

    compiled = graphc.compile(program, numerics=NUMERICS)
    for inputs in (first, second):
        for name, call in (("eager", program), ("compiled", compiled)):
            torch.manual_seed(0)
            args = inputs()
            results = call(*args)
            if GRADIENTS:
                backward(results)
            print(name, *results, "arguments:", *args, "gradients:", *[arg.grad for arg in args], sep="\\n")
"""


@dataclass(frozen=True)
class Storage:
    """Memory that inputs are views of: a dtype's name in torch, and numbers."""

    dtype: str
    values: tuple[Any, ...]


@dataclass(frozen=True)
class View:
    """One input, as a view of a storage; all in elements."""

    name: str
    storage: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0
    requires_grad: bool = False


@dataclass(frozen=True)
class Inputs:
    """The arguments of one call."""

    storages: tuple[Storage, ...]
    views: tuple[View, ...]


@dataclass(frozen=True)
class Program:
    """A program that can be printed, run and cut down.

    Args:
        seed: it was generated from.
        calls: inputs of the first and of the second call.
        statements: each the text of one or several lines, without indentation.
        results: names that are returned.
        backward: gradients are taken outside, from the results.
        resized: the second call has other sizes.
        numerics: as in `graphc.compile`.
        fails: the last statement raises in eager.
        branches: its data decide where it goes, or sizes.
        stuck: eager cannot take gradients of its results, and they are not asked for.
    """

    seed: int
    calls: tuple[Inputs, Inputs]
    statements: tuple[str, ...]
    results: tuple[str, ...]
    backward: bool = False
    resized: bool = False
    numerics: str = "default"
    fails: bool = False
    branches: bool = False
    stuck: bool = False

    def script(self, title: str = "") -> str:
        """The program as a file that can be run."""
        head = _HEAD.format(
            title=title or f"Random program {self.seed}.",
            numerics=self.numerics,
            backward=self.backward,
        )
        inputs = [_inputs_text(name, call) for name, call in zip(("first", "second"), self.calls)]
        gradients = [BACKWARD.strip()] if self.backward else []
        return head + "\n\n\n".join([*inputs, self._body(), *gradients]) + _TAIL

    def _body(self) -> str:
        lines = [line for statement in self.statements for line in statement.split("\n")]
        names = ", ".join(view.name for view in self.calls[0].views)
        returned = f"return {_tuple(self.results)}"
        return "\n".join([f"def program({names}):", *(f"    {line}" for line in [*lines, returned])])


@dataclass
class Module:
    """A program's text, executed.

    Args:
        text: of the program.
        label: tells its lines from those of other programs, in messages.

    Attributes:
        names: what the text defines, or what stands in its place where it leaves something out.
    """

    text: str
    label: str = "0"
    names: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.names.update(__name__="fuzz", NUMERICS="default", GRADIENTS=False, torch=torch)
        exec(BACKWARD, self.names)
        text = self.text.partition(_MAIN)[0]
        exec(compile(text, f"<fuzz {self.label}>", "exec"), self.names)
        self.names.setdefault("second", self.names["first"])

    def with_dtypes(self, changed: dict[str, str]) -> Module:
        """The same program with other dtypes everywhere."""
        return Module(with_dtypes(self.text, changed))


def with_dtypes(text: str, changed: dict[str, str]) -> str:
    """A text with `torch.NAME` replaced by `torch.CHANGED`."""
    return re.sub(r"\btorch\.(\w+)\b", lambda found: f"torch.{changed.get(found[1], found[1])}", text)


def _inputs_text(name: str, call: Inputs) -> str:
    lines = [f"def {name}():"]
    used = sorted({view.storage for view in call.views})
    for number in used:
        storage = call.storages[number]
        values = ", ".join(_literal(value) for value in storage.values)
        lines.append(f"    s{number} = torch.tensor([{values}], dtype=torch.{storage.dtype})")
    for view in call.views:
        grad = ".data.requires_grad_()" if view.requires_grad else ""  # with history of its own
        where = f"{view.shape}, {view.strides}, {view.offset}"
        lines.append(f"    {view.name} = s{view.storage}.as_strided({where}){grad}")
    lines.append(f"    return {_tuple([view.name for view in call.views])}")
    return "\n".join(lines)


def _tuple(names: Sequence[str]) -> str:
    return f"({names[0]},)" if len(names) == 1 else f"({', '.join(names)})"


def _literal(value: Any) -> str:
    if isinstance(value, complex):
        return f"complex({_literal(value.real)}, {_literal(value.imag)})"
    text = repr(value)
    return f'float("{text}")' if isinstance(value, float) and text in ("nan", "inf", "-inf") else text


def maker(call: Inputs, changed: dict[str, str] | None = None) -> Callable[[], dict[str, torch.Tensor]]:
    """A function that makes the inputs of a call, by name, with some dtypes replaced by others."""
    names: dict[str, Any] = {"torch": torch}
    exec(with_dtypes(_inputs_text("inputs", call), changed or {}), names)
    return lambda: dict(zip((view.name for view in call.views), names["inputs"](), strict=True))
