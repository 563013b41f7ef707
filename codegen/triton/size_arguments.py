"""Sizes in Triton text: arguments of a kernel behind its pointers, under the names that expressions use.

def add(x_ptr, out_ptr, XBLOCK):                     def add(x_ptr, out_ptr, size0, XBLOCK):
    ... in_x = x < size0*64                  ->          ... in_x = x < size0*64
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

from graphc.ir.sizes import NAME, Conditions, Size, plain
from graphc.program.plan import BufferSpec
from graphc.program.triton_kernel import ALIGNMENT, Launch, SizeArgument, TritonKernel

_SIZE = re.compile(rf"\b{NAME}\d+\b")
_PRODUCT = re.compile(rf"\b{NAME}\d+(?:\*{NAME}\d+)*(?:\*\d+)?")
_INT32 = 1 << 31


def conditions_of(buffers: Iterable[BufferSpec]) -> Conditions | None:
    """Where it is noted what a plan's sizes must be like, or None when it is for one size alone."""
    return next((spec.nbytes.conditions for spec in buffers if type(spec.nbytes) is Size), None)


def with_sizes(made: TritonKernel, conditions: Conditions | None) -> TritonKernel:
    """A kernel that takes the sizes that its text mentions; what is compiled into it does not depend on them.

    They are 32 bits wide where no product of them in the text is wider. One that is a multiple of 16 is said to be.
    """
    if conditions is None:
        return made
    launches = tuple(
        replace(
            launch,
            constexprs=tuple((name, int(value)) for name, value in launch.constexprs),
            num_warps=int(launch.num_warps),
            num_stages=int(launch.num_stages),
        )
        for launch in made.launches
    )
    names = sorted(set(_SIZE.findall(made.text)), key=lambda name: int(name.removeprefix(NAME)))
    wide = [product for product in set(_PRODUCT.findall(made.text)) if _is_wide(product, conditions)]
    kind = "i64" if wide else "i32"
    found = [(name, conditions.known(name)) for name in names]
    sizes = tuple(SizeArgument(name, kind, size, _is_multiple(size)) for name, size in found)
    text = made.text
    for function in _functions(launches):
        text = re.sub(rf"^def {function}\((.*)\):$", lambda found: _taking(found, names), text, flags=re.MULTILINE)
    return replace(made, text=text, launches=launches, sizes=sizes)


def _is_multiple(size: int) -> bool:
    """Whether a size is a multiple of 16, which is only asked of other sizes where it is."""
    return plain(size) % ALIGNMENT == 0 and size % ALIGNMENT == 0


def _is_wide(product: str, conditions: Conditions) -> bool:
    total = 1
    for factor in product.split("*"):
        total = total * (conditions.known(factor) if factor.startswith(NAME) else int(factor))
    return not -_INT32 <= total < _INT32


def _functions(launches: Iterable[Launch]) -> set[str]:
    return {name for launch in launches for name in (launch.function, launch.unaligned) if name}


def _taking(found: re.Match[str], names: list[str]) -> str:
    parameters = found[1].split(", ")
    first = next((at for at, name in enumerate(parameters) if name.endswith(": tl.constexpr")), len(parameters))
    parameters[first:first] = names
    return found[0].replace(found[1], ", ".join(parameters))
