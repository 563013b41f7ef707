// Memory, streams, events and captures of the simulated GPUs, and the queues in which work waits until it is waited for.

#pragma once

#include <cuda_runtime_api.h>

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <thread>
#include <vector>

namespace simulated {

using Work = std::function<void()>;
constexpr int MOST_DEVICES = 8;
constexpr int POLLS = 3;  // of so many questions whether something is done, all but the last are answered with no

extern const int devices, capability;
extern const bool idle;     // the devices take all work and do none of it
extern const size_t total;  // bytes of each device

struct Stream;
struct Graph {
  std::vector<Work> nodes;
};
struct Exec {
  std::shared_ptr<Graph> graph;
};

struct Capture {
  unsigned long long id;
  Stream* origin;
  cudaStreamCaptureMode mode;
  std::thread::id thread;
  std::set<Stream*> joined;    // streams that took part
  std::set<Stream*> unjoined;  // and whose last work nobody in the origin has waited for
  std::shared_ptr<Graph> graph = std::make_shared<Graph>();
  bool broken = false;
};

// A place in a stream: where an event has been recorded.
struct Point {
  Stream* where;
  bool reached = false;
  double at = 0;
};

struct Event {
  std::shared_ptr<Point> last;        // null: it has not been recorded
  Stream* where = nullptr;            // of the newest record, captured ones too
  std::shared_ptr<Capture> capture;
  int asked = 0;
};

struct Item {
  Work run;
  std::shared_ptr<Point> reach, wait;
};

struct Stream {
  int device = 0;
  bool blocking = true;  // waits for the default stream, and that for it
  std::deque<Item> queue;
  std::shared_ptr<Capture> capture;
  int asked = 0;
};

struct Block {
  size_t size;
  int device;  // -1: memory of the host
};

extern std::recursive_mutex mutex;
extern std::map<uintptr_t, Block> blocks;  // by address
extern size_t used[MOST_DEVICES];          // bytes of each device
extern std::set<Stream*> streams;
extern std::map<cudaEvent_t, std::shared_ptr<Event>> events;
extern std::set<std::shared_ptr<Capture>> captures;
extern cudaError_t broken;  // what a kernel did, which nothing but a new process forgets
extern thread_local int current;
extern thread_local bool attached;  // has a context
extern thread_local cudaError_t last;
extern thread_local cudaStreamCaptureMode thread_mode;

// Holds the lock. Work may need Python's lock, so nobody waits for this one with that in hand.
class Locked {
 public:
  Locked();
  ~Locked() { mutex.unlock(); }
};

// Give an error to the caller and to `cudaGetLastError`; the second one says on stderr what was asked for.
cudaError_t say(cudaError_t code);
cudaError_t refuse(const char* what);

bool is_default(cudaStream_t stream);
Stream* default_stream(int device);
Stream* find(cudaStream_t stream);  // null: there is none

// Do what waits: in a stream, in front of a place in it, on a device.
void drain(Stream* stream);
void drain_until(const Point& point);
void drain_device(int device);

// What the default stream of old is ordered with: its work waits for that of blocking streams, and theirs for its own.
void order(Stream* stream);

// A call that a capture of this thread, or of any one in the strictest mode, does not allow.
cudaError_t unsafe();

// The default stream cannot be used while a stream that waits for it is captured.
cudaError_t implicit(Stream* stream);

cudaError_t enqueue(Stream* stream, Work work);
cudaError_t wait_for(Stream* stream);

const Block* block_of(const void* address);
cudaError_t take(void** found, size_t size, int device);
cudaError_t give(void* address);  // it stays until what waits now has been done
cudaError_t copy(void* to, const void* from, size_t size, cudaStream_t where);

double now();  // seconds

// Whether this thread has Python's lock. Work is not done for one that may hold a lock of torch's without it: another
// thread may wait for that with Python's lock in hand.
bool has_python();

}  // namespace simulated
