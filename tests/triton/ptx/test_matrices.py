"""Matrix instructions: fragments loaded as Triton's layouts say, against products of whole matrices."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from graphc.loopir.numpy_ops import bf16_to_float, float_to_bf16
from tests.triton.ptx.matrices import left, result, right
from tests.triton.ptx.texts import run

Pack = Callable[[np.ndarray], np.ndarray]


def _truncated(values: np.ndarray) -> np.ndarray:
    return (values.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)


# shape, operand type, result type: how numbers are stored, what they then are, elements of a register
FORMS: dict[tuple[str, str, str], tuple[Pack, Pack, int]] = {
    ("m16n8k16", "bf16", "f32"): (lambda x: float_to_bf16(x.astype(np.float32)), bf16_to_float, 2),
    ("m16n8k16", "f16", "f32"): (lambda x: x.astype(np.float16), lambda x: x.astype(np.float32), 2),
    ("m16n8k8", "f16", "f32"): (lambda x: x.astype(np.float16), lambda x: x.astype(np.float32), 2),
    ("m16n8k8", "tf32", "f32"): (lambda x: x.astype(np.float32), _truncated, 1),
    ("m16n8k32", "s8", "s32"): (lambda x: (x * 50).astype(np.int8), lambda x: x.astype(np.int32), 4),
}


@pytest.mark.parametrize("form", FORMS, ids=".".join)
def test_products_are_those_of_matrices(form: tuple[str, str, str]) -> None:
    shape, kind, target = form
    store, read, pack = FORMS[form]
    m, n, k = 16, 8, int(shape.split("k")[1])
    rng = np.random.default_rng(0)
    a, b = store(rng.standard_normal((m, k))), store(rng.standard_normal((k, n)))
    c = rng.integers(-9, 9, (m, n)).astype(np.float32 if target == "f32" else np.int32)
    parts = [
        np.ascontiguousarray(fragment.scatter(matrix[None])[:, 0].reshape(-1, pack_of, 32).swapaxes(1, 2))
        .view(np.uint32)
        .reshape(-1, 32)
        for fragment, matrix, pack_of in (
            (left(m, k, pack), a, pack),
            (right(k, n, pack), b, pack),
            (result(m, n), c, 1),
        )
    ]
    memory = np.concatenate(parts).reshape(-1)
    counts = [len(part) for part in parts]
    names = [f"%r{number + 2}" for number in range(sum(counts))]
    groups = [", ".join(names[sum(counts[:at]) : sum(counts[: at + 1])]) for at in range(3)]
    loads = "".join(f"    ld.global.b32 {name}, [%rd2+{128 * at}];\n" for at, name in enumerate(names))
    satfinite = ".satfinite" if kind == "s8" else ""
    text = f"    mma.sync.aligned.{shape}.row.col{satfinite}.{target}.{kind}.{kind}.{target} "
    text += f"{{{groups[2]}}}, {{{groups[0]}}}, {{{groups[1]}}}, {{{groups[2]}}};\n"
    outs = names[sum(counts[:2]) :]
    stores = "".join(f"    st.global.b32 [%rd2+{128 * at}], {name};\n" for at, name in enumerate(outs))
    assert not run(loads + text + stores, memory)
    found = result(m, n).gather(memory.reshape(-1, 32)[: counts[2], None].view(c.dtype))[0]
    wanted = read(a).astype(np.float64) @ read(b).astype(np.float64) + c
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("transposed", [False, True])
def test_matrices_are_stored_as_they_are_loaded(transposed: bool) -> None:
    memory = np.arange(64, dtype=np.uint32) * 3
    trans = ".trans" if transposed else ""
    body = f"""
    ld.global.b32 %r2, [%rd2];
    ld.global.b32 %r3, [%rd2+128];
    and.b32 %r4, %r0, 15;
    shl.b32 %r4, %r4, 4;
    stmatrix.sync.aligned.m8n8.x2{trans}.shared.b16 [%r4], {{%r2, %r3}};
    bar.sync 0;
    ldmatrix.sync.aligned.m8n8.x2{trans}.shared.b16 {{%r5, %r6}}, [%r4];
    st.global.b32 [%rd2], %r5;
    st.global.b32 [%rd2+128], %r6;
    """
    before = memory.copy()
    assert not run(body, memory)
    np.testing.assert_array_equal(memory, before)


@pytest.mark.parametrize("transposed", [False, True])
def test_matrices_are_loaded_by_rows(transposed: bool) -> None:
    memory = np.arange(256, dtype=np.uint16).view(np.uint32).copy()
    trans = ".trans" if transposed else ""
    body = f"""
    shl.b32 %r2, %r0, 2;
    ld.global.b32 %r3, [%rd2];
    st.shared.b32 [%r2], %r3;
    ld.global.b32 %r3, [%rd2+128];
    st.shared.b32 [%r2+128], %r3;
    bar.sync 0;
    and.b32 %r4, %r0, 7;
    shl.b32 %r4, %r4, 4;
    ldmatrix.sync.aligned.m8n8.x2{trans}.shared.b16 {{%r5, %r6}}, [%r4];
    st.global.b32 [%rd2], %r5;
    st.global.b32 [%rd2+128], %r6;
    """
    assert not run(body, memory)
    one = np.arange(64, dtype=np.uint16).reshape(8, 8)
    lanes = (one.T if transposed else one).reshape(32, 2)
    for part in memory[:64].reshape(2, 32):
        np.testing.assert_array_equal(np.ascontiguousarray(part).view(np.uint16).reshape(32, 2), lanes)
