/*
 * NCCL without a GPU, for tests: communicators that are ready after some questions, groups that belong to the thread, and collectives that
 * fill the memory they write, through a function of the stub driver that a test passes by address. As NCCL's, the work of a non-blocking
 * communicator is enqueued only when it becomes ready. Records calls, whether they were made on the JS thread, and misuse.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))

typedef struct {
  char internal[128];
} Id;

typedef struct {
  size_t size;
  unsigned magic, version;
  int blocking, numbers[3];
  const char *net;
  int share, trafficClass;
  const char *name;
  int rest[6];
} Config;

typedef struct Comm {
  unsigned magic;
  bool live, blocking;
  int rank, size, questions, error;
  struct Work *work;
  /* The communicator that it is making, and where to store that. */
  struct Comm *child, **out;
} Comm;

typedef struct Work {
  Comm *comm;
  uint64_t to, stream;
  size_t bytes;
  struct Work *next;
} Work;

typedef int (*Fill)(uint64_t address, uint8_t value, size_t size, uint64_t stream);
typedef uint64_t (*Current)(void);

enum { MAGIC = 0xacc1, PENDING = 7, INVALID = 4, UNSET = INT32_MIN };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_t mainThread;
static Fill fill;
static Current current;
static int live, delay, failStatus, failAfter, questions, shareVersion = 22809;
static bool stuck;
static char misuse[256], failing[64], logText[1 << 16], recordText[1 << 16];
static _Thread_local int depth;
static _Thread_local Work *group;
static _Thread_local int groupError;

EXPORT void stub_reset(uint64_t fillAddress, uint64_t currentAddress) {
  mainThread = pthread_self();
  fill = (Fill)fillAddress;
  current = (Current)currentAddress;
  live = delay = failStatus = failAfter = questions = 0;
  shareVersion = 22809;
  stuck = false;
  misuse[0] = failing[0] = logText[0] = recordText[0] = 0;
}

EXPORT const char *stub_log(void) { return logText; }
EXPORT const char *stub_records(void) { return recordText; }
EXPORT void stub_log_clear(void) { logText[0] = recordText[0] = 0; }
EXPORT const char *stub_misuse(void) { return misuse; }
EXPORT int stub_live(void) { return live; }
EXPORT void stub_set_delay(int milliseconds) { delay = milliseconds; }
EXPORT void stub_set_questions(int count) { questions = count; }
EXPORT void stub_set_stuck(int value) { stuck = value; }
EXPORT void stub_set_version(int version) { shareVersion = version; }
EXPORT void stub_fail(const char *name, int status, int after) {
  snprintf(failing, sizeof failing, "%s", name);
  failStatus = status;
  failAfter = after;
}
EXPORT void stub_set_error(Comm *comm, int status) { comm->error = status; }

static void misused(const char *name, const char *what) {
  if (!misuse[0]) snprintf(misuse, sizeof misuse, "%s: %s", name, what);
}

static bool isMain(void) { return pthread_equal(pthread_self(), mainThread); }
static bool hasContext(void) { return current && current(); }

/* Logs a call. Returns the status that it is made to fail with. */
static int call(const char *name) {
  pthread_mutex_lock(&lock);
  size_t used = strlen(logText);
  snprintf(logText + used, sizeof logText - used, "%s%s%s\n", name, isMain() ? "" : " off", hasContext() ? " context" : "");
  int status = 0;
  if (strcmp(failing, name) == 0 && failAfter-- <= 0) status = failStatus;
  pthread_mutex_unlock(&lock);
  return status;
}

static void record(const char *format, ...) {
  va_list values;
  __builtin_va_start(values, format);
  size_t used = strlen(recordText);
  vsnprintf(recordText + used, sizeof recordText - used, format, values);
  __builtin_va_end(values);
}

static bool isLive(Comm *comm, const char *name) {
  if (comm && comm->magic == MAGIC && comm->live) return true;
  misused(name, "not a live communicator");
  return false;
}

static bool isReady(Comm *comm, const char *name) {
  if (!isLive(comm, name)) return false;
  if (comm->questions == 0) return true;
  misused(name, "the communicator is busy");
  return false;
}

static void begin(Comm *comm) {
  if (!comm->blocking) comm->questions = stuck ? -1 : questions;
}

static int stateOf(Comm *comm) { return comm->error ? comm->error : comm->questions ? PENDING : 0; }

static Comm *make(int rank, int size, const Config *config) {
  Comm *comm = calloc(1, sizeof *comm);
  comm->magic = MAGIC;
  comm->live = true;
  comm->rank = rank;
  comm->size = size;
  comm->blocking = config->blocking;
  live++;
  begin(comm);
  return comm;
}

static bool isConfig(const Config *config) {
  return config && config->size == sizeof *config && config->magic == 0xcafebeef && config->version <= 22803 &&
         config->numbers[0] == UNSET && config->net == NULL && config->share == UNSET && config->name == NULL &&
         config->rest[5] == UNSET;
}

static void flush(Comm *comm) {
  if (comm->out) *comm->out = comm->child;
  comm->out = NULL;
  while (comm->work) {
    Work *work = comm->work;
    comm->work = work->next;
    if (work->to) fill(work->to, 100 + comm->rank, work->bytes, work->stream);
    free(work);
  }
}

/* The parent's threads store the child when it is complete. */
static int makeFrom(Comm *parent, Comm *child, Comm **out) {
  parent->child = child;
  parent->out = out;
  begin(parent);
  if (!parent->questions) flush(parent);
  return stateOf(parent);
}

EXPORT int ncclGetVersion(int *version) {
  *version = shareVersion;
  return call("ncclGetVersion");
}

EXPORT int ncclGetUniqueId(Id *id) {
  for (int at = 0; at < 128; at++) id->internal[at] = at + 1;
  return call("ncclGetUniqueId");
}

EXPORT const char *ncclGetLastError(Comm *comm) {
  (void)comm;
  return "the last words";
}

EXPORT int ncclCommInitRankConfig(Comm **out, int size, Id id, int rank, const Config *config) {
  int status = call("ncclCommInitRankConfig");
  if (status) return status;
  if (!hasContext()) misused("ncclCommInitRankConfig", "no context");
  if (id.internal[0] != 1 || id.internal[127] != (char)128) misused("ncclCommInitRankConfig", "not the id");
  if (!isConfig(config) || config->blocking) misused("ncclCommInitRankConfig", "a wrong configuration");
  *out = make(rank, size, config);
  return stateOf(*out);
}

EXPORT int ncclCommSplit(Comm *parent, int color, int key, Comm **out, const Config *config) {
  int status = call("ncclCommSplit");
  if (status) return status;
  if (!isReady(parent, "ncclCommSplit")) return INVALID;
  if (!hasContext()) misused("ncclCommSplit", "no context");
  if (parent->blocking) misused("ncclCommSplit", "would block");
  if (!isConfig(config)) misused("ncclCommSplit", "a wrong configuration");
  record("{\"call\":\"split\",\"rank\":%d,\"color\":%d,\"key\":%d,\"blocking\":%d}\n", parent->rank, color, key, config->blocking);
  return makeFrom(parent, color < 0 ? NULL : make(parent->rank, parent->size, config), out);
}

EXPORT int ncclCommShrink(Comm *parent, const int *without, int count, Comm **out, const Config *config, int flags) {
  int status = call("ncclCommShrink");
  if (status) return status;
  if (!isReady(parent, "ncclCommShrink")) return INVALID;
  record("{\"call\":\"shrink\",\"rank\":%d,\"first\":%d,\"count\":%d,\"flags\":%d}\n", parent->rank, without[0], count, flags);
  return makeFrom(parent, make(0, parent->size - count, config), out);
}

EXPORT int ncclCommCount(Comm *comm, int *count) {
  *count = comm->size;
  return 0;
}

EXPORT int ncclCommUserRank(Comm *comm, int *rank) {
  *rank = comm->rank;
  return 0;
}

EXPORT int ncclCommGetAsyncError(Comm *comm, int *state) {
  if (!isLive(comm, "ncclCommGetAsyncError")) return INVALID;
  if (comm->questions > 0 && --comm->questions == 0) flush(comm);
  *state = stateOf(comm);
  return 0;
}

static int end(Comm *comm, const char *name) {
  usleep(delay * 1000);
  int status = call(name);
  if (isMain()) misused(name, "on the JS thread");
  if (!isLive(comm, name)) return INVALID;
  comm->live = false;
  live--;
  if (comm->out && comm->child) live--;
  comm->out = NULL;
  return status;
}

/* The memory is kept, so that later uses are seen. */
EXPORT int ncclCommDestroy(Comm *comm) {
  if (comm && comm->questions) misused("ncclCommDestroy", "the communicator is busy");
  return end(comm, "ncclCommDestroy");
}
EXPORT int ncclCommAbort(Comm *comm) { return end(comm, "ncclCommAbort"); }

EXPORT int ncclGroupStart(void) {
  int status = call("ncclGroupStart");
  if (status) return status;
  if (!isMain()) misused("ncclGroupStart", "off the JS thread");
  /* NCCL would leave the context of a device current. */
  if (!hasContext()) misused("ncclGroupStart", "no context");
  if (depth++ == 0) groupError = 0;
  return 0;
}

static int launch(void) {
  int state = groupError, kinds = 0;
  while (group) {
    Work *work = group;
    group = work->next;
    work->next = NULL;
    Comm *comm = work->comm;
    kinds |= comm->blocking ? 1 : 2;
    Work **last = &comm->work;
    while (*last) last = &(*last)->next;
    *last = work;
    if (comm->blocking) flush(comm);
    else {
      begin(comm);
      if (!comm->questions) flush(comm);
      else state = state ? state : PENDING;
    }
  }
  if (kinds == 3) misused("ncclGroupEnd", "blocking and non-blocking communicators");
  return state;
}

EXPORT int ncclGroupEnd(void) {
  int status = call("ncclGroupEnd");
  if (!isMain()) misused("ncclGroupEnd", "off the JS thread");
  if (depth == 0) {
    misused("ncclGroupEnd", "no group");
    return 5;
  }
  if (--depth > 0) return status;
  int launched = launch();
  return status ? status : launched;
}

static const size_t sizes[] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2};

static int collective(const char *name, Comm *comm, uint64_t from, uint64_t to, size_t count, int type, int op, int other, size_t factor,
                      uint64_t stream) {
  int status = call(name);
  if (!isMain()) misused(name, "off the JS thread");
  if (!hasContext()) misused(name, "no context");
  if (!isReady(comm, name)) status = status ? status : INVALID;
  if (status) {
    groupError = depth ? status : 0;
    return status;
  }
  record("{\"call\":\"%s\",\"rank\":%d,\"blocking\":%d,\"from\":%lu,\"to\":%lu,\"count\":%lu,\"type\":%d,\"op\":%d,\"other\":%d,"
         "\"stream\":%lu,\"grouped\":%d}\n",
         name, comm->rank, comm->blocking, (unsigned long)from, (unsigned long)to, (unsigned long)count, type, op, other,
         (unsigned long)stream, depth);
  Work *work = calloc(1, sizeof *work);
  *work = (Work){comm, to, stream, count * sizes[type] * factor, NULL};
  Work **last = &group;
  while (*last) last = &(*last)->next;
  *last = work;
  return depth ? 0 : launch();
}

EXPORT int ncclAllReduce(uint64_t from, uint64_t to, size_t count, int type, int op, Comm *comm, uint64_t stream) {
  return collective("ncclAllReduce", comm, from, to, count, type, op, -1, 1, stream);
}
EXPORT int ncclBroadcast(uint64_t from, uint64_t to, size_t count, int type, int root, Comm *comm, uint64_t stream) {
  return collective("ncclBroadcast", comm, from, to, count, type, -1, root, 1, stream);
}
EXPORT int ncclReduce(uint64_t from, uint64_t to, size_t count, int type, int op, int root, Comm *comm, uint64_t stream) {
  return collective("ncclReduce", comm, from, to, count, type, op, root, 1, stream);
}
EXPORT int ncclAllGather(uint64_t from, uint64_t to, size_t count, int type, Comm *comm, uint64_t stream) {
  return collective("ncclAllGather", comm, from, to, count, type, -1, -1, comm->size, stream);
}
EXPORT int ncclReduceScatter(uint64_t from, uint64_t to, size_t count, int type, int op, Comm *comm, uint64_t stream) {
  return collective("ncclReduceScatter", comm, from, to, count, type, op, -1, 1, stream);
}
EXPORT int ncclSend(uint64_t from, size_t count, int type, int peer, Comm *comm, uint64_t stream) {
  return collective("ncclSend", comm, from, 0, count, type, -1, peer, 1, stream);
}
EXPORT int ncclRecv(uint64_t to, size_t count, int type, int peer, Comm *comm, uint64_t stream) {
  return collective("ncclRecv", comm, 0, to, count, type, -1, peer, 1, stream);
}
