#include "queues.h"

#include <sys/mman.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>

extern "C" {
int PyGILState_Check(void) __attribute__((weak));
int Py_IsInitialized(void) __attribute__((weak));
void* PyEval_SaveThread(void) __attribute__((weak));
void PyEval_RestoreThread(void*) __attribute__((weak));
}

namespace simulated {
namespace {

int number(const char* name, int otherwise) {
  const char* text = std::getenv(name);
  return text ? std::atoi(text) : otherwise;
}

}  // namespace

const int devices = number("GRAPHC_SIMULATED_GPUS", 1);
const int capability = number("GRAPHC_SIMULATED_CAPABILITY", 80);
const bool idle = number("GRAPHC_SIMULATED_IDLE", 0);
const size_t total = size_t(number("GRAPHC_SIMULATED_GIB", 16)) << 30;

std::recursive_mutex mutex;
std::map<uintptr_t, Block> blocks;
size_t used[MOST_DEVICES];
std::set<Stream*> streams;
std::map<cudaEvent_t, std::shared_ptr<Event>> events;
std::set<std::shared_ptr<Capture>> captures;
thread_local int current = 0;
thread_local bool attached = false;
thread_local cudaError_t last = cudaSuccess;
cudaError_t broken = cudaSuccess;
thread_local cudaStreamCaptureMode thread_mode = cudaStreamCaptureModeGlobal;

bool has_python() { return Py_IsInitialized && Py_IsInitialized() && PyGILState_Check(); }

Locked::Locked() {
  if (mutex.try_lock()) return;
  void* state = has_python() ? PyEval_SaveThread() : nullptr;
  mutex.lock();
  if (state) PyEval_RestoreThread(state);
}

cudaError_t say(cudaError_t code) {
  if (code != cudaSuccess) last = code;
  return code;
}

cudaError_t refuse(const char* what) {
  std::fprintf(stderr, "simulated driver: %s is not simulated\n", what);
  return say(cudaErrorNotSupported);
}

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

Stream* default_stream(int device) {
  static Stream* made[MOST_DEVICES];
  if (!made[device]) {
    made[device] = new Stream{device};
    streams.insert(made[device]);
  }
  return made[device];
}

bool is_default(cudaStream_t stream) { return stream == nullptr || stream == cudaStreamLegacy; }

Stream* find(cudaStream_t stream) {
  if (is_default(stream) || stream == cudaStreamPerThread) return default_stream(current);
  auto* found = reinterpret_cast<Stream*>(stream);
  return streams.count(found) ? found : nullptr;
}

void drain_until(const Point& point) {
  Stream* where = point.where;
  while (!point.reached && !where->queue.empty()) {
    Item item = std::move(where->queue.front());
    where->queue.pop_front();
    if (item.wait) drain_until(*item.wait);
    if (item.run) item.run();
    if (item.reach) {
      item.reach->reached = true;
      item.reach->at = now();
    }
  }
}

void drain(Stream* stream) { drain_until(Point{stream}); }

void drain_device(int device) {
  for (Stream* stream : std::vector<Stream*>(streams.begin(), streams.end()))
    if (stream->device == device && streams.count(stream)) drain(stream);
}

void order(Stream* stream) {
  if (!stream->blocking) return;
  Stream* first = default_stream(stream->device);
  if (stream != first) return drain(first);
  for (Stream* other : std::vector<Stream*>(streams.begin(), streams.end()))
    if (other != first && other->device == first->device && other->blocking) drain(other);
}

cudaError_t unsafe() {
  if (thread_mode == cudaStreamCaptureModeRelaxed) return cudaSuccess;
  for (auto& capture : captures) {
    const bool own = capture->thread == std::this_thread::get_id() && capture->mode != cudaStreamCaptureModeRelaxed;
    const bool any = capture->mode == cudaStreamCaptureModeGlobal && thread_mode == cudaStreamCaptureModeGlobal;
    if (own || any) {
      capture->broken = true;
      return say(cudaErrorStreamCaptureUnsupported);
    }
  }
  return cudaSuccess;
}

cudaError_t implicit(Stream* stream) {
  for (auto& capture : captures)
    if (!stream->capture && stream == default_stream(stream->device))
      for (Stream* other : capture->joined)
        if (other->blocking && other->device == stream->device) {
          capture->broken = true;
          return say(cudaErrorStreamCaptureImplicit);
        }
  return cudaSuccess;
}

cudaError_t enqueue(Stream* stream, Work work) {
  if (broken) return say(broken);
  if (!stream) return say(cudaErrorInvalidResourceHandle);
  if (auto code = implicit(stream)) return code;
  if (idle) work = [] {};
  if (stream->capture) {
    if (stream->capture->broken) return say(cudaErrorStreamCaptureInvalidated);
    stream->capture->graph->nodes.push_back(std::move(work));
    if (stream != stream->capture->origin) stream->capture->unjoined.insert(stream);
    return cudaSuccess;
  }
  if (idle) return cudaSuccess;
  order(stream);
  stream->queue.push_back({std::move(work)});
  return cudaSuccess;
}

cudaError_t wait_for(Stream* stream) {
  if (!stream) return say(cudaErrorInvalidResourceHandle);
  if (stream->capture) {
    stream->capture->broken = true;
    return say(cudaErrorStreamCaptureUnsupported);
  }
  if (auto code = implicit(stream)) return code;
  order(stream);
  drain(stream);
  return say(broken);
}

const Block* block_of(const void* address) {
  auto after = blocks.upper_bound(reinterpret_cast<uintptr_t>(address));
  if (after == blocks.begin()) return nullptr;
  --after;
  if (reinterpret_cast<uintptr_t>(address) - after->first >= after->second.size) return nullptr;
  return &after->second;
}

cudaError_t take(void** found, size_t size, int device) {
  const size_t rounded = (size + 511) / 512 * 512;
  const size_t taken = rounded ? rounded : 512;
  if (device >= 0 && used[device] + taken > total) return say(cudaErrorMemoryAllocation);
  *found = mmap(nullptr, taken, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (*found == MAP_FAILED) return say(cudaErrorMemoryAllocation);
  if (!idle) std::memset(*found, 0xFF, std::min(rounded, size_t(1) << 26));  // a NaN, whoever reads it
  blocks[reinterpret_cast<uintptr_t>(*found)] = {taken, device};
  if (device >= 0) used[device] += taken;
  return cudaSuccess;
}

cudaError_t give(void* address) {
  if (!address) return cudaSuccess;
  auto found = blocks.find(reinterpret_cast<uintptr_t>(address));
  if (found == blocks.end()) return say(cudaErrorInvalidValue);
  if (found->second.device >= 0) used[found->second.device] -= found->second.size;
  std::shared_ptr<void> held(address, [size = found->second.size](void* memory) {
    blocks.erase(reinterpret_cast<uintptr_t>(memory));
    munmap(memory, size);
  });
  for (Stream* stream : streams)
    if (!stream->queue.empty()) stream->queue.push_back({[held] {}});
  return cudaSuccess;
}

cudaError_t copy(void* to, const void* from, size_t size, cudaStream_t where) {
  Stream* stream = find(where);
  if (!stream) return say(cudaErrorInvalidResourceHandle);
  const Block *target = block_of(to), *source = block_of(from);
  if (!target || !source) {  // memory of the host that is not locked
    if (stream->capture) {
      stream->capture->broken = true;
      return say(cudaErrorStreamCaptureUnsupported);
    }
    if (!target) {
      if (auto code = wait_for(stream)) return code;
      idle ? std::memset(to, 0, size) : std::memcpy(to, from, size);
      return cudaSuccess;
    }
    if (idle) return enqueue(stream, nullptr);
    auto held = std::make_shared<std::vector<char>>(size);
    std::memcpy(held->data(), from, size);
    return enqueue(stream, [=] { std::memcpy(to, held->data(), size); });
  }
  return enqueue(stream, [=] { std::memmove(to, from, size); });
}

}  // namespace simulated
