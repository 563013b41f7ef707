// The CUDA runtime for a machine without a GPU, for tests: loaded before the real one, it takes its calls.
//
// Memory is the CPU's. Work waits in the queue of its stream until somebody waits for it, as late as the documentation
// allows, so that a missing wait shows. Captures take work instead, and refuse what captures refuse. Kernels of torch's
// own libraries are errors: `operators.cpp` runs torch's operators.
//
// Source: CUDA Runtime API 13.0, NVIDIA.

#include <cuda.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <string>

#include "driver.h"
#include "queues.h"

using namespace simulated;

namespace {

std::map<const void*, std::string> torch_kernels;
unsigned long long capture_count = 0;

std::shared_ptr<Event> known(cudaEvent_t event) {
  auto found = events.find(event);
  return found == events.end() ? nullptr : found->second;
}

}  // namespace

extern "C" {

// ---- for the tests

void simulated_drain(cudaStream_t stream) {
  Locked locked;
  order(find(stream));
  drain(find(stream));
}

int simulated_enqueue(cudaStream_t stream, int (*run)(void*), void* data, void (*drop)(void*)) {
  Locked locked;
  std::shared_ptr<void> held(data, drop);
  return enqueue(find(stream), [run, held] {
    if (!broken && run(held.get())) broken = cudaErrorAssert;
  });
}

bool simulated_idle() { return idle; }

size_t simulated_blocks(uint64_t* found, size_t room) {
  Locked locked;
  size_t count = 0;
  for (auto& [start, block] : blocks) {
    if (count < room) found[2 * count] = start, found[2 * count + 1] = block.size;
    ++count;
  }
  return count;
}

// ---- devices

cudaError_t cudaGetDeviceCount(int* count) { return *count = devices, cudaSuccess; }
cudaError_t cudaGetDevice(int* device) { return *device = current, cudaSuccess; }
cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= devices) return say(cudaErrorInvalidDevice);
  current = device;
  attached = true;
  return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* version) { return *version = 13000, cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int* version) { return *version = 13000, cudaSuccess; }
cudaError_t cudaGetLastError() {
  auto code = last;
  last = cudaSuccess;
  return code;
}
cudaError_t cudaPeekAtLastError() { return last; }

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int device) {
  if (device < 0 || device >= devices) return say(cudaErrorInvalidDevice);
  std::memset(p, 0, sizeof *p);
  std::snprintf(p->name, sizeof p->name, "simulated GPU sm_%d", capability);
  p->totalGlobalMem = total;
  p->sharedMemPerBlock = 48 << 10;
  p->sharedMemPerBlockOptin = capability >= 90 ? 232448 : 166912;
  p->sharedMemPerMultiprocessor = p->sharedMemPerBlockOptin + 1024;
  p->regsPerBlock = p->regsPerMultiprocessor = 65536;
  p->warpSize = 32;
  p->maxThreadsPerBlock = 1024;
  p->maxThreadsPerMultiProcessor = 2048;
  p->maxBlocksPerMultiProcessor = 32;
  p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024, p->maxThreadsDim[2] = 64;
  p->maxGridSize[0] = 2147483647, p->maxGridSize[1] = p->maxGridSize[2] = 65535;
  p->major = capability / 10, p->minor = capability % 10;
  p->multiProcessorCount = 108;
  p->l2CacheSize = 40 << 20;
  p->memoryBusWidth = 5120;
  p->textureAlignment = 512;
  p->concurrentKernels = p->unifiedAddressing = p->canMapHostMemory = p->cooperativeLaunch = 1;
  p->pciBusID = device + 1;
  std::memset(&p->uuid, device + 1, sizeof p->uuid);
  return cudaSuccess;
}

CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute which, CUdevice device) {
  cudaDeviceProp p;
  if (cudaGetDeviceProperties(&p, device)) return CUDA_ERROR_INVALID_DEVICE;
  switch (which) {
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: *value = p.sharedMemPerBlockOptin; break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK: *value = p.sharedMemPerBlock; break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR: *value = p.sharedMemPerMultiprocessor; break;
    case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK: *value = p.regsPerBlock; break;
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK: *value = p.maxThreadsPerBlock; break;
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: *value = p.multiProcessorCount; break;
    case CU_DEVICE_ATTRIBUTE_WARP_SIZE: *value = 32; break;
    case CU_DEVICE_ATTRIBUTE_CLOCK_RATE: *value = 1410000; break;
    case CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE: *value = 1215000; break;
    case CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH: *value = p.memoryBusWidth; break;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: *value = p.major; break;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: *value = p.minor; break;
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR: *value = p.maxThreadsPerMultiProcessor; break;
    default: *value = 0;
  }
  return CUDA_SUCCESS;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int device) {
  return static_cast<cudaError_t>(cuDeviceGetAttribute(value, static_cast<CUdevice_attribute>(which), device));
}

cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  if (least) *least = 0;
  if (greatest) *greatest = -5;
  return cudaSuccess;
}
cudaError_t cudaDeviceCanAccessPeer(int* can, int, int) { return *can = 1, cudaSuccess; }
cudaError_t cudaDeviceEnablePeerAccess(int, unsigned) { return cudaSuccess; }
cudaError_t cudaDeviceGetPCIBusId(char* text, int size, int device) {
  return std::snprintf(text, size, "0000:%02x:00.0", device + 1), cudaSuccess;
}

cudaError_t cudaDeviceSynchronize() {
  Locked locked;
  if (auto code = unsafe()) return code;
  drain_device(current);
  return say(broken);
}

// ---- memory

cudaError_t cudaMalloc(void** found, size_t size) {
  Locked locked;
  if (auto code = unsafe()) return code;
  return take(found, size, current);
}
cudaError_t cudaFree(void* address) {
  Locked locked;
  if (!address) return cudaSuccess;
  if (auto code = unsafe()) return code;
  return give(address);
}
cudaError_t cudaHostAlloc(void** found, size_t size, unsigned) {
  Locked locked;
  if (auto code = unsafe()) return code;
  return take(found, size, -1);
}
cudaError_t cudaFreeHost(void* address) {
  Locked locked;
  if (auto code = unsafe()) return code;
  return give(address);
}
cudaError_t cudaHostRegister(void* address, size_t size, unsigned) {
  Locked locked;
  blocks[reinterpret_cast<uintptr_t>(address)] = {size, -1};
  return cudaSuccess;
}
cudaError_t cudaHostUnregister(void* address) {
  Locked locked;
  blocks.erase(reinterpret_cast<uintptr_t>(address));
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t* free, size_t* all) {
  Locked locked;
  *all = total;
  *free = total - used[current];
  return cudaSuccess;
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* found, const void* address) {
  Locked locked;
  std::memset(found, 0, sizeof *found);
  const Block* block = block_of(address);
  found->type = !block ? cudaMemoryTypeUnregistered : block->device < 0 ? cudaMemoryTypeHost : cudaMemoryTypeDevice;
  found->device = block ? std::max(block->device, 0) : -1;
  if (block) found->devicePointer = const_cast<void*>(address);
  if (block && block->device < 0) found->hostPointer = const_cast<void*>(address);
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t size, cudaMemcpyKind, cudaStream_t stream) {
  Locked locked;
  return copy(to, from, size, stream);
}
cudaError_t cudaMemcpyPeerAsync(void* to, int, const void* from, int, size_t size, cudaStream_t stream) {
  Locked locked;
  return copy(to, from, size, stream);
}
cudaError_t cudaMemcpy(void* to, const void* from, size_t size, cudaMemcpyKind) {
  Locked locked;
  if (auto code = unsafe()) return code;
  if (auto code = copy(to, from, size, nullptr)) return code;
  return wait_for(find(nullptr));
}
cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width,
                              size_t height, cudaMemcpyKind, cudaStream_t stream) {
  Locked locked;
  for (size_t row = 0; row < height; ++row)
    if (auto code = copy(static_cast<char*>(to) + row * to_pitch, static_cast<const char*>(from) + row * from_pitch,
                         width, stream))
      return code;
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* to, int value, size_t size, cudaStream_t stream) {
  Locked locked;
  return enqueue(find(stream), [=] { std::memset(to, value, size); });
}
cudaError_t cudaMemset(void* to, int value, size_t size) {
  Locked locked;
  if (auto code = unsafe()) return code;
  return enqueue(find(nullptr), [=] { std::memset(to, value, size); });
}

// ---- streams

cudaError_t cudaStreamCreateWithPriority(cudaStream_t* found, unsigned flags, int) {
  Locked locked;
  auto* made = new Stream{current, !(flags & cudaStreamNonBlocking)};
  streams.insert(made);
  *found = reinterpret_cast<cudaStream_t>(made);
  return cudaSuccess;
}
cudaError_t cudaStreamCreate(cudaStream_t* found) { return cudaStreamCreateWithPriority(found, 0, 0); }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* found, unsigned flags) {
  return cudaStreamCreateWithPriority(found, flags, 0);
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  Locked locked;
  Stream* found = find(stream);
  if (!found) return say(cudaErrorInvalidResourceHandle);
  drain(found);
  streams.erase(found);  // events may know it still
  return cudaSuccess;
}
cudaError_t cudaStreamGetPriority(cudaStream_t, int* priority) { return *priority = 0, cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  Locked locked;
  return wait_for(find(stream));
}
cudaError_t cudaStreamQuery(cudaStream_t stream) {
  Locked locked;
  Stream* found = find(stream);
  if (!found) return say(cudaErrorInvalidResourceHandle);
  if (found->capture) return found->capture->broken = true, say(cudaErrorStreamCaptureUnsupported);
  if (!found->queue.empty() && (++found->asked % POLLS || !has_python())) return cudaErrorNotReady;
  drain(found);
  return cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t which, unsigned) {
  Locked locked;
  Stream* found = find(stream);
  auto event = known(which);
  if (!found || !event) return say(cudaErrorInvalidResourceHandle);
  if (auto code = implicit(found)) return code;
  if (event->capture) {
    if (found->capture && found->capture != event->capture) return say(cudaErrorStreamCaptureMerge);
    if (!found->capture) found->capture = event->capture;
    event->capture->joined.insert(found);
    if (found == event->capture->origin) event->capture->unjoined.erase(event->where);
    return cudaSuccess;
  }
  if (found->capture) {
    found->capture->broken = true;
    return say(cudaErrorStreamCaptureIsolation);
  }
  if (event->last && !event->last->reached) found->queue.push_back({nullptr, nullptr, event->last});
  return cudaSuccess;
}
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t run, void* data) {
  Locked locked;
  if (idle) run(data);
  return enqueue(find(stream), [=] { run(data); });
}
cudaError_t cudaStreamAddCallback(cudaStream_t stream, cudaStreamCallback_t run, void* data, unsigned) {
  Locked locked;
  if (idle) run(stream, cudaSuccess, data);
  return enqueue(find(stream), [=] { run(stream, cudaSuccess, data); });
}

// ---- events

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* found, unsigned) {
  Locked locked;
  auto made = std::make_shared<Event>();
  *found = reinterpret_cast<cudaEvent_t>(made.get());
  events[*found] = made;
  return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t* found) { return cudaEventCreateWithFlags(found, 0); }
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  Locked locked;
  return events.erase(event) ? cudaSuccess : say(cudaErrorInvalidResourceHandle);
}
cudaError_t cudaEventRecordWithFlags(cudaEvent_t which, cudaStream_t stream, unsigned) {
  Locked locked;
  Stream* found = find(stream);
  auto event = known(which);
  if (!found || !event) return say(cudaErrorInvalidResourceHandle);
  if (auto code = implicit(found)) return code;
  event->where = found;
  event->capture = found->capture;
  event->asked = 0;
  if (found->capture) return found->capture->joined.insert(found), cudaSuccess;
  order(found);
  event->last = std::make_shared<Point>(Point{found});
  if (idle) return event->last->reached = true, event->last->at = now(), cudaSuccess;
  found->queue.push_back({nullptr, event->last, nullptr});
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  return cudaEventRecordWithFlags(event, stream, 0);
}
cudaError_t cudaEventQuery(cudaEvent_t which) {
  Locked locked;
  auto event = known(which);
  if (!event) return say(cudaErrorInvalidResourceHandle);
  if (event->capture && captures.count(event->capture)) {
    event->capture->broken = true;
    return say(cudaErrorCapturedEvent);
  }
  if (auto code = unsafe()) return code;
  if (!event->last || event->last->reached) return cudaSuccess;
  if (++event->asked % POLLS || !has_python()) return cudaErrorNotReady;
  drain_until(*event->last);
  return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t which) {
  Locked locked;
  auto event = known(which);
  if (!event) return say(cudaErrorInvalidResourceHandle);
  if (event->capture && captures.count(event->capture)) return say(cudaErrorCapturedEvent);
  if (auto code = unsafe()) return code;
  if (event->last) drain_until(*event->last);
  return say(broken);
}
cudaError_t cudaEventElapsedTime(float* found, cudaEvent_t first, cudaEvent_t second) {
  Locked locked;
  for (auto& event : {known(first), known(second)}) {
    if (!event || !event->last) return say(cudaErrorInvalidResourceHandle);
    if (!event->last->reached) return cudaErrorNotReady;
  }
  *found = (known(second)->last->at - known(first)->last->at) * 1e3;
  return cudaSuccess;
}

// ---- captures and graphs

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  Locked locked;
  if (is_default(stream)) return say(cudaErrorStreamCaptureUnsupported);
  Stream* found = find(stream);
  if (!found) return say(cudaErrorInvalidResourceHandle);
  if (found->capture) return say(cudaErrorIllegalState);
  auto made = std::make_shared<Capture>();
  made->id = ++capture_count, made->origin = found, made->mode = mode, made->thread = std::this_thread::get_id();
  made->joined.insert(found);
  found->capture = made;
  captures.insert(made);
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  Locked locked;
  Stream* found = find(stream);
  *graph = nullptr;
  if (!found || !found->capture) return say(cudaErrorIllegalState);
  auto capture = found->capture;
  if (found != capture->origin) return say(cudaErrorStreamCaptureUnmatched);
  if (capture->mode != cudaStreamCaptureModeRelaxed && capture->thread != std::this_thread::get_id())
    return say(cudaErrorStreamCaptureWrongThread);
  for (Stream* other : capture->joined)
    if (other->capture == capture) other->capture = nullptr;
  captures.erase(capture);
  if (capture->broken) return say(cudaErrorStreamCaptureInvalidated);
  if (!capture->unjoined.empty()) return say(cudaErrorStreamCaptureUnjoined);
  *graph = reinterpret_cast<cudaGraph_t>(new std::shared_ptr<Graph>(capture->graph));
  return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  Locked locked;
  Stream* found = find(stream);
  if (!found) return say(cudaErrorInvalidResourceHandle);
  if (auto code = implicit(found)) return code;
  *status = !found->capture            ? cudaStreamCaptureStatusNone
            : found->capture->broken ? cudaStreamCaptureStatusInvalidated
                                     : cudaStreamCaptureStatusActive;
  return cudaSuccess;
}

cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, cudaStreamCaptureStatus* status, unsigned long long* id,
                                     cudaGraph_t* graph, const cudaGraphNode_t** nodes, const cudaGraphEdgeData** edges,
                                     size_t* count) {
  if (auto code = cudaStreamIsCapturing(stream, status)) return code;
  Locked locked;
  if (id) *id = find(stream)->capture ? find(stream)->capture->id : 0;
  if (graph) *graph = nullptr;
  if (nodes) *nodes = nullptr;
  if (edges) *edges = nullptr;
  if (count) *count = 0;
  return cudaSuccess;
}

cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  std::swap(*mode, thread_mode);
  return cudaSuccess;
}

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t*, size_t* count) {
  *count = (*reinterpret_cast<std::shared_ptr<Graph>*>(graph))->nodes.size();
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* found, cudaGraph_t graph, unsigned long long) {
  *found = reinterpret_cast<cudaGraphExec_t>(new Exec{*reinterpret_cast<std::shared_ptr<Graph>*>(graph)});
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t which, cudaStream_t stream) {
  Locked locked;
  auto graph = reinterpret_cast<Exec*>(which)->graph;
  return enqueue(find(stream), [graph] {
    for (auto& node : graph->nodes) node();
  });
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete reinterpret_cast<std::shared_ptr<Graph>*>(graph);
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t which) {
  Locked locked;
  delete reinterpret_cast<Exec*>(which);
  return cudaSuccess;
}

// ---- kernels of torch's libraries

void __cudaRegisterFunction(void** handle, const char* host, char* device, const char* name, int limit, void* a,
                            void* b, void* c, void* d, int* e) {
  using Next = void (*)(void**, const char*, char*, const char*, int, void*, void*, void*, void*, int*);
  static auto next = reinterpret_cast<Next>(dlsym(RTLD_NEXT, "__cudaRegisterFunction"));
  torch_kernels[host] = name;
  if (next) next(handle, host, device, name, limit, a, b, c, d, e);
}
cudaError_t cudaLaunchKernel(const void* which, dim3, dim3, void**, size_t, cudaStream_t) {
  auto found = torch_kernels.find(which);
  return refuse(found == torch_kernels.end() ? "a kernel" : found->second.c_str());
}
cudaError_t __cudaGetKernel(cudaKernel_t* found, const void* which) {
  *found = reinterpret_cast<cudaKernel_t>(const_cast<void*>(which));
  return cudaSuccess;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t which, dim3 grid, dim3 block, void** values, size_t shared,
                               cudaStream_t stream) {
  return cudaLaunchKernel(which, grid, block, values, shared, stream);
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t*, const void* which, void** values) {
  return cudaLaunchKernel(which, {}, {}, values, 0, nullptr);
}
cudaError_t cudaLaunchCooperativeKernel(const void* which, dim3 grid, dim3 block, void** values, size_t shared,
                                        cudaStream_t stream) {
  return cudaLaunchKernel(which, grid, block, values, shared, stream);
}
cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** found, unsigned, unsigned long long,
                                             cudaDriverEntryPointQueryResult* status) {
  *found = dlsym(RTLD_DEFAULT, name);
  if (status) *status = *found ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  return cudaSuccess;
}

}  // extern "C"
