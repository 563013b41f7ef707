"""Kernels that the CPU runs in programs for a device: in C and interpreted, the same to the bit."""

from __future__ import annotations

import ctypes
import math
import struct
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from graphc.codegen.host import host_text, widen_functions
from graphc.ir.types import UNFAILED, DType, Location, bool_, f32, f64, i64
from graphc.loopir.builder import KernelBuilder
from graphc.loopir.kernel import ROW, Axis, Buffer, Kernel
from graphc.loopir.numpy_ops import IN_FLOAT64, Array, numpy_dtype
from graphc.loopir.scalar import SCALAR_OPS
from graphc.program.plan import CHECKS, EXTERNAL, INPUT, OUTPUT, BufferSpec, Check, KernelStep
from graphc.program.record import Program
from graphc.program.triton_kernel import HOST_TEXT, host_source
from graphc.runtime.frame import Memory
from graphc.runtime.host_list import Call, HostLibrary, HostRun, Walk
from graphc.settings import override
from tests.kernel_strategies import oracle

FLOATS = (0.0, -0.0, 1.0, -1.0, 0.1, 2.5, -3.5, 1e-42, 3e38, 1234567.875, math.inf, -math.inf, math.nan)
INTEGERS = (0, 1, -1, 2, 3, -7, 63, 1 << 40, (1 << 63) - 1, -(1 << 63))
DIVISIONS = ("floordiv", "truncdiv", "remainder", "fmod")
APPROXIMATE = {*IN_FLOAT64, "pow"}
LINE = Location("model.py", 3)


def values(dtype: DType) -> tuple[float, ...]:
    return FLOATS if dtype.is_float else (False, True) if dtype == bool_ else INTEGERS


def single(op: str, dtype: DType) -> Kernel:
    """An op on single numbers."""
    b = KernelBuilder(())
    arity = SCALAR_OPS[op].arity
    leading = {"where": [bool_], "bounded": [i64] * 4}.get(op, [])
    dtypes = [*leading, *[dtype] * (arity - len(leading))]
    loads = [b.load(f"x{n}", given, 0) for n, given in enumerate(dtypes)]
    result = b.compute(op, *loads)
    b.store("y", 0, result)
    given = tuple(Buffer(f"x{n}", b.dtypes[name], 1, "in") for n, name in enumerate(loads))
    return b.finish(f"{op}_{dtype}", (*given, Buffer("y", b.dtypes[result], 1, "out")))


KERNELS = {
    kernel.name: kernel
    for op, rule in SCALAR_OPS.items() if rule.result != "given"
    for dtype in (f64, f32, i64, bool_) if dtype.kind in rule.kinds
    for kernel in [single(op, dtype)]
}  # fmt: skip


def library_of(*kernels: Kernel) -> HostLibrary:
    sources = {host_source(kernel.name): str(kernel) for kernel in kernels}
    return HostLibrary(
        Program("numbers", "triton", sources=sources | {HOST_TEXT: host_text({k.name: k for k in kernels})})
    )


@pytest.fixture(scope="module")
def library() -> HostLibrary:
    return library_of(*KERNELS.values())


def run(library: HostLibrary, kernel: Kernel, arrays: Sequence[Array]) -> None:
    table = (ctypes.c_uint64 * len(arrays))(*(array.ctypes.data for array in arrays))
    Walk(library, [Call(kernel.name, tuple((place, 0) for place in range(len(arrays))))]).run(table)


def operands(kernel: Kernel) -> Iterator[list[Array]]:
    few = len(kernel.buffers) > 5  # 10,000 combinations else
    given = [
        np.array(values(b.dtype)[: 3 if few else None], numpy_dtype(b.dtype))
        for b in kernel.buffers
        if b.access == "in"
    ]
    for found in np.ndindex(*(len(item) for item in given)):
        yield [item[at : at + 1].copy() for item, at in zip(given, found, strict=True)]


@pytest.mark.parametrize("name", KERNELS)
def test_c_gives_the_oracles_bits(library: HostLibrary, name: str) -> None:
    """But for functions of f64, which are libm's, and for which of two zeros is the larger one."""
    kernel, op = KERNELS[name], name.rpartition("_")[0]
    assert library.address(name)
    for arrays in operands(kernel):
        if op in DIVISIONS and not name.endswith(("f64", "f32")) and arrays[1][0] == 0:
            continue  # a number that nobody sees
        out = np.zeros(1, numpy_dtype(kernel.buffers[-1].dtype))
        names = (buffer.name for buffer in kernel.buffers)
        wanted = oracle(kernel, dict(zip(names, [*arrays, out.copy()], strict=True)))["y"]
        run(library, kernel, [*arrays, out])
        if op in APPROXIMATE and name.endswith("f64"):
            np.testing.assert_allclose(out, wanted, rtol=1e-14, atol=0)
        elif op in ("fmax", "fmin"):
            np.testing.assert_array_equal(out, wanted)
        elif not (np.isnan(wanted).any() and np.isnan(out).any()):
            assert out.tobytes() == wanted.tobytes(), (arrays, out, wanted)


def test_powers_are_pythons_own(library: HostLibrary) -> None:
    for step in range(1, 400):
        out = np.zeros(1)
        run(library, KERNELS["pow_f64"], [np.array([0.999]), np.array([float(step)]), out])
        assert out[0] == 0.999**step


def test_functions_of_f32_are_widened() -> None:
    body = widen_functions(KERNELS["pow_f32"]).body
    assert [str(s.dtype) for s in body if getattr(s, "op", "") == "pow"] == ["f64"]
    assert widen_functions(KERNELS["add_f32"]) == KERNELS["add_f32"]


def test_what_c_cannot_hold_is_interpreted() -> None:
    from graphc.ir.types import f8e5m2

    b = KernelBuilder(())
    b.store("y", 0, b.compute("cast", b.load("x", f8e5m2, 0), dtype=f32))
    narrow = b.finish("narrow", (Buffer("x", f8e5m2, 1, "in"), Buffer("y", f32, 1, "out")))
    library = library_of(narrow, KERNELS["add_f32"])
    assert not library.address("narrow") and library.address("add_f32")
    assert library.report() == "1 of 2 kernels interpreted: C does not hold them"


# ---------------------------------------------------------------------------------------------------------------- lists


def counter() -> Kernel:
    b = KernelBuilder(())
    b.store("out", 0, b.compute("add", b.load("x", f32, 0), b.constant(1.0, f32)))
    return b.finish("counter", (Buffer("x", f32, 1, "in"), Buffer("out", f32, 1, "out")))


def divided() -> Kernel:
    """1 / x, which reports an x of zero; with an axis that nothing depends on, as kernels that were split may have."""
    b = KernelBuilder((Axis("r0", 8, ROW),))
    x = b.compute("cast", b.load("x", f32, 0), dtype=f64)
    b.store("failed", 0, b.constant(7, i64), mask=b.compute("eq", x, b.constant(0.0, f64)), mode="max")
    b.store("out", 0, b.compute("reciprocal", x))
    return b.finish(
        "divided", (Buffer("x", f32, 1, "in"), Buffer("failed", i64, 1, "inout"), Buffer("out", f64, 1, "out"))
    )


def scaled() -> Kernel:
    b = KernelBuilder(())
    b.store("out", 0, b.compute("mul", b.load("x", f64, 0), b.load("factor", f64, 0)))
    return b.finish("scaled", tuple(Buffer(n, f64, 1, a) for n, a in (("x", "in"), ("factor", "in"), ("out", "out"))))


def program() -> tuple[HostRun, Memory, HostLibrary]:
    """step += 1, rate = factor / step, twice = rate * factor."""

    def spec(index: int, kind: str, dtype: DType, **more: Any) -> BufferSpec:
        return BufferSpec(index, kind, dtype, (), (), dtype.itemsize, **more)

    buffers = [
        spec(0, INPUT, f32, source=0), spec(1, INPUT, f64, source=1, host=True), spec(2, CHECKS, i64),
        spec(3, EXTERNAL, f64, host=True), spec(4, EXTERNAL, f64, host=True), spec(5, OUTPUT, f64),
    ]  # fmt: skip
    record = Program(
        "numbers", "triton", buffers=buffers, checks={2: [Check("ZeroDivisionError", "{value}!", 0, LINE)]}
    )
    memory, library = Memory(record), library_of(counter(), divided(), scaled())
    made = HostRun(memory, library)
    made.add(KernelStep("counter", (0, 0), (0, 0)))
    made.add(KernelStep("divided", (0, 2, 3), (0, 0, 0)))
    made.add(KernelStep("scaled", (3, 1, 4), (0, 0, 0)))
    made.add(KernelStep("scaled", (4, 1, 5), (0, 0, 0)))
    return made, memory, library


@pytest.mark.parametrize("compiler", ["gcc", "no-such-compiler"])
def test_kernels_run_in_order_on_tensors_and_numbers(compiler: str) -> None:
    with override(cc=compiler):
        made, memory, library = program()
        step = torch.tensor(0.0)
        for number, factor in ((1, 3.0), (2, 0.1), (3, -0.0)):
            frame = memory.begin([step, factor])
            memory.allocate_outputs(frame)
            made(frame)
            assert step == number
            assert frame.numbers == {3: 1 / number, 4: 1 / number * factor}
            assert struct.pack("d", frame.made[5].item()) == struct.pack("d", 1 / number * factor * factor)
        reason = (
            "3 kernels in C" if compiler == "gcc" else "3 of 3 kernels interpreted: no C compiler (no-such-compiler)"
        )
        assert library.report().startswith(reason)


@pytest.mark.parametrize("compiler", ["gcc", "no-such-compiler"])
def test_nothing_runs_behind_bad_data(compiler: str) -> None:
    with override(cc=compiler):
        made, memory, _ = program()
        step = torch.tensor(-1.0)
        frame = memory.begin([step, 2.0])
        memory.allocate_outputs(frame)
        frame.made[5].fill_(-77.0)
        with pytest.raises(ZeroDivisionError, match=r"7!(?s:.)*model.py:3"):
            made(frame)
        assert step == 0 and not frame.numbers and frame.made[5] == -77
        assert memory.cells[2].values.tolist() == [UNFAILED]
        made(frame)  # the next call finds nothing wrong
        assert frame.numbers == {3: 1.0, 4: 2.0}


@pytest.mark.parametrize("compiler", ["gcc", "no-such-compiler"])
def test_copies_are_made_right_behind_what_writes(compiler: str) -> None:
    with override(cc=compiler):
        made, memory, library = program()
        seen = (ctypes.c_double * 2)()
        start = ctypes.addressof(seen)
        joined = HostRun(memory, library)
        joined.add_copy(1, start, 8)
        joined.extend(made, {4: (start + 8, 8)})
        frame = memory.begin([torch.tensor(3.0), 5.0])
        memory.allocate_outputs(frame)
        joined(frame)
        assert list(seen) == [5.0, 1.25] and [item.kernel for item in joined.items].index("") == 0


def test_a_counter_whose_storage_was_emptied_is_refused() -> None:
    made, memory, _ = program()
    step = torch.tensor(1.0)
    step.untyped_storage().resize_(0)
    frame = memory.begin([step, 2.0])
    memory.allocate_outputs(frame)
    with pytest.raises(RuntimeError, match="out of bounds for storage of size 0"):
        made(frame)
