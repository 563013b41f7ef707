"""Products of warpgroups: operands as they lie in shared memory and registers, and what must be waited for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from graphc.loopir.numpy_ops import bf16_to_float, float_to_bf16
from tests.triton.ptx.float8 import narrow8, widen8
from tests.triton.ptx.parse import PtxError
from tests.triton.ptx.texts import run

THREADS, ROWS, BYTES, CHUNK = 128, 64, 32, 16
MODES = {16: 0, 128: 1, 64: 2, 32: 3}
START = 8192
"""Where the right operand begins; the left one is at 0."""


def stored(kind: str, values: np.ndarray) -> np.ndarray:
    """Elements of a type, as unsigned integers."""
    if kind == "bf16":
        return float_to_bf16(values.astype(np.float32))
    if kind in ("e4m3", "e5m2"):
        return narrow8(kind, values.astype(np.float32))
    plain = {"f16": np.float16, "tf32": np.float32, "s8": np.int8, "u8": np.uint8}[kind]
    scaled = values if plain in (np.float16, np.float32) else values * 40 + (0 if plain == np.int8 else 100)
    made = scaled.astype(plain)
    return made.view(f"u{made.itemsize}")


def numbers(kind: str, held: np.ndarray) -> np.ndarray:
    if kind == "bf16":
        return bf16_to_float(held).astype(np.float64)
    if kind == "tf32":
        return (held & np.uint32(0xFFFFE000)).view(np.float32).astype(np.float64)
    if kind in ("e4m3", "e5m2"):
        return widen8(kind, held)
    return held.view({"f16": np.float16, "s8": np.int8, "u8": np.uint8}[kind]).astype(np.float64)


def laid(matrix: np.ndarray, by_sum: bool, span: int) -> tuple[np.ndarray, int]:
    """A matrix (rows, depth) as bytes of shared memory that begin at a multiple of 1024, and its descriptor at 0.

    Atoms of eight lines of `span` bytes lie one behind the other, along the lines first; in an atom the chunks of
    every line of 128 bytes have changed places. By the sum, a line is a part of a row.
    """
    whole = matrix if by_sum else matrix.T
    lines = np.ascontiguousarray(whole).view(np.uint8).reshape(len(whole), -1)
    if by_sum and span > BYTES:  # a wider matrix, of which the product takes the first columns
        lines = np.pad(lines, ((0, 0), (0, span - BYTES)))
    size = lines.size
    atoms = lines.reshape(len(lines) // 8, 8, lines.shape[1] // span, span).transpose(0, 2, 1, 3).reshape(-1)
    found = np.empty(size, np.uint8)
    for at in range(0, size, CHUNK):
        to = at ^ (at >> 7 & (span // CHUNK - 1)) << 4
        found[to : to + CHUNK] = atoms[at : at + CHUNK]
    beside, below = 8 * span, 8 * lines.shape[1]  # bytes to the next atom
    leading, stride = (below, beside) if not by_sum and span == CHUNK else (beside, below)
    return found, leading >> 4 << 16 | stride >> 4 << 32 | MODES[span] << 62


@dataclass(frozen=True)
class Form:
    columns: int
    kinds: tuple[str, str, str]  # of the sums and the operands
    by_sum: tuple[bool, bool] = (True, True)
    spans: tuple[int, int] = (128, 128)
    in_registers: bool = False
    adds: bool = False
    signs: tuple[int, int] = (1, 1)


FORMS = {
    **{f"lines of {span}": Form(16, ("f32", "bf16", "bf16"), spans=(span, span)) for span in MODES},
    **{f"turned, lines of {span}": Form(64, ("f32", "f16", "f16"), (False, False), (span, span)) for span in MODES},
    "left turned": Form(24, ("f32", "bf16", "bf16"), (False, True), (128, 32)),
    "right turned": Form(32, ("f32", "f16", "f16"), (True, False), (64, 64)),
    "in registers": Form(16, ("f32", "bf16", "bf16"), in_registers=True),
    "in registers, turned": Form(64, ("f32", "f16", "f16"), (True, False), in_registers=True),
    "sums in f16": Form(16, ("f16", "f16", "f16"), adds=True),
    "tf32": Form(8, ("f32", "tf32", "tf32"), adds=True),
    "tf32 in registers": Form(8, ("f32", "tf32", "tf32"), in_registers=True),
    "s8": Form(16, ("s32", "s8", "s8"), adds=True),
    "u8 in registers": Form(8, ("s32", "u8", "s8"), in_registers=True),
    "8-bit floats": Form(16, ("f32", "e4m3", "e5m2"), adds=True),
    "8-bit floats to f16": Form(16, ("f16", "e5m2", "e4m3"), in_registers=True),
    "signs": Form(16, ("f32", "bf16", "bf16"), adds=True, signs=(-1, 1)),
}
COPY = """
    shl.b32 %r3, %r0, 2;
    mul.wide.u32 %rd3, %r0, 4;
"""
FENCE, BARRIER, ARRIVE = (
    "    fence.proxy.async.shared::cta;\n", "    bar.sync 0;\n", "    wgmma.fence.sync.aligned;\n",
)  # fmt: skip
COMMIT, WAIT = "    wgmma.commit_group.sync.aligned;\n", "    wgmma.wait_group.sync.aligned 0;\n"


def copied(words: int) -> str:
    """Words of global memory to shared memory."""
    return COPY + "".join(
        f"    ld.global.b32 %r2, [%rd2+{4 * at}];\n    st.shared.b32 [%r3+{4 * at}], %r2;\n"
        for at in range(0, words, THREADS)
    )


def product(form: Form, descriptors: tuple[int, int], first: int = 10, name: str = "") -> str:
    """The instruction; sums in registers from number `first` on, a left operand in %r4 and the following."""
    target, a, b = form.kinds
    depth = BYTES // {"bf16": 2, "f16": 2, "tf32": 4}.get(a, 1)
    count = form.columns // (4 if target == "f16" else 2)
    sums = ", ".join(f"%r{first + at}" for at in range(count))
    rest = [int(form.adds)]
    rest += form.signs if target != "s32" else ()
    if a in ("bf16", "f16"):
        rest += [int(not turned) for turned in (form.by_sum[1:] if form.in_registers else form.by_sum)]
    left = "{%r4, %r5, %r6, %r7}" if form.in_registers else "%rd5"
    operands = ", ".join(map(str, (f"{{{sums}}}", left, "%rd6", *rest)))
    return f"""
    mov.b64 %rd5, {descriptors[0]};
    mov.b64 %rd6, {descriptors[1] | START >> 4};
    wgmma.mma_async.sync.aligned.m64n{form.columns}k{depth}.{target}.{a}.{b} {operands};
"""


def of_sums(matrix: np.ndarray) -> np.ndarray:
    """What each thread holds of a matrix of sums, (elements, threads)."""
    found = np.empty((matrix.shape[1] // 2, THREADS), matrix.dtype)
    for thread in range(THREADS):
        warp, lane = divmod(thread, 32)
        for at in range(len(found)):
            row = 16 * warp + lane // 4 + (8 if at % 4 > 1 else 0)
            found[at, thread] = matrix[row, 8 * (at // 4) + lane % 4 * 2 + at % 2]
    return found


def of_left(matrix: np.ndarray) -> np.ndarray:
    """The registers with a left operand (64, depth), (4, threads)."""
    rows = np.ascontiguousarray(matrix).view(np.uint32)  # (64, 8)
    lane = np.arange(THREADS) % 32
    row = 16 * (np.arange(THREADS) // 32) + lane // 4
    return np.stack([rows[row + 8 * (at % 2), lane % 4 + 4 * (at // 2)] for at in range(4)])


@pytest.mark.parametrize("name", FORMS)
def test_products_are_those_of_matrices(name: str) -> None:
    form = FORMS[name]
    rng, (target, *kinds) = np.random.default_rng(0), form.kinds
    depth = BYTES // stored(kinds[0], np.zeros(1)).itemsize
    a, b = (stored(kind, rng.standard_normal((rows, depth))) for kind, rows in zip(kinds, (ROWS, form.columns)))
    made = [laid(matrix, *of) for matrix, *of in zip((a, b), form.by_sum, form.spans)]
    image = np.zeros(2 * START, np.uint8)
    for (raw, _), at in zip(made, (0, START)):
        image[at : at + len(raw)] = raw
    wide = {"s32": np.int32, "f16": np.float16}.get(target, np.float32)
    sums = of_sums(rng.integers(-9, 9, (ROWS, form.columns)).astype(wide))
    held = sums.view(np.uint32) if target != "f16" else (
        sums[::2].view(np.uint16).astype(np.uint32) | sums[1::2].view(np.uint16).astype(np.uint32) << np.uint32(16)
    )  # fmt: skip
    words = len(image) // 4
    memory = np.concatenate([image.view(np.uint32), of_left(a).reshape(-1), held.reshape(-1)])
    places = [4 * (words + THREADS * at) for at in range(4 + len(held))]
    loads = [
        f"    ld.global.b32 %r{number}, [%rd2+{place}];\n"
        for number, place in zip([4, 5, 6, 7, *range(10, 99)], places)
    ]
    stores = [f"    st.global.b32 [%rd2+{place}], %r{10 + at};\n" for at, place in enumerate(places[4:])]
    body = copied(words) + "".join(loads) + FENCE + BARRIER + ARRIVE
    body += product(form, (made[0][1], made[1][1])) + COMMIT + WAIT + "".join(stores)
    assert not run(body, memory, THREADS, shared=2 * START)
    found = memory[-held.size :].reshape(held.shape)
    if target == "f16":
        found = np.stack([found & np.uint32(0xFFFF), found >> np.uint32(16)], 1).reshape(sums.shape).astype(np.uint16)
    wanted = np.prod(form.signs) * numbers(kinds[0], a) @ numbers(kinds[1], b).T
    total = of_sums(wanted) + (sums if form.adds else 0)
    np.testing.assert_array_equal(found.view(wide), total.astype(np.float32).astype(wide))


FORM = FORMS["lines of 128"]
DESCRIPTORS = (laid(np.zeros((ROWS, 16), np.uint16), True, 128)[1],) * 2
ONE = product(FORM, DESCRIPTORS)
FILL = "    shl.b32 %r3, %r0, 2;\n" + "".join(f"    st.shared.b32 [%r3+{512 * at}], %r0;\n" for at in range(32))
READY = FENCE + BARRIER + ARRIVE
STORE = "    st.global.b32 [%rd2], %r10;\n"


@pytest.mark.parametrize(
    ("body", "message"),
    {
        FILL + BARRIER + ARRIVE + ONE + COMMIT + WAIT: "no fence.proxy.async behind what a thread has stored",
        FILL + FENCE + ARRIVE + ONE + COMMIT + WAIT: "a warp has stored this since the last barrier",
        FILL + FENCE + BARRIER + ONE + COMMIT + WAIT: "no wgmma.fence since the last wait",
        FILL + READY + ONE + COMMIT + WAIT + ONE: "no wgmma.fence since the last wait",
        FILL + READY + ONE + COMMIT + BARRIER + FILL + WAIT: "what still reads this asynchronously",
        FILL + READY + ONE + COMMIT + WAIT + FILL: "another warp has loaded what is stored over",
        FILL + READY + ONE + COMMIT: "ends before products have been waited for",
        FILL + READY + ONE.replace(f"%rd6, {DESCRIPTORS[1] | 512}", f"%rd6, {DESCRIPTORS[1] | 1023}"): "outside of",
        FILL + READY + ONE.replace(f"%rd5, {DESCRIPTORS[0]}", f"%rd5, {DESCRIPTORS[0] | 1 << 49}"): "does not begin",
        FILL + READY + "    setp.lt.u32 %p1, %r0, 64;\n" + ONE.replace("    wgmma", "    @%p1 wgmma"): "elsewhere",
    }.items(),
)
def test_what_is_left_to_chance_is_an_error(body: str, message: str) -> None:
    with pytest.raises(PtxError, match=message):
        run(body, np.zeros(THREADS, np.uint32), THREADS, shared=2 * START)


def _ends(*parts: str) -> list[str]:
    return run("".join((FILL, READY, *parts)), np.zeros(THREADS, np.uint32), THREADS, shared=2 * START)


EARLIER = WAIT.replace("0", "1")
"""Waits for all but the last group."""


@pytest.mark.parametrize(
    "parts",
    [
        (ONE, COMMIT, STORE, WAIT),
        (ONE, COMMIT, "    mov.b32 %r11, 0;\n", WAIT),
        (ONE, WAIT, STORE),
        (ONE, COMMIT, EARLIER, STORE, WAIT),
        (ONE, COMMIT, ONE, COMMIT, EARLIER, STORE, WAIT),  # both add to the same sums
    ],
)
def test_sums_that_are_used_too_early_are_told(parts: tuple[str, ...]) -> None:
    (text,) = _ends(*parts)
    assert text.startswith("sums are used before they have been waited for: wgmma.mma_async")


def test_groups_are_waited_for_in_order() -> None:
    """The first product is done while the second one is on its way."""
    form = FORMS["in registers"]
    twice, second = (product(form, DESCRIPTORS), COMMIT, product(form, DESCRIPTORS, 30), COMMIT), "%r30"
    assert not _ends(*twice, EARLIER, STORE, WAIT)
    assert not _ends(ONE, COMMIT, ONE, COMMIT, WAIT, STORE)
    (text,) = _ends(*twice, EARLIER, STORE.replace("%r10", second), WAIT)
    assert second in text


def test_copies_without_a_fence_are_told() -> None:
    copy = "    shl.b32 %r3, %r0, 2;\n" + "".join(
        f"    cp.async.ca.shared.global [%r3+{512 * at}], [%rd2], 0x4;\n" for at in range(32)
    )
    body = copy + "    cp.async.wait_all;\n" + BARRIER + FENCE + ARRIVE + ONE + COMMIT + WAIT
    assert not run(body, np.zeros(THREADS, np.uint32), THREADS, shared=2 * START)
    (text,) = run(body.replace(FENCE, ""), np.zeros(THREADS, np.uint32), THREADS, shared=2 * START)
    assert text.startswith("no fence.proxy.async behind cp.async: wgmma.mma_async")


def test_a_left_operand_in_registers_that_is_written_too_early_is_told() -> None:
    """The product is that of what it was."""
    memory = [np.zeros(THREADS, np.uint32) for _ in range(2)]
    ones = "".join(f"    mov.b32 %r{at}, {0x3F803F80};\n" for at in (4, 5, 6, 7))
    begun, zeros = FILL + ones + READY + product(FORMS["in registers"], DESCRIPTORS) + COMMIT, "    mov.b32 %r7, 0;\n"
    assert not run(begun + WAIT + zeros + STORE, memory[0], THREADS, shared=2 * START)
    (text,) = run(begun + zeros + WAIT + STORE, memory[1], THREADS, shared=2 * START)
    assert text.startswith("a left operand in registers is written before it has been waited for: wgmma.mma_async")
    assert memory[0].any()
    np.testing.assert_array_equal(*memory)


def test_sums_may_be_zeros_of_the_left_operand() -> None:
    """LLVM takes one register for both where both are 0."""
    memory = [np.zeros(THREADS, np.uint32) for _ in range(2)]
    start = "".join(f"    mov.b32 %r{at}, {0x3F803F80 if at < 6 else 0};\n" for at in (4, 5, 6, 7, *range(10, 18)))
    one = product(FORMS["in registers"], DESCRIPTORS)
    for held, text in zip(memory, (one, one.replace("%r6, %r7", "%r10, %r10"))):
        assert not run(FILL + start + READY + text + COMMIT + WAIT + STORE, held, THREADS, shared=2 * START)
    assert memory[0].any()
    np.testing.assert_array_equal(*memory)


def test_warpgroups_go_their_own_ways() -> None:
    """Each of two adds the product to its sums another number of times."""
    memory = np.zeros(256, np.uint32)
    form = Form(16, ("f32", "f16", "f16"), adds=True)
    zeros = "".join(f"    mov.b32 %r{10 + at}, 0;\n" for at in range(8))
    loop = f"""
    shr.u32 %r40, %r0, 7;
    add.s32 %r40, %r40, 1;
$LOOP:
    {ARRIVE}{product(form, DESCRIPTORS)}{COMMIT}{WAIT}
    sub.s32 %r40, %r40, 1;
    setp.gt.s32 %p1, %r40, 0;
    @%p1 bra $LOOP;
    st.global.b32 [%rd2], %r10;
    """
    ones = f"    mov.b32 %r2, {0x3C003C00};\n    shl.b32 %r3, %r0, 2;\n"
    ones += "".join(f"    st.shared.b32 [%r3+{1024 * at}], %r2;\n" for at in range(16))
    assert not run(ones + zeros + FENCE + BARRIER + loop, memory, 256, shared=2 * START)
    np.testing.assert_array_equal(memory.view(np.float32), np.repeat([16.0, 32.0], 128))
