"""Loops of a native program: the rows of one turn, walked again and again with a table of buffers of their own."""

from __future__ import annotations

from collections.abc import Sequence

from graphc.codegen.size_text import storage
from graphc.program.loops import LoopStep
from graphc.program.plan import BufferSpec

# Five numbers per buffer of the body: see `graphc.program.loops.Binding`. The rows of a turn find them in `q`.
LOOP = """\
typedef struct {
  int buffer[2], first; /* in even and odd turns; in turn 0, or -1 */
  int64_t offset[2], first_offset, stride; /* in bytes */
} Place;

/* Do the rows of a loop's body `turns` times; gives 0 or 1 for failure. */
static int loop(void **p, int64_t turns, const Place *places, int count, void **q, const int64_t *row,
                const int64_t *end) {
  for (int64_t turn = 0; turn < turns; turn++) {
    for (int i = 0; i < count; i++) {
      const Place *at = places + i;
      if (turn == 0 && at->first >= 0)
        q[i] = (char *)p[at->first] + at->first_offset;
      else
        q[i] = (char *)p[at->buffer[turn & 1]] + at->offset[turn & 1] + turn * at->stride;
    }
    if (walk(0, row, end, q, NULL)) return 1;
  }
  return 0;
}
"""


def loop_body(step: LoopStep, buffers: Sequence[BufferSpec], rows: Sequence[str]) -> str:
    """The C statements of a loop.

    Args:
        step: the loop.
        buffers: of the program.
        rows: of one turn.
    """
    places = []
    for spec, binding in zip(step.specs, step.bindings, strict=True):
        size = spec.dtype.itemsize if not spec.host else 8
        even, odd = binding.buffers
        offsets = ", ".join(str(offset * size) for offset in binding.offsets)
        places.append(
            f"{{{{{even}, {odd}}}, {binding.first}, {{{offsets}}}, {binding.first_offset * size}, "
            f"{binding.stride * size}}},"
        )
    listed = "\n".join(f"    {place}" for place in places)
    table = "\n".join(f"    {row}" for row in rows)
    return (
        f"  {storage(listed)} Place places[] = {{\n{listed}\n  }};\n"
        f"  {storage(table)} int64_t steps[] = {{\n{table}\n  }};\n"
        f"  void *q[{max(len(places), 1)}];\n"
        f"  return loop(p, {step.length}, places, {len(places)}, q, steps, steps + sizeof steps / sizeof *steps);"
    )
