"""C text of counter-based random bits: Philox4x32-10, one word at a time, or a run of them into a buffer.

A block gives four words, so a loop over neighbouring words fills a buffer first, at a fourth of the work. Words are
kept in 64-bit lanes, where a vector multiplication gives the whole product. Rounds are written out: gcc vectorises no
loop around a loop.
"""

from __future__ import annotations

from graphc.loopir.philox import KEY_STEPS, MULTIPLIERS, ROUNDS

BLOCK = 512
"""Words per run: 2 KB of stack."""


def _rounds() -> str:
    lines: list[str] = []
    for number in range(ROUNDS):
        steps = [number * step & 0xFFFFFFFF for step in KEY_STEPS]
        lines += [
            f"  p = (c0 & 0xffffffffu) * {MULTIPLIERS[0]:#x}u, q = (c2 & 0xffffffffu) * {MULTIPLIERS[1]:#x}u;",
            f"  c0 = q >> 32 ^ c1 ^ (uint32_t)(k0 + {steps[0]:#x}u), c1 = q & 0xffffffffu;",
            f"  c2 = p >> 32 ^ c3 ^ (uint32_t)(k1 + {steps[1]:#x}u), c3 = p & 0xffffffffu;",
        ]
    return "\n".join(lines)


HELPERS: dict[str, str] = {
    # the four words of a block of the stream of a key
    "gc_philox": f"""
static inline __attribute__((always_inline)) void gc_philox(
    int64_t key, int64_t block, uint32_t *w0, uint32_t *w1, uint32_t *w2, uint32_t *w3) {{
  const uint32_t k0 = (uint32_t)key, k1 = (uint32_t)((uint64_t)key >> 32);
  uint64_t c0 = (uint64_t)block & 0xffffffffu, c1 = (uint64_t)block >> 32, c2 = 0, c3 = 0, p, q;
{_rounds()}
  *w0 = (uint32_t)c0, *w1 = (uint32_t)c1, *w2 = (uint32_t)c2, *w3 = (uint32_t)c3;
}}""",
    "gc_philox_word": """
static inline uint32_t gc_philox_word(int64_t key, int64_t number) {
  uint32_t w0, w1, w2, w3;
  gc_philox(key, number >> 2, &w0, &w1, &w2, &w3);
  const uint32_t even = number & 2 ? w2 : w0, odd = number & 2 ? w3 : w1;
  return number & 1 ? odd : even;
}""",
    # words first, first + 1, ... in the buffer, which holds `count` of them and 6 more; returns where the first one is
    "gc_philox_words": """
static __attribute__((noinline)) const uint32_t *gc_philox_words(
    uint32_t *buffer, int64_t key, int64_t first, int64_t count) {
  const int64_t block = first >> 2, blocks = ((first + count + 3) >> 2) - block;
#pragma omp simd
  for (int64_t b = 0; b < blocks; b++)
    gc_philox(key, block + b, &buffer[4*b], &buffer[4*b + 1], &buffer[4*b + 2], &buffer[4*b + 3]);
  return buffer + (first & 3);
}""",
}
"""By name, as the prelude takes them."""
