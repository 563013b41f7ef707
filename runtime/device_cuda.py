"""Devices that torch calls `cuda`: those of NVIDIA by CUDA, those of AMD by HIP under the same names."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

OLDEST_CAPABILITY = (8, 0)

_raw_stream: Callable[[int], int] | None = getattr(torch._C, "_cuda_getCurrentRawStream", None)
_clear_workspaces: Callable[[], None] | None = getattr(torch._C, "_cuda_clearCublasWorkspaces", None)


class CudaDevice:
    """See `graphc.runtime.device.Device`."""

    kind = "cuda"
    interpreted = False

    def current(self) -> int:
        return torch.cuda.current_device()

    def guard(self, index: int) -> AbstractContextManager[Any]:
        return torch.cuda.device(index)

    def place(self, index: int) -> torch.device:
        return torch.device("cuda", index)

    def target(self, index: int) -> str:
        if torch.version.hip is not None:
            return "hip:" + torch.cuda.get_device_properties(index).gcnArchName.partition(":")[0]
        major, minor = torch.cuda.get_device_capability(index)
        return f"cuda:{major}{minor}"

    def allows_tf32(self) -> bool:
        # the older flag raises where the newer one has been set
        precision = getattr(torch.backends.cuda.matmul, "fp32_precision", None)
        return bool(torch.backends.cuda.matmul.allow_tf32) if precision is None else precision == "tf32"

    def attention_libraries(self) -> tuple[str, ...]:
        if torch.version.hip is not None:
            return ()
        switched = {"cudnn": torch.backends.cuda.cudnn_sdp_enabled(), "flash": torch.backends.cuda.flash_sdp_enabled()}
        return tuple(name for name, is_on in switched.items() if is_on)

    def runs_attention(
        self, library: str, dtype: torch.dtype, query: Sequence[int], keys: int, causal: bool, trains: bool
    ) -> bool:
        """What torch's own function asks: chip, versions and sizes, which differ from one torch to the next."""
        _, heads, rows, width = query  # nothing is asked of the batch but its size
        shapes = (1, heads, rows, width), (1, heads, keys, width), (1, heads, keys, width)
        try:
            with torch._C.DisableTorchFunction(), torch._C._DisableTorchDispatch():
                made = (torch.empty(shape, dtype=dtype, device=self.kind) for shape in shapes)
                q, k, v = (tensor.requires_grad_(trains) for tensor in made)
                asked = torch.backends.cuda.SDPAParams(q, k, v, None, 0.0, causal, False)
                ask = getattr(torch.backends.cuda, f"can_use_{library}_attention")
                return bool(ask(asked))
        except torch.OutOfMemoryError:
            return False

    def refusal(self, index: int) -> str:
        if not torch.cuda.is_available():
            return f"torch {torch.__version__} sees no GPU on this machine"
        if index >= torch.cuda.device_count():
            return f"there is no device cuda:{index}, the last one is cuda:{torch.cuda.device_count() - 1}"
        capability = torch.cuda.get_device_capability(index)
        if torch.version.hip is not None or capability >= OLDEST_CAPABILITY:
            return ""
        oldest, found = (".".join(map(str, numbers)) for numbers in (OLDEST_CAPABILITY, capability))
        name = torch.cuda.get_device_name(index)
        return f"generated kernels need compute capability {oldest}, {name} has {found}"

    def memory(self, index: int) -> tuple[int, int]:
        free, total = torch.cuda.mem_get_info(index)
        kept = torch.cuda.memory_reserved(index) - torch.cuda.memory_allocated(index)
        allowed = total
        with contextlib.suppress(AttributeError):  # a torch without the question sets no limit that could be asked for
            allowed = int(total * torch.cuda.get_per_process_memory_fraction(index))
        return min(free + kept, allowed - torch.cuda.memory_allocated(index)), total

    def give_back(self, index: int) -> None:
        torch.cuda.synchronize(index)
        torch.cuda.empty_cache()

    def stream(self, index: int) -> int:
        if _raw_stream is not None:
            return _raw_stream(index)
        return int(torch.cuda.current_stream(index).cuda_stream)

    def launch_function(self) -> int:
        driver = _driver()
        return 0 if driver is None else ctypes.cast(driver.cuLaunchKernel, ctypes.c_void_p).value or 0

    def attach(self, index: int) -> None:
        driver = _driver()
        assert driver is not None, "asked for by a failed call of the driver"
        # Not by the runtime: what sets it up there also waits for the device, which is an error while another thread
        # records. There is a context by now, for the kernels have been loaded into it.
        context = ctypes.c_void_p()
        code = driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), index)
        code = code or driver.cuCtxSetCurrent(context)
        if code:
            raise RuntimeError(f"the driver has no context for device {index}: {self.describe(code)}")

    def describe(self, code: int) -> str:
        driver, text = _driver(), ctypes.c_char_p()
        if driver is None or driver.cuGetErrorName(code, ctypes.byref(text)) or not text.value:
            return f"error {code}"
        return f"{text.value.decode()} ({code})"

    def cannot_record(self) -> str:
        backend = torch.cuda.memory.get_allocator_backend()
        return (
            "" if backend == "native" else f"torch allocates memory by {backend}, and recordings need its own allocator"
        )

    def is_recording(self, index: int) -> bool:
        if torch.cuda.current_device() == index:
            return torch.cuda.is_current_stream_capturing()
        with torch.cuda.device(index):
            return torch.cuda.is_current_stream_capturing()

    def pool(self) -> Any:
        return torch.cuda.graph_pool_handle()

    def record(self, index: int, pool: Any, run: Callable[[], None]) -> torch.cuda.CUDAGraph:
        # Work spaces of cuBLAS that a recording finds or leaves would be shared with what runs beside it: each
        # recording makes its own, in its own memory. Other threads may go on allocating meanwhile.
        with torch.cuda.device(index):
            before = torch.cuda.current_stream(index)
            _forget_workspaces()
            collects = gc.isenabled()
            gc.disable()  # what it frees could be something that must not be freed meanwhile
            try:
                return _captured(index, pool, run)
            except BaseException:
                torch.cuda.set_stream(before)  # a capture that cannot be ended leaves its own stream behind
                _recover(index, pool)
                raise
            finally:
                _forget_workspaces()
                if collects:
                    gc.enable()

    def note_used(self, index: int, tensor: torch.Tensor) -> None:
        tensor.record_stream(_current_stream(index))

    def mark(self, index: int, old: torch.cuda.Event | None = None) -> torch.cuda.Event:
        event = torch.cuda.Event() if old is None else old
        event.record(_current_stream(index))
        return event

    def wait(self, index: int, mark: torch.cuda.Event) -> None:
        _current_stream(index).wait_event(mark)

    def model(self, index: int) -> str:
        return torch.cuda.get_device_name(index)

    def seconds(self, index: int, run: Callable[[], object], repeats: int) -> float:
        with torch.cuda.device(index):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(repeats):
                run()
            end.record()
            end.synchronize()
            return start.elapsed_time(end) / 1e3 / repeats


def _current_stream(index: int) -> torch.cuda.Stream:
    return _stream(*torch._C._cuda_getCurrentStream(index))


@functools.lru_cache(256)
def _stream(stream_id: int, index: int, kind: int) -> torch.cuda.Stream:
    """Torch's object for a stream, which takes longer to make than an event takes to be recorded."""
    return torch.cuda.Stream(stream_id=stream_id, device_index=index, device_type=kind)


def _captured(index: int, pool: Any, run: Callable[[], object]) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, stream=_side_stream(index), capture_error_mode="thread_local"):
        run()
    return graph


def _recover(index: int, pool: Any) -> None:
    """After a capture that could not be ended: have the allocator and the generator know that it is over."""
    torch.cuda.synchronize(index)
    with contextlib.suppress(AttributeError, RuntimeError):
        torch._C._cuda_endAllocateToPool(index, pool)
    before = torch.cuda.current_stream(index)
    cell = torch.zeros(1, device=torch.device("cuda", index))
    try:
        _captured(index, torch.cuda.graph_pool_handle(), cell.zero_)
    finally:
        torch.cuda.set_stream(before)


def _forget_workspaces() -> None:
    if _clear_workspaces is not None:
        _clear_workspaces()


@functools.cache
def _side_stream(index: int) -> torch.cuda.Stream:
    """Where recordings of a device are made: never on the default stream, and always on the same one, for the pools."""
    return torch.cuda.Stream(index)


@functools.cache
def _driver() -> ctypes.CDLL | None:
    """The driver as this process has it, None on AMD's devices or where it cannot be loaded by its name."""
    if torch.version.hip is not None:
        return None
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None


DEVICE = CudaDevice()
