"""What machine code is read to leave of memory's bandwidth, from text and from compiled kernels."""

from __future__ import annotations

import os

import pytest

from graphc.codegen.triton.emit import emit_kernel
from graphc.codegen.triton.tiling import Limits, choose_tiling
from graphc.ir.types import bf16
from graphc.passes.chips import CHIPS
from graphc.program.triton_kernel import Launch
from graphc.report import sass
from graphc.report.bound import bound, needed_flight
from graphc.report.kernel_traffic import kernel_traffic
from graphc.report.sass import LATENCY, turns_of
from graphc.report.static_kernels import Candidate, Line, inspect
from graphc.settings import override
from tests.triton.cases import chain, column_sum, softmax

H200 = next(chip for chip in CHIPS if chip.name == "H200")
FIRST = 0x210
compiles = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter cannot compile")
LOOP = """
        /*0000*/                   ULDC.64 UR4, c[0x0][0x210] ;
        /*0010*/                   LDC.64 R2, c[0x0][0x218] ;
        /*0020*/                   IMAD.WIDE R6, R0, 0x10, R2 ;
.L_x_0:
        /*0030*/                   LEA R4, P0, R0, UR4, 0x1 ;
        /*0040*/                   LDG.E.128 R8, desc[UR6][R4.64] ;
        /*0050*/                   LDG.E.128 R12, desc[UR6][R6.64] ;
        /*0060*/               @P1 BRA `(.L_x_1) ;
        /*0070*/                   MUFU.SIN R9, R0 ;
        /*0080*/                   MUFU.SIN R9, R0 ;
.L_x_1:
        /*0090*/                   FADD R8, R8, R12 ;
        /*00a0*/                   MUFU.EX2 R8, R8 ;
        /*00b0*/               @P0 BRA `(.L_x_0) ;
        /*00c0*/                   STG.E desc[UR6][R2.64], R8 ;
        /*00d0*/                   EXIT ;
"""


def test_a_turn_of_a_loop_is_counted_by_units_and_by_parameters() -> None:
    (turn,) = turns_of(LOOP, FIRST)
    assert turn.accesses == {0: 512, 1: 512}  # the store is behind the loop
    assert turn.lanes == {sass.ISSUE: 7 * 32, sass.ALU: 32, sass.FMA: 32, sass.SPECIAL: 32}  # no sines
    assert turn.flight == pytest.approx(32 * LATENCY / (LATENCY - 1))  # both loads are waited for at once


def test_loads_that_wait_for_one_another_are_on_their_way_one_by_one() -> None:
    text = LOOP.replace("LDG.E.128 R12, desc[UR6][R6.64]", "FADD R8, R8, R8").replace(
        "MUFU.EX2 R8, R8", "LDG.E.128 R12, desc[UR6][R6.64] ;\n        /*00a4*/   MUFU.EX2 R8, R12"
    )
    (turn,) = turns_of(text, FIRST)
    assert turn.accesses == {0: 512, 1: 512}
    assert 16 <= turn.flight < 16.1


def test_copies_ahead_are_on_their_way_for_as_many_turns() -> None:
    text = LOOP.replace(
        "LDG.E.128 R12, desc[UR6][R6.64]",
        "DEPBAR.LE SB0, 0x2 ;\n        /*0051*/  LDGSTS.E.BYPASS.128 [R1], desc[UR6][R6.64] ;\n"
        "        /*0052*/  LDGDEPBAR",
    ).replace("LDG.E.128 R8, desc[UR6][R4.64]", "LDS.128 R8, [R1]")
    (turn,) = turns_of(text, FIRST)
    assert turn.accesses == {1: 512}
    assert turn.flight == 3 * 16
    assert turn.lanes[sass.SHARED] == 4 * 32  # 16 bytes a lane


def test_code_without_such_loops_is_one_turn_and_products_are_not_read() -> None:
    straight = LOOP.replace("@P0 BRA `(.L_x_0)", "FADD R1, R1, R1")
    (turn,) = turns_of(straight, FIRST)
    assert turn.accesses == {0: 512, 1: 512 + 128}
    assert turns_of(LOOP + "        /*00e0*/  HGMMA.64x128x16.F32.BF16 R8, gdesc[UR8], R8 ;\n", FIRST) == []


def test_the_busiest_unit_and_what_is_resident() -> None:
    launch = Launch("f", (10_000, 1, 1), (), 8)
    found = bound(turns_of(LOOP, FIRST), H200, launch, registers=60, shared=0, large={0, 1})
    assert found is not None and found.unit == sass.SPECIAL
    cycles = H200.flops / 256
    assert found.busy == pytest.approx((32 / 16) / (1024 / (H200.bandwidth / cycles)))
    assert found.flight == pytest.approx(4 * 256 * 32, rel=0.01)  # 64 of 65,536 registers for each of 256 threads
    small = bound(turns_of(LOOP, FIRST), H200, launch, registers=60, shared=0, large={1})
    assert small is not None and small.busy == pytest.approx(2 * found.busy)  # the other buffer is in a cache
    fewer = bound(turns_of(LOOP, FIRST), H200, launch, registers=60, shared=100 << 10, large={0, 1})
    assert fewer is not None and fewer.flight == found.flight / 2
    few = Launch("f", (132, 1, 1), (), 8)
    alone = bound(turns_of(LOOP, FIRST), H200, few, registers=60, shared=0, large={0, 1})
    assert alone is not None and alone.flight == found.flight / 4
    assert bound(turns_of(LOOP, FIRST), H200, launch, registers=60, shared=0, large=set()) is None


def line_of(candidate: Candidate) -> Line:
    (line,) = inspect([candidate], ["cuda:90"], workers=1)
    return line


@compiles
def test_of_compiled_kernels(tmp_path: object) -> None:
    pytest.importorskip("triton")
    kernels = [chain(4096, 4096), column_sum(1 << 16, 2048), softmax(512, 1 << 16, bf16)]
    limits = Limits(split=1)
    with override(cache_dir=tmp_path):
        for kernel in kernels:
            tiling = choose_tiling(kernel, limits)
            made = emit_kernel(kernel, tiling=tiling, target="cuda:90")
            line = line_of(Candidate("p", 1, made, kernel_traffic(kernel, tiling, made)))
            assert line.unit and 0 < line.busy < 1, line
            assert line.flight > needed_flight(H200), line
