"""The fixed C text of a native program: how it talks to libtorch and to the BLAS inside it.

Every function of libtorch is reached through a pointer that the runtime fills in once (`graphc_bind`), so a built
library depends on no path of this machine and promotes none of libtorch's symbols into the process.

A run function gets two tables, indexed by buffer number: `p`, where each buffer is, and `h`, the tensor handles of
buffers that belong to a libtorch tensor.
"""

from __future__ import annotations

from graphc.program import torch_text

TYPES = f"""\
{torch_text.TYPES}
/* Address of element `offset` bytes into buffer i. */
#define AT(i, offset) ((void *)((char *)p[i] + (offset)))
"""

# name of library function -> C prototype, written with NAME for the function pointer. 32-bit BLAS integers.
BLAS: dict[str, str] = {
    "sgemm_": "void NAME(const char *, const char *, const int *, const int *, const int *, const float *,"
    " const float *, const int *, const float *, const int *, const float *, float *, const int *)",
    "dgemm_": "void NAME(const char *, const char *, const int *, const int *, const int *, const double *,"
    " const double *, const int *, const double *, const int *, const double *, double *, const int *)",
    "sgemm_batch_": "void NAME(const char *, const char *, const int *, const int *, const int *, const float *,"
    " const float **, const int *, const float **, const int *, const float *, float **, const int *, const int *,"
    " const int *)",
    "dgemm_batch_": "void NAME(const char *, const char *, const int *, const int *, const int *, const double *,"
    " const double **, const int *, const double **, const int *, const double *, double **, const int *, const int *,"
    " const int *)",
}

# functions of the C shim that the helpers below call
SHIM: dict[str, str] = {
    "aoti_torch_create_tensor_from_blob_v2": "AOTITorchError NAME(void *, int64_t, const int64_t *, const int64_t *,"
    " int64_t, int32_t, int32_t, int32_t, AtenTensorHandle *, int32_t, const uint8_t *, int64_t)",
    "aoti_torch_empty_strided": "AOTITorchError NAME(int64_t, const int64_t *, const int64_t *, int32_t, int32_t,"
    " int32_t, AtenTensorHandle *)",
    "aoti_torch_copy_": "AOTITorchError NAME(AtenTensorHandle, AtenTensorHandle, int32_t)",
    "aoti_torch_delete_tensor_object": "AOTITorchError NAME(AtenTensorHandle)",
    "aoti_torch_get_data_ptr": "AOTITorchError NAME(AtenTensorHandle, void **)",
    "aoti_torch_get_dim": "AOTITorchError NAME(AtenTensorHandle, int64_t *)",
    "aoti_torch_get_dtype": "AOTITorchError NAME(AtenTensorHandle, int32_t *)",
    "aoti_torch_get_sizes": "AOTITorchError NAME(AtenTensorHandle, int64_t **)",
    "aoti_torch_get_strides": "AOTITorchError NAME(AtenTensorHandle, int64_t **)",
    "aoti_torch_get_storage_size": "AOTITorchError NAME(AtenTensorHandle, int64_t *)",
}

# c = op(a) op(b) + beta c in column-major order, as Fortran BLAS has it; REAL, GEMM are replaced per dtype
GEMM_ONE = """\
STRAIGHT static void matmul_REAL(char ta, char tb, int m, int n, int k, const void *a, int lda, const void *b, int ldb,
                                 REAL beta, void *c, int ldc) {
  const REAL one = 1;
  GEMM(&ta, &tb, &m, &n, &k, &one, a, &lda, b, &ldb, &beta, c, &ldc);
}
"""

# Batched: the matrices of a batch lie at base + sum(index[d] * strides[d]) elements, d over at most 8 batch dims.
GEMM_BATCH = """\
static void matmul_batch_REAL(char ta, char tb, int m, int n, int k, const void *a, int lda, const void *b, int ldb,
                              REAL beta, void *c, int ldc, int rank, const int64_t *sizes, const int64_t *sa,
                              const int64_t *sb, const int64_t *sc) {
  enum { CHUNK = 1024, ONE_GROUP = 1 };
  const REAL one = 1, *pa[CHUNK], *pb[CHUNK];
  REAL *pc[CHUNK];
  const int groups = ONE_GROUP;
  int64_t index[8] = {0}, ia = 0, ib = 0, ic = 0;
  int count = 0, more = 1;
  while (more) {
    pa[count] = (const REAL *)a + ia, pb[count] = (const REAL *)b + ib, pc[count++] = (REAL *)c + ic;
    int d = rank - 1;
    for (; d >= 0; d--) {
      ia += sa[d], ib += sb[d], ic += sc[d];
      if (++index[d] < sizes[d]) break;
      ia -= sizes[d] * sa[d], ib -= sizes[d] * sb[d], ic -= sizes[d] * sc[d], index[d] = 0;
    }
    more = d >= 0;
    if (count == CHUNK || !more) {
      GEMM(&ta, &tb, &m, &n, &k, &one, pa, &lda, pb, &ldb, &beta, pc, &ldc, &groups, &count);
      count = 0;
    }
  }
}
"""

# What kernels report in the cells of their checks; INT64_MIN is nothing.
FAILED = """\
static int failed(const int64_t *cells, int count) {
  for (int i = 0; i < count; i++)
    if (__builtin_expect(cells[i] != INT64_MIN, 0)) return 1;
  return 0;
}
"""

# Tensor handles. All helpers report failure as 1; libtorch keeps the message, and the runtime asks for it.
TENSORS = """\
STRAIGHT static void drop(AtenTensorHandle t) {
  if (t) aoti_torch_delete_tensor_object(t);
}

/* Let go of the libtorch tensor in which buffer i lives. */
STRAIGHT static void release(AtenTensorHandle *h, int i) {
  drop(h[i]);
  h[i] = NULL;
}

/* A tensor over memory that it does not own; NULL on failure. */
STRAIGHT static AtenTensorHandle borrow(void *data, int64_t rank, const int64_t *sizes, const int64_t *strides,
                                        int32_t dtype) {
  AtenTensorHandle t = NULL;
  int bad = aoti_torch_create_tensor_from_blob_v2(data, rank, sizes, strides, 0, dtype, CPU, 0, &t, STRIDED, NULL, 0);
  return bad ? NULL : t;
}

STRAIGHT static int same(const int64_t *a, const int64_t *b, int64_t n, const int64_t *skip_below_two) {
  for (int64_t i = 0; i < n; i++)
    if (a[i] != b[i] && (!skip_below_two || skip_below_two[i] > 1)) return 0;
  return 1;
}

/* Does t share memory with any of the n borrowed tensors? Views of operands must not outlive the operand's buffer. */
STRAIGHT static int shares(AtenTensorHandle t, const AtenTensorHandle *args, int n) {
  void *at, *from;
  int64_t bytes;
  if (aoti_torch_get_data_ptr(t, &at)) return 0;
  for (int i = 0; i < n; i++) {
    if (!args[i] || aoti_torch_get_data_ptr(args[i], &from) || aoti_torch_get_storage_size(args[i], &bytes)) continue;
    if ((char *)at >= (char *)from && (char *)at < (char *)from + bytes) return 1;
  }
  return 0;
}

/* A copy of t in a layout; along dims whose elements are one there, of the first of them. */
STRAIGHT static int copy_as(AtenTensorHandle t, const int64_t *from, int64_t rank, const int64_t *sizes,
                            const int64_t *strides, int32_t dtype, AtenTensorHandle *copy) {
  int64_t once[rank ? rank : 1], apart = 1;
  for (int64_t d = 0; d < rank; d++) once[d] = strides[d] ? sizes[d] : 1, apart &= once[d] == sizes[d];
  if (aoti_torch_empty_strided(rank, sizes, strides, dtype, CPU, 0, copy)) return 1;
  if (apart) return aoti_torch_copy_(*copy, t, 0);
  void *to, *at;
  if (aoti_torch_get_data_ptr(*copy, &to) || aoti_torch_get_data_ptr(t, &at)) return 1;
  AtenTensorHandle target = borrow(to, rank, once, strides, dtype), source = borrow(at, rank, once, from, dtype);
  int bad = !target || !source || aoti_torch_copy_(target, source, 0);
  drop(target), drop(source);
  return bad;
}

/* Take over tensor t as buffer i, in the layout that the plan promised, or copied into that layout. */
STRAIGHT static int keep(void **p, AtenTensorHandle *h, int i, AtenTensorHandle t, int64_t rank, const int64_t *sizes,
                         const int64_t *strides, int32_t dtype, const AtenTensorHandle *args, int n) {
  int64_t found_rank, *found_sizes, *found_strides, empty = 0;
  int32_t found_dtype;
  if (aoti_torch_get_dim(t, &found_rank) || aoti_torch_get_sizes(t, &found_sizes) ||
      aoti_torch_get_strides(t, &found_strides) || aoti_torch_get_dtype(t, &found_dtype))
    return drop(t), 1;
  if (found_rank != rank || found_dtype != dtype || !same(found_sizes, sizes, rank, NULL)) return drop(t), 2;
  for (int64_t d = 0; d < rank; d++) empty |= sizes[d] == 0;
  if ((!empty && !same(found_strides, strides, rank, sizes)) || shares(t, args, n)) {
    AtenTensorHandle copy = NULL;
    int bad = copy_as(t, found_strides, rank, sizes, strides, dtype, &copy);
    drop(t);
    if (bad) return drop(copy), 1;
    t = copy;
  }
  release(h, i);
  h[i] = t;
  return aoti_torch_get_data_ptr(t, &p[i]);
}

/* Copy tensor t into buffer memory `data`, which the plan owns. */
STRAIGHT static int copy_out(void *data, AtenTensorHandle t, int64_t rank, const int64_t *sizes, const int64_t *strides,
                             int32_t dtype) {
  AtenTensorHandle target = borrow(data, rank, sizes, strides, dtype);
  int64_t found_rank, *found_sizes;
  int bad = !target || aoti_torch_get_dim(t, &found_rank) || aoti_torch_get_sizes(t, &found_sizes);
  if (!bad && (found_rank != rank || !same(found_sizes, sizes, rank, NULL))) bad = 2;
  if (!bad) bad = aoti_torch_copy_(target, t, 0);
  drop(target), drop(t);
  return bad;
}
"""

MATMUL_SHIM: dict[str, str] = {
    "aoti_torch_dtype_element_size": "size_t NAME(int32_t)",
    "aoti_torch_cpu_bmm_out": "AOTITorchError NAME(AtenTensorHandle out, AtenTensorHandle, AtenTensorHandle)",
    "aoti_torch_cpu_baddbmm_out": "AOTITorchError NAME(AtenTensorHandle out, AtenTensorHandle, AtenTensorHandle,"
    " AtenTensorHandle, double beta, double alpha)",
}

# out = a b (+ out) by libtorch, for dtypes and strides that BLAS does not take. `size` is batch..., m, n, k; strides
# are batch..., row, column.
MATMUL_ATEN = """\
STRAIGHT static AtenTensorHandle matrices(const void *base, int64_t count, int64_t rows, int64_t columns, int64_t step,
                                          const int64_t *strides, int32_t dtype) {
  return borrow((void *)base, 3, (int64_t[]){count, rows, columns}, (int64_t[]){step, strides[0], strides[1]}, dtype);
}

STRAIGHT static int matmul_aten(int accumulate, int32_t dtype, int rank, const int64_t *size, const void *a,
                                const int64_t *sa, const void *b, const int64_t *sb, void *out, const int64_t *sc) {
  const int64_t m = size[rank], n = size[rank + 1], k = size[rank + 2];
  if (rank > 1) { /* bmm takes one batch dim: step through the outermost */
    const size_t bytes = aoti_torch_dtype_element_size(dtype);
    for (int64_t i = 0; i < size[0]; i++)
      if (matmul_aten(accumulate, dtype, rank - 1, size + 1, (char *)a + i * sa[0] * bytes, sa + 1,
                      (char *)b + i * sb[0] * bytes, sb + 1, (char *)out + i * sc[0] * bytes, sc + 1))
        return 1;
    return 0;
  }
  const int64_t count = rank ? size[0] : 1;
  AtenTensorHandle ta = matrices(a, count, m, k, rank ? sa[0] : 0, sa + rank, dtype),
                   tb = matrices(b, count, k, n, rank ? sb[0] : 0, sb + rank, dtype),
                   tc = matrices(out, count, m, n, rank ? sc[0] : 0, sc + rank, dtype);
  int bad = !ta || !tb || !tc;
  if (!bad)
    bad = accumulate ? aoti_torch_cpu_baddbmm_out(tc, tc, ta, tb, 1, 1) : aoti_torch_cpu_bmm_out(tc, ta, tb);
  drop(ta), drop(tb), drop(tc);
  return bad;
}
"""

# Looking at the caller's tensors: Python keeps at::Tensor `offset` bytes into a tensor object; the runtime finds out
# where that is.
INPUT_SYMBOLS: dict[str, str] = {
    "PyList_GetItem": "void *NAME(void *, ptrdiff_t)",
    "aoti_torch_get_data_ptr": SHIM["aoti_torch_get_data_ptr"],
}

INPUTS = """\
/* Fill in where tensors of a list are. */
STRAIGHT static int locate(ptrdiff_t offset, void *list, int count, const int *sources, const int *buffers, void **p) {
  for (int i = 0; i < count; i++) {
    char *object = PyList_GetItem(list, sources[i]);
    if (!object || aoti_torch_get_data_ptr((AtenTensorHandle)(object + offset), &p[buffers[i]])) return 1;
    if (!p[buffers[i]]) return 1; /* no elements, or no memory: Python tells them apart */
  }
  return 0;
}

/* Fill in where input and output tensors are; the caller holds the interpreter's lock. Gives 0, or 1 on failure. */
STRAIGHT int graphc_locate(ptrdiff_t offset, void *inputs, void *outputs, void **p) {
  static const int sources[] = {SOURCES}, buffers[] = {BUFFERS}, places[] = {PLACES}, results[] = {RESULTS};
  return locate(offset, inputs, COUNT, sources, buffers, p) || locate(offset, outputs, MADE, places, results, p);
}
"""

CALL_SYMBOLS: dict[str, str] = {
    "PyEval_SaveThread": "void *NAME(void)",
    "PyEval_RestoreThread": "void NAME(void *)",
}

CALL = """\
/* A whole call of a program that is one run: -1 when the tensors could not be located, else what the run gives. */
STRAIGHT int graphc_call(ptrdiff_t offset, void *inputs, void *outputs, void **p, AtenTensorHandle *h) {
  if (graphc_locate(offset, inputs, outputs, p)) return -1;
  void *thread = PyEval_SaveThread();
  const int status = ENTRY(p, h);
  PyEval_RestoreThread(thread);
  return status;
}
"""
