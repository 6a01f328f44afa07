/*
 * The C peer of the benchmark of collectives with a process per device: NCCL, called directly. "library PATH" loads it and makes the
 * communicators. "reduce BYTES COUNT BATCHES" and "wait BYTES COUNT BATCHES" reduce as nccl.c does; the first process answers.
 */
#include "driver.h"

#include <unistd.h>

typedef void *Comm;
typedef struct {
  char internal[128];
} Id;

static int (*uniqueId)(Id *), (*initRank)(Comm *, int, Id, int);
static int (*allReduce)(CUdeviceptr, CUdeviceptr, size_t, int, int, Comm, CUstream);

enum { ranks = 2, f32 = 7, sum = 0, mostBytes = 1 << 20 };

static int rank, ids[2];
static Comm comm;
static CUstream stream;
static CUdeviceptr buffer;

static void load(const char *path) {
  void *library = dlopen(path, RTLD_NOW | RTLD_GLOBAL);
  if (library == NULL) fail("%s", dlerror());
  uniqueId = find(library, "ncclGetUniqueId");
  initRank = find(library, "ncclCommInitRank");
  allReduce = find(library, "ncclAllReduce");
  CUdevice device;
  CUcontext context;
  CHECK(cuDeviceGet, (&device, rank));
  CHECK(cuDevicePrimaryCtxRetain, (&context, device));
  CHECK(cuCtxSetCurrent, (context));
  CHECK(cuStreamCreateWithPriority, (&stream, NON_BLOCKING, 0));
  CHECK(cuMemAlloc_v2, (&buffer, mostBytes));
  Id id;
  if (rank == 0) {
    check("ncclGetUniqueId", uniqueId(&id));
    if (write(ids[1], &id, sizeof id) != sizeof id) fail("cannot write the id");
  } else if (read(ids[0], &id, sizeof id) != sizeof id) {
    fail("cannot read the id");
  }
  check("ncclCommInitRank", initRank(&comm, ranks, id, rank));
}

static void reduce(size_t bytes, int count, int batches, int waits) {
  if (bytes > mostBytes) fail("at most %d bytes", mostBytes);
  for (int batch = -1; batch < batches; batch++) {
    uint64_t begin = now();
    for (int index = 0; index < count; index++) {
      check("ncclAllReduce", allReduce(buffer, buffer, bytes / 4, f32, sum, comm, stream));
      if (waits) CHECK(cuStreamSynchronize, (stream));
    }
    CHECK(cuStreamSynchronize, (stream));
    /* The first batch connects. */
    if (batch >= 0 && rank == 0) answer(now() - begin);
  }
  if (rank == 0) end_answer();
}

static void run(const char *line) {
  char path[4096], how[8];
  size_t bytes;
  int count, batches;
  if (sscanf(line, "library %4095[^\n]", path) == 1) {
    load(path);
    if (rank == 0) end_answer();
  } else if (sscanf(line, "%7s %zu %d %d", how, &bytes, &count, &batches) == 4) {
    reduce(bytes, count, batches, strcmp(how, "wait") == 0);
  } else {
    fail("cannot understand %s", line);
  }
}

/* The processes part before either uses the driver. The first passes each line on. */
int main(int argc, char **argv) {
  int lines[2];
  if (pipe(ids) != 0 || pipe(lines) != 0) fail("no pipes");
  rank = fork() == 0;
  close(lines[rank]);
  FILE *input = rank == 0 ? stdin : fdopen(lines[0], "r");
  open_device(argc, argv);
  char line[4096];
  while (fgets(line, sizeof line, input) != NULL) {
    if (rank == 0 && write(lines[1], line, strlen(line)) < 0) fail("the second process is gone");
    run(line);
  }
  return 0;
}
