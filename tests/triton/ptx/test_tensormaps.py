"""Copies of blocks that the chip makes, barriers in shared memory that track them, and what must be waited for."""

from __future__ import annotations

import numpy as np
import pytest

from tests.triton.ptx.parse import PtxError
from tests.triton.ptx.texts import run

THREADS = 64
SIZES, BOX = (24, 20), (16, 8)  # of 4 bytes; the innermost first
STRIDE = 4 * 28
MAP = 20 * STRIDE
"""Where in memory the descriptor lies; behind it is what threads found in shared memory."""
MAP += -MAP % 128
FOUND, BLOCK = MAP + 128, 4 * BOX[0] * BOX[1]
PLACE, WAITED = 1024, 2048
"""Where in shared memory a block and an mbarrier lie."""


def fields(mode: int) -> str:
    numbers = {
        "rank.shared::cta.b1024.b32": ["1"], "box_dim.shared::cta.b1024.b32": ["0, 16", "1, 8"],
        "global_dim.shared::cta.b1024.b32": ["0, 24", "1, 20"],
        "global_stride.shared::cta.b1024.b64": [f"0, {STRIDE}"],
        "element_stride.shared::cta.b1024.b32": ["0, 1", "1, 1"], "elemtype.shared::cta.b1024.b32": ["2"],
        "interleave_layout.shared::cta.b1024.b32": ["0"], "swizzle_mode.shared::cta.b1024.b32": [str(mode)],
        "fill_mode.shared::cta.b1024.b32": ["0"],
    }  # fmt: skip
    said = [f"tensormap.replace.tile.{name} [%rd5 + 0], {value}" for name, of in numbers.items() for value in of]
    return "".join(
        f"    @%p1 {line};\n"
        for line in ["tensormap.replace.tile.global_address.shared::cta.b1024.b64 [%rd5 + 0], %rd0", *said]
    )


def described(mode: int) -> str:
    """The descriptor goes from the beginning of shared memory, where zeros are, to global memory; %rd6 is there."""
    return f"""
    setp.eq.u32 %p1, %r0, 0;
    setp.lt.u32 %p2, %r0, 32;
    shl.b32 %r2, %r0, 2;
    mov.b64 %rd5, 0;
    add.s64 %rd6, %rd0, {MAP};
    @%p2 st.shared.b32 [%r2], 0;
    {fields(mode)}
    @%p2 tensormap.cp_fenceproxy.global.shared::cta.tensormap::generic.release.gpu.sync.aligned [%rd6], [%rd5], 0x80;
    @%p2 fence.proxy.tensormap::generic.acquire.gpu [%rd6], 0x80;
"""


BARRIER, FENCE = "    bar.sync 0;\n", "    fence.proxy.async.shared::cta;\n"
INIT = f"    mov.b32 %r10, {WAITED};\n    mov.b32 %r11, {PLACE};\n    @%p1 mbarrier.init.shared::cta.b64 [%r10], 1;\n"
EXPECT = f"    @%p1 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r10], {BLOCK};\n"
WAIT = """    {
    .reg .pred complete;
    waitLoop:
    mbarrier.try_wait.parity.shared::cta.b64 complete, [%r10], 0;
    @!complete bra.uni waitLoop;
    }
"""


def load(column: int = 0, row: int = 0) -> str:
    return (
        f"    mov.b32 %r12, {column};\n    mov.b32 %r13, {row};\n"
        "    elect.sync %r14|%p3, -1;\n    and.pred %p4, %p2, %p3;\n"
        "    @%p4 cp.async.bulk.tensor.2d.shared::cta.global.mbarrier::complete_tx::bytes [%r11], [%rd6, {%r12, %r13}],"
        " [%r10];\n"
    )


READ = "".join(
    f"    ld.shared.b32 %r20, [%r2+{PLACE + at}];\n    st.global.b32 [%rd2+{FOUND + at}], %r20;\n"
    for at in range(0, BLOCK, 4 * THREADS)
)
INVALIDATE = BARRIER + "    @%p1 mbarrier.inval.shared::cta.b64 [%r10];\n"


def memory() -> np.ndarray:
    """Aligned as descriptors want it."""
    room = np.zeros(FOUND // 4 + BLOCK // 4 + 32, np.uint32)
    at = -room.ctypes.data % 128 // 4
    found = room[at : at + FOUND // 4 + BLOCK // 4]
    found[: MAP // 4] = np.arange(MAP // 4) + 1
    return found


def matrix(held: np.ndarray) -> np.ndarray:
    return held[: SIZES[1] * STRIDE // 4].reshape(SIZES[1], -1)[:, : SIZES[0]]


def swizzled(block: np.ndarray, span: int) -> np.ndarray:
    """A block as it lies in shared memory: chunks of 16 bytes change places within lines of `span` bytes."""
    chunks = block.reshape(-1, 4)
    found = np.empty_like(chunks)
    for at, chunk in enumerate(chunks):
        found[at ^ (at >> 3) % (span // 16)] = chunk
    return found.reshape(-1)


@pytest.mark.parametrize(("column", "row"), [(0, 0), (4, 9), (-3, -2), (17, 15), (30, 0), (0, -8)])
@pytest.mark.parametrize("mode", [0, 2, 3])
def test_blocks_are_loaded(mode: int, column: int, row: int) -> None:
    """What lies outside of the matrix is zero."""
    held = memory()
    body = described(mode) + INIT + EXPECT + BARRIER + load(column, row) + WAIT + READ + INVALIDATE
    assert not run(body, held, THREADS, shared=4096)
    padded = np.pad(matrix(held), ((8, 8), (32, 32)))
    wanted = padded[row + 8 : row + 8 + BOX[1], column + 32 : column + 32 + BOX[0]]
    found = held[FOUND // 4 :]
    np.testing.assert_array_equal(found, swizzled(np.ascontiguousarray(wanted), (16, 32, 64, 128)[mode]))


WRITE = "".join(
    f"    add.s32 %r20, %r0, {1000 + at // 4};\n    st.shared.b32 [%r2+{PLACE + at}], %r20;\n"
    for at in range(0, BLOCK, 4 * THREADS)
)
PUT = """
    mov.b32 %r12, COLUMN;
    mov.b32 %r13, ROW;
    mov.b32 %r11, 1024;
    @%p1 cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%rd6, {%r12, %r13}], [%r11];
"""
COMMIT, DONE = "    cp.async.bulk.commit_group;\n", "    cp.async.bulk.wait_group 0;\n"


@pytest.mark.parametrize(("column", "row"), [(0, 0), (4, 9), (-3, -2), (17, 15)])
@pytest.mark.parametrize("mode", [0, 2])
def test_blocks_are_stored(mode: int, column: int, row: int) -> None:
    held = memory()
    padded = np.pad(matrix(held), ((8, 8), (32, 32)))
    put = PUT.replace("COLUMN", str(column)).replace("ROW", str(row))
    body = described(mode) + WRITE + FENCE + BARRIER + put + COMMIT + DONE.replace(" 0", ".read 0") + DONE
    assert not run(body, held, THREADS, shared=4096)
    numbers = swizzled(np.arange(BLOCK // 4, dtype=np.uint32), (16, 32, 64, 128)[mode])
    block = np.empty(BLOCK // 4, np.uint32)
    block[numbers] = 1000 + np.arange(BLOCK // 4)
    padded[row + 8 : row + 8 + BOX[1], column + 32 : column + 32 + BOX[0]] = block.reshape(BOX[::-1])
    np.testing.assert_array_equal(matrix(held), padded[8:-8, 32:-32])


BEGUN = described(2) + INIT + EXPECT + BARRIER
STORED = described(2) + WRITE + FENCE + BARRIER
FIRST = PUT.replace("COLUMN", "0").replace("ROW", "0")


@pytest.mark.parametrize(
    ("body", "message"),
    {
        BEGUN + load() + BARRIER + READ + WAIT: "an asynchronous copy to here has not been waited for: ld.shared",
        BEGUN + load(): "ends before copies of blocks have been waited for",
        BEGUN.replace(f"[%r10], {BLOCK}", f"[%r10], {BLOCK - 4}") + load() + WAIT: "threads wait for ever: mbarrier",
        BEGUN + WAIT + load(): "threads wait for ever: mbarrier.try_wait",
        BEGUN.replace("    @%p2 fence.proxy.tensormap", "    // ")
        + load()
        + WAIT: "no fence.proxy.tensormap has acquired",
        BEGUN + WRITE + BARRIER + load() + WAIT: "no fence.proxy.async behind what a thread has stored here: @%p4 cp",
        BEGUN + WRITE + FENCE + load() + WAIT: "another warp has stored here since the last barrier|stored over",
        described(2) + INIT + EXPECT + load() + WAIT: "another warp has made this mbarrier since the last barrier",
        BEGUN + load() + EXPECT + WAIT: "an arrival beyond those of the phase",
        BEGUN + load() + WAIT + "    st.shared.b32 [%r10], 0;\n": "an mbarrier lies here: st.shared",
        BEGUN + load() + WAIT + INVALIDATE + BARRIER + EXPECT: "no mbarrier at 0x800",
        BEGUN.replace(
            "box_dim.shared::cta.b1024.b32 [%rd5 + 0], 0, 16", "box_dim.shared::cta.b1024.b32 [%rd5 + 0], 0, 32"
        )
        + load(): "rows of a block that are longer than the swizzle",
        BEGUN.replace("[%rd5 + 0], %rd0", "[%rd5 + 0], %rd2") + load(40) + WAIT.replace("0;", "7;"): "a parity",
        STORED.replace(FENCE, "") + FIRST + COMMIT + DONE: "no fence.proxy.async behind what a thread has stored here",
        STORED + FIRST + COMMIT + WRITE + DONE: "what still reads this asynchronously has not been waited for",
        STORED + FIRST + COMMIT: "ends before stores of blocks have read shared memory",
        STORED + FIRST + DONE: "ends before stores of blocks have read shared memory",
    }.items(),
)
def test_what_is_left_to_chance_is_an_error(body: str, message: str) -> None:
    with pytest.raises(PtxError, match=message):
        run(body, memory(), THREADS, shared=4096)


def test_warps_that_have_not_waited_meet_those_that_have() -> None:
    """One warp waits for a block; the other one may load it behind a barrier only."""
    some = "    @!%p2 bra $OTHERS;\n" + WAIT + "$OTHERS:\n"
    held = memory()
    assert not run(BEGUN + load() + some + BARRIER + READ + INVALIDATE, held, THREADS, shared=4096)
    with pytest.raises(PtxError, match=r"another warp has stored this since the last barrier: ld.shared"):
        run(BEGUN + load() + some + READ, memory(), THREADS, shared=4096)


def test_stores_that_have_read_may_be_stored_over() -> None:
    held, read = memory(), "    cp.async.bulk.wait_group.read 0;\n"
    again = WRITE.replace("%r0, 1", "%r0, 7")
    assert not run(STORED + FIRST + COMMIT + read + BARRIER + again, held, THREADS, shared=4096)
    assert matrix(held)[0, 0] == 1000


def test_threads_wait_for_others() -> None:
    """The first warp waits, in front of what the second one does, for all of its threads, twice."""
    body = f"""
    setp.eq.u32 %p1, %r0, 0;
    setp.lt.u32 %p2, %r0, 32;
    mov.b32 %r10, {WAITED};
    mov.b32 %r1, 1;
    @%p1 mbarrier.init.shared::cta.b64 [%r10], 32;
    bar.sync 0;
    @!%p2 bra $SECOND;
    {WAIT}
    {WAIT.replace("0;", "1;")}
    mov.b32 %r1, 2;
    bra.uni $END;
$SECOND:
    mbarrier.arrive.shared::cta.b64 _, [%r10];
    mbarrier.arrive.shared::cta.b64 _, [%r10];
    mov.b32 %r1, 3;
$END:
    st.global.b32 [%rd2], %r1;
    """
    with pytest.raises(PtxError, match="an arrival beyond those of the phase"):  # the first phase may not be over
        run(body, memory(), THREADS, shared=4096)
    one = body.replace(WAIT.replace("0;", "1;"), "").replace("    mbarrier.arrive.shared::cta.b64 _, [%r10];\n", "", 1)
    held = memory()
    assert not run(one, held, THREADS, shared=4096)
    np.testing.assert_array_equal(held[:THREADS], np.repeat([2, 3], 32))


def test_blocks_that_others_store_are_told() -> None:
    """Another warp stores an element of the block that is loaded, with a barrier between, and without."""
    begun, store = described(0) + INIT + EXPECT + BARRIER, "    @%p5 st.global.b32 [%rd0], 5;\n"
    store = "    setp.eq.u32 %p5, %r0, 33;\n" + store
    assert not run(begun + store + BARRIER + load() + WAIT, memory(), THREADS, shared=4096)
    found = run(begun + store + load() + WAIT, memory(), THREADS, shared=4096)
    assert found == ["kernel: a warp loads what another one stores before the next barrier"]
