"""How a kernel's iteration space is cut into programs: axes joined, tile dimensions, block sizes, warps.

    axes(i: 64 parallel, j: 128 parallel, k: 1024 row)
      -> join neighbours that every index expression walks as one:   x = (i, j): 8192    r = k: 1024
      -> tile dimensions:  x in blocks of 1, r in one block of 1024 (persistent), 8192 programs of 4 warps

The numbers below are for GPUs with 64 K registers a processor and 16-byte vector accesses; they depend on nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import gcd, prod

from graphc.codegen.triton.joined_axes import index_of, int_extent, join_axes
from graphc.codegen.triton.row_parts import held_bytes, is_per_element, outer_axes
from graphc.ir.dims import Dim, Expr, Sym, bounds, substitute, symbols
from graphc.ir.sizes import Size, typical
from graphc.loopir.kernel import Axis, Kernel, Load, Reduce, Scan, Store, is_value

WIDE_ELEMENTS = 16
"""At a multiple of so many elements the widest access may begin, whatever their size."""
HELD_BYTES = 8
"""Per element of the longest row, what registers can hold of a row beside what is computed: half of a processor's."""
INT32_LIMIT = 2**31 - 2**16  # room for the lanes of the last block


@dataclass(frozen=True)
class Limits:
    """Sizes by which tiles are chosen. Tests shrink them to reach every form with small kernels.

    Args:
        pointwise: elements per program of a pointwise kernel.
        persistent: longest row that a program holds whole; twice that where it is little per element.
        row: elements that a program of a row kernel should have at least.
        loop: elements per step of a looped row kernel.
        cached: bytes of a row beyond which the rows of all programs that run at once do not fit the cache: for six on
            each of 132 processors, of 32 MB. Of four times as many they would not with fewer programs either.
        per_warp: elements per warp: eight per thread.
        fill: programs that fill a large GPU (two per processor of an H200).
        split: most programs that share a row.
        settle: partial results of one program's rows from which on a launch of its own sums them up between passes.
        strided: columns per program where rows are not contiguous.
        columns: of these, what a launch that sums up partial results takes at least: 32 bytes that lie side by side.
        transpose: side of the square tile of a pointwise kernel that transposes.
    """

    pointwise: int = 1024
    persistent: int = 16384
    row: int = 1024
    loop: int = 2048
    cached: int = 40 << 10
    per_warp: int = 256
    fill: int = 264
    split: int = 256
    settle: int = 1024
    strided: int = 64
    columns: int = 8
    transpose: int = 32


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True)
class TileDim:
    """One dimension of a program's tile.

    Args:
        name: the index variable in the generated code.
        axes: the axes it runs over, flattened outermost first.
        extent: product of their extents.
        block: indices per program (per loop step for a looped row dimension).
        constexpr: name of the block size in the generated code, empty when the dimension is one index per program.
        is_row: reductions and scans run along it.
        parts: programs that share the extent, each walking the same number of blocks, or pieces that follow each other.
        fixed: how many of the axes, the outer ones, stand still during a step of a loop.
    """

    name: str
    axes: tuple[Axis, ...]
    extent: int
    block: int
    constexpr: str
    is_row: bool = False
    parts: int = 1
    fixed: int = 0

    @property
    def is_blocked(self) -> bool:
        return bool(self.constexpr)

    @property
    def is_exact(self) -> bool:
        """No lane lies outside the extent."""
        return self.extent % (self.block * self.parts) == 0 and self.extent > 0

    @property
    def programs(self) -> int:
        return -(-self.extent // self.block)


@dataclass(frozen=True)
class Tiling:
    """A kernel with joined axes, and its tile.

    Args:
        kernel: the kernel whose index expressions use the joined axes.
        dims: outermost first; the row dimension, if any, last, or two of them, if the row is held whole.
        looped: the row dimension is walked in steps of its block instead of held whole.
        num_warps: warps per program.
        wide: index arithmetic in 64 bits.
        settles: where programs share rows, launches between two passes make what the second one needs of each row. Else
            every program of that does, from what all programs of the first one have left: that may be more than its
            part of the row, and takes registers that its loop could do without.
        summed: rows per program of launches that sum up what programs that share rows have left, see `summing`.
    """

    kernel: Kernel
    dims: tuple[TileDim, ...]
    num_warps: int
    looped: bool = False
    wide: bool = False
    settles: bool = False
    summed: int = 0

    @property
    def row(self) -> TileDim | None:
        """The row dimension, the inner one of two."""
        return self.dims[-1] if self.dims and self.dims[-1].is_row else None

    @property
    def rows(self) -> tuple[TileDim, ...]:
        return tuple(dim for dim in self.dims if dim.is_row)

    @property
    def parallel(self) -> tuple[TileDim, ...]:
        return tuple(dim for dim in self.dims if not dim.is_row)

    @property
    def blocked(self) -> tuple[TileDim, ...]:
        """The dimensions that tensors in the generated code have."""
        return tuple(dim for dim in self.dims if dim.is_blocked)

    @property
    def split(self) -> int:
        """Programs that share one row; partial results go through scratch memory."""
        return self.row.parts if self.row is not None else 1

    @property
    def programs(self) -> int:
        return prod(dim.programs for dim in self.parallel)


def summing(tiling: Tiling) -> Tiling:
    """The tile of launches that sum up what programs that share rows have left.

    Fewer rows than elsewhere for each of more programs, as they hold `split` numbers of a row side by side, and a few
    programs would have all the others wait for them.
    """
    dims = tuple(
        replace(dim, block=min(dim.block, tiling.summed)) if dim.is_blocked and not dim.is_row else dim
        for dim in tiling.dims
    )
    elements = power_of_two(tiling.split) * prod(dim.block for dim in dims if not dim.is_row)
    return replace(tiling, dims=dims, num_warps=_warps(elements, DEFAULT_LIMITS))


def has_ragged_edge(tiling: Tiling) -> bool:
    """A flat tile whose masks would change inside of what a wide access takes: the last program is apart then."""
    dims = tiling.dims
    return len(dims) == 1 and dims[0].programs > 1 and not dims[0].is_row and dims[0].extent % WIDE_ELEMENTS > 0


def power_of_two(value: int) -> int:
    """The least power of two that is at least `value` and at least 1."""
    return 1 << max(0, value - 1).bit_length()


# ---------------------------------------------------------------------------------------------------------- analysis


def stride(index: Dim, axis: str) -> int | None:
    """How far one step along `axis` moves in memory, in elements, or None when that is no constant."""
    if isinstance(index, int):
        return 0
    found = 0
    for monomial, coefficient in index.terms:
        if monomial == (Sym(axis),):
            found = coefficient
        elif axis in symbols(Expr(((monomial, 1),))):
            return None
    return found


def _accesses(kernel: Kernel) -> list[tuple[Load | Store, int]]:
    """Every load and store with the bytes that it touches in a run of the kernel, each address once."""
    size = {buffer.name: buffer.dtype.itemsize for buffer in kernel.buffers}
    extents = {axis.name: int_extent(axis) for axis in kernel.axes}
    found: list[tuple[Load | Store, int]] = []
    for s in kernel.body:
        if isinstance(s, (Load, Store)):
            names = symbols(s.index)
            axes = set[str]().union(*(kernel.domains[n] if is_value(n) else {n} for n in names)) if names else set()
            found.append((s, size[s.buffer] * prod(extents[axis] for axis in axes)))
    return found


def needs_wide_index(kernel: Kernel, blocks: int) -> bool:
    """Whether some index, or the number of a lane in blocks of this size, does not fit in 32 bits."""
    ranges = {axis.name: (0, max(0, int_extent(axis) - 1)) for axis in kernel.axes}
    if prod(int_extent(axis) for axis in kernel.parallel_axes) + blocks >= INT32_LIMIT:
        return True
    if prod(int_extent(axis) for axis in kernel.row_axes) + blocks >= INT32_LIMIT:
        return True
    for s in kernel.body:
        index = index_of(s)
        if index is None or isinstance(index, int):
            continue
        # a loaded index is an int64 already, so only the rest counts
        affine = substitute(index, {name: 0 for name in symbols(index) if is_value(name)})
        low, high = bounds(affine, ranges)
        if low is None or high is None or low < -INT32_LIMIT or high >= INT32_LIMIT:
            return True
    return False


# ------------------------------------------------------------------------------------------------------------ choices


def choose_tiling(kernel: Kernel, limits: Limits = DEFAULT_LIMITS) -> Tiling:
    """The tile for a kernel.

    Raises:
        CodegenError: an extent is symbolic.
    """
    kernel = join_axes(kernel)
    if kernel.row_axes or any(isinstance(s, (Reduce, Scan)) for s in kernel.body):
        tiling = _row_tiling(kernel, limits)
    else:
        tiling = _pointwise_tiling(kernel, limits)
    blocks = max((dim.block for dim in tiling.dims), default=1)
    return replace(tiling, wide=needs_wide_index(kernel, blocks))


def _flat(name: str, axes: tuple[Axis, ...], block: int, constexpr: str, is_row: bool = False) -> TileDim:
    extent = prod(int_extent(axis) for axis in axes)
    return TileDim(axes[0].name if len(axes) == 1 else name, axes, extent, block, constexpr, is_row)


def _warps(elements: int, limits: Limits) -> int:
    return min(16, max(1, power_of_two(elements // limits.per_warp)))


def _pointwise_tiling(kernel: Kernel, limits: Limits) -> Tiling:
    axes = kernel.parallel_axes
    transposed = _transposed_axis(kernel, limits)
    if transposed is not None:
        inner = axes[-1]
        rest = tuple(axis for axis in axes if axis not in (transposed, inner))
        block = limits.transpose
        dims = (
            *((_flat("z", rest, 1, ""),) if rest else ()),
            _flat("y", (transposed,), block, "YBLOCK"),
            _flat("x", (inner,), block, "XBLOCK"),
        )
        return Tiling(kernel, dims, _warps(block * block, limits))
    total = prod(int_extent(axis) for axis in axes)
    if total == 1:
        return Tiling(kernel, (), 1)
    block = min(limits.pointwise, power_of_two(typical(total)))
    for smaller in (limits.pointwise, limits.pointwise // 2, limits.pointwise // 4):
        if total % smaller == 0 and total > 0:
            block = smaller
            break
    return Tiling(kernel, (_flat("x", axes, block, "XBLOCK"),), _warps(block, limits))


def _transposed_axis(kernel: Kernel, limits: Limits) -> Axis | None:
    """The axis along which most other accesses are contiguous while they jump along the last one, if there is any."""
    axes = kernel.parallel_axes
    if len(axes) < 2 or int_extent(axes[-1]) < limits.transpose // 2:
        return None
    bytes_along = {axis.name: 0 for axis in axes}
    for access, size in _accesses(kernel):
        if stride(access.index, axes[-1].name) in (0, 1, None):
            continue
        for axis in axes[:-1]:
            if stride(access.index, axis.name) == 1 and int_extent(axis) >= limits.transpose // 2:
                bytes_along[axis.name] += size
    best = max(axes, key=lambda axis: bytes_along[axis.name])
    return best if bytes_along[best.name] else None


def _rows_are_contiguous(kernel: Kernel, limits: Limits) -> bool:
    """True when neighbours along the row, rather than neighbouring rows, lie next to each other in memory."""
    if not kernel.parallel_axes or not kernel.row_axes:
        return True
    row, outer = kernel.row_axes[-1], kernel.parallel_axes[-1]
    along_row = along_outer = 0
    for access, size in _accesses(kernel):
        row_stride, outer_stride = stride(access.index, row.name), stride(access.index, outer.name)
        if row_stride == 1:
            along_row += size
        elif row_stride != 0 and outer_stride == 1:
            along_outer += size
    return along_row >= along_outer or int_extent(outer) < limits.strided // 4


def _row_tiling(kernel: Kernel, limits: Limits) -> Tiling:
    rows = prod(int_extent(axis) for axis in kernel.parallel_axes)
    length = prod(int_extent(axis) for axis in kernel.row_axes)
    padded = power_of_two(length)
    whole = _longest_whole(kernel, padded, limits)
    is_contiguous = _rows_are_contiguous(kernel, limits)
    if is_contiguous:
        block = max(1, limits.row // padded)
        while block > 1 and rows < block * limits.fill:
            block //= 2
        inner = padded if padded <= whole else _step(kernel, length, limits)
    else:
        block = min(limits.strided, power_of_two(rows))
        inner = padded if block * padded <= whole // 4 else max(1, limits.loop // block)
    block = block if rows != 1 else 1
    dims: tuple[TileDim, ...] = (_row_dim(kernel, length, inner),)
    if rows != 1:
        dims = (_flat("x", kernel.parallel_axes, block, "XBLOCK" if block > 1 else ""), *dims)
    elements = block * inner
    warps = _warps(elements, limits) * (2 if elements > limits.persistent else 1)
    tiling = Tiling(kernel, dims, warps, looped=inner < padded)
    if not tiling.looped:
        return replace(tiling, dims=(*tiling.parallel, *_two_rows(kernel, dims[-1]))) if is_contiguous else tiling
    row = replace(dims[-1], parts=_split(tiling, limits))
    parts = power_of_two(row.parts)
    settles = row.parts > 1 and parts * block >= limits.settle
    summed = max(limits.columns, limits.settle // parts)
    return replace(tiling, dims=(*dims[:-1], replace(row, fixed=_fixed(kernel, row))), settles=settles, summed=summed)


def _longest_whole(kernel: Kernel, padded: int, limits: Limits) -> int:
    """How long a row may be to be held whole."""
    if padded > limits.persistent and 0 < padded * held_bytes(kernel) <= HELD_BYTES * limits.persistent:
        return 2 * limits.persistent
    arrays = sum(1 for s in kernel.body if isinstance(s, Load) and is_per_element(kernel, s))
    return limits.persistent // (1 if arrays <= 4 else 2 if arrays <= 10 else 4)


def _split(tiling: Tiling, limits: Limits) -> int:
    """How many programs share a row: enough to fill the device, each with a few steps of the loop."""
    row = tiling.row
    if row is None or not tiling.looped or any(isinstance(s, Scan) for s in tiling.kernel.body):
        return 1
    steps = -(-row.extent // row.block)
    wanted = 2 * limits.fill // max(1, tiling.programs)
    most = max(1, min(limits.split, -(-steps // 4), wanted))
    if Size in (type(steps), type(most)):
        return 1 << most.bit_length() - 1
    # parts of equal length need no mask
    return next((parts for parts in range(most, most // 2, -1) if steps % parts == 0), most)


def _row_dim(kernel: Kernel, length: int, block: int) -> TileDim:
    axes = kernel.row_axes
    if not axes:
        return TileDim("r", (), length, block, "RBLOCK", is_row=True)
    return _flat("r", axes, block, "RBLOCK", is_row=True)


def _two_rows(kernel: Kernel, row: TileDim) -> tuple[TileDim, ...]:
    """The dimension of a row that is held whole as two, where that takes no more lanes and as wide accesses."""
    at = outer_axes(kernel)
    parts = (row.axes[:at], row.axes[at:])
    extents = [prod(map(int_extent, axes)) for axes in parts]
    blocks = [power_of_two(extent) for extent in extents]
    if not at or prod(blocks) > row.block or extents[1] % WIDE_ELEMENTS:
        return (row,)
    names = (("q", "QBLOCK"), ("r", "RBLOCK"))
    return tuple(_flat(n, axes, b, c, is_row=True) for (n, c), axes, b in zip(names, parts, blocks, strict=True))


def _step(kernel: Kernel, length: int, limits: Limits) -> int:
    """Elements per step of a loop over contiguous rows: such that outer axes stand still, where it is no half of it.

    Fewer programs with twice as many threads walk rows that are read again, where so many rows fit the cache.
    """
    at = outer_axes(kernel)
    inner = prod(int_extent(axis) for axis in kernel.row_axes[at:])
    again = _bytes_read_again(kernel, length)
    loop = limits.loop * (2 if limits.cached < again <= 4 * limits.cached else 1)
    even = gcd(inner, loop)
    return even if at and 2 * even >= loop else loop


def _bytes_read_again(kernel: Kernel, length: int) -> int:
    """Bytes of a row that more than one pass reads: where elements are stored that wait for a reduction of the row.

    Of one array: steps of several, twice as long, would not fit shared memory as often as they are to be on their way.
    """
    row = {axis.name for axis in kernel.row_axes}
    stores = any(isinstance(s, Store) and not row.isdisjoint(symbols(s.index)) for s in kernel.body)
    loads = [s for s in kernel.body if isinstance(s, Load) and is_per_element(kernel, s)]
    if not stores or len(loads) != 1 or not any(isinstance(s, Reduce) for s in kernel.body):
        return 0
    return length * loads[0].dtype.itemsize


def _fixed(kernel: Kernel, row: TileDim) -> int:
    """How many outer axes of a looped row stand still during a step."""
    at = outer_axes(kernel)
    inner = prod(int_extent(axis) for axis in row.axes[at:])
    return at if row.is_exact and inner % row.block == 0 else 0
