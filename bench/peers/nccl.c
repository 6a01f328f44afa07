/*
 * The C peer of the benchmark of collectives: NCCL, called directly, one thread for two devices. "library PATH" loads it and makes the
 * communicators. "reduce BYTES COUNT BATCHES" reduces floats on both, COUNT times in a row, in place, and answers with the
 * nanoseconds of each batch, until both streams have done it. "wait BYTES COUNT BATCHES" waits after each instead.
 */
#include "driver.h"

typedef void *Comm;

static int (*initAll)(Comm *, int, const int *), (*groupStart)(void), (*groupEnd)(void);
static int (*allReduce)(CUdeviceptr, CUdeviceptr, size_t, int, int, Comm, CUstream);

enum { devices = 2, f32 = 7, sum = 0 };

static Comm comms[devices];
static CUstream streams[devices];
static CUdeviceptr buffers[devices];
static CUcontext contexts[devices];

static void load(const char *path) {
  void *library = dlopen(path, RTLD_NOW | RTLD_GLOBAL);
  if (library == NULL) fail("%s", dlerror());
  initAll = find(library, "ncclCommInitAll");
  groupStart = find(library, "ncclGroupStart");
  groupEnd = find(library, "ncclGroupEnd");
  allReduce = find(library, "ncclAllReduce");
  for (int device = 0; device < devices; device++) {
    CUdevice found;
    CHECK(cuDeviceGet, (&found, device));
    CHECK(cuDevicePrimaryCtxRetain, (&contexts[device], found));
    CHECK(cuCtxSetCurrent, (contexts[device]));
    CHECK(cuStreamCreateWithPriority, (&streams[device], NON_BLOCKING, 0));
    CHECK(cuMemAlloc_v2, (&buffers[device], (size_t)1 << 30));
  }
  int order[devices] = {0, 1};
  check("ncclCommInitAll", initAll(comms, devices, order));
}

static void synchronize(void) {
  for (int device = 0; device < devices; device++) CHECK(cuStreamSynchronize, (streams[device]));
}

static void once(size_t count) {
  check("ncclGroupStart", groupStart());
  for (int device = 0; device < devices; device++) {
    check("ncclAllReduce", allReduce(buffers[device], buffers[device], count, f32, sum, comms[device], streams[device]));
  }
  check("ncclGroupEnd", groupEnd());
}

static void reduce(size_t bytes, int count, int batches, int waits) {
  for (int batch = -1; batch < batches; batch++) {
    uint64_t begin = now();
    for (int index = 0; index < count; index++) {
      once(bytes / 4);
      if (waits) synchronize();
    }
    synchronize();
    /* The first batch connects. */
    if (batch >= 0) answer(now() - begin);
  }
  end_answer();
}

int main(int argc, char **argv) {
  open_device(argc, argv);
  char line[4096], path[4096], how[8];
  size_t bytes;
  int count, batches;
  while (fgets(line, sizeof line, stdin) != NULL) {
    if (sscanf(line, "library %4095[^\n]", path) == 1) {
      load(path);
      end_answer();
    } else if (sscanf(line, "%7s %zu %d %d", how, &bytes, &count, &batches) == 4) {
      reduce(bytes, count, batches, strcmp(how, "wait") == 0);
    } else {
      fail("cannot understand %s", line);
    }
  }
  return 0;
}
