"""When a kernel may store into memory that it reads: by programs of their own, and where programs share a row."""

from __future__ import annotations

import pytest

from graphc.loopir.parser import parse_kernel
from graphc.passes.sharing import Sharing

SCALED = """
kernel k(w: in f32[8], x: in f32[512], out: out f32[8], y: out f32[512]) axes(i0: 8 parallel, r0: 64 row) {{
  v0: f32 = load w[i0]
  v1: f32 = load x[i0*64 + r0]
  v2: f32 = reduce sum v1
{body}
}}
"""
FORMS: dict[str, tuple[str, bool]] = {
    # w changes behind the sum, while others still scale their part of the row by it
    "elements behind the sum": ("v3: f32 = mul v1 v0; v4: f32 = sub v3 v2; store y[i0*64 + r0] = v4", False),
    # these are stored in the last pass over the row, as all elements are
    "elements that wait for nothing": ("v3: f32 = mul v1 v0; store y[i0*64 + r0] = v3", False),
    "a running sum": ("v3: f32 = mul v1 v0; v4: f32 = scan sum v3; store y[i0*64 + r0] = v4", False),
    "another sum": ("v3: f32 = mul v1 v0; v4: f32 = reduce sum v3; store y[i0] = v4", True),
    "rows alone": ("v3: f32 = mul v2 v0; store y[i0] = v3", True),
}


def kernel_of(form: str) -> str:
    body, _ = FORMS[form]
    lines = [line.strip() for line in body.split(";")]
    lines += ["v9: f32 = add v0 v2", "store out[i0] = v9"]
    return SCALED.format(body="\n".join(f"  {line}" for line in lines))


@pytest.mark.parametrize("form", FORMS)
def test_what_there_is_once_per_row_is_not_overwritten_while_others_need_it(form: str) -> None:
    kernel = parse_kernel(kernel_of(form))
    assert Sharing().allows(kernel, ["w"], "out")
    assert Sharing(side_by_side=True).allows(kernel, ["w"], "out") == FORMS[form][1]


def test_elements_are_overwritten_by_the_program_that_reads_them() -> None:
    kernel = parse_kernel("""
kernel k(w: in f32[8], x: in f32[512], y: out f32[512]) axes(i0: 8 parallel, r0: 64 row) {
  v0: f32 = load w[i0]
  v1: f32 = load x[i0*64 + r0]
  v2: f32 = reduce sum v1
  v3: f32 = sub v1 v2
  v4: f32 = mul v3 v0
  store y[i0*64 + r0] = v4
}
""")
    assert all(Sharing(side_by_side).allows(kernel, ["x"], "y") for side_by_side in (False, True))
    assert not Sharing(True).allows(kernel, ["w"], "y")


def test_a_thread_does_not_store_what_another_one_may_still_have_to_load() -> None:
    """The store to `z` waits for the load of `y` alone: it may come before another thread has loaded that `x`."""
    kernel = parse_kernel("""
kernel k(x: in f32[64], y: in f32[64], out: out bf16[64], z: out f32[64]) axes(i0: 64 parallel) {
  v0: f32 = load x[i0]
  v1: bf16 = cast v0
  v2: f32 = load y[i0]
  v3: f32 = neg v2
  store out[i0] = v1
  store z[i0] = v3
}
""")
    assert Sharing().allows(kernel, ["x"], "z") and Sharing().allows(kernel, ["y"], "z")
    assert not Sharing(side_by_side=True).allows(kernel, ["x"], "z")
    assert Sharing(side_by_side=True).allows(kernel, ["y"], "z")
