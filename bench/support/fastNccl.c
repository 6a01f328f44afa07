/*
 * NCCL whose calls return immediately and do nothing, so that a benchmark measures only the overhead of calling it.
 */
#include <stddef.h>
#include <stdint.h>

#define EXPORT __attribute__((visibility("default")))
#define UNUSED __attribute__((unused))

typedef uint64_t Handle;
typedef struct {
  char internal[128];
} Id;
typedef struct {
  int rank, size;
} Comm;

static Comm comms[64];
static int made;

static int make(Comm **out, int rank, int size) {
  Comm *comm = &comms[made++ % 64];
  *comm = (Comm){rank, size};
  *out = comm;
  return 0;
}

EXPORT int ncclGetVersion(int *version) {
  *version = 22809;
  return 0;
}

EXPORT int ncclGetUniqueId(UNUSED Id *id) { return 0; }

EXPORT const char *ncclGetLastError(UNUSED Comm *comm) { return ""; }

EXPORT int ncclCommInitRankConfig(Comm **out, int size, UNUSED Id id, int rank, UNUSED const void *config) {
  return make(out, rank, size);
}

EXPORT int ncclCommSplit(Comm *parent, UNUSED int color, UNUSED int key, Comm **out, UNUSED const void *config) {
  return make(out, parent->rank, parent->size);
}

EXPORT int ncclCommGetAsyncError(UNUSED Comm *comm, int *state) {
  *state = 0;
  return 0;
}

EXPORT int ncclCommCount(Comm *comm, int *count) {
  *count = comm->size;
  return 0;
}

EXPORT int ncclCommUserRank(Comm *comm, int *rank) {
  *rank = comm->rank;
  return 0;
}

EXPORT int ncclCommDestroy(UNUSED Comm *comm) { return 0; }
EXPORT int ncclCommAbort(UNUSED Comm *comm) { return 0; }
EXPORT int ncclGroupStart(void) { return 0; }
EXPORT int ncclGroupEnd(void) { return 0; }

EXPORT int ncclAllReduce(UNUSED Handle from, UNUSED Handle to, UNUSED size_t count, UNUSED int type, UNUSED int op,
                         UNUSED Comm *comm, UNUSED Handle stream) {
  return 0;
}

EXPORT int ncclReduceScatter(UNUSED Handle from, UNUSED Handle to, UNUSED size_t count, UNUSED int type, UNUSED int op,
                             UNUSED Comm *comm, UNUSED Handle stream) {
  return 0;
}

EXPORT int ncclBroadcast(UNUSED Handle from, UNUSED Handle to, UNUSED size_t count, UNUSED int type, UNUSED int root,
                         UNUSED Comm *comm, UNUSED Handle stream) {
  return 0;
}

EXPORT int ncclReduce(UNUSED Handle from, UNUSED Handle to, UNUSED size_t count, UNUSED int type, UNUSED int op,
                      UNUSED int root, UNUSED Comm *comm, UNUSED Handle stream) {
  return 0;
}

EXPORT int ncclAllGather(UNUSED Handle from, UNUSED Handle to, UNUSED size_t count, UNUSED int type, UNUSED Comm *comm,
                         UNUSED Handle stream) {
  return 0;
}

EXPORT int ncclSend(UNUSED Handle from, UNUSED size_t count, UNUSED int type, UNUSED int peer, UNUSED Comm *comm,
                    UNUSED Handle stream) {
  return 0;
}

EXPORT int ncclRecv(UNUSED Handle to, UNUSED size_t count, UNUSED int type, UNUSED int peer, UNUSED Comm *comm,
                    UNUSED Handle stream) {
  return 0;
}
