// torch's operators on a simulated GPU: each one runs on the CPU, in the order of its stream.
//
// A run on zeros tells how large the results are. The operator itself runs when its stream gets there, or at each replay
// of a graph, on the addresses of then: nothing is kept alive for it. One whose results are as many as the data says
// waits for its stream instead, which captures refuse. What is no kernel (memory, views, copies between devices, scalars)
// stays torch's own.

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/cuda/CUDAGeneratorImpl.h>
#include <ATen/native/Copy.h>
#include <ATen/ops/copy_native.h>
#include <c10/core/InferenceMode.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGraphsC10Utils.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdio>
#include <optional>
#include <set>
#include <string>
#include <unordered_map>

#include "driver.h"

namespace {

using at::Tensor;
using Stack = torch::jit::Stack;
const c10::Device HERE(c10::kCPU), NOWHERE(c10::kMeta);

// A tensor with what another one is beside its numbers.
Tensor alike(const Tensor& t, Tensor found) {
  if (t.unsafeGetTensorImpl()->is_wrapped_number()) found.unsafeGetTensorImpl()->set_wrapped_number(true);
  if (t.is_conj() != found.is_conj()) found._set_conj(t.is_conj());
  if (t.is_neg() != found.is_neg()) found._set_neg(t.is_neg());
  return found;
}

// The same memory as a tensor of the CPU, which does not keep it alive.
Tensor here(const Tensor& t) {
  if (!t.defined() || !t.is_cuda() || t.layout() != c10::kStrided) return t;
  const c10::InferenceMode usual(false);  // written later, in whatever mode
  c10::Storage storage(c10::Storage::use_byte_size_t(), t.storage().nbytes(),
                       c10::DataPtr(t.storage().mutable_data(), HERE), c10::GetAllocator(c10::kCPU), true);
  auto found = at::detail::make_tensor<c10::TensorImpl>(std::move(storage), c10::DispatchKeySet(c10::DispatchKey::CPU),
                                                        t.dtype());
  found.unsafeGetTensorImpl()->set_sizes_and_strides(t.sizes(), t.strides(), t.storage_offset());
  return alike(t, found);
}

Tensor zeros_as(const Tensor& t) {
  if (!t.defined() || t.layout() != c10::kStrided) return t;
  const c10::InferenceMode usual(false);
  return alike(t, at::empty_strided(t.sizes(), t.strides(), t.options().device(HERE)).zero_());
}

// A value with each tensor in it replaced.
template <typename Change>
c10::IValue changed(const c10::IValue& value, Change&& change) {
  if (value.isTensor()) return change(value.toTensor());
  if (value.isTensorList()) {
    c10::List<Tensor> found;
    for (const Tensor& t : value.toTensorVector()) found.push_back(change(t));
    return found;
  }
  if (value.isOptionalTensorList()) {
    c10::List<std::optional<Tensor>> found;
    for (const std::optional<Tensor>& t : value.toOptionalTensorVector())
      found.push_back(t.has_value() ? std::optional(change(*t)) : std::nullopt);
    return found;
  }
  return value;
}

// The numbers of torch's generator of the GPU, as seeds of that of the CPU.
class Seeded {
 public:
  explicit Seeded(const c10::OperatorHandle& op, const Stack& stack) {
    if (!op.hasTag(at::Tag::nondeterministic_seeded)) return;
    at::Generator generator = at::cuda::detail::getDefaultCUDAGenerator(c10::cuda::current_device());
    for (const auto& value : stack) {
      if (!value.isGenerator()) continue;
      generator = value.toGenerator();
      TORCH_CHECK(generator.device().is_cuda(), "Expected a 'cuda' device type for generator but found '",
                  generator.device().type(), "'");
    }
    std::lock_guard<std::mutex> lock(generator.mutex());
    state_ = generator.get<at::CUDAGeneratorImpl>()->philox_cuda_state(4);
  }

  // Runs with the default generator of the CPU as this operator finds it.
  void run(const std::function<void()>& work) const {
    if (!state_) return work();
    auto generator = at::detail::getDefaultCPUGenerator();
    const auto old = generator.get_state();
    const auto& s = *state_;
    const uint64_t seed = s.captured_ ? uint64_t(*s.seed_.ptr) : s.seed_.val;
    const uint64_t offset = s.captured_ ? uint64_t(*s.offset_.ptr) + s.offset_intragraph_ : s.offset_.val;
    generator.set_current_seed(seed * 1000003 + offset);
    work();
    generator.set_state(old);
  }

 private:
  std::optional<at::PhiloxCudaState> state_;
};

// One call: arguments as tensors of the CPU, and what its results become.
struct Call {
  c10::OperatorHandle op;
  Seeded seeded;
  Stack arguments;
  std::vector<std::optional<Tensor>> results;  // of the CPU, on memory of the GPU; none: written in place

  // Gives the results of the CPU.
  Stack run(Stack stack) const {
    const c10::InferenceMode usual(false);
    at::AutoDispatchBelowADInplaceOrView below;
    seeded.run([&] { op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), &stack); });
    return stack;
  }

  // Gives 1 when the operator failed, as a GPU does that cannot say why.
  int replay() const try {
    Stack found = run(arguments);
    size_t at = 0;
    for (const auto& value : found)
      changed(value, [&](const Tensor& t) {
        if (t.defined() && results[at]) results[at]->copy_(t);
        ++at;
        return t;
      });
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "simulated GPU: %s: %s\n", op.operator_name().name.c_str(), error.what());
    return 1;
  }
};

const std::set<std::string> READS = {"nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive",
                                     "bincount", "equal", "repeat_interleave", "_ctc_loss",
                                     "linalg_ldl_solve", "linalg_lu_solve", "lu_unpack", "ormqr"};
// Operators whose results are as many as the data says, or which cannot be run on zeros.

// The GPU that a call is for, which becomes the current one: of its tensors, or what it says.
c10::Device device_of(const Stack& given) {
  std::optional<c10::Device> found;
  for (const auto& value : given)
    changed(value, [&](const Tensor& t) {
      if (!found && t.defined() && t.is_cuda()) found = t.device();
      return t;
    });
  for (const auto& value : given)
    if (!found && value.isDevice() && value.toDevice().is_cuda() && value.toDevice().has_index())
      found = value.toDevice();
  return found ? *found : c10::Device(c10::kCUDA, c10::cuda::current_device());
}

c10::IValue adapted(const c10::IValue& value) {
  if (value.isDevice()) return HERE;
  if (value.isGenerator()) return c10::IValue();
  return value;
}

// Whether the CPU has to wait for the data: for how many results there are.
bool reads(const std::string& name, const Stack& given) {
  if (READS.count(name)) return true;
  for (const auto& value : given)
    if (value.isOptionalTensorList())
      for (const std::optional<Tensor>& t : value.toOptionalTensorVector())
        if (t.has_value() && t->defined() && (t->scalar_type() == at::kBool || t->scalar_type() == at::kByte)) return true;
  return false;
}

// One call on its way: now, or when its stream gets there.
class Issued {
 public:
  Issued(const c10::OperatorHandle& op, const Stack& given, c10::Device device)
      : device_(device), call_(new Call{op, Seeded(op, given), {}, {}}) {
    for (const auto& value : given) {
      changed(value, [&](const Tensor& t) { return originals_.push_back(t), t; });
      // what lies with the CPU is read when the call is made
      call_->arguments.push_back(changed(
          adapted(value), [&](const Tensor& t) { return t.defined() && !t.is_cuda() ? alike(t, t.clone()) : here(t); }));
    }
  }

  Stack now() { return finished(call_->run(arguments(false)), false); }

  // Results that nobody computes, on a device that does nothing.
  Stack never() {
    Stack found;
    size_t at = 0;
    for (const auto& value : call_->arguments)
      found.push_back(changed(value.isDevice() ? c10::IValue(NOWHERE) : value, [&](const Tensor& t) {
        const Tensor& original = originals_[at++];
        const bool there = original.defined() && original.is_cuda() && original.layout() == c10::kStrided;
        Tensor used = there ? alike(t, at::empty_strided(t.sizes(), t.strides(), t.options().device(NOWHERE))) : t;
        if (used.defined()) known_.emplace(used.unsafeGetTensorImpl(), original);
        held_.push_back(used);
        return used;
      }));
    const bool last = channels_last();
    at::AutoDispatchBelowADInplaceOrView below;
    call_->op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::Meta), &found);
    for (auto& value : found)
      if (last && value.isTensor() && value.toTensor().defined() && value.toTensor().dim() == 4)
        value = value.toTensor().contiguous(at::MemoryFormat::ChannelsLast);
    return finished(found, true);
  }

  Stack later(c10::cuda::CUDAStream stream) {
    auto generator = at::detail::getDefaultCPUGenerator();
    const auto old = generator.get_state();
    Stack found = arguments(true);
    {
      at::AutoDispatchBelowADInplaceOrView below;
      call_->op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), &found);
    }
    generator.set_state(old);
    found = finished(found, true);
    auto run = [](void* data) { return static_cast<Call*>(data)->replay(); };
    auto drop = [](void* data) { delete static_cast<Call*>(data); };
    C10_CUDA_CHECK(static_cast<cudaError_t>(simulated_enqueue(stream.stream(), run, call_.release(), drop)));
    return found;
  }

 private:
  const c10::Device device_;
  std::unique_ptr<Call> call_;
  std::vector<Tensor> originals_, held_;
  std::unordered_map<c10::TensorImpl*, Tensor> known_;  // what tensors of the CPU stand for, which `held_` keeps

  // What GPUs give for a convolution, and for its gradients, where images or weights have their channels last.
  bool channels_last() const {
    if (call_->op.operator_name().name.rfind("aten::convolution", 0)) return false;
    return std::any_of(originals_.begin(), originals_.end(), [](const Tensor& t) {
      return t.defined() && t.dim() == 4 && t.suggest_memory_format() == at::MemoryFormat::ChannelsLast;
    });
  }

  Stack arguments(bool zeros) {
    Stack found;
    size_t at = 0;
    for (const auto& value : call_->arguments)
      found.push_back(changed(value, [&](const Tensor& t) {
        const Tensor& original = originals_[at++];
        Tensor used = zeros && original.defined() && original.is_cuda() ? zeros_as(t) : t;
        if (used.defined()) known_.emplace(used.unsafeGetTensorImpl(), original);
        held_.push_back(used);
        return used;
      }));
    return found;
  }

  // Results on the GPU for those of the CPU, which are written later or are there.
  Stack finished(const Stack& found, bool later) {
    Stack results;
    for (const auto& value : found)
      results.push_back(changed(value, [&](const Tensor& t) -> Tensor {
        std::optional<Tensor> written;  // what a replay has to write
        Tensor mine = t;
        auto one = t.defined() ? known_.find(t.unsafeGetTensorImpl()) : known_.end();
        if (one != known_.end()) {
          mine = one->second;
          const bool stays = t.sizes() == mine.sizes() && t.strides() == mine.strides();
          if (mine.is_cuda() && !stays) mine.resize_(t.sizes());  // `out=` of another size
          if (mine.is_cuda() && (!stays || (!later && mine.numel() && t.data_ptr() != mine.data_ptr()))) written = here(mine);
        } else if (t.defined()) {
          mine = at::empty_strided(t.sizes(), t.strides(), t.options().device(device_));
          written = here(mine);
        }
        if (written && !later) written->copy_(t);
        call_->results.push_back(written);
        return mine;
      }));
    return results;
  }
};

constexpr int64_t FEW = 1 << 18;  // up to so many a run on zeros is quicker than kernels without data, which Python has

int64_t elements(const Stack& given) {
  int64_t count = 0;
  for (const auto& value : given)
    changed(value, [&](const Tensor& t) { return count += t.defined() ? t.numel() : 0, t; });
  return count;
}

const std::set<std::string> MIXED = {"index", "index_put", "_index_put_impl_", "_to_copy", "_pack_padded_sequence",
                                     "_ctc_loss", "tensor_split", "_cudnn_rnn", "set_", "unique_dim"};
// Operators that take tensors of the CPU beside those of the GPU: places, lengths, sizes.

// As the checks that ATen's own kernels begin with.
void check_devices(const std::string& name, const Stack& given, c10::Device device) {
  if (MIXED.count(name)) return;
  for (const auto& value : given)
    changed(value, [&](const Tensor& t) {
      const bool is_number = t.defined() && t.dim() == 0 && t.device().is_cpu();
      TORCH_CHECK(!t.defined() || is_number || t.device() == device,
                  "Expected all tensors to be on the same device, but found at least two devices, ", device, " and ",
                  t.device(), "! (when checking arguments of ", name, ")");
      return t;
    });
}

void by_the_cpu(const c10::OperatorHandle& op, Stack* stack) {
  const size_t first = stack->size() - op.schema().arguments().size();
  Stack given(stack->begin() + first, stack->end());
  const auto device = device_of(given);
  check_devices(op.operator_name().name.substr(6), given, device);
  const c10::cuda::CUDAGuard guard(device);
  const auto stream = c10::cuda::getCurrentCUDAStream();
  const bool captured = c10::cuda::currentStreamCaptureStatusMayInitCtx() != c10::cuda::CaptureStatus::None;
  const bool waits = reads(op.operator_name().name.substr(6), given);  // behind aten::
  if (waits) C10_CUDA_CHECK(cudaStreamSynchronize(stream));
  stack->resize(first);
  Stack found;
  if (simulated_idle() && elements(given) > FEW) {
    found = Issued(op, given, device).never();
  } else if (waits) {
    found = Issued(op, given, device).now();
  } else {
    try {
      found = Issued(op, given, device).later(stream);
    } catch (const c10::Error&) {  // wrong, or with zeros only
      if (captured) throw;
      simulated_drain(stream.stream());
      found = Issued(op, given, device).now();
    }
  }
  stack->insert(stack->end(), found.begin(), found.end());
}

const char* const OWN[] = {
    "empty.memory_format", "empty_strided", "as_strided", "view", "_reshape_alias", "unfold", "view_as_real",
    "view_as_complex", "resize_", "set_", "set_.source_Storage", "set_.source_Storage_storage_offset",
    "set_.source_Tensor", "_local_scalar_dense", "is_pinned", "_pin_memory", "record_stream", "copy_", "is_set_to",
    "_fused_sdp_choice"};

// Between devices by torch, which asks the runtime; on one by the CPU.
void copy_boxed(const c10::OperatorHandle& op, Stack* stack) {
  const auto& from = torch::jit::peek(*stack, 1, 3);
  const auto& to = torch::jit::peek(*stack, 0, 3);
  if (to.toTensor().is_cuda() && to.toTensor().device() == from.toTensor().device()) return by_the_cpu(op, stack);
  Tensor self = to.toTensor(), source = from.toTensor();
  const bool non_blocking = torch::jit::peek(*stack, 2, 3).toBool();
  at::native::copy_(self, source, non_blocking);
  torch::jit::drop(*stack, 3);
  stack->push_back(self);
}

torch::Library* library = nullptr;

}  // namespace

// Puts them in the place of torch's; once per process.
extern "C" void simulated_register() {
  struct Quiet final : c10::WarningHandler {
    void process(const c10::Warning&) override {}
  } quiet;  // that kernels are replaced
  c10::WarningUtils::WarningHandlerGuard guard(&quiet);
  auto& dispatcher = c10::Dispatcher::singleton();
  std::set<std::string> own(std::begin(OWN), std::end(OWN));
  library = new torch::Library(torch::Library::IMPL, "aten", c10::DispatchKey::CUDA, __FILE__, __LINE__);
  for (const auto& name : dispatcher.getRegistrationsForDispatchKey(c10::DispatchKey::CUDA)) {
    const auto full = name.overload_name.empty() ? name.name : name.name + "." + name.overload_name;
    if (full.rfind("aten::", 0) || own.count(full.substr(6))) continue;
    auto op = dispatcher.findSchema(name);
    if (!op || !op->hasComputedKernelForDispatchKey(c10::DispatchKey::CPU)) continue;
    library->impl(full.substr(6).c_str(), torch::CppFunction::makeFromBoxedFunction<&by_the_cpu>());
  }
  library->impl("copy_", torch::CppFunction::makeFromBoxedFunction<&copy_boxed>());
  for (const char* name : {"convolution", "convolution_backward"})
    library->impl(name, torch::CppFunction::makeFromBoxedFunction<&by_the_cpu>());
}
