"""Native programs as the user meets them: outputs, aliases, threads, autograd's bookkeeping, one OpenMP."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from graphc.codegen.c.emit import emit_kernel
from graphc.codegen.native import generate_native
from graphc.errors import BackendUnavailableError, CodegenError, LoweringError
from graphc.ir.dims import symbol
from graphc.ir.types import bool_, f32, f64, i64
from graphc.loopir.builder import KernelBuilder
from graphc.loopir.kernel import ROW, Axis, Buffer, Kernel
from graphc.program.plan import KernelStep
from graphc.program.record import PYTHON, Program, Segment
from graphc.runtime import library
from graphc.runtime.load import load_program
from tests.runtime.plans import LINE, PlanBuilder, load

SCALE = """\
static void scale(const float *x, const double *factor, float *y) {
  #pragma omp parallel for
  for (int i = 0; i < 64; i++) y[i] = x[i] * (float)*factor;
}
"""
DOUBLE = "static void twice(float *x) { for (int i = 0; i < 6; i++) x[i] *= 2; }\n"


def scaler(tmp_path: Path) -> PlanBuilder:
    """x * factor through the arena, twice."""
    builder = PlanBuilder()
    x, factor = builder.input(torch.empty(64)), builder.number(f64)
    middle, out = builder.arena(f32, (64,)), builder.output(f32, (64,))
    builder.kernel("scale", SCALE, x, factor, middle)
    builder.kernel("scale", SCALE, middle, factor, out)
    return builder


def test_outputs_are_never_overwritten_while_held(tmp_path: Path) -> None:
    function = load(scaler(tmp_path).program(), tmp_path)
    x = torch.randn(64)
    held = [function([x, float(n)])[0] for n in range(5)]
    for n, out in enumerate(held):
        torch.testing.assert_close(out, x * n * n)


def test_many_threads_run_one_program_at_once(tmp_path: Path) -> None:
    function = load(scaler(tmp_path).program(), tmp_path)
    wrong: list[float] = []
    barrier = threading.Barrier(6)

    def work(factor: float) -> None:
        x = torch.full((64,), factor)
        barrier.wait()
        for _ in range(200):
            out = function([x, factor])[0]
            if not torch.equal(out, torch.full((64,), factor**3)):
                wrong.append(factor)

    threads = [threading.Thread(target=work, args=(float(n + 1),)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_kernels_run_on_as_many_threads_as_torch_does(tmp_path: Path) -> None:
    builder = PlanBuilder()
    out = builder.output(i64, (1,))
    builder.kernel(
        "count",
        "#include <omp.h>\nstatic void count(int64_t *y) {\n  #pragma omp parallel\n  {\n    #pragma omp single\n"
        "    y[0] = omp_get_num_threads();\n  }\n}\n",
        out,
    )
    function = load(builder.program(), tmp_path)
    before = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert function([])[0].item() == count
            found: list[int] = []
            thread = threading.Thread(target=lambda: found.append(function([])[0].item()))
            thread.start()
            thread.join()
            assert found == [count]
    finally:
        torch.set_num_threads(before)


def test_one_openmp_runtime(tmp_path: Path) -> None:
    """In a process of its own, since other tests' libraries may have loaded theirs."""
    folder = tmp_path / "built"
    folder.mkdir()
    function = load(scaler(tmp_path).program(), folder)
    function([torch.randn(64), 2.0])
    (built,) = folder.glob("*/program.so")
    code = (
        "import sys, ctypes, torch\n"
        "from graphc.runtime.library import openmp_libraries\n"
        "torch.randn(9, 9) @ torch.randn(9, 9)\n"
        f"ctypes.CDLL({str(built)!r})\n"
        "found = openmp_libraries()\n"
        "assert len(found) == 1 and 'torch' in found[0], found\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, cwd=Path(__file__).parents[2])


def test_openmp_libraries_are_read_from_the_map() -> None:
    maps = (
        "7f00-7f01 r-xp 00000000 fe:00 1    /a/libgomp-a34b3233.so.1\n"
        "7f02-7f03 r--p 00000000 fe:00 1    /a/libgomp-a34b3233.so.1\n"
        "7f04-7f05 r-xp 00000000 fe:00 2    /b/libiomp5.so\n7f06-7f07 rw-p 00000000 00:00 0 \n"
    )
    assert library.openmp_libraries(maps) == ["/a/libgomp-a34b3233.so.1", "/b/libiomp5.so"]


def test_outputs_that_are_inputs(tmp_path: Path) -> None:
    """An output may be the user's own tensor, a view of it, or a view of another output."""
    base = torch.arange(12.0)
    x = base[3:9]
    builder = PlanBuilder()
    source = builder.input(x)
    builder.kernel("twice", DOUBLE, source)
    builder.plan.written = (0,)
    builder.returns(source)
    builder.returns(source, ((2, 2), (1, 2), 1))
    version = base._version
    whole, view = load(builder.program(), tmp_path)([x])
    assert whole is x
    assert base.tolist() == [0, 1, 2, 6, 8, 10, 12, 14, 16, 9, 10, 11]
    assert torch.equal(view, x.as_strided((2, 2), (1, 2), 4))
    assert view.untyped_storage().data_ptr() == base.untyped_storage().data_ptr()
    assert base._version == version + 1


def test_views_of_fresh_outputs_share_one_storage(tmp_path: Path) -> None:
    builder = PlanBuilder()
    out = builder.output(f32, (2, 3))
    builder.kernel("ones", "static void ones(float *y) { for (int i = 0; i < 6; i++) y[i] = i; }\n", out)
    builder.returns(out)
    builder.returns(out, ((3,), (2,), 1))
    first, same, view = load(builder.program(), tmp_path)([])
    assert same is first
    first[0, 1] = 50
    assert view.tolist() == [50, 3, 5]


def test_writes_are_counted_and_leave_autograd_alone(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.ones(6))
    builder = PlanBuilder()
    builder.kernel("twice", DOUBLE, builder.input(weight))
    builder.plan.written = (0,)
    function = load(builder.program(), tmp_path)
    loss = (weight * weight).sum()
    assert function([weight]) == []
    assert weight.is_leaf and weight.tolist() == [2.0] * 6
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    with torch.inference_mode():
        frozen = torch.ones(6)
    function([frozen])
    assert frozen.tolist() == [2.0] * 6


def test_grad_and_autocast_are_off_inside_and_restored(tmp_path: Path) -> None:
    x, w = torch.randn(1, 2, 5, 5, requires_grad=True), torch.randn(3, 2, 3, 3, requires_grad=True)
    builder = PlanBuilder()
    ix, iw, native, python = (
        builder.input(x),
        builder.input(w),
        builder.external(f32, (1, 3, 3, 3)),
        builder.external(f32, (3, 3)),
    )
    conv = (builder.view(ix), builder.view(iw), None, (1, 1), (0, 0), (1, 1), False, (0, 0), 1)
    builder.aten("aten.convolution.default", conv, (native,))
    matrix = builder.input(torch.empty(3, 3))
    builder.aten("aten.linalg_vecdot.default", (builder.view(matrix), builder.view(matrix)), (-1,))
    builder.aten("aten._addmm_activation.default", (builder.view(matrix),) * 3, (python,))
    builder.returns(native)
    builder.returns(python)
    function = load(builder.program(), tmp_path)
    m = torch.rand(3, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, activated = function([x, w, m])
        assert torch.is_autocast_enabled("cpu") and torch.is_grad_enabled()
    assert not found.requires_grad
    torch.testing.assert_close(found, torch.conv2d(x, w).detach())
    torch.testing.assert_close(activated, torch._addmm_activation(m, m, m))


def test_calls_inside_and_outside_inference_mode(tmp_path: Path) -> None:
    x = torch.randn(3, 4)
    builder = PlanBuilder()
    middle, out = builder.arena(f32, (3, 4)), builder.external(f32, (3, 4))
    builder.aten("aten.tril.default", (builder.view(builder.input(x)),), (middle,))
    builder.aten("aten.triu.default", (builder.view(middle),), (out,))
    builder.returns(out)
    function = load(builder.program(), tmp_path)
    for inference in (True, False, True):
        with torch.inference_mode(inference):
            assert torch.equal(function([x])[0], torch.triu(torch.tril(x)))


def test_numbers_in_and_out(tmp_path: Path) -> None:
    builder = PlanBuilder()
    inputs = [builder.number(dtype) for dtype in (f64, i64, bool_)]
    cells = [builder.cell(dtype) for dtype in (f64, i64, bool_)]
    text = (
        "static void move(const double *a, const int64_t *b, const int64_t *c, double *x, int64_t *y, int64_t *z) "
        "{ *x = *a / 4; *y = *b + 1; *z = !*c; }\n"
    )
    builder.kernel("move", text, *inputs, *cells)
    for index in cells:
        builder.returns(index)
    function = load(builder.program(), tmp_path)
    for a, b, c in ((1.0, -5, True), (float("inf"), 2**62, False)):
        found = function([a, b, c])
        assert found == [a / 4, b + 1, not c]
        assert [type(x) for x in found] == [float, int, bool]


def test_offsets_reach_into_buffers(tmp_path: Path) -> None:
    x = torch.arange(8.0)
    builder = PlanBuilder()
    source, out = builder.input(x), builder.output(f32, (4,))
    text = "static void pick(const float *x, float *y) { for (int i = 0; i < 3; i++) y[i] = x[i]; }\n"
    builder.kernel("pick", text, source, out, offsets=(4, 1))
    found = load(builder.program(), tmp_path)([x])[0]
    assert found[1:].tolist() == [4, 5, 6]


def test_inputs_may_move_between_calls(tmp_path: Path) -> None:
    """Addresses are read at every call, whatever the way the inputs come in."""
    function = load(scaler(tmp_path).program(), tmp_path)
    weight = torch.nn.Parameter(torch.ones(64))
    for n in range(3):
        weight.data = torch.full((64,), float(n))
        for inputs in ([weight, 2.0], (weight, 2.0)):
            assert torch.equal(function(inputs)[0], torch.full((64,), 4.0 * n))


def test_inputs_without_the_fast_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graphc.runtime.native_program.tensor_offset", lambda: None)
    function = load(scaler(tmp_path).program(), tmp_path)
    x = torch.randn(64)
    torch.testing.assert_close(function([x, 3.0])[0], x * 9)


def test_arena_is_aligned_and_inputs_are_not_kept(tmp_path: Path) -> None:
    import weakref

    builder = PlanBuilder()
    out = builder.output(i64, (2,))
    middle, second = builder.arena(f32, (3,)), builder.arena(f32, (3,))
    text = "static void where(float *a, float *b, int64_t *y) { y[0] = (intptr_t)a % 64, y[1] = (intptr_t)b % 64; }\n"
    builder.kernel("where", text, middle, second, out)
    builder.input(torch.empty(1))
    function = load(builder.program(), tmp_path)
    x = torch.ones(1)
    gone = weakref.ref(x)
    assert function([x])[0].tolist() == [0, 0]
    del x
    gc.collect()
    assert gone() is None


def test_external_results_are_freed(tmp_path: Path) -> None:
    """A thousand calls that each make 8 MB of temporaries do not add up."""
    x = torch.randn(1024, 1024)
    builder = PlanBuilder()
    first, second, third = (builder.external(f32, (1024, 1024)) for _ in range(3))
    out = builder.external(f32, (1024,))
    source = builder.view(builder.input(x))
    builder.aten("aten.cumsum.default", (source, 0), (first,))
    builder.aten("aten.tril.default", (builder.view(first),), (second,))
    builder.aten("aten.cumsum.default", (builder.view(second), 0), (third,))
    builder.aten("aten.mean.dim", (builder.view(third), (0,)), (out,))
    builder.returns(out)
    function = load(builder.program(), tmp_path)
    function([x])

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    before = resident()
    for _ in range(20):
        function([x])
    assert resident() - before < 40 << 20


def test_a_program_of_no_native_step_needs_no_compiler(tmp_path: Path) -> None:
    x = torch.randn(3, 3)
    builder = PlanBuilder()
    out = builder.external(f32, (3, 3))
    builder.aten("aten.hardshrink.default", (builder.view(builder.input(x)), 0.5), (out,))
    builder.returns(out)
    program = builder.program()
    assert program.sources == {}
    assert torch.equal(load_program(program, None)([x])[0], torch.hardshrink(x))


def test_the_source_is_for_reading() -> None:
    builder = PlanBuilder("my */ model")
    x = builder.input(torch.empty(64))
    factor = builder.number(f64)
    for _ in range(3):
        builder.kernel("scale", SCALE, x, factor, builder.output(f32, (64,)))
    text = builder.program().sources["program.c"]
    assert text.startswith("/* my * / model: 3 steps, 1 kernels. Made by graphc. */")
    assert text.count("static void scale(") == 1
    assert text.count("/* model.py:14 fc1 */") == 3


def softmax_kernel(name: str, rows: int, columns: int) -> Kernel:
    builder = KernelBuilder((Axis("i", rows), Axis("j", columns, ROW)))
    place = symbol("i") * columns + symbol("j")
    x = builder.load("x", f32, place)
    e = builder.compute("exp", builder.compute("sub", x, builder.reduce("max", x)))
    builder.store("y", place, builder.compute("div", e, builder.reduce("sum", e)))
    size = rows * columns
    return builder.finish(name, (Buffer("x", f32, size, "in"), Buffer("y", f32, size, "out")))


@pytest.mark.parametrize("count", [1, 5])
def test_generated_kernels(count: int, tmp_path: Path) -> None:
    """With several kernels they stand in files of their own, which see each other through hidden symbols."""
    inputs = [torch.randn(4 + n, 7 + n) for n in range(count)]
    builder = PlanBuilder()
    for n, x in enumerate(inputs):
        name = f"softmax{n}"
        builder.plan.kernels[name] = softmax_kernel(name, *x.shape)
        buffers = (builder.input(x), builder.output(f32, x.shape))
        builder.plan.steps.append(KernelStep(name, buffers, (0, 0), LINE))
    program = generate_native(builder.plan, emit_kernel)
    assert sorted(program.sources) == (["program.c"] if count == 1 else ["kernels_0.c", "kernels_1.c", "program.c"])
    for found, x in zip(load(program, tmp_path)(inputs), inputs, strict=True):
        torch.testing.assert_close(found, torch.softmax(x, 1))


def test_missing_kernel_and_missing_function() -> None:
    builder = PlanBuilder()
    builder.plan.steps.append(KernelStep("ghost", (), (), LINE))
    with pytest.raises(CodegenError, match=r"no kernel named ghost\n  at model.py:14"):
        builder.program()
    with pytest.raises(BackendUnavailableError, match="exports no sgemm_of_the_future"):
        library.address_of("sgemm_of_the_future")
    record = Program("f", "c", steps=[KernelStep("k", (), (), LINE)])
    record.segments = [Segment(PYTHON, 0, 1)]
    with pytest.raises(LoweringError, match="kernel k cannot be run from Python"):
        load_program(record, None)
