// A device for tests: torch's PrivateUse1, whose memory is the CPU's and whose operators are the CPU's.
//
// Tensors of it have storages of its own kind, so torch and graphc treat them like those of a GPU; an operator gets them
// as tensors of the CPU on the same memory. Views, memory, copies and scalars are what a device has to know by itself.

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/Functions.h>
#include <ATen/autocast_mode.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/ops/_reshape_alias_cpu_dispatch.h>
#include <ATen/ops/as_strided_cpu_dispatch.h>
#include <ATen/ops/resize_cpu_dispatch.h>
#include <ATen/ops/set_cpu_dispatch.h>
#include <ATen/ops/unfold_cpu_dispatch.h>
#include <ATen/ops/view_as_complex_cpu_dispatch.h>
#include <ATen/ops/view_as_real_cpu_dispatch.h>
#include <ATen/ops/view_cpu_dispatch.h>
#include <c10/core/Allocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <cstdlib>
#include <cstring>
#include <unordered_map>

namespace {

using at::Tensor;
constexpr auto KIND = c10::DeviceType::PrivateUse1;
const c10::Device HERE(c10::kCPU), THERE(KIND, 0);

struct Memory final : c10::Allocator {
  c10::DataPtr allocate(size_t n) override {
    void* data = n ? std::aligned_alloc(64, (n + 63) / 64 * 64) : nullptr;
    return {data, data, &std::free, THERE};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &std::free; }
  void copy_data(void* to, const void* from, size_t n) const override { default_copy_data(to, from, n); }
};
Memory memory;
REGISTER_ALLOCATOR(KIND, &memory);

struct Guard final : c10::impl::DeviceGuardImplInterface {
  Guard() = default;
  explicit Guard(c10::DeviceType) {}
  c10::DeviceType type() const override { return KIND; }
  c10::Device exchangeDevice(c10::Device) const override { return THERE; }
  c10::Device getDevice() const override { return THERE; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device) const override { return c10::Stream(c10::Stream::DEFAULT, THERE); }
  c10::Stream getDefaultStream(c10::Device) const override { return c10::Stream(c10::Stream::DEFAULT, THERE); }
  c10::Stream exchangeStream(c10::Stream) const override { return c10::Stream(c10::Stream::DEFAULT, THERE); }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void**, const c10::Stream&, c10::DeviceIndex, c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, c10::DeviceIndex) const noexcept override {}
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  void setCurrentDevice(c10::DeviceIndex) const override {}
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  c10::Allocator* getPinnedMemoryAllocator() const override { return c10::GetAllocator(c10::kCPU); }
  bool isPinnedPtr(const void*) const override { return false; }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override {
    return at::detail::getDefaultCPUGenerator();
  }
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t n) const override {
    auto data = memory.allocate(n);
    if (storage.nbytes()) std::memcpy(data.mutable_get(), storage.data(), std::min(n, storage.nbytes()));
    storage.set_data_ptr_noswap(std::move(data));
    storage.set_nbytes(n);
  }
};
const bool has_hooks = (at::RegisterPrivateUse1HooksInterface(new Hooks), true);

// The memory of a storage as a storage of another device; it keeps the first one alive.
c10::Storage on(const c10::Storage& storage, c10::Device device, c10::Allocator* allocator) {
  auto owner = new c10::Storage(storage);
  c10::DataPtr data(storage.mutable_data(), owner, [](void* p) { delete static_cast<c10::Storage*>(p); }, device);
  return c10::Storage(c10::Storage::use_byte_size_t(), storage.nbytes(), std::move(data), allocator, true);
}

Tensor as_on(const Tensor& t, c10::Device device) {
  if (!t.defined() || t.device() == device || t.layout() != c10::kStrided) return t;
  const bool is_here = device == HERE;
  auto key = is_here ? c10::DispatchKey::CPU : c10::DispatchKey::PrivateUse1;
  auto allocator = is_here ? c10::GetAllocator(c10::kCPU) : &memory;
  auto found = at::detail::make_tensor<c10::TensorImpl>(on(t.storage(), device, allocator), c10::DispatchKeySet(key), t.dtype());
  auto* impl = found.unsafeGetTensorImpl();
  impl->set_sizes_and_strides(t.sizes(), t.strides(), t.storage_offset());
  if (t.unsafeGetTensorImpl()->is_wrapped_number()) impl->set_wrapped_number(true);
  if (t.is_conj()) found._set_conj(true);
  if (t.is_neg()) found._set_neg(true);
  return found;
}

Tensor here(const Tensor& t) { return as_on(t, HERE); }
Tensor there(const Tensor& t) { return as_on(t, THERE); }

// Any operator: on the same memory, by the CPU.
class Call {
 public:
  void run(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
    const auto& schema = op.schema();
    const size_t first = stack->size() - schema.arguments().size();
    for (size_t at = first; at < stack->size(); ++at) (*stack)[at] = moved((*stack)[at], true);
    op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
    for (size_t at = stack->size() - schema.returns().size(); at < stack->size(); ++at)
      (*stack)[at] = moved((*stack)[at], false);
    for (auto& [_, pair] : known_) {  // `out=` of another size
      auto& [theirs, mine] = pair;
      const bool stays = theirs.sizes() == mine.sizes() && theirs.strides() == mine.strides();
      if (!stays || (mine.numel() && theirs.data_ptr() != mine.data_ptr())) mine.set_(there(theirs));
    }
  }

 private:
  std::unordered_map<c10::TensorImpl*, std::pair<Tensor, Tensor>> known_;

  Tensor moved(const Tensor& t, bool to_cpu) {
    if (!t.defined()) return t;
    if (!to_cpu) {
      auto found = known_.find(t.unsafeGetTensorImpl());
      return found == known_.end() ? there(t) : found->second.second;
    }
    auto theirs = here(t);
    if (!theirs.is_same(t)) known_.emplace(theirs.unsafeGetTensorImpl(), std::pair(theirs, t));
    return theirs;
  }

  c10::IValue moved(const c10::IValue& value, bool to_cpu) {
    if (value.isTensor()) return moved(value.toTensor(), to_cpu);
    if (value.isDevice() && to_cpu) return HERE;
    if (value.isTensorList()) {
      c10::List<Tensor> found;
      for (const Tensor& t : value.toTensorVector()) found.push_back(moved(t, to_cpu));
      return found;
    }
    if (value.isOptionalTensorList()) {
      c10::List<std::optional<Tensor>> found;
      for (const std::optional<Tensor>& t : value.toOptionalTensorVector())
        found.push_back(t.has_value() ? std::optional(moved(*t, to_cpu)) : std::nullopt);
      return found;
    }
    return value;
  }
};

void by_the_cpu(const c10::OperatorHandle& op, torch::jit::Stack* stack) { Call().run(op, stack); }

Tensor empty(c10::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
             std::optional<at::Device>, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  const c10::DispatchKeySet keys(c10::DispatchKey::PrivateUse1);
  return at::detail::empty_generic(size, &memory, keys, c10::dtype_or_default(dtype), format);
}

Tensor empty_strided(c10::IntArrayRef size, c10::IntArrayRef stride, std::optional<at::ScalarType> dtype,
                     std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>) {
  const c10::DispatchKeySet keys(c10::DispatchKey::PrivateUse1);
  return at::detail::empty_strided_generic(size, stride, &memory, keys, c10::dtype_or_default(dtype));
}

Tensor copy_from(const Tensor& from, const Tensor& to, bool) {
  here(to).copy_(here(from));
  return to;
}

Tensor copy_from_and_resize(const Tensor& from, const Tensor& to) {
  to.resize_(from.sizes());
  return copy_from(from, to, false);
}

at::Scalar scalar(const Tensor& t) { return at::_local_scalar_dense(here(t)); }

Tensor& set_tensor(Tensor& self, const Tensor& source) {
  return at::cpu::set_(self, source.storage(), source.storage_offset(), source.sizes(), source.strides());
}

Tensor convolution(const Tensor& x, const Tensor& w, const std::optional<Tensor>& b, c10::IntArrayRef stride,
                   c10::IntArrayRef padding, c10::IntArrayRef dilation, bool transposed, c10::IntArrayRef outer,
                   int64_t groups) {
  const auto bias = b.has_value() ? std::optional(here(*b)) : std::nullopt;
  return there(at::convolution(here(x), here(w), bias, stride, padding, dilation, transposed, outer, groups));
}

std::tuple<Tensor, Tensor, Tensor> convolution_backward(
    const Tensor& grad, const Tensor& x, const Tensor& w, c10::IntArrayRef stride, c10::IntArrayRef padding,
    c10::IntArrayRef dilation, bool transposed, c10::IntArrayRef outer, int64_t groups, std::array<bool, 3> wanted) {
  const std::vector<int64_t> bias{w.size(transposed ? 1 : 0) * (transposed ? groups : 1)};
  auto [gx, gw, gb] = at::convolution_backward(here(grad), here(x), here(w), bias, stride, padding, dilation,
                                               transposed, outer, groups, wanted);
  return {there(gx), there(gw), there(gb)};
}

}  // namespace

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&by_the_cpu>()); }
TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, m) { m.fallback(torch::CppFunction::makeFallthrough()); }

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", empty);
  m.impl("empty_strided", empty_strided);
  m.impl("_copy_from", copy_from);
  m.impl("_copy_from_and_resize", copy_from_and_resize);
  m.impl("_local_scalar_dense", scalar);
  m.impl("set_.source_Tensor", set_tensor);
  m.impl("set_.source_Storage_storage_offset", TORCH_FN((static_cast<Tensor& (*)(Tensor&, at::Storage, int64_t, c10::IntArrayRef, c10::IntArrayRef)>(at::cpu::set_))));
  m.impl("as_strided", TORCH_FN(at::cpu::as_strided));
  m.impl("view", TORCH_FN(at::cpu::view));
  m.impl("_reshape_alias", TORCH_FN(at::cpu::_reshape_alias));
  m.impl("resize_", TORCH_FN(at::cpu::resize_));
  m.impl("unfold", TORCH_FN(at::cpu::unfold));
  m.impl("view_as_real", TORCH_FN(at::cpu::view_as_real));
  m.impl("view_as_complex", TORCH_FN(at::cpu::view_as_complex));
  m.impl("convolution_overrideable", convolution);
  m.impl("convolution_backward_overrideable", convolution_backward);
}

#define LOWER(OP, ...) KERNEL_PRIVATEUSEONE(OP __VA_OPT__(, ) __VA_ARGS__, lower_precision_fp)
#define FULL(OP, ...) KERNEL_PRIVATEUSEONE(OP __VA_OPT__(, ) __VA_ARGS__, fp32)

TORCH_LIBRARY_IMPL(aten, AutocastPrivateUse1, m) {
  AT_FORALL_LOWER_PRECISION_FP(LOWER)
  AT_FORALL_FP32(FULL)
}
