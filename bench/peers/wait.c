/*
 * The C peer of the waiting benchmarks: cuEventSynchronize on a plain event, which spins, and on a blocking-sync event, which sleeps.
 *
 * Answers these with a pair of nanoseconds per wait, the duration of the wait and the CPU time of the whole process:
 *   kernel NANOS spin|block COUNT WARM_UPS    launch a kernel of NANOS nanoseconds, record, wait
 *   copy BYTES spin|block COUNT WARM_UPS      copy BYTES bytes from pinned host memory to the device, record, wait
 * `memory BYTES` allocates the memory for the copies, and answers with the size.
 */
#include "driver.h"

static CUstream stream;
static CUevent events[2];
static void *host;
static CUdeviceptr device;

static void provide(size_t bytes) {
  CHECK(cuMemHostAlloc, (&host, bytes, 0));
  memset(host, 1, bytes);
  CHECK(cuMemAlloc_v2, (&device, bytes));
}

static void enqueue(int is_copy, uint64_t amount) {
  if (is_copy) CHECK(cuMemcpyHtoDAsync_v2, (device, host, amount, stream));
  else spin(stream, amount);
}

/* The first waits are not counted: they switch the GPU to this context. */
static void measure(int is_copy, uint64_t amount, CUevent event, int count, int warm_ups) {
  for (int i = 0; i < count + warm_ups; i++) {
    uint64_t cpu = read_clock(CLOCK_PROCESS_CPUTIME_ID);
    uint64_t start = now();
    enqueue(is_copy, amount);
    CHECK(cuEventRecord, (event, stream));
    CHECK(cuEventSynchronize, (event));
    uint64_t end = now();
    if (i < warm_ups) continue;
    answer(end - start);
    answer(read_clock(CLOCK_PROCESS_CPUTIME_ID) - cpu);
  }
  end_answer();
}

int main(int argc, char **argv) {
  open_device(argc, argv);
  stream = make_stream();
  events[0] = make_event(DISABLE_TIMING);
  events[1] = make_event(DISABLE_TIMING | BLOCKING_SYNC);
  char line[256], what[16], how[16];
  unsigned long long amount;
  int count, warm_ups;
  while (fgets(line, sizeof line, stdin) != NULL) {
    if (sscanf(line, "memory %llu", &amount) == 1) {
      provide(amount);
      answer(amount);
      end_answer();
    } else if (sscanf(line, "%15s %llu %15s %d %d", what, &amount, how, &count, &warm_ups) == 5) {
      measure(strcmp(what, "copy") == 0, amount, events[strcmp(how, "block") == 0], count, warm_ups);
    } else {
      fail("cannot understand %s", line);
    }
  }
  return 0;
}
