"""The native program: C that runs a whole plan.

    plan steps:   kernel  gemm  aten(C shim)  kernel │ aten(Python only) │ kernel  gemm
    segments:     graphc_run_0 ─────────────────────   Python              graphc_run_1

Consecutive steps that C can do become one function, so a plan without Python-only steps is a single foreign call. The
text is meant to be read: kernels first, each once, then one row per step in order with the user's source line. With
more than a few kernels, and more than one CPU, these stand in files of their own, which are compiled at the same time,
and may be compiled before the rest of the program is known.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from graphc.codegen import native_text as text
from graphc.codegen import tile_text
from graphc.codegen.aten_shim import NotNative, ShimCall, constant, dtype_code, exported
from graphc.codegen.attention import LIBRARY, Attention, attention_call, attention_text
from graphc.codegen.attention_text import SUM_OVER_QUERIES
from graphc.codegen.c.emit import copies_for
from graphc.codegen.c.flags import LIBRARIES, c_flags
from graphc.codegen.c.prelude import prelude
from graphc.codegen.dispatcher import aten_call
from graphc.codegen.foreach import foreach_body, foreach_numbers
from graphc.codegen.gemm import (
    BLAS,
    GEMM_SYMBOLS,
    REAL_NAMES,
    Product,
    aten_line,
    blas_call,
    blas_line,
    fits_tiles,
    is_empty,
    product_of,
    tile_line,
)
from graphc.codegen.loop_text import loop_body
from graphc.codegen.size_text import HIDDEN, declaration, definition, storage, with_sizes
from graphc.codegen.step_table import StepTable
from graphc.errors import CodegenError
from graphc.ir.types import Location, f32, f64
from graphc.loopir.kernel import Store
from graphc.program import torch_text
from graphc.program.lifetimes import last_external_uses
from graphc.program.loops import LoopStep
from graphc.program.plan import (
    CHECKS,
    EXTERNAL,
    INPUT,
    OUTPUT,
    AtenStep,
    BufferSpec,
    ForeachStep,
    GemmStep,
    KernelStep,
    Plan,
    Step,
)
from graphc.program.record import NATIVE, PYTHON, Program, Segment

if TYPE_CHECKING:
    pass

SOURCE = "program.c"
TILES = "tiles.c"
_KERNELS_IN_ONE_FILE = 3
_KERNELS_PER_FILE = 16
_MOST_FILES = 8
_SIZES = "/* sizes */"
"""Where the table of sizes stands, once it is known who asks for them."""


class EmittedKernel(Protocol):
    """What the C generator gives back for one kernel: a function, and the helpers of the prelude it calls."""

    @property
    def name(self) -> str: ...

    @property
    def text(self) -> str: ...

    @property
    def prototype(self) -> str: ...

    @property
    def helpers(self) -> Iterable[str]: ...


def kernel_files(kernels: Sequence[EmittedKernel]) -> dict[str, str]:
    """The kernels of a program as files of their own, by name; none when there are few, which stand with the steps.

    The files depend on nothing but the kernels, whatever their order: they can be built while a plan is being made, if
    there is a CPU to do that at the same time.
    """
    if len(kernels) <= _KERNELS_IN_ONE_FILE or len(os.sched_getaffinity(0)) == 1:
        return {}
    # by weight, heaviest first to the lightest file
    count = min(_MOST_FILES, max(2, len(kernels) // _KERNELS_PER_FILE))
    files: list[list[EmittedKernel]] = [[] for _ in range(count)]
    for kernel in sorted(kernels, key=lambda kernel: (-len(kernel.text), kernel.name)):
        min(files, key=lambda file: sum(len(other.text) for other in file)).append(kernel)
    return {f"kernels_{number}.c": _kernel_file(file) for number, file in enumerate(files)}


def generate_native(plan: Plan, emit_kernel: Callable[..., EmittedKernel], apart: bool = False) -> Program:
    """The plan as C.

    Args:
        plan: the scheduled program, all of it on the CPU.
        emit_kernel: writes one kernel as a C function `name(buffer, buffer, ...)`; with the name of a buffer too, one
            that begins with a copy, as `COptions.begins` has it.
        apart: each step is a segment of its own, which can be run alone.

    Returns:
        The program; steps that C cannot do form PYTHON segments, and `stats["python_steps"]` says
        which and why.

    Raises:
        CodegenError: a kernel could not be written, or a step names a kernel that is not there.
    """
    return _NativeWriter(_natural(plan), emit_kernel).write(apart)


def _natural(plan: Plan) -> Plan:
    """The plan with those loops written out that C cannot do: with a step for Python, or one that makes tensors."""
    steps: list[Step] = []
    for step in plan.steps:
        if isinstance(step, LoopStep) and not all(_is_native(inner) for inner in step.steps):
            steps += step.unrolled()
        else:
            steps.append(step)
    return plan if steps == plan.steps else replace(plan, steps=steps)


def _is_native(step: Step) -> bool:
    if isinstance(step, GemmStep):
        return (
            is_empty(step)
            or exported(GEMM_SYMBOLS.get(step.out.dtype, ("",))[0])
            or all(exported(symbol) for symbol in (*text.SHIM, *text.MATMUL_SHIM))
        )
    return isinstance(step, KernelStep)


class _NativeWriter:
    def __init__(self, plan: Plan, emit_kernel: Callable[..., EmittedKernel]) -> None:
        self.plan, self.emit_kernel = plan, emit_kernel
        self.buffers: Sequence[BufferSpec] = plan.buffers  # that steps name: a loop has its own
        self.symbols: dict[str, str] = {}
        if exported("aoti_torch_get_data_ptr"):
            self.symbols.update({**text.INPUT_SYMBOLS, **text.CALL_SYMBOLS})
            if exported(torch_text.REQUIRES_GRAD):
                self.symbols.update(torch_text.GUARD_SYMBOLS)
        self.table = StepTable()
        self.kernels: dict[str, EmittedKernel] = {}
        self.gemm_one: set[str] = set()
        self.gemm_batch: set[str] = set()
        self.attentions: dict[Attention, str] = {}  # -> name of its C function
        self.blockings: set[tuple[tile_text.Blocking, bool]] = set()  # asked for; for batches?
        self.uses_tensors = self.uses_matmul_aten = self.uses_checks = self.tiles = self.tiles_batch = False
        self.reasons: dict[str, str] = {}
        self.releases = last_external_uses(plan.buffers, plan.steps, plan.outputs)

    def write(self, apart: bool) -> Program:
        plan = self.plan
        self.copied = self._copied()
        lines = [self._step(number, step) for number, step in enumerate(plan.steps)]
        segments = _segments(lines, apart)
        runs = [
            self._run_function(segment, lines[segment.first : segment.stop])
            for segment in segments
            if segment.kind == NATIVE
        ]
        sources = self._sources(runs) if runs else {}
        return Program(
            name=plan.name,
            backend="c",
            buffers=list(plan.buffers),
            steps=list(plan.steps),
            outputs=list(plan.outputs),
            written=plan.written,
            copied=plan.copied,
            exposed=plan.exposed,
            draws=plan.draws,
            arena_bytes=plan.arena_bytes,
            arena_blocks=plan.arena_blocks,
            checks=dict(plan.checks),
            segments=segments,
            sources=sources,
            symbols=tuple(self.symbols),
            flags=c_flags(),
            libraries=LIBRARIES,
            stats={**plan.stats, "python_steps": dict(self.reasons)},
        )

    def _step(self, number: int, step: Step) -> str | None:
        """The C lines of a step, or None when Python must do it."""
        try:
            if isinstance(step, KernelStep):
                does_next = number + 1 in self.copied
                line = (
                    self.table.row("with_the_next", "  return 0;", ()) if does_next else self._kernel_line(step, number)
                )
            elif isinstance(step, ForeachStep):
                line = self._foreach_line(step)
            elif isinstance(step, GemmStep):
                line = self._gemm_line(step)
            elif isinstance(step, LoopStep):
                line = self._loop_line(step)
            else:
                line = self._aten_line(step)
        except NotNative as reason:
            self.reasons[str(number)] = str(reason)
            return None
        line += _comment(step.location)
        for index in self.releases.get(number, ()):
            self._need_tensors()
            line += f"\n    {self.table.release(index)}"
        return line

    def _copied(self) -> dict[int, tuple[str, int]]:
        """Kernels that make the copy they work on themselves: number of the step -> its buffer, and what is copied."""
        found: dict[int, tuple[str, int]] = {}
        for number, (copy, step) in enumerate(itertools.pairwise(self.plan.steps), 1):
            if not isinstance(copy, KernelStep) or not isinstance(step, KernelStep) or len(copy.buffers) != 2:
                continue
            source, target = copy.buffers
            if step.buffers.count(target) != 1 or any(copy.offsets) or any(step.offsets) or source in step.buffers:
                continue
            kernel, buffer = self.plan.kernels[step.kernel], step.buffers.index(target)
            name = kernel.buffers[buffer].name
            written = {i for b, i in zip(kernel.buffers, step.buffers, strict=True) if b.access != "in"} - {target}
            if self.buffers[source].kind == EXTERNAL or any(self.buffers[i].kind != CHECKS for i in written):
                continue  # what is copied may be gone, or overwritten, when the kernel runs
            is_added_to = any(isinstance(s, Store) and (s.buffer, s.mode) == (name, "add") for s in kernel.body)
            if is_added_to and copies_for(self.plan.kernels[copy.kernel], kernel, name):
                found[number] = name, source
        return found

    def _kernel_line(self, step: KernelStep, number: int = -1) -> str:
        begins, source = self.copied.get(number, ("", -1))
        emitted = self._kernel(step.kernel, step.location, begins)
        arguments: list[str] = []
        numbers: list[int] = []
        for index, offset in zip(step.buffers, step.offsets, strict=True):
            first = len(numbers)
            arguments.append(f"AT(b[{first}], b[{first + 1}])" if offset else f"p[b[{first}]]")
            numbers += [index, offset * self.buffers[index].dtype.itemsize] if offset else [index]
        if begins:
            arguments.append(f"p[b[{len(numbers)}]]")
            numbers.append(source)
        call, ending = f"{emitted.name}({', '.join(arguments)});", "return 0;"
        if step.buffers and self.buffers[step.buffers[-1]].kind == CHECKS:
            self.uses_checks = True
            ending = (
                f"return failed({arguments[len(step.buffers) - 1]}, {self.plan.kernels[step.kernel].buffers[-1].size});"
            )
        return self.table.row(emitted.name.removeprefix("k_"), f"  {call}\n  {ending}", numbers)

    def _kernel(self, name: str, location: Location, begins: str = "") -> EmittedKernel:
        emitted = self.kernels.get(name + begins)
        if emitted is None:
            kernel = self.plan.kernels.get(name)
            if kernel is None:
                raise CodegenError(f"the plan has no kernel named {name}", location)
            emitted = self.emit_kernel(kernel, begins) if begins else self.emit_kernel(kernel)
            self.kernels[name + begins] = emitted
        return emitted

    def _foreach_line(self, step: ForeachStep) -> str:
        names = {name: self._kernel(name, step.location).name for name in step.kernels}
        self.uses_checks |= bool(step.cells)
        return self.table.row("foreach", foreach_body(step, names), foreach_numbers(step, self.plan.buffers))

    def _gemm_line(self, step: GemmStep) -> str:
        if is_empty(step):
            return self.table.row("empty_matrix_product", "  return 0;", ())
        product = product_of(step)
        dtype = step.out.dtype
        call = blas_call(product) if dtype in GEMM_SYMBOLS else None
        if call is not None:
            batched = bool(call.product.batch)
            symbol = GEMM_SYMBOLS[dtype][batched]
            if exported(symbol):
                self.symbols[symbol] = text.BLAS[symbol]
                (self.gemm_batch if batched else self.gemm_one).add(REAL_NAMES[dtype])
                blocking = tile_text.BLOCKINGS.get(step.form)
                if blocking is not None:
                    self.blockings.add((blocking, batched))
                    return self.table.statement(_gemm_name(product), tile_line(step, call))
                if step.form != BLAS and fits_tiles(step, call):
                    self.tiles, self.tiles_batch = self.tiles or not batched, self.tiles_batch or batched
                    return self.table.statement(_gemm_name(product), tile_line(step, call))
                return self.table.statement(_gemm_name(product), blas_line(step, call))
        if not all(exported(symbol) for symbol in text.MATMUL_SHIM):
            raise NotNative(f"libtorch exports no matrix product for {dtype.name}")
        self._need_tensors()
        self.uses_matmul_aten = True
        self.symbols.update(text.MATMUL_SHIM)
        line = aten_line(step, product, dtype_code(dtype))
        return self.table.statement(_gemm_name(product), line, fallible=True)

    def _loop_line(self, step: LoopStep) -> str:
        self.table.loops = True
        self.buffers = step.specs
        rows: list[str] = []
        for inner in step.steps:
            assert isinstance(inner, (KernelStep, GemmStep))  # others have been written out
            line = self._kernel_line(inner) if isinstance(inner, KernelStep) else self._gemm_line(inner)
            rows.append(line + _comment(inner.location))
        self.buffers = self.plan.buffers
        return self.table.row("loop", loop_body(step, self.plan.buffers, rows), ())

    def _aten_line(self, step: AtenStep) -> str:
        call: ShimCall = aten_call(step, self.plan.buffers)
        self._need_tensors()
        attention = attention_text(step, self.plan.buffers)
        if attention is not None and step.form != LIBRARY:
            kernel = self.attentions.setdefault(attention, f"attention_{len(self.attentions)}")
            call = attention_call(step, self.plan.buffers, call, kernel)
        self.symbols.update(call.symbols)
        return self.table.row(step.op.split(".")[1].strip("_"), call.body, call.buffers)

    def _need_tensors(self) -> None:
        if self.uses_tensors:
            return
        missing = [symbol for symbol in text.SHIM if not exported(symbol)]
        if missing:
            raise NotNative(f"libtorch does not export {missing[0]}")
        self.uses_tensors = True
        self.symbols.update(text.SHIM)

    def _call_functions(self, runs: list[str]) -> str:
        """How a call begins: where its tensors are, whether they are as guards want them, and all at once."""
        if text.INPUT_SYMBOLS.keys() - self.symbols.keys():
            return ""
        inputs = [spec for spec in self.plan.buffers if spec.kind == INPUT and not spec.host]
        outputs = [spec for spec in self.plan.buffers if spec.kind == OUTPUT and not spec.host]
        numbers = {
            "COUNT": str(len(inputs)),
            "SOURCES": ", ".join(str(spec.source) for spec in inputs) or "0",
            "BUFFERS": ", ".join(str(spec.index) for spec in inputs) or "0",
            "MADE": str(len(outputs)),
            "PLACES": ", ".join(map(str, range(len(outputs)))) or "0",
            "RESULTS": ", ".join(str(spec.index) for spec in outputs) or "0",
        }
        found = text.INPUTS
        for word, value in numbers.items():
            found = found.replace(word, value)
        if len(runs) == 1:
            found += "\n" + text.CALL.replace("ENTRY", "graphc_run_0")
        return found if torch_text.GUARD_SYMBOLS.keys() - self.symbols.keys() else f"{found}\n{torch_text.GUARD}"

    def _run_function(self, segment: Segment, lines: list[str | None]) -> str:
        rows = "\n".join(f"    {line}" for line in lines)
        return with_sizes(
            f"/* steps {segment.first} to {segment.stop - 1}; gives 0, or 1 + the step that failed */\n"
            f"STRAIGHT int {segment.entry}(void **p, AtenTensorHandle *h) {{\n"
            f"  {storage(rows)} int64_t steps[] = {{\n{rows}\n  }};\n"
            f"  return walk({segment.first}, steps, steps + sizeof steps / sizeof *steps, p, h);\n}}\n"
        )

    def _sources(self, runs: list[str]) -> dict[str, str]:
        kernels = list(self.kernels.values())
        files = kernel_files(kernels)
        here, elsewhere = ([], kernels) if files else (kernels, [])
        uses_tiles = self.tiles or self.tiles_batch or self.attentions or self.blockings
        tiles = {TILES: self._tiles()} if uses_tiles else {}
        source = self._source(runs, here, elsewhere)
        sizes = definition("".join((source, *files.values(), *tiles.values())))
        return {SOURCE: source.replace(f"{_SIZES}\n", sizes), **files, **tiles}

    def _source(self, runs: list[str], here: list[EmittedKernel], elsewhere: list[EmittedKernel]) -> str:
        plan = self.plan
        parts = [f"/* {_safe(plan.name)}: {len(plan.steps)} steps, {len(self.kernels)} kernels. Made by graphc. */\n"]
        parts += [prelude(_helpers(here)), text.TYPES, _buffer_table(plan), _SIZES]
        parts.append(torch_text.declarations(self.symbols))
        parts += [kernel.text for kernel in here]
        parts.append("".join(f"{HIDDEN} {kernel.prototype};\n" for kernel in elsewhere))
        for dtype in (f32, f64):
            real = REAL_NAMES[dtype]
            one, batch = GEMM_SYMBOLS[dtype]
            if real in self.gemm_one:
                parts.append(text.GEMM_ONE.replace("REAL", real).replace("GEMM", one))
            if real in self.gemm_batch:
                parts.append(text.GEMM_BATCH.replace("REAL", real).replace("GEMM", batch))
        if self.tiles or self.tiles_batch:
            parts.append(tile_text.TILES_WIN)
        if self.tiles:
            parts.append(tile_text.PRODUCT_CALL)
        if self.tiles_batch:
            parts.append(tile_text.BATCH_CALL)
        for blocking, batched in self._asked():
            prototype = tile_text.BATCH_PROTOTYPE if batched else tile_text.PRODUCT_PROTOTYPE
            parts.append(f"{HIDDEN} {blocking.text(prototype)};\n")
        for attention, name in self.attentions.items():
            parts.append(f"{HIDDEN} {attention.prototype.replace('NAME', name)};\n")
        if self.uses_checks:
            parts.append(text.FAILED)
        if self.uses_tensors:
            parts.append(f"enum {{ CPU = {constant('device_type_cpu')}, STRIDED = {constant('layout_strided')} }};\n")
            parts.append(text.TENSORS)
        if self.uses_matmul_aten:
            parts.append(text.MATMUL_ATEN)
        parts += [self.table.functions_text(), *runs, self._call_functions(runs)]
        parts.append(torch_text.bind_function(self.symbols))
        return "\n".join(part for part in parts if part)

    def _asked(self) -> list[tuple[tile_text.Blocking, bool]]:
        """Products that steps want by tiles, blocked in some way."""
        return sorted(self.blockings, key=repr)

    def _tiles(self) -> str:
        """The file of products and attention by tiles."""
        parts = [prelude({"expf", "logf"} if self.attentions else ()), tile_text.MICRO_KERNEL]
        products = dict.fromkeys([tile_text.USUAL] if self.tiles or self.tiles_batch else [])
        products.update(dict.fromkeys(blocking for blocking, _ in self._asked()))
        if products:
            parts.append(tile_text.PRODUCT_TILE)
        parts += [blocking.text(tile_text.PRODUCT_PART + tile_text.PRODUCT) for blocking in products]
        batches = dict.fromkeys([tile_text.USUAL] if self.tiles_batch else [])
        batches.update(dict.fromkeys(blocking for blocking, batched in self._asked() if batched))
        parts += [blocking.text(tile_text.BATCH) for blocking in batches]
        if any(attention.is_backward for attention in self.attentions):
            parts.append(SUM_OVER_QUERIES)
        parts += [f"HIDDEN {attention.text.replace('NAME', name)}" for attention, name in self.attentions.items()]
        return "\n".join((parts[0], declaration("".join(parts)), *parts[1:]))


def _helpers(kernels: list[EmittedKernel]) -> set[str]:
    return {helper for kernel in kernels for helper in kernel.helpers}


def _kernel_file(kernels: list[EmittedKernel]) -> str:
    """Kernels as a file of their own: there they are not static but hidden in the library."""
    texts = [re.sub(r"^static ", f"{HIDDEN} ", kernel.text, count=1, flags=re.MULTILINE) for kernel in kernels]
    return "\n".join((prelude(_helpers(kernels)), declaration("".join(texts)), *texts))


def _segments(lines: list[str | None], apart: bool) -> list[Segment]:
    """Runs of steps that C does, and of steps that it does not; or each step apart."""
    found: list[Segment] = []
    natives = 0
    for number, line in enumerate(lines):
        kind = PYTHON if line is None else NATIVE
        if found and found[-1].kind == kind and not apart:
            found[-1] = replace(found[-1], stop=number + 1)
            continue
        found.append(Segment(kind, number, number + 1, f"graphc_run_{natives}" if kind == NATIVE else ""))
        natives += kind == NATIVE
    return found


def _buffer_table(plan: Plan) -> str:
    lines = [f" * p[{spec.index}] {_describe(spec, bool(plan.arena_blocks))}" for spec in plan.buffers]
    return "/* buffers\n" + "\n".join(lines) + "\n */\n"


def _describe(spec: BufferSpec, moves: bool) -> str:
    """A buffer in words; where it lies in the arena unless that differs with sizes."""
    shape = f"{spec.dtype.name}[{', '.join(map(str, spec.shape))}]"
    where = {"input": f" {spec.source}", "arena": "" if moves else f" at {spec.arena_offset}"}.get(spec.kind, "")
    return f"{shape} {spec.kind}{where}"


def _gemm_name(product: Product) -> str:
    return f"matmul_{'x'.join(map(str, (*product.batch, product.m, product.n, product.k)))}"


def _comment(location: Location) -> str:
    if not location:
        return ""
    name = location.file.rsplit("/", 1)[-1]
    return f" /* {_safe(f'{name}:{location.line} {location.module}'.rstrip())} */"


def _safe(words: str) -> str:
    """Text that cannot end a C comment nor continue a line."""
    return words.replace("*/", "* /").replace("\\", "/").replace("\n", " ")
