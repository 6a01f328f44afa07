/*
 * The C peer of the pipeline benchmark: one thread and three streams. Chunks are uploaded, copied once on the device and downloaded,
 * ordered by events. A slot is reused once cuEventSynchronize, which spins, has seen the end of its download.
 *
 * `memory CHUNK SLOTS` allocates slots for chunks of at most CHUNK bytes, and answers with the size. Then:
 *   run BYTES SLOTS COUNT WARM_UPS       sends WARM_UPS and then COUNT chunks through; answers with the nanoseconds from the
 *                                        end of the last warm-up to the end of the last chunk
 *   copying BYTES SLOTS COUNT WARM_UPS   the same, with the CPU copying every chunk into pinned memory and out of it
 *   link up|down|both BYTES COUNT        makes COUNT copies of BYTES bytes, one or both ways at once; answers with nanoseconds
 */
#include "driver.h"

enum { MOST_SLOTS = 16 };

static CUstream uploads, work, downloads;
static CUevent uploaded[MOST_SLOTS], worked[MOST_SLOTS], downloaded[MOST_SLOTS];
static void *outgoing[MOST_SLOTS], *returned[MOST_SLOTS];
static CUdeviceptr input[MOST_SLOTS], output[MOST_SLOTS];
/* Pageable memory, for the copies by the CPU. */
static char *source, *target;
static size_t ordinary_bytes;

static void *pin(size_t bytes) {
  void *memory;
  CHECK(cuMemHostAlloc, (&memory, bytes, 0));
  memset(memory, 1, bytes);
  return memory;
}

static char *allocate(size_t bytes) {
  char *memory = malloc(bytes);
  if (memory == NULL) fail("no memory for %zu bytes", bytes);
  memset(memory, 2, bytes);
  return memory;
}

static void provide(size_t bytes, int slots) {
  if (slots > MOST_SLOTS) fail("at most %d slots", MOST_SLOTS);
  for (int slot = 0; slot < slots; slot++) {
    outgoing[slot] = pin(bytes);
    returned[slot] = pin(bytes);
    CHECK(cuMemAlloc_v2, (&input[slot], bytes));
    CHECK(cuMemAlloc_v2, (&output[slot], bytes));
    uploaded[slot] = make_event(DISABLE_TIMING);
    worked[slot] = make_event(DISABLE_TIMING);
    downloaded[slot] = make_event(DISABLE_TIMING);
  }
  ordinary_bytes = bytes * 4;
  source = allocate(ordinary_bytes);
  target = allocate(ordinary_bytes);
}

static void enqueue(int slot, size_t bytes) {
  CHECK(cuMemcpyHtoDAsync_v2, (input[slot], outgoing[slot], bytes, uploads));
  CHECK(cuEventRecord, (uploaded[slot], uploads));
  CHECK(cuStreamWaitEvent, (work, uploaded[slot], 0));
  CHECK(cuMemcpyDtoDAsync_v2, (output[slot], input[slot], bytes, work));
  CHECK(cuEventRecord, (worked[slot], work));
  CHECK(cuStreamWaitEvent, (downloads, worked[slot], 0));
  CHECK(cuMemcpyDtoHAsync_v2, (returned[slot], output[slot], bytes, downloads));
  CHECK(cuEventRecord, (downloaded[slot], downloads));
}

/* The position of a chunk in pageable memory. */
static size_t place(int chunk, size_t bytes) { return (size_t)chunk % (ordinary_bytes / bytes) * bytes; }

static void measure(size_t bytes, int slots, int count, int warm_ups, int is_copying) {
  int chunks = warm_ups + count;
  uint64_t start = 0;
  for (int step = 0; step < chunks + slots; step++) {
    int slot = step % slots, ended = step - slots;
    if (ended >= 0) {
      CHECK(cuEventSynchronize, (downloaded[slot]));
      if (is_copying) memcpy(target + place(ended, bytes), returned[slot], bytes);
      if (ended == warm_ups - 1) start = now();
    }
    if (step >= chunks) continue;
    if (is_copying) memcpy(outgoing[slot], source + place(step, bytes), bytes);
    enqueue(slot, bytes);
  }
  answer(now() - start);
  end_answer();
}

/* The first copies in each direction are not counted. */
static void measure_link(int is_up, int is_down, size_t bytes, int count) {
  uint64_t start = 0;
  for (int copy = -1; copy < count; copy++) {
    if (copy == 0) {
      CHECK(cuStreamSynchronize, (uploads));
      CHECK(cuStreamSynchronize, (downloads));
      start = now();
    }
    if (is_up) CHECK(cuMemcpyHtoDAsync_v2, (input[0], outgoing[0], bytes, uploads));
    if (is_down) CHECK(cuMemcpyDtoHAsync_v2, (returned[0], output[0], bytes, downloads));
  }
  CHECK(cuStreamSynchronize, (uploads));
  CHECK(cuStreamSynchronize, (downloads));
  answer(now() - start);
  end_answer();
}

int main(int argc, char **argv) {
  open_device(argc, argv);
  uploads = make_stream();
  work = make_stream();
  downloads = make_stream();
  char line[256], what[16], way[16];
  unsigned long long bytes;
  int slots, count, warm_ups;
  while (fgets(line, sizeof line, stdin) != NULL) {
    if (sscanf(line, "memory %llu %d", &bytes, &slots) == 2) {
      provide(bytes, slots);
      answer(bytes);
      end_answer();
    } else if (sscanf(line, "link %15s %llu %d", way, &bytes, &count) == 3) {
      measure_link(strcmp(way, "down") != 0, strcmp(way, "up") != 0, bytes, count);
    } else if (sscanf(line, "%15s %llu %d %d %d", what, &bytes, &slots, &count, &warm_ups) == 5 && warm_ups > 0) {
      measure(bytes, slots, count, warm_ups, strcmp(what, "copying") == 0);
    } else {
      fail("cannot understand %s", line);
    }
  }
  return 0;
}
