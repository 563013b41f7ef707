"""A GPU that is not there: torch, built for CUDA, on a CUDA runtime and driver of our own.

    python -m tests.triton.simulated COMMAND...     runs a command and its children where `torch.cuda` finds such GPUs

`runtime.cpp` and `driver.cpp` are loaded before the real ones and take their place: memory, streams, events, captures
and launches, with what the documentation refuses refused and everything else done as late as it allows (`queues.cpp`).
`operators.cpp` runs torch's
operators on the CPU in the order of their streams, `start` executes generated kernels from their machine code (see
`tests.triton.ptx`). Everything above is the real thing: torch's allocator and graphs, Triton's compiler and driver, and
all of graphc. It needs a torch built for CUDA, the headers of CUDA and g++; `build` says what is missing.

GRAPHC_SIMULATED_GPUS, GRAPHC_SIMULATED_GIB and GRAPHC_SIMULATED_CAPABILITY say how many GPUs there are, their memory
and what they can do: 1, 16 and 80. With GRAPHC_SIMULATED_IDLE=1 they take all work and do none of it, for measuring
what compilers and launches cost the host: programs may be of any size, since memory that nobody touches is none.
"""
