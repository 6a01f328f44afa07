/*
 * The C peer of the benchmark of copies between devices: memory of one pool per device, with access both ways, and a stream per device.
 *
 *   copy BYTES one|both COUNT BATCHES   makes COUNT copies from device 0 to 1, or as many each way at once; answers with the nanoseconds
 *                                       of each batch, from the first call to the end of the last copy
 */
#include <stdbool.h>

#include "driver.h"

enum { DEVICES = 2, READ_WRITE = 3 };

static CUcontext contexts[DEVICES];
static CUstream streams[DEVICES];
static CUmemoryPool pools[DEVICES];
static CUdeviceptr outgoing[DEVICES], incoming[DEVICES];

static void open_devices(size_t bytes) {
  for (int index = 0; index < DEVICES; index++) {
    CUdevice device;
    CHECK(cuDeviceGet, (&device, index));
    CHECK(cuDevicePrimaryCtxRetain, (&contexts[index], device));
    CHECK(cuCtxSetCurrent, (contexts[index]));
    streams[index] = make_stream();
    CUmemPoolProps properties = {.allocType = 1, .location = {1, index}};
    CHECK(cuMemPoolCreate, (&pools[index], &properties));
    int access[] = {1, 1 - index, READ_WRITE};
    CHECK(cuMemPoolSetAccess, (pools[index], access, 1));
    CHECK(cuMemAllocFromPoolAsync, (&outgoing[index], bytes, pools[index], streams[index]));
    CHECK(cuMemAllocFromPoolAsync, (&incoming[index], bytes, pools[index], streams[index]));
    CHECK(cuStreamSynchronize, (streams[index]));
  }
}

static void send(int from, size_t bytes) {
  int to = 1 - from;
  CHECK(cuMemcpyPeerAsync, (incoming[to], contexts[to], outgoing[from], contexts[from], bytes, streams[from]));
}

static uint64_t copy(size_t bytes, bool both, int count) {
  uint64_t start = now();
  for (int index = 0; index < count; index++) {
    send(0, bytes);
    if (both) send(1, bytes);
  }
  CHECK(cuStreamSynchronize, (streams[0]));
  if (both) CHECK(cuStreamSynchronize, (streams[1]));
  return now() - start;
}

int main(int argc, char **argv) {
  open_device(argc, argv);
  open_devices((size_t)1 << 30);
  char line[256], way[16];
  size_t bytes;
  int count, batches;
  while (fgets(line, sizeof line, stdin) != NULL) {
    if (sscanf(line, "copy %zu %15s %d %d", &bytes, way, &count, &batches) != 4) fail("cannot understand %s", line);
    for (int batch = 0; batch < batches; batch++) answer(copy(bytes, strcmp(way, "both") == 0, count));
    end_answer();
  }
  return 0;
}
