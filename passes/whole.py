"""Results that are all of a buffer: handed out as the tensor itself, and not as a view of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from graphc.passes.layout import is_dense
from graphc.program.plan import OUTPUT, AtenStep, OutputSpec, Plan


def whole_outputs(plan: Plan, outputs: Sequence[OutputSpec]) -> list[OutputSpec]:
    """Where one result sees all of an OUTPUT buffer in another shape, give the buffer that shape.

    Such as the gradient of a weight, which is a product read transposed. `plan.buffers` changes accordingly.

        buffer 7: output f32[128, 10] strides 1, 128            buffer 7: output f32[10, 128]
        return 7 as [10, 128] strides 128, 1            ->      return 7
    """
    counts = Counter(output.buffer for output in outputs)
    called = {index for step in plan.steps if isinstance(step, AtenStep) for index in step.outs}
    found: list[OutputSpec] = []
    for output in outputs:
        spec = plan.buffers[output.buffer]
        alone = counts[output.buffer] == 1 and output.buffer not in called
        if output.whole or spec.kind != OUTPUT or spec.host or output.offset or not alone:
            found.append(output)
            continue
        count = 1
        for size in output.shape:
            count *= size
        if count * spec.dtype.itemsize != spec.nbytes or not is_dense(output.shape, output.strides):
            found.append(output)
            continue
        plan.buffers[output.buffer] = replace(spec, shape=output.shape, strides=output.strides)
        found.append(OutputSpec(output.buffer, output.shape, output.strides, 0, True))
    return found
