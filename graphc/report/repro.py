"""A fault as a program of its own: the graph as text, its inputs as bytes, and both ways of running it."""

from __future__ import annotations

import base64
import zlib
from pathlib import Path
from typing import Any

import torch

from graphc.ir.graph import Graph
from graphc.options import Options

_SCRIPT = '''"""{title}"""

import base64
import zlib

import torch

import graphc.ir
from graphc.driver import run_graph
from graphc.options import Options
from graphc.ir.interpreter import run as interpret
from graphc.report.numerics import errors
from graphc.report.widen import widen, widen_data
from graphc.settings import override

GRAPH = """
{graph}
"""


def tensor(dtype, shape, strides, data):
    memory = bytearray(zlib.decompress(base64.b85decode(data)))
    whole = torch.frombuffer(memory, dtype=dtype) if memory else torch.empty(0, dtype=dtype)
    return whole.as_strided(shape, strides)


INPUTS = [
{inputs}
]

graph = graphc.ir.parse(GRAPH)
with override(cache=False):
    ours = run_graph(graph, list(INPUTS), Options({name!r}, {backend!r}, {numerics!r}))
eager = interpret(graph, list(INPUTS))
exact = interpret(widen(graph), widen_data(INPUTS))
found = [errors(*three).miss for three in zip(ours, eager, exact)]
print("\\n".join(miss or "right" for miss in found))
raise SystemExit(any(found))
'''


def write_script(folder: Path, graph: Graph, inputs: list[Any], options: Options, title: str) -> Path:
    """Write a program that runs a graph compiled and op by op, prints how they differ, and exits with 1 if they do.

    Args:
        folder: where to; made when it is not there. The file is named after the options.
        inputs: of the graph.
    """
    shown = "\n".join(f"    {_literal(item)}," for item in inputs)
    text = _SCRIPT.format(
        title=title.replace('"""', "'''").replace("\\", "/"), graph=graph, inputs=shown, name=options.name,
        backend=options.backend, numerics=options.numerics,
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{options.name}.py"
    path.write_text(text)
    return path


def _literal(item: Any) -> str:
    if not isinstance(item, torch.Tensor):
        return repr(item)
    compact = item.detach().cpu()
    shape, strides = tuple(compact.shape), tuple(compact.stride())
    span = 0 if 0 in shape else 1 + sum((size - 1) * step for size, step in zip(shape, strides, strict=True))
    memory = compact.as_strided((span,), (1,)).contiguous().view(torch.uint8).numpy().tobytes() if span else b""
    data = base64.b85encode(zlib.compress(memory)).decode()
    return f"tensor({compact.dtype}, {shape}, {strides}, {data!r})"
