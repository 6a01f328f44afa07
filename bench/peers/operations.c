/*
 * The C peer of the operations benchmark: plain loops around driver calls.
 *
 * Answers `OPERATION COUNT BATCHES` with the nanoseconds of each batch of COUNT operations, or with nothing if it does not have the
 * operation. The streams are drained before every batch, outside the measurement, so that no queue of the driver fills up. Kernel
 * arguments are written before each launch, as a program would.
 */
#include "driver.h"

enum { COPY_BYTES = 4096, BRANCHES = 8, MOST_STREAMS = 1000, MOST_EVENTS = 10000 };

static CUstream stream, other;
static CUevent event, marker, start_event, end_event;
static void *host;
static CUdeviceptr device;
static CUmemoryPool pool;
static CUfunction none, three, many;
static CUstream branches[BRANCHES];
static CUevent forked, joined[BRANCHES];

static void record(void) { CHECK(cuEventRecord, (event, stream)); }

static void wait_event(void) { CHECK(cuStreamWaitEvent, (other, event, 0)); }

static void query(void) {
  CUresult status = cuEventQuery(event);
  if (status != 0 && status != NOT_READY) check("cuEventQuery", status);
}

static void elapsed(void) {
  float milliseconds;
  CHECK(cuEventElapsedTime, (&milliseconds, start_event, end_event));
}

static void create_destroy(void) {
  CUevent made;
  CHECK(cuEventCreate, (&made, DISABLE_TIMING));
  CHECK(cuEventDestroy_v2, (made));
}

static void create_destroy_stream(void) { CHECK(cuStreamDestroy_v2, (make_stream())); }

static void allocate_free(void) {
  CUdeviceptr made;
  CHECK(cuMemAllocFromPoolAsync, (&made, COPY_BYTES, pool, stream));
  CHECK(cuMemFreeAsync, (made, stream));
}

static void wait_stream(void) {
  CHECK(cuEventRecord, (marker, stream));
  CHECK(cuStreamWaitEvent, (other, marker, 0));
}

static void copy(void) { CHECK(cuMemcpyHtoDAsync_v2, (device, host, COPY_BYTES, stream)); }

static void fill(void) { CHECK(cuMemsetD8Async, (device, 0, COPY_BYTES, stream)); }

static void sequence(void) {
  record();
  wait_event();
  CHECK(cuMemsetD8Async, (device, 0, COPY_BYTES, other));
}

static void launch(CUfunction kernel, void **parameters) {
  CHECK(cuLaunchKernel, (kernel, 1, 1, 1, 1, 1, 1, 0, stream, parameters, NULL));
}

static void launch_none(void) { launch(none, NULL); }

static void launch_three(void) {
  CUdeviceptr to = device, from = device + COPY_BYTES / 2;
  unsigned count = COPY_BYTES / 8;
  void *parameters[] = {&to, &from, &count};
  launch(three, parameters);
}

static void launch_many(void) {
  union {
    unsigned long long wide;
    unsigned narrow;
    float real;
  } values[32];
  void *parameters[32];
  for (int i = 0; i < 32; i += 4) {
    values[i].wide = device;
    values[i + 1].narrow = 1;
    values[i + 2].real = 0.5f;
    values[i + 3].wide = 7;
  }
  for (int i = 0; i < 32; i++) parameters[i] = &values[i];
  launch(many, parameters);
}

/* The equivalent of opening and closing a scope of streams and events. */
static void scope(void) {
  static CUstream streams[MOST_STREAMS];
  static CUevent events[MOST_EVENTS];
  for (int i = 0; i < MOST_STREAMS; i++) streams[i] = make_stream();
  for (int i = 0; i < MOST_EVENTS; i++) events[i] = make_event(DISABLE_TIMING);
  for (int i = 0; i < MOST_EVENTS; i++) CHECK(cuEventDestroy_v2, (events[i]));
  for (int i = 0; i < MOST_STREAMS; i++) CHECK(cuStreamDestroy_v2, (streams[i]));
}

/* Every branch waits for the stream's work so far, and the stream then waits for every branch. */
static void fork_join_with(int filling) {
  CHECK(cuEventRecord, (forked, stream));
  for (int i = 0; i < BRANCHES; i++) CHECK(cuStreamWaitEvent, (branches[i], forked, 0));
  for (int i = 0; filling && i < BRANCHES; i++) CHECK(cuMemsetD8Async, (device, 0, COPY_BYTES, branches[i]));
  for (int i = 0; i < BRANCHES; i++) {
    CHECK(cuEventRecord, (joined[i], branches[i]));
    CHECK(cuStreamWaitEvent, (stream, joined[i], 0));
  }
}

static void fork_join(void) { fork_join_with(0); }

static void fork_fill_join(void) { fork_join_with(1); }

static const struct {
  const char *name;
  void (*run)(void);
  /* How long the GPU is busy during the batch. The event is recorded after that work. */
  uint64_t busy;
} operations[] = {
  {"record", record, 0},
  {"waitEvent", wait_event, 0},
  {"waitStream", wait_stream, 0},
  {"queryFinished", query, 0},
  {"queryUnfinished", query, 20000000},
  {"elapsed", elapsed, 0},
  {"createDestroy", create_destroy, 0},
  {"createDestroyStream", create_destroy_stream, 0},
  {"allocateFree", allocate_free, 0},
  {"copy", copy, 0},
  {"fill", fill, 0},
  {"sequence", sequence, 0},
  {"launchNone", launch_none, 0},
  {"launchThree", launch_three, 0},
  {"launchMany", launch_many, 0},
  {"scope", scope, 0},
  {"forkJoin", fork_join, 0},
  {"forkFillJoin", fork_fill_join, 0},
};

/* Calls through a pointer, as a binding would. It costs a nanosecond. */
static void measure(size_t index, int count, int batches) {
  void (*run)(void) = operations[index].run;
  for (int batch = 0; batch < batches; batch++) {
    if (operations[index].busy > 0) spin(stream, operations[index].busy);
    record();
    if (operations[index].busy == 0) CHECK(cuStreamSynchronize, (stream));
    uint64_t start = now();
    for (int i = 0; i < count; i++) run();
    answer(now() - start);
    CHECK(cuStreamSynchronize, (stream));
    CHECK(cuStreamSynchronize, (other));
  }
}

/* Allocates like the library: from a pool that keeps freed memory. */
static CUmemoryPool make_pool(void) {
  CUmemPoolProps properties = {.allocType = 1, .location = {.type = 1, .id = 0}};
  uint64_t threshold = UINT64_MAX;
  CUmemoryPool made;
  CHECK(cuMemPoolCreate, (&made, &properties));
  CHECK(cuMemPoolSetAttribute, (made, RELEASE_THRESHOLD, &threshold));
  return made;
}

static void provide(void) {
  stream = make_stream();
  other = make_stream();
  event = make_event(DISABLE_TIMING);
  marker = make_event(DISABLE_TIMING);
  forked = make_event(DISABLE_TIMING);
  start_event = make_event(0);
  end_event = make_event(0);
  for (int i = 0; i < BRANCHES; i++) {
    branches[i] = make_stream();
    joined[i] = make_event(DISABLE_TIMING);
  }
  CHECK(cuMemHostAlloc, (&host, COPY_BYTES, 0));
  CHECK(cuMemAlloc_v2, (&device, COPY_BYTES));
  pool = make_pool();
  none = get_function("none");
  three = get_function("three");
  many = get_function("many");
  CHECK(cuEventRecord, (start_event, stream));
  CHECK(cuEventRecord, (end_event, stream));
  CHECK(cuStreamSynchronize, (stream));
}

int main(int argc, char **argv) {
  open_device(argc, argv);
  provide();
  char line[256], name[32];
  int count, batches;
  while (fgets(line, sizeof line, stdin) != NULL) {
    if (sscanf(line, "%31s %d %d", name, &count, &batches) != 3) fail("cannot understand %s", line);
    size_t index = 0, known = sizeof operations / sizeof *operations;
    while (index < known && strcmp(name, operations[index].name) != 0) index++;
    if (index < known) measure(index, count, batches);
    end_answer();
  }
  return 0;
}
