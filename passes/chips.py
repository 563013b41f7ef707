"""What GPUs can do at best: for the choice of templates, and for roofline times of kernels that are compiled for them.

Sources (dense rates, without sparsity), the makers' data sheets: NVIDIA A100 80GB SXM (2,039 GB/s; 19.5 TFLOP/s f32;
312 bf16), H100 SXM (3.35 TB/s; 67; 989), H200 SXM (4.8 TB/s; 67; 989), HGX B200, an eighth of it (8 TB/s; 75; 2,250);
AMD Instinct MI300X (5.3 TB/s; 163.4; 1,307).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from graphc.ir.types import DType
from graphc.ops import attention


@dataclass(frozen=True)
class Chip:
    """A GPU's limits.

    Args:
        name: as its maker sells it.
        target: what kernels are compiled for (`cuda:90`).
        bandwidth: of its memory, bytes per second.
        flops: f32 operations per second outside tensor cores, a fused multiply-add counted as two.
        tensor_flops: bf16 operations per second in tensor cores.
        processors: streaming multiprocessors, or compute units.
        multiplies_float8: tensor cores take torch's 8-bit floats as they are, at twice that rate.
    """

    name: str
    target: str
    bandwidth: float
    flops: float
    tensor_flops: float
    processors: int
    multiplies_float8: bool = False

    def seconds(self, nbytes: int, work: int, matrix: int = 0) -> float:
        """The least time of a kernel, all of whose units work side by side.

        Args:
            nbytes: that it moves.
            work: additions and the like, without fused multiply-adds.
            matrix: operations in tensor cores, in those on bf16.
        """
        return max(nbytes / self.bandwidth, work / (self.flops / 2), matrix / self.tensor_flops)


DEFAULT_TARGET = "cuda:90"
CHIPS: tuple[Chip, ...] = (
    Chip("A100 80GB", "cuda:80", 2.039e12, 19.5e12, 312e12, 108),
    Chip("H100", "cuda:90", 3.35e12, 67e12, 989e12, 132, True),
    Chip("H200", "cuda:90", 4.8e12, 67e12, 989e12, 132, True),
    Chip("B200", "cuda:100", 8.0e12, 75e12, 2250e12, 148, True),
    Chip("MI300X", "hip:gfx942", 5.3e12, 163.4e12, 1307e12, 304),
)
ATTENTION_RATES: dict[str, Mapping[str, float]] = {
    "cuda:90": {attention.CUDNN: 1.55, attention.FLASH: 0.95},
    "cuda:100": {attention.CUDNN: 2.0, attention.FLASH: 0.95},
    "cuda:103": {attention.CUDNN: 2.0, attention.FLASH: 0.95},
}
"""Rates of libraries for attention as multiples of a template's; on other chips that is taken to be as fast.

cuDNN's kernels are specialised by warps and keep the matrix units busy while a softmax is computed, which Triton's do
not. H100, forward, 16-bit, head of 128, 4,096 tokens, TFLOP/s: cuDNN 609, Triton 389, FlashAttention-2, which is what
torch's flash is, 368 (J. Shah et al., FlashAttention-3, arXiv:2407.08608, figure 5). B200, bf16: FlashAttention-4 is up
to 1.3 times as fast as cuDNN and 2.7 times as fast as Triton (FlashAttention-4: Algorithm and Kernel Pipelining
Co-Design for Asymmetric Hardware Scaling, 2026, abstract).
"""


def worth_in_bf16(dtype: DType, tf32: bool) -> float:
    """How many operations on bf16 take as long in tensor cores as one on a dtype; 0 = it is not done there."""
    if dtype.is_reduced and dtype.itemsize > 1:
        return 1.0
    if dtype.name == "f32":
        return 2.0 if tf32 else 0.0
    return 0.5  # bytes


def chip_of(target: str) -> Chip:
    """The last chip in the table with this target; that of `cuda:90` for a target that is not there."""
    found = {chip.target: chip for chip in CHIPS}
    return found.get(target, found[DEFAULT_TARGET])
