// torch's operators on a simulated GPU: each one runs on the CPU, in the order of its stream.
//
// Outside of a capture an operator waits for what its stream has to do, then runs. Inside, it is told how large its
// results are by a run on zeros, and it runs at each replay, on the addresses of the recording, which keeps nothing
// alive. What is no kernel (memory, views, copies between devices, scalars) stays torch's own.

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/cuda/CUDAGeneratorImpl.h>
#include <ATen/native/Copy.h>
#include <ATen/ops/copy_native.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGraphsC10Utils.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <optional>
#include <set>
#include <string>
#include <unordered_map>

#include "driver.h"

namespace {

using at::Tensor;
using Stack = torch::jit::Stack;
const c10::Device HERE(c10::kCPU);

// The same memory as a tensor of the CPU, which does not keep it alive.
Tensor here(const Tensor& t) {
  if (!t.defined() || !t.is_cuda() || t.layout() != c10::kStrided) return t;
  c10::Storage storage(c10::Storage::use_byte_size_t(), t.storage().nbytes(),
                       c10::DataPtr(t.storage().mutable_data(), HERE), c10::GetAllocator(c10::kCPU), true);
  auto found = at::detail::make_tensor<c10::TensorImpl>(std::move(storage), c10::DispatchKeySet(c10::DispatchKey::CPU),
                                                        t.dtype());
  auto* impl = found.unsafeGetTensorImpl();
  impl->set_sizes_and_strides(t.sizes(), t.strides(), t.storage_offset());
  if (t.unsafeGetTensorImpl()->is_wrapped_number()) impl->set_wrapped_number(true);
  if (t.is_conj()) found._set_conj(true);
  if (t.is_neg()) found._set_neg(true);
  return found;
}

Tensor zeros_as(const Tensor& t) {
  if (!t.defined() || t.layout() != c10::kStrided) return t;
  auto found = at::empty_strided(t.sizes(), t.strides(), t.options().device(HERE)).zero_();
  if (t.unsafeGetTensorImpl()->is_wrapped_number()) found.unsafeGetTensorImpl()->set_wrapped_number(true);
  if (t.is_conj()) found._set_conj(true);
  if (t.is_neg()) found._set_neg(true);
  return found;
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
    at::AutoDispatchBelowADInplaceOrView below;
    seeded.run([&] { op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), &stack); });
    return stack;
  }

  void replay() const {
    Stack found = run(arguments);
    size_t at = 0;
    for (const auto& value : found)
      changed(value, [&](const Tensor& t) {
        if (t.defined() && results[at]) results[at]->copy_(t);
        ++at;
        return t;
      });
  }
};

const std::set<std::string> READS = {"nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive",
                                     "bincount", "equal", "nonzero_numpy", "unique_dim_consecutive"};
// Operators whose results are as many as the data says.

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

void by_the_cpu(const c10::OperatorHandle& op, Stack* stack) {
  const auto& schema = op.schema();
  const size_t first = stack->size() - schema.arguments().size();
  Stack given(stack->begin() + first, stack->end());
  const auto device = device_of(given);
  const c10::cuda::CUDAGuard guard(device);
  const auto stream = c10::cuda::getCurrentCUDAStream();
  const bool captured = c10::cuda::currentStreamCaptureStatusMayInitCtx() != c10::cuda::CaptureStatus::None;
  const auto& name = op.operator_name().name.substr(6);  // behind aten::
  if (captured && READS.count(name)) C10_CUDA_CHECK(cudaStreamSynchronize(stream));
  auto call = std::make_unique<Call>(Call{op, Seeded(op, given), {}, {}});
  std::unordered_map<c10::TensorImpl*, Tensor> known;  // tensors of the CPU by what they stand for
  for (const auto& value : given)
    call->arguments.push_back(changed(adapted(value), [&](const Tensor& t) { return here(t); }));

  Stack run;
  size_t at = 0;
  std::vector<Tensor> originals;
  for (const auto& value : given)
    changed(value, [&](const Tensor& t) { return originals.push_back(t), t; });
  for (const auto& value : call->arguments)
    run.push_back(changed(value, [&](const Tensor& t) {
      Tensor used = captured && originals[at].defined() && originals[at].is_cuda() ? zeros_as(t) : t;
      if (used.defined()) known.emplace(used.unsafeGetTensorImpl(), originals[at]);
      ++at;
      return used;
    }));
  std::vector<Tensor> held;  // keeps what `known` names
  for (const auto& value : run) changed(value, [&](const Tensor& t) { return held.push_back(t), t; });

  if (!captured) simulated_drain(stream.stream());
  Stack found;
  {
    Stack copy = run;
    if (captured) {
      at::AutoDispatchBelowADInplaceOrView below;
      auto generator = at::detail::getDefaultCPUGenerator();
      const auto old = generator.get_state();
      op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), &copy);
      generator.set_state(old);
      found = std::move(copy);
    } else {
      found = call->run(std::move(copy));
    }
  }

  stack->resize(first);
  for (const auto& value : found)
    stack->push_back(changed(value, [&](const Tensor& t) -> Tensor {
      if (!t.defined()) return call->results.push_back(std::nullopt), t;
      auto one = known.find(t.unsafeGetTensorImpl());
      if (one != known.end()) {
        const Tensor& mine = one->second;
        if (!mine.is_cuda()) return call->results.push_back(std::nullopt), mine;
        const bool stays = t.sizes() == mine.sizes() && t.strides() == mine.strides();
        if (!stays) {  // `out=` of another size
          mine.resize_(t.sizes());
          if (!captured) here(mine).copy_(t);
          call->results.push_back(here(mine));
        } else {
          if (!captured && mine.numel() && t.data_ptr() != mine.data_ptr()) here(mine).copy_(t);
          call->results.push_back(std::nullopt);
        }
        return mine;
      }
      Tensor mine = at::empty_strided(t.sizes(), t.strides(), t.options().device(device));
      Tensor theirs = here(mine);
      if (!captured) theirs.copy_(t);
      call->results.push_back(theirs);
      return mine;
    }));
  if (captured) {
    auto run_again = [](void* data) { static_cast<Call*>(data)->replay(); };
    auto drop = [](void* data) { delete static_cast<Call*>(data); };
    C10_CUDA_CHECK(static_cast<cudaError_t>(simulated_enqueue(stream.stream(), run_again, call.release(), drop)));
  }
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
  if (to.toTensor().is_cuda() && from.toTensor().is_cuda()) return by_the_cpu(op, stack);
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
