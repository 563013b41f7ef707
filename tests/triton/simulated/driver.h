// What the tests ask of the simulated driver.

#pragma once

#include <cstddef>
#include <cstdint>

struct CUstream_st;

extern "C" {

// Executes a kernel: its PTX, grid and block, bytes of shared memory, and its arguments in words of eight
// bytes. Gives 0, or 1 when it did what no GPU can do.
typedef int (*simulated_launcher_t)(const char* text, const unsigned* shape, unsigned shared,
                                     const uint64_t* values, size_t count);
void simulated_set_launcher(simulated_launcher_t run);

// Whether the devices do nothing of what they are told to.
bool simulated_idle();

// Does what waits in a stream.
void simulated_drain(CUstream_st* stream);

// Work for a stream, or for the graph that it records, which gives 0, or 1 when it failed; gives an error of the runtime.
int simulated_enqueue(CUstream_st* stream, int (*run)(void*), void* data, void (*drop)(void*));

// Start and bytes of all memory, as far as there is room for; gives their number.
size_t simulated_blocks(uint64_t* found, size_t room);
}
