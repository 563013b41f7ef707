"""The fixed C text of attention by register tiles, forward and backward; see `graphc.codegen.tile_text` for the tiles.

What a causal mask hides is not computed, and never multiplied by 0 either: a NaN in a key or a gradient reaches what
looks at it and nothing else. Each head is computed by one thread in one order: results do not depend on how many
there are.

Source: T. Dao, FlashAttention-2, arXiv 2307.08691, for the backward's formulas; a head here fits in the cache, so its
scores are computed key by key and the sums over queries are each done at once.
"""

from __future__ import annotations

ATTENTION_PROTOTYPE = (
    "void NAME(const float *query, const float *key, const float *value, float *out, float *logsumexp)"
)
BACKWARD_PROTOTYPE = (
    "void NAME(const float *grad, const float *query, const float *key, const float *value, const float *out,"
    " const float *logsumexp, float *grad_query, float *grad_key, float *grad_value)"
)

# softmax(scale * query key^T) value per (batch, head), TILE rows at a time: the cache holds all their scores, so no
# running maximum is needed. Keys and values are packed once per head. Strides are those of batch, head and row.
ATTENTION = """\
PROTOTYPE {
  %(names)s BATCH = %(batch)s, HEADS = %(heads)s, ROWS = %(rows)s, KEYS = %(keys)s, WIDTH = %(width)s,
         OUT = %(out_width)s, CAUSAL = %(causal)s,
         TILES = (ROWS + TILE - 1) / TILE, PANELS = (KEYS + PANEL - 1) / PANEL,
         OUT_PANELS = (OUT + PANEL - 1) / PANEL, LONG = PANELS * PANEL + 16, WIDE = OUT_PANELS * PANEL%(end)s;
  %(table)s long qs[] = {%(query)s}, ks[] = {%(key)s}, vs[] = {%(value)s}, os[] = {%(out)s}, ls[] = {%(logsumexp)s};
  const float scale = (float)%(scale)s;
#pragma omp parallel
  {
    float keys[PANELS * WIDTH * PANEL] CACHE_LINE, values[OUT_PANELS * KEYS * PANEL] CACHE_LINE;
    float score[TILE * LONG] CACHE_LINE, left[TILE * WIDTH] CACHE_LINE, result[TILE * WIDE] CACHE_LINE;
    long packed = -1;
#pragma omp for schedule(static)
    for (long item = 0; item < (long)BATCH * HEADS * TILES; item++) {
      const long head = item / TILES, i = item %% TILES * TILE, rows = ROWS - i < TILE ? ROWS - i : TILE;
      const long seen = CAUSAL && i + rows < KEYS ? i + rows : KEYS; /* keys that some row of the tile looks at */
      const long shared = CAUSAL && i + 1 < KEYS ? i + 1 : KEYS;     /* keys that all of them look at */
      const long n = head / HEADS, h = head %% HEADS;
      const float *v = value + n * vs[0] + h * vs[1];
      if (head != packed) {
        const float *k = key + n * ks[0] + h * ks[1];
        for (long j = 0; j < PANELS; j++)
          pack_panel(k + j * PANEL * ks[2], 1, ks[2], WIDTH, KEYS - j * PANEL < PANEL ? KEYS - j * PANEL : PANEL,
                     keys + j * WIDTH * PANEL);
        for (long j = 0; j < OUT_PANELS; j++)
          pack_panel(v + j * PANEL, vs[2], 1, KEYS, OUT - j * PANEL < PANEL ? OUT - j * PANEL : PANEL,
                     values + j * KEYS * PANEL);
        packed = head;
      }
      pack_rows(query + n * qs[0] + h * qs[1] + i * qs[2], qs[2], rows, WIDTH, left, WIDTH);
      for (long j = 0; j * PANEL < seen; j++)
        multiply_tile(WIDTH, left, WIDTH, keys + j * WIDTH * PANEL, score + j * PANEL, LONG, 0);
      float inverse[TILE];
      for (long r = 0; r < rows; r++) {
        const long count = CAUSAL && i + r + 1 < KEYS ? i + r + 1 : KEYS;
        float *s = score + r * LONG, largest = -__builtin_inff(), sum = 0;
#pragma omp simd reduction(max : largest)
        for (long j = 0; j < count; j++) {
          s[j] *= scale;
          largest = s[j] > largest ? s[j] : largest;
        }
        if (largest == -__builtin_inff()) largest = 0; /* weights are 0, or NaN where a score is */
#pragma omp simd reduction(+ : sum)
        for (long j = 0; j < count; j++) {
          s[j] = expf(s[j] - largest);
          sum += s[j];
        }
        inverse[r] = sum == 0 ? 0 : 1 / sum;
        if (logsumexp)
          logsumexp[n * ls[0] + h * ls[1] + (i + r) * ls[2]] =
              sum == 0 ? 0 : largest == __builtin_inff() ? largest : largest + logf(sum);
      }
      for (long r = rows; r < TILE; r++) memset(score + r * LONG, 0, sizeof(float) * shared);
      for (long j = 0; j < OUT_PANELS; j++)
        multiply_tile(shared, score, LONG, values + j * KEYS * PANEL, result + j * PANEL, WIDE, 0);
      for (long r = 0; r < rows; r++) {
        for (long j = shared; j < seen && j <= i + r; j++)
#pragma omp simd
          for (long x = 0; x < OUT; x++) result[r * WIDE + x] += score[r * LONG + j] * v[j * vs[2] + x];
        float *to = out + n * os[0] + h * os[1] + (i + r) * os[2];
#pragma omp simd
        for (long j = 0; j < OUT; j++) to[j] = result[r * WIDE + j] * inverse[r];
      }
    }
  }
}
"""

# to[r] (+)= the sum over queries i of factor[r][i] row[i] for `count` keys r, those below `old` added to what is there.
# Queries from `off + r` on look at key r: those that look at all keys are summed by tiles from the packed rows `down`,
# the corner below the diagonal one by one.
SUM_OVER_QUERIES = """\
static inline void sum_over_queries(long size, long rows, long count, long off, const float *factor, long factor_row,
                                    const float *down, long block, const float *row, long row_step, float *sum,
                                    long sum_row, long old, float *to, long to_step) {
  const long whole = off + count > 1 ? off + count - 1 : 0;
  for (long x = 0; whole < rows && x < size; x += PANEL)
    multiply_tile(rows - whole, factor + whole, factor_row, down + x * block + whole * PANEL, sum + x, sum_row, 0);
  for (long r = 0; r < count; r++, sum += sum_row, to += to_step) {
    if (whole >= rows) memset(sum, 0, sizeof(float) * size);
    for (long i = off + r > 0 ? off + r : 0; i < whole && i < rows; i++)
#pragma omp simd
      for (long x = 0; x < size; x++) sum[x] += factor[r * factor_row + i] * row[i * row_step + x];
    if (r < old)
#pragma omp simd
      for (long x = 0; x < size; x++) to[x] += sum[x];
    else
      memcpy(to, sum, sizeof(float) * size);
  }
}
"""

# Per (batch, head), BLOCK queries at a time and for these TILE keys at a time, with queries side by side:
#   weight = exp(scale key query^T - logsumexp), slope = scale * weight * (value grad^T - sum(grad * out)),
#   grad_value += weight grad, grad_key += slope query, and from the slopes of all keys grad_query^T = key^T slope.
# `_across` are queries side by side, panel by panel; `_down` their numbers side by side. Slopes lie as `_across`.
BACKWARD = """\
PROTOTYPE {
  %(names)s BATCH = %(batch)s, HEADS = %(heads)s, ROWS = %(rows)s, KEYS = %(keys)s, WIDTH = %(width)s,
         OUT = %(out_width)s, CAUSAL = %(causal)s,
         BLOCK = %(block)s, LONG = BLOCK + 16, DEPTH = (KEYS + TILE - 1) / TILE * TILE,
         WIDTHS = (WIDTH + PANEL - 1) / PANEL, OUTS = (OUT + PANEL - 1) / PANEL, DEEP = DEPTH + 16,
         WIDE = (WIDTHS > OUTS ? WIDTHS : OUTS) * PANEL, TURNED = (WIDTH + TILE - 1) / TILE * TILE%(end)s;
  %(table)s long gs[] = {%(grad)s}, qs[] = {%(query)s}, ks[] = {%(key)s}, vs[] = {%(value)s}, os[] = {%(out)s},
                    ls[] = {%(logsumexp)s}, dqs[] = {%(grad_query)s}, dks[] = {%(grad_key)s}, dvs[] = {%(grad_value)s};
  const float scale = (float)%(scale)s;
#pragma omp parallel
  {
    float query_across[BLOCK * WIDTH] CACHE_LINE, query_down[BLOCK * WIDTHS * PANEL] CACHE_LINE;
    float grad_across[BLOCK * OUT] CACHE_LINE, grad_down[BLOCK * OUTS * PANEL] CACHE_LINE;
    float out_across[OUT * PANEL] CACHE_LINE;
    float slopes[BLOCK * DEPTH] CACHE_LINE, keys[TURNED * DEEP] CACHE_LINE, turned[TURNED * PANEL] CACHE_LINE;
    float weight[TILE * LONG] CACHE_LINE, slope[TILE * LONG] CACHE_LINE, sums[BLOCK] CACHE_LINE, dots[BLOCK] CACHE_LINE;
    float some_keys[TILE * WIDTH] CACHE_LINE, some_values[TILE * OUT] CACHE_LINE, result[TILE * WIDE] CACHE_LINE;
#pragma omp for schedule(static)
    for (long head = 0; head < (long)BATCH * HEADS; head++) {
      const long n = head / HEADS, h = head %% HEADS;
      const float *g = grad + n * gs[0] + h * gs[1], *q = query + n * qs[0] + h * qs[1];
      const float *k = key + n * ks[0] + h * ks[1], *v = value + n * vs[0] + h * vs[1];
      const float *o = out + n * os[0] + h * os[1], *l = logsumexp + n * ls[0] + h * ls[1];
      float *dq = grad_query + n * dqs[0] + h * dqs[1], *dk = grad_key + n * dks[0] + h * dks[1];
      float *dv = grad_value + n * dvs[0] + h * dvs[1];
      for (long j = 0; j < KEYS; j++) {
        for (long x = 0; x < WIDTH; x++) keys[x * DEEP + j] = k[j * ks[2] + x];
        for (long x = WIDTH; x < TURNED; x++) keys[x * DEEP + j] = 0;
      }
      for (long j = CAUSAL ? ROWS : KEYS; j < KEYS; j++) { /* no query looks at these */
        memset(dk + j * dks[2], 0, sizeof(float) * WIDTH);
        memset(dv + j * dvs[2], 0, sizeof(float) * OUT);
      }
      for (long first = 0; first < ROWS; first += BLOCK) {
        const long rows = ROWS - first < BLOCK ? ROWS - first : BLOCK, panels = (rows + PANEL - 1) / PANEL;
        const long seen = CAUSAL && first + rows < KEYS ? first + rows : KEYS;
        for (long i = 0; i < panels; i++) {
          const long at = first + i * PANEL, count = rows - i * PANEL < PANEL ? rows - i * PANEL : PANEL;
          pack_panel(q + at * qs[2], 1, qs[2], WIDTH, count, query_across + i * WIDTH * PANEL);
          pack_panel(g + at * gs[2], 1, gs[2], OUT, count, grad_across + i * OUT * PANEL);
        }
        for (long x = 0; x < WIDTH; x += PANEL)
          pack_panel(q + first * qs[2] + x, qs[2], 1, rows, WIDTH - x < PANEL ? WIDTH - x : PANEL,
                     query_down + x * BLOCK);
        for (long x = 0; x < OUT; x += PANEL)
          pack_panel(g + first * gs[2] + x, gs[2], 1, rows, OUT - x < PANEL ? OUT - x : PANEL, grad_down + x * BLOCK);
        for (long i = 0; i < panels * PANEL; i++) dots[i] = 0, sums[i] = i < rows ? l[(first + i) * ls[2]] : 0;
        for (long i = 0; i < rows; i += PANEL) {
          pack_panel(o + (first + i) * os[2], 1, os[2], OUT, rows - i < PANEL ? rows - i : PANEL, out_across);
          /* summed as the tiles do: where one key has all the weight, its slope is 0 */
          const float *with = grad_across + i * OUT;
          for (long part = 0; part < OUT; part += CHUNK) {
            float dot[PANEL] = {0};
            for (long x = part; x < OUT && x < part + CHUNK; x++)
#pragma omp simd
              for (long r = 0; r < PANEL; r++) dot[r] += out_across[x * PANEL + r] * with[x * PANEL + r];
            for (long r = 0; r < PANEL; r++) dots[i + r] += dot[r];
          }
        }
        for (long j = 0; j < seen; j += TILE) {
          const long count = seen - j < TILE ? seen - j : TILE;
          const long begin = CAUSAL && j > first ? j - first : 0; /* queries from here on look at some of the keys */
          pack_rows(k + j * ks[2], ks[2], count, WIDTH, some_keys, WIDTH);
          pack_rows(v + j * vs[2], vs[2], count, OUT, some_values, OUT);
          for (long i = begin / PANEL; i < panels; i++) {
            multiply_tile(WIDTH, some_keys, WIDTH, query_across + i * WIDTH * PANEL, weight + i * PANEL, LONG, 0);
            multiply_tile(OUT, some_values, OUT, grad_across + i * OUT * PANEL, slope + i * PANEL, LONG, 0);
          }
          for (long r = 0; r < count; r++) {
            float *w = weight + r * LONG, *s = slope + r * LONG;
#pragma omp simd
            for (long i = begin / PANEL * PANEL; i < panels * PANEL; i++) {
              w[i] = expf(scale * w[i] - sums[i]);
              s[i] = scale * w[i] * (s[i] - dots[i]);
            }
          }
          for (long r = count; r < TILE; r++) {
            memset(weight + r * LONG, 0, sizeof(float) * LONG);
            memset(slope + r * LONG, 0, sizeof(float) * LONG);
          }
          for (long i = begin / PANEL; i < panels; i++)
            for (long r = 0; r < count; r++)
              memcpy(slopes + (i * DEPTH + j + r) * PANEL, slope + r * LONG + i * PANEL, sizeof(float) * PANEL);
          const long off = CAUSAL ? j - first : -(long)KEYS; /* the first key's place on the diagonal */
          const long old = CAUSAL ? first - j : first > 0 ? count : 0; /* keys that an earlier block has been at */
          sum_over_queries(OUT, rows, count, off, weight, LONG, grad_down, BLOCK, g + first * gs[2], gs[2], result,
                           WIDE, old, dv + j * dvs[2], dvs[2]);
          sum_over_queries(WIDTH, rows, count, off, slope, LONG, query_down, BLOCK, q + first * qs[2], qs[2], result,
                           WIDE, old, dk + j * dks[2], dks[2]);
        }
        for (long i = 0; i < panels; i++) {
          const long at = first + i * PANEL, count = rows - i * PANEL < PANEL ? rows - i * PANEL : PANEL;
          const long shared = CAUSAL && at + 1 < KEYS ? at + 1 : KEYS; /* keys that all queries of the panel look at */
          for (long x = 0; x < WIDTH; x += TILE)
            multiply_tile(shared, keys + x * DEEP, DEEP, slopes + i * DEPTH * PANEL, turned + x * PANEL, PANEL, 0);
          for (long r = 0; r < count; r++) {
            float *to = dq + (at + r) * dqs[2];
            for (long x = 0; x < WIDTH; x++) to[x] = turned[x * PANEL + r];
            for (long j = shared; j < seen && j <= at + r; j++)
#pragma omp simd
              for (long x = 0; x < WIDTH; x++) to[x] += slopes[(i * DEPTH + j) * PANEL + r] * k[j * ks[2] + x];
          }
        }
      }
    }
  }
}
"""
