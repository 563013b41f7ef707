"""The machine that executes PTX: what instructions do by the ISA, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest

from tests.triton.ptx.parse import PtxError
from tests.triton.ptx.texts import run, words

LANES = np.arange(32, dtype=np.uint32)


def bits(value: float) -> str:
    return f"0f{int(np.float32(value).view(np.uint32)):08X}"


# instruction that computes %r1, and its bits
ONE_RESULT = {
    "prmt.b32 %r1, 0x33221100, 0x77665544, 0x5410": 0x55441100,
    "prmt.b32 %r1, 0x000000F0, 0, 0x0008": 0xF0F0F0FF,  # the sign of a byte
    "bfe.u32 %r1, 0xABCD, 4, 8": 0xBC,
    "bfe.s32 %r1, 0x80, 4, 4": 0xFFFFFFF8,
    "bfe.u32 %r1, 7, 0, 0": 0,
    "bfi.b32 %r1, 0xF, 0, 4, 8": 0xF0,
    "lop3.b32 %r1, 0xC, 0xA, 0x9, 0x96": 0xC ^ 0xA ^ 0x9,
    "shf.l.wrap.b32 %r1, 0x80000001, 0x2, 33": 5,
    "shf.r.clamp.b32 %r1, 1, 2, 40": 2,
    "shl.b32 %r1, 1, 32": 0,
    "shr.s32 %r1, -8, 77": 0xFFFFFFFF,
    "shr.u32 %r1, -8, 77": 0,
    "mul.hi.s32 %r1, -2, 3": 0xFFFFFFFF,
    "mul.hi.u32 %r1, -2, 3": 2,
    "div.s32 %r1, -7, 2": -3 % 2**32,
    "div.s32 %r1, 0x80000000, -1": 0x80000000,
    "rem.s32 %r1, -7, 2": 0xFFFFFFFF,
    "clz.b32 %r1, 1": 31,
    "popc.b32 %r1, 0xF0F0": 8,
    "brev.b32 %r1, 1": 0x80000000,
    "min.s32 %r1, -1, 1": 0xFFFFFFFF,
    "min.u32 %r1, -1, 1": 1,
    f"cvt.rzi.s32.f32 %r1, {bits(3e9)}": 0x7FFFFFFF,
    f"cvt.rzi.u32.f32 %r1, {bits(-3)}": 0,
    f"cvt.rni.s32.f32 %r1, {bits(2.5)}": 2,
    "cvt.rzi.s32.f32 %r1, 0f7FFFFFFF": 0,
    "cvt.rzi.s32.f64 %r1, 0d7FF8000000000000": 0x80000000,
    f"cvt.rn.bf16x2.f32 %r1, {bits(1.0)}, {bits(1.00390625)}": 0x3F803F80,  # half to even; the first is above
    f"cvt.sat.f32.f32 %r1, {bits(7)}": int(np.float32(1).view(np.uint32)),
    "cvt.rna.tf32.f32 %r1, 0f3F801000": 0x3F802000,
    f"max.f32 %r1, 0f7FC00000, {bits(-1)}": int(np.float32(-1).view(np.uint32)),
    f"max.NaN.f32 %r1, 0f7FC00000, {bits(-1)}": 0x7FFFFFFF,
    "max.f32 %r1, 0f00000000, 0f80000000": 0,
    "min.f32 %r1, 0f00000000, 0f80000000": 0x80000000,
    f"copysign.f32 %r1, 0f80000000, {bits(2)}": int(np.float32(-2).view(np.uint32)),
    "add.rn.f32 %r1, 0f00000001, 0f00000001": 2,
    "add.rn.ftz.f32 %r1, 0f00000001, 0f00000001": 0,
    "sub.rn.f32 %r1, 0f7F800000, 0f7F800000": 0x7FFFFFFF,
    "add.rz.f32 %r1, 0f3F800000, 0f33FFFFFF": 0x3F800000,  # just below half a unit more than 1
    "add.rp.f32 %r1, 0f3F800000, 0f00000001": 0x3F800001,
    # (1 + 2^-12)^2 - 1 - 2^-11 is 2^-24, which a product that is rounded loses
    "fma.rn.f32 %r1, 0f3F800800, 0f3F800800, 0fBF801000": 0x33800000,
    f"div.approx.f32 %r1, {bits(1)}, 0f7F000000": 0,  # divisors above 2^126
    "ex2.approx.ftz.f32 %r1, 0fC3000000": 0,  # 2^-128
    "ex2.approx.f32 %r1, 0fC3000000": 0x00200000,
    "max.u16x2 %r1, 0x00018000, 0xFFFF0001": 0xFFFF8000,
    "max.s16x2 %r1, 0x00018000, 0xFFFF0001": 0x00010001,
    "cvt.rn.bf16.s32 %r1, 16842753": 0x4B81,  # 2^24 + 2^16 + 1: twice rounded it would be even
    "cvt.rn.bf16.s64 %r1, -9223372036854775808": 0xDF00,
    "max.NaN.f16x2 %r1, 0x3C007E00, 0x40003C00": 0x40007FFF,
    "min.bf16x2 %r1, 0x3F807FC0, 0x40003F80": 0x3F803F80,
    "fma.rn.bf16x2 %r1, 0x40004000, 0x40403F80, 0x80008000": 0x40C04000,  # 2 * 3 and 2 * 1
}  # fmt: skip


@pytest.mark.parametrize(("text", "value"), ONE_RESULT.items(), ids=list(ONE_RESULT))
def test_results_are_those_of_the_isa(text: str, value: int) -> None:
    assert set(words(f"    {text};").tolist()) == {value}


@pytest.mark.parametrize(
    ("text", "wanted"),
    {
        "shfl.sync.bfly.b32 %r1, %r0, 5, 31, -1": LANES ^ 5,
        "shfl.sync.up.b32 %r1, %r0, 3, 0, -1": np.where(LANES < 3, LANES, LANES - 3),
        "shfl.sync.down.b32 %r1, %r0, 3, 31, -1": np.where(LANES > 28, LANES, LANES + 3),
        "shfl.sync.idx.b32 %r1, %r0, 7, 31, -1": np.full(32, 7),
        "redux.sync.add.s32 %r1, %r0, -1": np.full(32, 496),
    }.items(),
)
def test_threads_of_a_warp_exchange(text: str, wanted: np.ndarray) -> None:
    body = text.replace(" -1", " %r3") if text.startswith("redux") else text
    np.testing.assert_array_equal(words(f"    mov.b32 %r3, -1;\n    {body};"), wanted)


def test_sums_of_128_bits_carry() -> None:
    body = """
    add.cc.u32 %r2, 0xFFFFFFFF, %r0;
    addc.u32 %r1, 5, 0;
    """
    np.testing.assert_array_equal(words(body), np.where(LANES > 0, 6, 5))


def test_threads_that_part_meet_again() -> None:
    """The latch of the loop stands in front of it, as LLVM places blocks; the warp exchanges where it has met."""
    body = """
    mov.b32 %r1, 0;
    mov.b32 %r4, 0;
    bra.uni $HEAD;
$LATCH:
    shfl.sync.bfly.b32 %r3, %r2, 1, 31, -1;
    add.s32 %r1, %r1, %r3;
    add.s32 %r4, %r4, 1;
    setp.lt.s32 %p2, %r4, 3;
    @!%p2 bra $END;
$HEAD:
    and.b32 %r5, %r0, 1;
    setp.eq.s32 %p1, %r5, 0;
    @%p1 bra $EVEN;
    mov.b32 %r2, 100;
    bra.uni $LATCH;
$EVEN:
    mov.b32 %r2, 1;
    bra.uni $LATCH;
$END:
    """
    np.testing.assert_array_equal(words(body), np.where(LANES % 2 == 0, 300, 3))


def test_loops_end_for_each_thread() -> None:
    body = """
    mov.b32 %r1, 0;
$LOOP:
    add.s32 %r1, %r1, 2;
    setp.lt.u32 %p1, %r1, %r0;
    @%p1 bra $LOOP;
    """
    np.testing.assert_array_equal(words(body), np.maximum(2, (LANES + 1) // 2 * 2))


def test_functions_are_called_by_some_threads() -> None:
    functions = """
.func (.param .b32 result) twice(.param .b32 twice_param_0)
{
    .local .align 4 .b8 depot[8];
    .reg .b32 %r<4>;
    .reg .b64 %rd<3>;
    mov.b64 %rd1, depot;
    ld.param.b32 %r1, [twice_param_0];
    st.local.b32 [%rd1+4], %r1;
    ld.local.b32 %r2, [%rd1+4];
    add.s32 %r3, %r1, %r2;
    st.param.b32 [result], %r3;
    ret;
}
"""
    body = """
    mov.b32 %r1, 7;
    setp.gt.u32 %p1, %r0, 9;
    @%p1 bra $END;
    { .param .b32 given; .param .b32 back;
    st.param.b32 [given], %r0;
    call.uni (back), twice, (given);
    ld.param.b32 %r1, [back];
    }
$END:
    """
    np.testing.assert_array_equal(words(body, functions=functions), np.where(LANES > 9, 7, 2 * LANES))


def test_atomics_of_vectors() -> None:
    memory = np.arange(16, dtype=np.float32).view(np.uint32)
    body = f"""
    mov.b32 %r1, {bits(1.0)};
    mov.b32 %r2, {bits(2.0)};
    atom.global.gpu.relaxed.add.v2.f32 {{%r3, %r4}}, [%rd0+8], {{%r1, %r2}};
    """
    assert not run(body, memory)
    wanted = np.arange(16, dtype=np.float32)
    wanted[2:4] += (32, 64)
    np.testing.assert_array_equal(memory.view(np.float32), wanted)


def test_atomics_take_turns() -> None:
    memory = np.zeros(64, np.uint32)
    assert not run("    atom.global.gpu.relaxed.add.u32 %r1, [%rd0], 1;\n    st.global.b32 [%rd2+128], %r1;", memory)
    assert memory[0] == 32
    np.testing.assert_array_equal(memory[32:], LANES)


STORE = "    shl.b32 %r2, %r0, 2;\n    st.shared.b32 [%r2], %r0;\n"
LOAD = "    xor.b32 %r3, %r2, 128;\n    ld.shared.b32 %r1, [%r3];\n"


def test_warps_meet_at_barriers() -> None:
    np.testing.assert_array_equal(words(STORE + "    bar.sync 0;\n" + LOAD, 64), np.arange(64) ^ 32)
    with pytest.raises(PtxError, match=r"another warp has stored this since the last barrier: ld.shared.b32 %r1"):
        words(STORE + LOAD, 64)
    again = "    bar.sync 0;\n" + LOAD + STORE
    with pytest.raises(PtxError, match=r"another warp has loaded what is stored over .*: st.shared.b32"):
        words(STORE + again, 64)


COPY = "    shl.b32 %r2, %r0, 2;\n    cp.async.ca.shared.global [%r2], [%rd2], 0x4, 4;\n    cp.async.commit_group;\n"


def test_asynchronous_copies_are_waited_for() -> None:
    wait, load, barrier = "    cp.async.wait_group 0;\n", "    ld.shared.b32 %r1, [%r2];\n", "    bar.sync 0;\n"
    start = np.arange(64, dtype=np.uint32) * 3
    np.testing.assert_array_equal(words(COPY + wait + barrier + LOAD, 64, start), start[np.arange(64) ^ 32])
    with pytest.raises(PtxError, match="has not been waited for"):
        words(COPY + barrier + load, 64, start)
    with pytest.raises(PtxError, match="has not been waited for"):
        words(COPY + wait.replace("0", "1") + barrier + load, 64, start)
    with pytest.raises(PtxError, match="another warp has stored this"):
        words(COPY + wait + LOAD, 64, start)


@pytest.mark.parametrize(
    ("body", "message"),
    {
        "ld.global.b32 %r1, [%rd2+128]": "32 accesses outside of all memory",
        "ld.global.b32 %r1, [%rd2+4]": "1 accesses outside of all memory",
        "ld.global.v2.b32 {%r1, %r2}, [%rd2]": "not a multiple of what is accessed",
        "ld.shared.b32 %r1, [%r0+1021]": "outside of the 1024 bytes of shared memory",
        "tcgen05.fence::before_thread_sync": "not known",
        "wgmma.fence.sync.aligned": "warps that are no warpgroup",
        "add.rn.f32.f32 %r1, %r0, %r0": "not known",
        "mov.u32 %r1, %clock": "not known",
        "cvt.f32.f64 %r1, %rd1": "not known",
        "mov.b32 %r1, undeclared": "a name that is not known",
        "add.s64 %rd1, %r0, 1": "a register of another size",
        "add.rn.f32 %r1, %r0, 1": "an immediate of another type",
        "@%p1 bar.sync 0": "a barrier that not all threads come to",
        "@%p1 shfl.sync.bfly.b32 %r1, %r0, 1, 31, -1": "threads of a warp are elsewhere",
    }.items(),
)
def test_errors_name_the_instruction(body: str, message: str) -> None:
    with pytest.raises(PtxError, match=f"{message}.*: {body[:12].replace('[', '.')}"):
        words(f"    setp.lt.u32 %p1, %r0, 5;\n    {body};")


def test_threads_of_a_program_wait_at_one_barrier() -> None:
    with pytest.raises(PtxError, match=r"wait at different barriers: bar\.sync 0"):
        words("""
    setp.lt.u32 %p1, %r0, 5;
    @%p1 bra $FEW;
    bar.sync 0;
    bra.uni $END;
$FEW:
    bar.sync 0;
$END:
        """)


@pytest.mark.parametrize("programs", [1, 2])
def test_what_programs_and_warps_leave_to_chance_is_told(programs: int) -> None:
    load, store = "    ld.global.b32 %r1, [%rd0];\n", "    st.global.b32 [%rd0], 5;\n"
    found = run(store + load, np.zeros(64, np.uint32), 64, programs)
    assert not run(load + store, np.zeros(64, np.uint32), 64) and not run(
        store + "    bar.sync 0;\n" + load, np.zeros(64, np.uint32), 64
    )
    assert ("kernel: a warp loads what another one stores before the next barrier" in found) is True
    assert ("kernel: a program loads what another one stores" in found) is (programs == 2)
    assert not run("    atom.global.add.u32 %r1, [%rd0], 5;", np.zeros(64, np.uint32), 64, programs)
