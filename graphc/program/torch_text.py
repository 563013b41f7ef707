"""C text that reaches functions of libtorch and of Python, and checks guards with them: of native programs, and of a
small library for all others.

Every function is reached through a pointer that the runtime fills in once (`graphc_bind`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

# Declarations that need no library function.
TYPES = """\
#include <stddef.h>

typedef struct AtenTensorOpaque *AtenTensorHandle;
typedef struct AtenGeneratorOpaque *AtenGeneratorHandle;
typedef int32_t AOTITorchError;

/* For code that does little but call: to optimise it takes gcc long and gains nothing. */
#if defined(STRAIGHT)
#elif defined(__GNUC__) && !defined(__clang__)
#define STRAIGHT __attribute__((optimize("O0")))
#else
#define STRAIGHT
#endif
"""


def declarations(symbols: Mapping[str, str]) -> str:
    """Pointers to functions, by prototypes that are written with NAME for the function."""
    return "".join(f"static {prototype.replace('NAME', f'(*{name})')};\n" for name, prototype in symbols.items())


def bind_function(symbols: Iterable[str]) -> str:
    """The function that fills them in."""
    body = "".join(f"  {symbol} = functions[{i}];\n" for i, symbol in enumerate(symbols))
    head = "STRAIGHT void graphc_bind(void *const *functions)"
    return f"/* where the functions of libtorch are */\n{head} {{\n{body}}}\n"


REQUIRES_GRAD = "_ZNK3c1010TensorImpl13requires_gradEv"  # bool c10::TensorImpl::requires_grad() const

GUARD_SYMBOLS: dict[str, str] = {
    "PyDict_GetItemWithError": "void *NAME(void *, void *)",
    "PyDict_Next": "int NAME(void *, ptrdiff_t *, void **, void **)",
    "PyTuple_GetItem": "void *NAME(void *, ptrdiff_t)",
    "aoti_torch_get_dim": "AOTITorchError NAME(AtenTensorHandle, int64_t *)",
    "aoti_torch_get_dtype": "AOTITorchError NAME(AtenTensorHandle, int32_t *)",
    "aoti_torch_get_device_index": "AOTITorchError NAME(AtenTensorHandle, int32_t *)",
    "aoti_torch_get_sizes": "AOTITorchError NAME(AtenTensorHandle, int64_t **)",
    "aoti_torch_get_strides": "AOTITorchError NAME(AtenTensorHandle, int64_t **)",
    REQUIRES_GRAD: "_Bool NAME(const void *)",
}

# Layouts are those of the ctypes structures in runtime/native_facts.py.
GUARD = """\
/* table[key] is this value; entries of one table stand together, in its order as far as that is known */
struct entry { void *table, *key, *value; };

/* metadata of a tensor; `requires_grad` and `device` are negative where they do not matter */
struct metadata {
  void *type;
  uint64_t keys;
  int32_t rank, dtype, requires_grad, device;
  const int64_t *sizes, *strides;
};

/* `object` is NULL for an argument */
struct expected {
  void *object;
  const struct metadata *metadata;
};

/* where things are: type and at::Tensor in a tensor object, and the dispatch keys in a TensorImpl */
struct facts {
  ptrdiff_t type, handle, keys;
  int64_t entry_count, argument_count, tensor_count;
  const struct entry *entries;
  const struct expected *tensors;
};

STRAIGHT static int entries_hold(const struct facts *facts) {
  void *table = NULL, *key = NULL, *value = NULL;
  ptrdiff_t position = 0;
  for (const struct entry *e = facts->entries, *end = e + facts->entry_count; e < end; e++) {
    if (e->table != table) {
      table = e->table, position = 0;
      if (!PyDict_Next(table, &position, &key, &value)) key = NULL;
    }
    if (key == e->key) { /* walking along is quicker than looking up */
      if (value != e->value) return 0;
      if (!PyDict_Next(table, &position, &key, &value)) key = NULL;
    } else if (PyDict_GetItemWithError(table, e->key) != e->value)
      return 0;
  }
  return 1;
}

STRAIGHT static int as_expected(const char *object, const struct metadata *e, const struct facts *facts) {
  const AtenTensorHandle t = (AtenTensorHandle)(object + facts->handle);
  const char *impl = *(char **)t;
  int64_t rank, *found;
  int32_t dtype, device;
  if (*(void **)(object + facts->type) != e->type || *(const uint64_t *)(impl + facts->keys) != e->keys) return 0;
  if (aoti_torch_get_dtype(t, &dtype) || dtype != e->dtype || aoti_torch_get_dim(t, &rank) || rank != e->rank) return 0;
  if (e->device >= 0 && (aoti_torch_get_device_index(t, &device) || device != e->device)) return 0;
  if (aoti_torch_get_sizes(t, &found)) return 0;
  for (int64_t i = 0; i < rank; i++) if (e->sizes[i] >= 0 && found[i] != e->sizes[i]) return 0;
  if (aoti_torch_get_strides(t, &found)) return 0;
  for (int64_t i = 0; i < rank; i++) if (e->strides[i] >= 0 && found[i] != e->strides[i]) return 0;
  return e->requires_grad < 0 || REQUIRES_GRAD(impl) == e->requires_grad;
}

/* Do all facts hold, and are all tensors different objects? 1 or 0; the caller holds the interpreter's lock. */
STRAIGHT int graphc_guard(const struct facts *facts, void *arguments) {
  const struct expected *tensors = facts->tensors;
  if (!entries_hold(facts)) return 0;
  for (int64_t i = 0; i < facts->tensor_count; i++) {
    const void *object = i < facts->argument_count ? PyTuple_GetItem(arguments, i) : tensors[i].object;
    if (!as_expected(object, tensors[i].metadata, facts)) return 0;
    if (i >= facts->argument_count) continue;
    for (int64_t j = 0; j < i; j++)
      if (PyTuple_GetItem(arguments, j) == object) return 0;
    for (int64_t j = facts->argument_count; j < facts->tensor_count; j++)
      if (tensors[j].object == object) return 0;
  }
  return 1;
}
""".replace("REQUIRES_GRAD", REQUIRES_GRAD)

_PLAIN = "#define STRAIGHT\n#include <stdint.h>\n" + TYPES
GUARD_LIBRARY = "\n".join((_PLAIN, declarations(GUARD_SYMBOLS), GUARD, bind_function(GUARD_SYMBOLS)))
"""A source that does nothing else."""
