"""Machine code of generated kernels, executed on the CPU: PTX as Triton emits it for `cuda:80` and `cuda:90`, thread
by thread.

`parse` reads the text, `machine` runs it: every thread of some programs at once, a register being an array with an
element per thread. `registers` reads and writes operands, `integers`, `floats` and `conversions` are the arithmetic,
`memory` loads and stores, `warps` what the threads of a warp do together, `matrices` their products, `float8` their
smallest floats. Of `cuda:90` are `warpgroups`, products that four warps begin and wait for; `tensormaps`, blocks of
matrices that the chip copies by itself; and `mbarriers`, by which threads wait for those. `spaces` and `shared` are
what lies behind addresses. `kernels` runs generated kernels so, one by one or in the place of Triton's interpreter in
whole programs.

What is not known is an error that names the instruction; nothing is guessed. Three things are not as on the chip:
approximate instructions (`ex2.approx`, `div.full`, ...) give the correctly rounded result or, for seeds of float64
iterations, the bits that the ISA promises; sums in matrix instructions are exact until they are rounded once; and
threads between two barriers run in an order of the machine's own, though two warps that meet in shared memory without a
barrier between them are an error. Asynchronous work is done as late as it may be, or what it touches meanwhile is an
error. Where the ISA leaves open what assemblers and chips are known to mend, a launch says so in `Code.doubts`.

Source: Parallel Thread Execution ISA Version 8.7 (NVIDIA); sections are named where they are implemented.
"""
