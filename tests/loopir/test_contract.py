"""`contract`, and reductions over some of the row axes: text form, invariants, meaning."""

from __future__ import annotations

import numpy as np
import pytest

from graphc.errors import InvalidGraphError
from graphc.loopir.interpreter import run
from graphc.loopir.parser import parse_kernel
from graphc.loopir.printer import print_kernel
from graphc.loopir.verifier import verify

ATTENTION = """\
kernel attention(q: in f32[12], k: in f32[15], v: in f32[10], out: out f32[8]) axes(i0: 4 parallel, i1: 2 parallel, r0: 5 row, r1: 3 row) {
  v0: f32 = load q[i0*3 + r1]
  v1: f32 = load k[r0*3 + r1]
  v2: f32 = contract v0 v1 over r1
  v3: f32 = reduce max v2 over r0
  v4: f32 = sub v2 v3
  v5: f32 = exp v4
  v6: f32 = reduce sum v5 over r0
  v7: f32 = div v5 v6
  v8: f32 = load v[i1 + r0*2]
  v9: f32 = contract tf32 v7 v8 over r0
  store out[i0*2 + i1] = v9
}"""  # noqa: E501


def test_text_is_read_back() -> None:
    kernel = parse_kernel(ATTENTION)
    verify(kernel)
    assert print_kernel(kernel) == ATTENTION
    assert [s.over for s in kernel.contractions] == [("r1",), ("r0",)]
    assert kernel.domains["v2"] == {"i0", "r0"} and kernel.domains["v9"] == {"i0", "i1"}


def test_attention_means_what_it_says() -> None:
    generator = np.random.default_rng(0)
    q, k, v = (generator.standard_normal(n).astype(np.float32) for n in (12, 15, 10))
    out = np.zeros(8, np.float32)
    run(parse_kernel(ATTENTION), {"q": q, "k": k, "v": v, "out": out})
    scores = q.reshape(4, 3) @ k.reshape(5, 3).T
    weights = np.exp(scores - scores.max(1, keepdims=True))
    wanted = weights / weights.sum(1, keepdims=True) @ v.reshape(5, 2)
    np.testing.assert_allclose(out.reshape(4, 2), wanted, rtol=1e-5)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("over r1", "over i0", "not all of them are row axes"),
        ("contract v0 v1 over r1", "contract v0 v1", "names the axes"),
        ("v8: f32 = load v[i1 + r0*2]", "v8: i64 = index r0", "does not take f32 and i64"),
    ],
)
def test_faults_are_named(old: str, new: str, message: str) -> None:
    with pytest.raises(InvalidGraphError, match=message):
        verify(parse_kernel(ATTENTION.replace(old, new)))
