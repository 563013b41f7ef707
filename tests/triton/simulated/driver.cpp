// The CUDA driver beside `runtime.cpp`: contexts, modules and launches. A kernel is the PTX that was loaded as its module;
// a function that the process sets executes it.
//
// Source: CUDA Driver API 13.0, NVIDIA.

#include "driver.h"

#include <cuda.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>

#include "queues.h"

using namespace simulated;

namespace {

struct Function {
  std::string text, name;
  std::vector<size_t> sizes;  // bytes of its parameters
};

simulated_launcher_t launcher = nullptr;

size_t size_of(const std::string& declaration) {
  const auto open = declaration.rfind('[');
  const size_t count = open == std::string::npos ? 1 : std::atoi(declaration.c_str() + open + 1);
  for (auto [text, size] : {std::pair("64 ", 8), {"32 ", 4}, {"16 ", 2}, {"8 ", 1}})
    for (const char* kind : {".u", ".s", ".b", ".f"})
      if (declaration.find(std::string(kind) + text) != std::string::npos) return size * count;
  return 8;
}

std::vector<size_t> parameters(const std::string& text) {
  std::vector<size_t> found;
  const auto entry = text.find(".entry");
  const auto open = text.find('(', entry), close = text.find(')', open);
  for (auto at = text.find(".param", open); at < close; at = text.find(".param", at + 1)) {
    auto end = std::min(text.find(',', at), close);
    found.push_back(size_of(text.substr(at, end - at)));
  }
  return found;
}

CUresult launch(CUfunction which, const unsigned* grid, const unsigned* block, unsigned shared, CUstream where,
                void** values) {
  if (!attached) return CUDA_ERROR_INVALID_CONTEXT;
  auto* function = reinterpret_cast<Function*>(which);
  Locked locked;
  Stream* stream = find(reinterpret_cast<cudaStream_t>(where));
  if (!stream) return CUDA_ERROR_INVALID_HANDLE;
  if (!grid[0] || !grid[1] || !grid[2] || grid[1] > 65535 || grid[2] > 65535) return CUDA_ERROR_INVALID_VALUE;
  if (idle) return static_cast<CUresult>(enqueue(stream, nullptr));
  size_t bytes = 0;
  for (size_t size : function->sizes) bytes += (size + 7) / 8 * 8;
  auto held = std::make_shared<std::vector<uint64_t>>(bytes / 8);
  auto* to = held->data();
  for (size_t at = 0; at < function->sizes.size(); ++at) {
    std::memcpy(to, values[at], function->sizes[at]);
    to += (function->sizes[at] + 7) / 8;
  }
  const std::array<unsigned, 6> shape{grid[0], grid[1], grid[2], block[0], block[1], block[2]};
  auto code = enqueue(stream, [=] {
    if (broken || !launcher) return;
    if (launcher(function->text.c_str(), shape.data(), shared, held->data(), held->size()))
      broken = cudaErrorIllegalAddress;
  });
  return static_cast<CUresult>(code);
}

}  // namespace

extern "C" {

void simulated_set_launcher(simulated_launcher_t run) { launcher = run; }

CUresult cuInit(unsigned) { return CUDA_SUCCESS; }
CUresult cuDriverGetVersion(int* version) { return *version = 13000, CUDA_SUCCESS; }
CUresult cuDeviceGetCount(int* count) { return *count = devices, CUDA_SUCCESS; }
CUresult cuDeviceGet(CUdevice* found, int number) {
  if (number < 0 || number >= devices) return CUDA_ERROR_INVALID_DEVICE;
  return *found = number, CUDA_SUCCESS;
}
CUresult cuDeviceGetName(char* text, int size, CUdevice) {
  return std::snprintf(text, size, "simulated GPU sm_%d", capability), CUDA_SUCCESS;
}
CUresult cuDevicePrimaryCtxGetState(CUdevice, unsigned* flags, int* active) {
  return *flags = 0, *active = 1, CUDA_SUCCESS;
}
CUresult cuDevicePrimaryCtxRetain(CUcontext* found, CUdevice device) {
  return *found = reinterpret_cast<CUcontext>(uintptr_t(device + 1)), CUDA_SUCCESS;
}
CUresult cuDevicePrimaryCtxRelease(CUdevice) { return CUDA_SUCCESS; }
CUresult cuCtxGetCurrent(CUcontext* found) {
  return *found = attached ? reinterpret_cast<CUcontext>(uintptr_t(current + 1)) : nullptr, CUDA_SUCCESS;
}
CUresult cuCtxSetCurrent(CUcontext context) {
  attached = context != nullptr;
  if (attached) current = int(reinterpret_cast<uintptr_t>(context)) - 1;
  return CUDA_SUCCESS;
}
CUresult cuCtxGetDevice(CUdevice* device) {
  if (!attached) return CUDA_ERROR_INVALID_CONTEXT;
  return *device = current, CUDA_SUCCESS;
}
CUresult cuCtxGetLimit(size_t* value, CUlimit) { return *value = 0, CUDA_SUCCESS; }
CUresult cuCtxSetLimit(CUlimit, size_t) { return CUDA_SUCCESS; }
CUresult cuModuleLoadData(CUmodule* found, const void* image) {
  if (!attached) return CUDA_ERROR_INVALID_CONTEXT;
  const char* text = static_cast<const char*>(image);
  if (idle) return *found = reinterpret_cast<CUmodule>(new Function), CUDA_SUCCESS;  // what an assembler has made
  if (std::memcmp(text, "//", 2) && std::memcmp(text, ".version", 8) && !std::strstr(text, ".version"))
    return CUDA_ERROR_INVALID_IMAGE;
  *found = reinterpret_cast<CUmodule>(new Function{text});
  return CUDA_SUCCESS;
}
CUresult cuModuleLoad(CUmodule* found, const char* path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return CUDA_ERROR_FILE_NOT_FOUND;
  return cuModuleLoadData(found, std::string(std::istreambuf_iterator<char>(file), {}).c_str());
}
CUresult cuModuleGetFunction(CUfunction* found, CUmodule module, const char* name) {
  auto* function = reinterpret_cast<Function*>(module);
  if (idle) return *found = reinterpret_cast<CUfunction>(function), CUDA_SUCCESS;
  if (function->text.find(std::string(".entry ") + name) == std::string::npos) return CUDA_ERROR_NOT_FOUND;
  function->name = name;
  function->sizes = parameters(function->text);
  *found = reinterpret_cast<CUfunction>(function);
  return CUDA_SUCCESS;
}
CUresult cuModuleUnload(CUmodule) { return CUDA_SUCCESS; }
CUresult cuFuncGetAttribute(int* value, CUfunction_attribute which, CUfunction) {
  *value = which == CU_FUNC_ATTRIBUTE_NUM_REGS ? 32 : which == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : 0;
  return CUDA_SUCCESS;
}
CUresult cuFuncSetAttribute(CUfunction, CUfunction_attribute, int) { return CUDA_SUCCESS; }
CUresult cuFuncSetCacheConfig(CUfunction, CUfunc_cache) { return CUDA_SUCCESS; }
CUresult cuOccupancyMaxActiveClusters(int* count, CUfunction, const CUlaunchConfig*) { return *count = 1, CUDA_SUCCESS; }
CUresult cuGetErrorName(CUresult code, const char** text) {
  return *text = cudaGetErrorName(static_cast<cudaError_t>(code)), CUDA_SUCCESS;
}
CUresult cuGetErrorString(CUresult code, const char** text) {
  return *text = cudaGetErrorString(static_cast<cudaError_t>(code)), CUDA_SUCCESS;
}
CUresult cuPointerGetAttribute(void* found, CUpointer_attribute which, CUdeviceptr address) {
  Locked locked;
  const Block* block = block_of(reinterpret_cast<void*>(address));
  if (!block) return CUDA_ERROR_INVALID_VALUE;
  if (which == CU_POINTER_ATTRIBUTE_DEVICE_POINTER) return *static_cast<CUdeviceptr*>(found) = address, CUDA_SUCCESS;
  if (which == CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL) return *static_cast<int*>(found) = block->device, CUDA_SUCCESS;
  return CUDA_ERROR_INVALID_VALUE;
}
CUresult cuLaunchKernel(CUfunction which, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                        unsigned shared, CUstream stream, void** values, void** extra) {
  if (extra) return CUDA_ERROR_NOT_SUPPORTED;
  const unsigned grid[] = {gx, gy, gz}, block[] = {bx, by, bz};
  return launch(which, grid, block, shared, stream, values);
}
CUresult cuLaunchKernelEx(const CUlaunchConfig* config, CUfunction which, void** values, void** extra) {
  if (extra) return CUDA_ERROR_NOT_SUPPORTED;
  const unsigned grid[] = {config->gridDimX, config->gridDimY, config->gridDimZ};
  const unsigned block[] = {config->blockDimX, config->blockDimY, config->blockDimZ};
  return launch(which, grid, block, config->sharedMemBytes, config->hStream, values);
}

}  // extern "C"
