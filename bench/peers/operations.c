/*
 * The cost of operations in C, beside which the library's are measured: plain loops around driver calls.
 *
 * Asked `OPERATION COUNT BATCHES`, answers the nanoseconds of each batch of so many calls. The stream is drained before
 * every batch, outside the measurement, so that no queue of the driver runs full.
 */
#include "driver.h"

enum { COPY_BYTES = 4096, BRANCHES = 8 };

static CUstream stream, other;
static CUevent event, marker;
static void *host;
static CUdeviceptr device;
static CUstream branches[BRANCHES];
static CUevent forked, joined[BRANCHES];

static void record(void) { CHECK(cuEventRecord, (event, stream)); }

static void wait_event(void) { CHECK(cuStreamWaitEvent, (other, event, 0)); }

static void query(void) {
  CUresult status = cuEventQuery(event);
  if (status != 0 && status != NOT_READY) check("cuEventQuery", status);
}

static void create_destroy(void) {
  CUevent made;
  CHECK(cuEventCreate, (&made, DISABLE_TIMING));
  CHECK(cuEventDestroy_v2, (made));
}

static void wait_stream(void) {
  CHECK(cuEventRecord, (marker, stream));
  CHECK(cuStreamWaitEvent, (other, marker, 0));
}

static void copy(void) { CHECK(cuMemcpyHtoDAsync_v2, (device, host, COPY_BYTES, stream)); }

static void fill(void) { CHECK(cuMemsetD8Async, (device, 0, COPY_BYTES, stream)); }

/* Every branch starts after what the stream holds, which goes on after all of them. */
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
  /* How long the GPU is busy during the batch; the event is its end. */
  uint64_t busy;
} operations[] = {
  {"record", record, 0},
  {"waitEvent", wait_event, 0},
  {"queryFinished", query, 0},
  {"queryUnfinished", query, 20000000},
  {"createDestroy", create_destroy, 0},
  {"waitStream", wait_stream, 0},
  {"copy", copy, 0},
  {"fill", fill, 0},
  {"forkJoin", fork_join, 0},
  {"forkFillJoin", fork_fill_join, 0},
};

/* The call is made through a pointer, as a binding's would be; that costs a nanosecond. */
static void measure(int index, int count, int batches) {
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
  end_answer();
}

int main(int argc, char **argv) {
  if (argc < 2) fail("usage: operations PTX");
  open_device(argv[1]);
  stream = make_stream();
  other = make_stream();
  event = make_event(DISABLE_TIMING);
  marker = make_event(DISABLE_TIMING);
  forked = make_event(DISABLE_TIMING);
  for (int i = 0; i < BRANCHES; i++) {
    branches[i] = make_stream();
    joined[i] = make_event(DISABLE_TIMING);
  }
  CHECK(cuMemHostAlloc, (&host, COPY_BYTES, 0));
  CHECK(cuMemAlloc_v2, (&device, COPY_BYTES));
  char line[256], name[32];
  int count, batches;
  while (fgets(line, sizeof line, stdin) != NULL) {
    if (sscanf(line, "%31s %d %d", name, &count, &batches) != 3) fail("cannot understand %s", line);
    size_t index = 0, known = sizeof operations / sizeof *operations;
    while (index < known && strcmp(name, operations[index].name) != 0) index++;
    if (index == known) fail("no operation %s", name);
    measure((int)index, count, batches);
  }
  return 0;
}
