"""Bounded masks of kernels: what is left of them in loops that keep to their edges, and in those that do not."""

from __future__ import annotations

import pytest

from graphc.errors import InvalidGraphError
from graphc.loopir.bounded import bounded_values, drop_idle_bounds, unbounded, within_runs
from graphc.loopir.kernel import Compute, Kernel, Load
from graphc.loopir.parser import parse_kernel
from graphc.loopir.verifier import verify


def attention(along: str = "r0", dtype: str = "bool", edge: str = "i0") -> Kernel:
    """Weights of 8 queries and keys, of what is not hidden, times values; positions are those along an axis."""
    hides = "v10: f32 = where v9 v8 v4" if dtype == "bool" else "v10: f32 = add v4 v9"
    return parse_kernel(f"""kernel attention(
      q: in f32[32], k: in f32[32], v: in f32[32], m: in {dtype}[64], first: in i32[8], last: in i32[8], end: in i32[8],
      out: out f32[32]
    ) axes(i0: 8 parallel, i1: 4 parallel, r0: 8 row, r1: 4 row) {{
      v0: f32 = load q[i0*4 + r1]
      v1: f32 = load k[r0*4 + r1]
      v4: f32 = contract v0 v1 over r1
      v2: i64 = index {along}
      v3: i32 = cast v2
      v5: i32 = load first[{edge}]
      v6: i32 = load last[{edge}]
      v7: i32 = load end[{edge}]
      v8: f32 = const -inf
      v11: {dtype} = load m[i0*8 + r0]
      v9: {dtype} = bounded v3 v5 v6 v7 v11
      {hides}
      v12: f32 = exp v10
      v13: f32 = load v[r0*4 + i1]
      v14: f32 = contract v12 v13 over r0
      store out[i0*4 + i1] = v14
    }}""")


def names(kernel: Kernel) -> list[str]:
    return [s.id for s in kernel.defines]


def test_bounds_along_the_outer_sum_stay_and_others_go() -> None:
    kernel = attention()
    verify(kernel)
    assert drop_idle_bounds(kernel) is kernel
    for other in (attention(along="i0"), attention(along="r0 + 1"), attention(edge="r0")):
        assert not list(bounded_values(drop_idle_bounds(other)))
        assert not {"v5", "v6", "v7"} & set(names(drop_idle_bounds(other)))


def test_masks_are_as_in_memory_where_something_is_hidden() -> None:
    kernel = unbounded(attention(), {"v9"})
    (choice,) = (s for s in kernel.defines if isinstance(s, Compute) and s.op == "where")
    assert choice.args == ("v11", "v8", "v4") and "v5" not in names(kernel)


@pytest.mark.parametrize("dtype", ["bool", "f32"])
def test_masks_are_gone_where_nothing_is_hidden(dtype: str) -> None:
    kernel = within_runs(attention(dtype=dtype), frozenset(("v9",)))
    assert {s.buffer for s in kernel.defines if isinstance(s, Load)} == {"q", "k", "v"}
    (exponential,) = (s for s in kernel.defines if isinstance(s, Compute) and s.op == "exp")
    assert exponential.args == ("v4",)


def test_what_is_only_bounded_adds_nothing_elsewhere() -> None:
    text = str(attention(dtype="f32")).replace("load m[i0*8 + r0]", "const 0.0")
    kernel = unbounded(parse_kernel(text), {"v9"})
    (exponential,) = (s for s in kernel.defines if isinstance(s, Compute) and s.op == "exp")
    assert exponential.args == ("v4",)


def test_edges_are_integers() -> None:
    text = str(attention()).replace("first: in i32[8]", "first: in f32[8]").replace("v5: i32", "v5: f32")
    with pytest.raises(InvalidGraphError, match="the position and the edges of bounded are integers of one dtype"):
        verify(parse_kernel(text))
