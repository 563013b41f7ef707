"""The fixed C text of products by register tiles: what a native program runs where BLAS is slower.

One micro kernel does all arithmetic: TILE rows of `a`, each element broadcast, times a packed panel of `b`, PANEL
columns wide, both held by the first-level cache. CHUNK products are summed in vector registers, in float32 with fused
multiply-adds, and such sums added up: the rounding errors are those of the BLAS in libtorch. Rows and columns that do
not fill a tile are computed in a padded one, so there is one micro kernel, and a result does not depend on where in a
tile it lies, nor on how many threads share the work.

Source: the loop order is that of K. Goto and R. van de Geijn, Anatomy of High-Performance Matrix Multiplication, 2008.
"""

from __future__ import annotations

from dataclasses import dataclass

# Where these are used: measured on AMD's Zen 3 and, with AVX-512, on Zen 5 (which gcc 12 takes for a Zen 3), where the
# BLAS in libtorch is slower: it uses AVX-512 on Intel's chips only. Attention, which skips what a causal
# mask hides, is taken to win on other chips with AVX2 too, products are not.
PRODUCT_WINS = "defined(__znver3__) || defined(__znver4__) || defined(__znver5__)"
ATTENTION_WINS = f"defined(__AVX2__) && (!defined(__AVX512F__) || {PRODUCT_WINS})"


@dataclass(frozen=True)
class Blocking:
    """How much of the right operand a thread packs at once, to be read by all of its rows.

    Args:
        panels: columns, in panels.
        steps: of the sum; whole chunks, so that no result depends on it.
    """

    panels: int
    steps: int

    @property
    def suffix(self) -> str:
        """Of the names of functions that work so; that of the usual one is empty."""
        return "" if self == USUAL else f"_{self.panels}x{self.steps}"

    def text(self, text: str) -> str:
        """The text of products, for this blocking."""
        for name in ("multiply_by_tiles", "multiply_batch_by_tiles", "product_part"):
            text = text.replace(f"{name}(", f"{name}{self.suffix}(")
        return text.replace("PANELS_AT_ONCE", str(self.panels)).replace("STEPS_AT_ONCE", str(self.steps))


USUAL = Blocking(8, 384)
BLOCKINGS = {f"tiles {item.panels}x{item.steps}": item for item in (USUAL, Blocking(4, 256), Blocking(16, 384))}
"""By the name of the form of a product that is computed so."""

MICRO_KERNEL = """\
int omp_get_num_threads(void);
int omp_get_thread_num(void);
int omp_get_max_threads(void);

#pragma GCC optimize("fp-contract=fast") /* this file has no arithmetic but inner products and softmax */

#if defined(__AVX512F__)
enum { LANES = 16, TILE = 8 };
#elif defined(__AVX__)
enum { LANES = 8, TILE = 6 };
#else
enum { LANES = 4, TILE = 6 };
#endif
enum { VECTORS = 2, PANEL = VECTORS * LANES, CHUNK = 128, SMALL = 1 << 15 };
typedef float vector __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
#define HIDDEN __attribute__((visibility("hidden")))
#define CACHE_LINE __attribute__((aligned(64)))

/* Keeps gcc from loading the elements of all rows before it multiplies the first, which costs registers it lacks. */
#if defined(__x86_64__)
#define IN_ORDER(x) __asm__ volatile("" : "+v"(x))
#else
#define IN_ORDER(x) (void)(x)
#endif

/* c[i][j] (+)= sum over p < depth of a[i][p] b[p][j] for TILE rows i and PANEL columns j of the packed b. */
__attribute__((always_inline)) static inline void multiply_steps(long depth, const float *a, long a_row, long a_step,
                                                                 const float *b, float *c, long c_row,
                                                                 int accumulate) {
  vector sum[TILE][VECTORS];
#pragma GCC unroll 16
  for (int i = 0; i < TILE; i++) {
    __builtin_prefetch(c + i * c_row, 1);
#pragma GCC unroll 2
    for (int j = 0; j < VECTORS; j++) sum[i][j] = (vector){0};
  }
#pragma GCC unroll 4
  for (long p = 0; p < depth; p++) {
    vector right[VECTORS];
#pragma GCC unroll 2
    for (int j = 0; j < VECTORS; j++) right[j] = *(const vector *)(b + p * PANEL + j * LANES);
#pragma GCC unroll 16
    for (int i = 0; i < TILE; i++) {
      vector left = a[i * a_row + p * a_step] - (vector){0};
      IN_ORDER(left);
#pragma GCC unroll 2
      for (int j = 0; j < VECTORS; j++) sum[i][j] += left * right[j];
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < TILE; i++)
#pragma GCC unroll 2
    for (int j = 0; j < VECTORS; j++) {
      vector *to = (vector *)(c + i * c_row + j * LANES);
      if (accumulate)
        *to += sum[i][j];
      else
        *to = sum[i][j];
    }
}

__attribute__((noinline)) static void multiply_chunk(long depth, const float *a, long a_row, const float *b, float *c,
                                                     long c_row, int accumulate) {
  multiply_steps(depth, a, a_row, 1, b, c, c_row, accumulate);
}

/* The same of rows that lie side by side, as `pack_columns` leaves them. */
__attribute__((noinline)) static void multiply_packed(long depth, const float *a, const float *b, float *c, long c_row,
                                                      int accumulate) {
  multiply_steps(depth, a, 1, TILE, b, c, c_row, accumulate);
}

/* The same of any depth: sums of CHUNK products each, added up, which halves the rounding errors of one long sum.
   Rows of step 0 are packed. */
static inline void multiply_tile(long depth, const float *a, long a_row, const float *b, float *c, long c_row,
                                 int accumulate) {
  for (long p = 0; p < depth; p += CHUNK) {
    const long some = depth - p < CHUNK ? depth - p : CHUNK;
    if (a_row == 0)
      multiply_packed(some, a + p * TILE, b + p * PANEL, c, c_row, accumulate || p > 0);
    else
      multiply_chunk(some, a + p, a_row, b + p * PANEL, c, c_row, accumulate || p > 0);
  }
}

#if defined(__has_builtin)
#if defined(__AVX__) && __has_builtin(__builtin_shufflevector)
#define TRANSPOSES 1
#endif
#endif

#ifdef TRANSPOSES
typedef float octet __attribute__((vector_size(32), aligned(4), may_alias));

/* Eight columns of eight steps: b[p][j] = from[j * step + p]. */
static inline void transpose_eight(const float *from, long step, float *b) {
  octet x[8], y[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; i++) x[i] = *(const octet *)(from + i * step);
#pragma GCC unroll 8
  for (int i = 0; i < 8; i += 2) {
    y[i] = __builtin_shufflevector(x[i], x[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
    y[i + 1] = __builtin_shufflevector(x[i], x[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
  }
#pragma GCC unroll 8
  for (int i = 0; i < 8; i += 4) {
    x[i] = __builtin_shufflevector(y[i], y[i + 2], 0, 1, 8, 9, 4, 5, 12, 13);
    x[i + 1] = __builtin_shufflevector(y[i], y[i + 2], 2, 3, 10, 11, 6, 7, 14, 15);
    x[i + 2] = __builtin_shufflevector(y[i + 1], y[i + 3], 0, 1, 8, 9, 4, 5, 12, 13);
    x[i + 3] = __builtin_shufflevector(y[i + 1], y[i + 3], 2, 3, 10, 11, 6, 7, 14, 15);
  }
#pragma GCC unroll 8
  for (int i = 0; i < 4; i++) {
    *(octet *)(b + i * PANEL) = __builtin_shufflevector(x[i], x[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
    *(octet *)(b + (i + 4) * PANEL) = __builtin_shufflevector(x[i], x[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
  }
}
#endif

/* b[p][j] = from[p * row + j * column] for p < depth and j < columns, zero for the columns that fill the panel. */
__attribute__((noinline)) static void pack_panel(const float *from, long row, long column, long depth, long columns,
                                                 float *b) {
  long p = 0;
  if (columns == PANEL && column == 1) {
    for (; p < depth; p++)
      for (int j = 0; j < VECTORS; j++)
        *(vector *)(b + p * PANEL + j * LANES) = *(const vector *)(from + p * row + j * LANES);
    return;
  }
#ifdef TRANSPOSES
  if (columns == PANEL && row == 1)
    for (; p + 8 <= depth; p += 8)
      for (int j = 0; j < PANEL; j += 8) transpose_eight(from + j * column + p, column, b + p * PANEL + j);
#endif
  for (; p < depth; p++) {
    for (long j = 0; j < columns; j++) b[p * PANEL + j] = from[p * row + j * column];
    for (long j = columns; j < PANEL; j++) b[p * PANEL + j] = 0;
  }
}

/* to[i][p] = from[i * row + p] for i < rows, zero for the rows that fill the tile. */
static void pack_rows(const float *from, long row, long rows, long depth, float *to, long to_row) {
  for (long i = 0; i < TILE; i++) {
    if (i < rows)
      memcpy(to + i * to_row, from + i * row, sizeof(float) * depth);
    else
      memset(to + i * to_row, 0, sizeof(float) * depth);
  }
}

/* to[p][i] = from[p * column + i] for i < rows, zero for the rows that fill the tile. */
static void pack_columns(const float *from, long column, long rows, long depth, float *to) {
  if (rows == TILE) {
    for (long p = 0; p < depth; p++) memcpy(to + p * TILE, from + p * column, sizeof(float) * TILE);
    return;
  }
  for (long p = 0; p < depth; p++)
    for (long i = 0; i < TILE; i++) to[p * TILE + i] = i < rows ? from[p * column + i] : 0;
}
"""

_OPERANDS = (
    "long m, long n, long k, const float *a, long a_row, long a_column, const float *b, long b_row, long b_column,"
    " int accumulate, float *c, long c_row"
)
PRODUCT_PROTOTYPE = f"void multiply_by_tiles({_OPERANDS})"
BATCH_PROTOTYPE = (
    f"void multiply_batch_by_tiles({_OPERANDS}, int rank, const int64_t *sizes, const int64_t *a_batch,"
    " const int64_t *b_batch, const int64_t *c_batch)"
)

# In the file of the steps: products by tiles where these win, else by BLAS. `whole`: rows of `a` lie in one piece.
TILES_WIN = """\
static inline int tiles_win(long m, long n, long k, int whole, int batched) {
#if defined(__AVX512F__)
  return 1;
#else
  if (!whole || k < 16 || k > 1024 || 7 * ((n + 15) / 16 * 16) > 8 * n) return 0; /* few columns of padding */
  return batched ? m >= 4 && n >= 16 : m >= 16 && n >= 32;
#endif
}
"""
PRODUCT_CALL = f"""\
#if {PRODUCT_WINS}
__attribute__((visibility("hidden"))) {PRODUCT_PROTOTYPE};
#endif
static {PRODUCT_PROTOTYPE.replace("multiply_by_tiles", "matmul_tiles")} {{
  const int plain = b_column == 1, whole = a_column == 1;
#if {PRODUCT_WINS}
  if (tiles_win(m, n, k, whole, 1)) {{
    multiply_by_tiles(m, n, k, a, a_row, a_column, b, b_row, b_column, accumulate, c, c_row);
    return;
  }}
#endif
  matmul_float(plain ? 'N' : 'T', whole ? 'N' : 'T', n, m, k, b, plain ? b_row : b_column, a, whole ? a_row : a_column,
               accumulate, c, c_row);
}}
"""
BATCH_CALL = f"""\
#if {PRODUCT_WINS}
__attribute__((visibility("hidden"))) {BATCH_PROTOTYPE};
#endif
static {BATCH_PROTOTYPE.replace("multiply_batch_by_tiles", "matmul_batch_tiles")} {{
  const int plain = b_column == 1, whole = a_column == 1;
#if {PRODUCT_WINS}
  if (tiles_win(m, n, k, whole, 1)) {{
    multiply_batch_by_tiles(m, n, k, a, a_row, a_column, b, b_row, b_column, accumulate, c, c_row, rank, sizes, a_batch,
                            b_batch, c_batch);
    return;
  }}
#endif
  matmul_batch_float(plain ? 'N' : 'T', whole ? 'N' : 'T', n, m, k, b, plain ? b_row : b_column, a,
                     whole ? a_row : a_column, accumulate, c, c_row, rank, sizes, b_batch, a_batch, c_batch);
}}
"""

PRODUCT_TILE = """\
/* One tile of the result, whole or padded. */
static inline void product_tile(long rows, long columns, long depth, const float *a, long a_row, const float *b,
                                float *c, long c_row, int accumulate) {
  if (rows == TILE && columns == PANEL) {
    multiply_tile(depth, a, a_row, b, c, c_row, accumulate);
    return;
  }
  float whole[TILE * PANEL] CACHE_LINE;
  multiply_tile(depth, a, a_row, b, whole, PANEL, 0);
  for (long i = 0; i < rows; i++)
    for (long j = 0; j < columns; j++)
      c[i * c_row + j] = accumulate ? c[i * c_row + j] + whole[i * PANEL + j] : whole[i * PANEL + j];
}
"""

# c = a b (+ c): c row by row, a and b of any strides of which one is 1.
PRODUCT_PART = f"""\
/* Some panels of some rows of tiles of c = a b (+ c). */
__attribute__((noinline)) static void product_part({_OPERANDS}, long panel, long last_panel, long tile,
                                                   long last_tile) {{
  enum {{ GROUP = PANELS_AT_ONCE, DEPTH = STEPS_AT_ONCE }};
  float right[GROUP * DEPTH * PANEL] CACHE_LINE, left[TILE * (DEPTH + 16)] CACHE_LINE;
  /* rows that lie a power of two apart fall into the same few sets of the cache: those are copied first */
  const int turned = a_column != 1, copies = turned || a_row % 512 == 0;
  for (; panel < last_panel; panel += GROUP) {{
    const long group = last_panel - panel < GROUP ? last_panel - panel : GROUP;
    for (long p = 0; p < k; p += DEPTH) {{
      const long depth = k - p < DEPTH ? k - p : DEPTH;
      for (long j = 0; j < group; j++) {{
        const long at = (panel + j) * PANEL, columns = n - at < PANEL ? n - at : PANEL;
        pack_panel(b + p * b_row + at * b_column, b_row, b_column, depth, columns, right + j * depth * PANEL);
      }}
      for (long t = tile; t < last_tile; t++) {{
        const long i = t * TILE, rows = m - i < TILE ? m - i : TILE;
        const float *from = a + i * a_row + p * a_column;
        const int copy = copies || rows < TILE;
        if (turned)
          pack_columns(from, a_column, rows, depth, left);
        else if (copy)
          pack_rows(from, a_row, rows, depth, left, DEPTH + 16);
        const long left_row = turned ? 0 : copy ? DEPTH + 16 : a_row;
        for (long j = 0; j < group; j++) {{
          const long at = (panel + j) * PANEL, columns = n - at < PANEL ? n - at : PANEL;
          product_tile(rows, columns, depth, copy ? left : from, left_row, right + j * depth * PANEL,
                       c + i * c_row + at, c_row, accumulate || p > 0);
        }}
      }}
    }}
  }}
}}
"""

# Each thread has a range of rows and a range of panels.
PRODUCT = f"""\
HIDDEN {PRODUCT_PROTOTYPE} {{
  const long panels = (n + PANEL - 1) / PANEL, tiles = (m + TILE - 1) / TILE;
#pragma omp parallel if (m * n * k > SMALL)
  {{
    const long threads = omp_get_num_threads(), thread = omp_get_thread_num();
    long across = threads; /* threads side by side; the others share the rows */
    while (across > 1 && (threads % across != 0 || panels < 4 * across)) across--;
    const long down = threads / across, x = thread % across, y = thread / across;
    product_part(m, n, k, a, a_row, a_column, b, b_row, b_column, accumulate, c, c_row, panels * x / across,
                 panels * (x + 1) / across, tiles * y / down, tiles * (y + 1) / down);
  }}
}}
"""

# Each thread has whole products, or a part of each when they are few.
BATCH = f"""\
HIDDEN {BATCH_PROTOTYPE} {{
  long count = 1;
  for (int d = 0; d < rank; d++) count *= sizes[d];
  const int whole = count >= 4 * omp_get_max_threads();
#pragma omp parallel for schedule(static) if (whole && count * m * n * k > SMALL)
  for (long number = 0; number < count; number++) {{
    long rest = number, at_a = 0, at_b = 0, at_c = 0;
    for (int d = rank - 1; d >= 0; d--) {{
      const long index = rest % sizes[d];
      rest /= sizes[d], at_a += index * a_batch[d], at_b += index * b_batch[d], at_c += index * c_batch[d];
    }}
    if (whole)
      product_part(m, n, k, a + at_a, a_row, a_column, b + at_b, b_row, b_column, accumulate, c + at_c, c_row, 0,
                   (n + PANEL - 1) / PANEL, 0, (m + TILE - 1) / TILE);
    else
      multiply_by_tiles(m, n, k, a + at_a, a_row, a_column, b + at_b, b_row, b_column, accumulate, c + at_c, c_row);
  }}
}}
"""
