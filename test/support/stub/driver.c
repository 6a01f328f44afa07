/*
 * A CUDA driver library without a GPU, for the tests of the native runtime. It exports every function the runtime calls,
 * logs each call with its arguments and outcome, and models streams, events, pools and host registrations well enough for
 * real programs: work runs in stream order, waits block it, copies move bytes. Tests control it through the `stub_`
 * functions: failures of single calls, work that stays pending, sticky faults. A separate thread calls host functions,
 * one after another, without holding the stub's lock.
 *
 * Errors of the caller (a stale handle, memory freed under a running copy, a call without the context it needs, a call that
 * would block) are recorded as misuse with a description.
 *
 * Kernels are read from the text of their PTX (names, parameters, `.maxntid`, global variables) and do nothing, in stream order.
 * A call that waits in the driver for a busy device is counted as blocked.
 *
 * Graphs keep copies of their nodes' parameters. A launch enqueues the work of the nodes on its stream one after another, in an order
 * that their dependencies allow. A condition enqueues the work of its body when the stream reaches it. The only kernel that does
 * something is `effect_cuda_condition`, which sets a condition.
 *
 * Virtual memory is modelled as this library uses it: mapped from the start of a range of addresses, without gaps, at once accessible.
 *
 * Not modelled: the order between blocking streams and the legacy default stream.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#ifndef STUB_VERSION
#define STUB_VERSION 13000
#endif
#ifndef STUB_DEVICES
#define STUB_DEVICES 1
#endif
#ifndef STUB_INIT
#define STUB_INIT 0
#endif

#define EXPORT __attribute__((visibility("default")))

typedef int Status;
typedef uint64_t Handle;

enum {
  SUCCESS = 0,
  INVALID_VALUE = 1,
  OUT_OF_MEMORY = 2,
  NOT_INITIALIZED = 3,
  NO_DEVICE = 100,
  INVALID_DEVICE = 101,
  INVALID_IMAGE = 200,
  INVALID_CONTEXT = 201,
  NO_BINARY = 209,
  INVALID_PTX = 218,
  INVALID_HANDLE = 400,
  NOT_FOUND = 500,
  NOT_READY = 600,
  ALREADY_REGISTERED = 712,
  NOT_REGISTERED = 713,
  NOT_SUPPORTED = 801,
  UPDATE_FAILURE = 910
};

/* ---- Objects. A handle is a kind and an index. Indices are never reused, so a stale handle is always detected. ---- */

typedef enum { CONTEXT = 1, STREAM, EVENT, POOL, LIBRARY, KERNEL, GRAPH, NODE, EXEC, CONDITION, MEMORY, DESCRIPTOR, GREEN } Kind;

typedef struct Record {
  bool done;
  uint64_t time;
  struct Record *next;
} Record;

typedef enum { WORK, COPY, FILL, RECORD, WAIT, ALLOCATE, FREE, HOST, LAUNCH, PREFETCH, BRANCH } OpKind;

typedef void (*HostFunction)(void *data);

#define MAX_DEVICES 8
#define MAX_PARAMETERS 64
#define MAX_KERNELS 32
#define MAX_GLOBALS 8
#define MAX_NODES 2048
#define MAX_ROUNDS 1000

/* What a conditional handle stands for. */
typedef struct {
  bool alive, holds, has_node;
  Handle graph;
} Condition;

typedef struct Op {
  OpKind kind;
  bool held;
  /* The memory passed to a kernel. */
  const uint8_t *touched[MAX_PARAMETERS];
  Record *record;
  uint8_t *to;
  const uint8_t *from;
  uint64_t bytes;
  /* A copy of several rows of `bytes` each. */
  uint64_t rows, to_pitch, from_pitch;
  uint32_t value;
  int width;
  struct Allocation *allocation;
  HostFunction function;
  void *data;
  /* The condition that a kernel sets to whether the value at `from` equals `value`, or differs from it. */
  Condition *condition;
  bool negated;
  /* The body that runs while or if the condition holds, and how often it has run. */
  struct Exec *body;
  bool loops;
  int rounds;
  struct Op *next;
} Op;

typedef struct {
  bool alive;
  int device;
  int retained;
  Handle legacy, per_thread;
  /* A bit for each other device that it has access to. */
  unsigned peers;
  /* The multiprocessors of a green context, and the context that it belongs to. */
  unsigned multiprocessors;
  Handle primary;
} Context;

typedef struct {
  bool alive, internal;
  Handle context;
  uint64_t id;
  unsigned flags;
  int priority;
  Op *head, *tail;
  /* While its operations are captured instead of run. */
  bool captures;
} Stream;

typedef struct {
  bool alive;
  Handle context;
  unsigned flags;
  Record *record;
} Event;

/* Bytes of a pool: in use, freed by the GPU but not yet seen by the host, and free for the next allocation. */
typedef struct {
  bool alive, managed;
  int device;
  uint64_t max, used, unseen, kept, used_high, reserved_high, threshold;
  int reuse[4];
  /* A bit for each other device that has access. */
  unsigned accessible;
  /* Other processes can open it. Or it is of another process: the descriptor that stands for it. Or it is hidden, for allocations. */
  bool shareable, exported, imported, plain, opened;
  uint64_t descriptor;
} Pool;

/* Valid once the operation that allocates it has run, for all later operations. */
typedef struct Allocation {
  uint8_t *address;
  uint64_t bytes;
  Pool *pool;
  bool there, released;
  /* What memory of another process was opened with. */
  uint8_t handle[64];
  struct Allocation *next;
} Allocation;

/* A set of multiprocessors, and a green context that has them. */
typedef struct {
  int device;
  uint64_t groups;
  unsigned count;
} Descriptor;

typedef struct {
  bool alive;
  int device;
  Handle context;
} Green;

/* Memory without an address of its own. It lives while it has a handle or is mapped. */
typedef struct {
  bool alive;
  int device, mappings;
  uint64_t bytes;
} Memory;

#define MAX_MAPPINGS 256

/* A reserved range of addresses, and the memory mapped from its start. */
typedef struct Range {
  uint8_t *address;
  uint64_t bytes;
  Memory *mapped[MAX_MAPPINGS];
  int count;
  /* The memory that can be accessed. */
  Allocation *allocation;
  struct Range *next;
} Range;

typedef struct {
  bool alive;
  char name[64];
  int count, sizes[MAX_PARAMETERS], offsets[MAX_PARAMETERS];
  int max_threads;
  bool resident[MAX_DEVICES];
  int set[MAX_DEVICES][16];
  bool is_set[MAX_DEVICES][16];
} Kernel;

typedef struct {
  char name[64];
  uint64_t bytes;
  Allocation *on[MAX_DEVICES];
} Global;

typedef struct {
  bool alive;
  Status problem;
  Handle kernels[MAX_KERNELS];
  int kernel_count;
  Global globals[MAX_GLOBALS];
  int global_count;
} Library;

typedef enum {
  KERNEL_NODE,
  COPY_NODE,
  FILL_NODE,
  GRAPH_NODE = 4,
  EMPTY_NODE,
  RECORD_NODE = 7,
  ALLOCATE_NODE = 10,
  FREE_NODE,
  CONDITIONAL_NODE = 13
} NodeType;

/* A node of a graph, or its copy in an executable graph. */
typedef struct {
  bool alive, disabled, done;
  NodeType type;
  Handle graph, self;
  int index;
  Handle *before;
  int before_count;
  Handle kernel, context, event;
  unsigned grid[3], block[3], shared;
  /* The bytes of each parameter, and the attributes by id. */
  uint8_t *parameters[MAX_PARAMETERS];
  unsigned attributes[16][3];
  uint8_t *to;
  const uint8_t *from;
  int to_type, from_type;
  uint64_t bytes, rows, to_pitch, from_pitch;
  uint32_t value;
  int width;
  /* The body of a condition: a graph, and its copy in an executable graph. A graph within a graph has only the copy. */
  Handle condition, body;
  bool loops;
  struct Exec *inside;
} Node;

/* Its nodes are objects of their own. */
typedef struct {
  bool alive, is_body, is_instantiated;
  Handle self;
  Handle nodes[MAX_NODES];
  int count;
} Graph;

/* An executable graph, or a body in one. */
typedef struct Exec {
  bool alive, uses_priorities;
  Handle graph;
  Node *nodes;
  int count;
} Exec;

typedef struct Registration {
  uint8_t *address;
  uint64_t bytes;
  struct Registration *next;
} Registration;

typedef struct {
  void **items;
  uint64_t count, capacity, first;
} Table;

typedef struct Failure {
  char name[64];
  int status, after, times;
  struct Failure *next;
} Failure;

#define MAX_REMOTES 64

static struct {
  Table tables[GREEN + 1];
  Range *ranges;
  Allocation *allocations;
  Registration *registrations;
  bool hides_ranges;
  /* Whether device memory counts as memory in no pool, like that of cuMemAlloc. */
  bool hides_pools;
  Record *records;
  Failure *failures;
  Record *remotes[MAX_REMOTES];
  int remote_count;
  Handle primary[MAX_DEVICES];
  bool initialized;
  int devices, version, init_status, fault, pending;
  /* Whether devices can access each other. */
  bool unlinked;
  int least, greatest;
  uint64_t memory, clock, next_id;
  /* The allocations that are not valid yet. */
  int coming;
  uint64_t calls, misuses;
  char misuse[512];
  bool hosts_held, host_running, loads_held;
  /* What the next graph call that a test makes fail reports: a result, and the node at an index. */
  int graph_result, graph_node;
  int host_calls, host_calls_on_main, blocked;
  int attributes[256];
  pthread_t main_thread;
} stub;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
/* Signals that a host function was reached, and that one was called. */
static pthread_cond_t host_reached = PTHREAD_COND_INITIALIZER;
static pthread_cond_t host_called = PTHREAD_COND_INITIALIZER;
static pthread_cond_t loads_let_go = PTHREAD_COND_INITIALIZER;
static __thread Handle stack[32];
static __thread int depth;

static Handle make(Kind kind, void *object) {
  Table *table = &stub.tables[kind];
  if (table->count == table->capacity) {
    table->capacity = table->capacity == 0 ? 256 : table->capacity * 2;
    table->items = realloc(table->items, table->capacity * sizeof(void *));
  }
  table->items[table->count] = object;
  return ((Handle)kind << 40) | (++table->count << 4);
}

/* The object of a handle, live or not; NULL if it was never a handle since the last reset. */
static void *find(Kind kind, Handle handle) {
  Table *table = &stub.tables[kind];
  uint64_t index = (handle & 0xffffffffff) >> 4;
  if (handle >> 40 != (uint64_t)kind || index <= table->first || index > table->count) return NULL;
  return table->items[index - 1];
}

/* The handle of an object. */
static Handle handle_of(Kind kind, const void *object) {
  Table *table = &stub.tables[kind];
  for (uint64_t i = table->first; i < table->count; i++) {
    if (table->items[i] == object) return ((Handle)kind << 40) | ((i + 1) << 4);
  }
  return 0;
}

#define EACH(Type, name, kind) \
  for (uint64_t i_##name = stub.tables[kind].first; i_##name < stub.tables[kind].count; i_##name++) \
    for (Type *name = stub.tables[kind].items[i_##name]; name != NULL; name = NULL)

/* ---- The log: one line of JSON per call. A call that repeats the previous one only increments its count. ---- */

static struct {
  char *text;
  size_t used, capacity, last;
  unsigned repeats;
  char *snapshot;
} logged;

static void log_append(const char *text, size_t size) {
  if (logged.used + size + 1 > logged.capacity) {
    logged.capacity = (logged.used + size + 1) * 2;
    logged.text = realloc(logged.text, logged.capacity);
  }
  memcpy(logged.text + logged.used, text, size);
  logged.used += size;
  logged.text[logged.used] = 0;
}

static void log_repeats(void) {
  char text[32];
  int size = snprintf(text, sizeof text, ",\"times\":%u}\n", logged.repeats);
  log_append(text, (size_t)size);
}

/* A line stays open until the next one, so that its count can grow. */
static void log_line(const char *line, size_t size) {
  if (logged.repeats > 0) {
    size_t open = logged.used - logged.last;
    if (open == size && memcmp(logged.text + logged.last, line, size) == 0) {
      logged.repeats++;
      return;
    }
    log_repeats();
  }
  logged.last = logged.used;
  logged.repeats = 1;
  log_append(line, size);
}

static void misuse(const char *format, ...) {
  va_list values;
  va_start(values, format);
  if (stub.misuses++ == 0) vsnprintf(stub.misuse, sizeof stub.misuse, format, values);
  va_end(values);
}

/* ---- A call: its arguments, and its end. ---- */

typedef struct {
  const char *name;
  Status status;
  /* True when the call returns the device's fault. Releasing calls then still release. */
  bool faulted;
  Handle context;
  char text[6144];
  size_t used;
} Call;

enum { ALWAYS = 1, NEEDS_CONTEXT = 2 };

static Handle current(void) { return depth == 0 ? 0 : stack[depth - 1]; }

static int injected(const char *name) {
  for (Failure *failure = stub.failures; failure != NULL; failure = failure->next) {
    if (strcmp(failure->name, name) != 0 || failure->times == 0) continue;
    if (failure->after > 0) {
      failure->after--;
      continue;
    }
    if (failure->times > 0) failure->times--;
    return failure->status;
  }
  return SUCCESS;
}

static Call begin(const char *name, int needs) {
  pthread_mutex_lock(&lock);
  stub.calls++;
  Call call = {.name = name, .status = injected(name), .context = current()};
  if (call.status != SUCCESS || (needs & ALWAYS)) return call;
  if (!stub.initialized) {
    misuse("%s before cuInit", name);
    call.status = NOT_INITIALIZED;
  } else if (stub.fault != SUCCESS) {
    call.status = stub.fault;
    call.faulted = true;
  } else if ((needs & NEEDS_CONTEXT) && call.context == 0) {
    misuse("%s without a current context", name);
    call.status = INVALID_CONTEXT;
  }
  return call;
}

/* Drops what does not fit into the log. */
static void add(Call *call, const char *format, ...) {
  va_list values;
  if (call->used > sizeof call->text - 2100) return;
  va_start(values, format);
  if (call->used > 0) call->text[call->used++] = ',';
  call->used += (size_t)vsnprintf(call->text + call->used, sizeof call->text - call->used - 1, format, values);
  va_end(values);
}

static void add_int(Call *call, int64_t value) { add(call, "%lld", (long long)value); }

/* Writes values beyond JavaScript's safe integers as strings. */
static void add_wide(Call *call, uint64_t value) {
  add(call, value >> 53 == 0 ? "%llu" : "\"%llu\"", (unsigned long long)value);
}

static void add_bytes(Call *call, const void *bytes, int count) {
  char hex[2048];
  for (int i = 0; i < count; i++) snprintf(hex + 2 * i, 3, "%02x", ((const uint8_t *)bytes)[i]);
  add(call, "\"%s\"", hex);
}

/* Logs the call and releases the lock for the next one. */
static Status end(Call *call) {
  char line[6400];
  bool main = pthread_equal(pthread_self(), stub.main_thread) != 0;
  int size = snprintf(line, sizeof line, "{\"name\":\"%s\",\"args\":[%s],\"status\":%d,\"context\":%llu,\"main\":%s",
                      call->name, call->text, call->status, (unsigned long long)call->context, main ? "true" : "false");
  log_line(line, (size_t)size);
  pthread_mutex_unlock(&lock);
  return call->status;
}

static void wrong(Call *call, const char *what, Handle handle) {
  if (call->status != SUCCESS) return;
  misuse("%s: %s 0x%llx", call->name, what, (unsigned long long)handle);
  call->status = INVALID_HANDLE;
}

/* ---- Streams run their operations in order until one is blocked. ---- */

static bool overlap(const uint8_t *a, uint64_t a_bytes, const uint8_t *b, uint64_t b_bytes) {
  return a != NULL && b != NULL && a < b + b_bytes && b < a + a_bytes;
}

static bool body_touches(const Exec *body, const uint8_t *memory, uint64_t bytes);

static bool touches(const Op *op, const uint8_t *memory, uint64_t bytes) {
  if (op->body != NULL && body_touches(op->body, memory, bytes)) return true;
  for (int i = 0; i < MAX_PARAMETERS; i++) {
    if (op->touched[i] != NULL && op->touched[i] >= memory && op->touched[i] < memory + bytes) return true;
  }
  uint64_t later = op->rows > 1 ? op->rows - 1 : 0;
  return overlap(op->to, op->bytes + later * op->to_pitch, memory, bytes) ||
         overlap(op->from, op->bytes + later * op->from_pitch, memory, bytes);
}

/* Records misuse when pending operations use memory that is being freed, and keeps them from using it. */
static void retract(const uint8_t *memory, uint64_t bytes, const char *complaint) {
  EACH(Stream, stream, STREAM) {
    for (Op *op = stream->captures ? NULL : stream->head; op != NULL; op = op->next) {
      if (!touches(op, memory, bytes)) continue;
      misuse("%s while a stream still uses it", complaint);
      op->bytes = 0;
      op->condition = NULL;
    }
  }
}

/* Records misuse when an operation runs before its memory is valid. */
static void check_there(const Op *op) {
  for (Allocation *a = stub.allocations; stub.coming > 0 && a != NULL; a = a->next) {
    if (!a->there && touches(op, a->address, a->bytes)) misuse("device memory was used before it was allocated");
  }
}

static void arrive(Allocation *allocation) {
  stub.coming -= !allocation->there;
  allocation->there = true;
}

static void forget(Allocation *allocation) {
  EACH(Stream, stream, STREAM) {
    for (Op *op = stream->head; op != NULL; op = op->next) {
      if (op->allocation == allocation) op->allocation = NULL;
    }
  }
  arrive(allocation);
  Allocation **link = &stub.allocations;
  while (*link != allocation) link = &(*link)->next;
  *link = allocation->next;
  munmap(allocation->address, allocation->bytes);
  free(allocation);
}

static void run_free(Allocation *allocation) {
  retract(allocation->address, allocation->bytes, "device memory was freed");
  if (!allocation->there) misuse("device memory was freed before it was allocated");
  allocation->pool->used -= allocation->bytes;
  if (allocation->pool->alive) allocation->pool->unseen += allocation->bytes;
  forget(allocation);
}

static void run_fill(const Op *op) {
  for (uint64_t i = 0; i < op->bytes; i += (uint64_t)op->width) memcpy(op->to + i, &op->value, (size_t)op->width);
}

static void run_copy(const Op *op) {
  for (uint64_t row = 0; op->bytes > 0 && row < op->rows; row++) {
    memcpy(op->to + row * op->to_pitch, op->from + row * op->from_pitch, op->bytes);
  }
}

static void run_setter(const Op *op) {
  uint32_t value;
  memcpy(&value, op->from, sizeof value);
  op->condition->holds = (value == op->value) != op->negated;
}

static void enqueue_nodes(Stream *stream, Exec *exec);
static void drop_exec(Exec *exec);

static void drop_op(Op *op) {
  if (op->body != NULL) drop_exec(op->body);
  free(op);
}

static void append(Stream *stream, Op *first, Op *last) {
  if (first == NULL) return;
  if (stream->tail == NULL) stream->head = first;
  else stream->tail->next = first;
  stream->tail = last;
}

/* Puts the work of a body before the other work of the stream, with the condition between the two if it is a loop. */
static bool run_branch(Stream *stream, Op *op) {
  if (op->condition == NULL || !op->condition->holds) return false;
  if (op->rounds++ == MAX_ROUNDS) {
    misuse("a loop that does not end");
    return false;
  }
  Op *rest = stream->head, *last = stream->tail;
  stream->head = stream->tail = op->next = NULL;
  enqueue_nodes(stream, op->body);
  if (op->loops) append(stream, op, op);
  append(stream, rest, last);
  return op->loops;
}

/* Runs and removes the first operation of a stream. Every operation takes a microsecond. */
static void run_first(Stream *stream) {
  Op *op = stream->head;
  stream->head = op->next;
  if (stream->head == NULL) stream->tail = NULL;
  stub.clock += 1000;
  check_there(op);
  if (op->kind == COPY) run_copy(op);
  if (op->kind == FILL) run_fill(op);
  if (op->kind == ALLOCATE && op->allocation != NULL) arrive(op->allocation);
  if (op->kind == FREE && op->allocation != NULL) run_free(op->allocation);
  if (op->kind == RECORD) {
    op->record->done = true;
    op->record->time = stub.clock;
  }
  if (op->kind == LAUNCH && op->condition != NULL) run_setter(op);
  if (op->kind != BRANCH || !run_branch(stream, op)) drop_op(op);
}

/* Host functions run on their own thread. */
static bool can_run(const Op *op) {
  return !op->held && op->kind != HOST && (op->kind != WAIT || op->record->done);
}

static bool at_host_function(const Stream *stream) {
  return !stream->captures && stream->head != NULL && stream->head->kind == HOST;
}

static void run_all(void) {
  bool moved = true;
  while (moved) {
    moved = false;
    EACH(Stream, stream, STREAM) {
      while (!stream->captures && stream->head != NULL && can_run(stream->head)) {
        run_first(stream);
        moved = true;
      }
      if (at_host_function(stream)) pthread_cond_signal(&host_reached);
    }
  }
}

/* A stream whose next operation is a host function that may be called; NULL while they are held back. */
static Stream *find_host_function(void) {
  Stream *found = NULL;
  if (stub.hosts_held) return NULL;
  EACH(Stream, stream, STREAM) {
    if (found == NULL && at_host_function(stream)) found = stream;
  }
  return found;
}

/* The thread that calls host functions. A stream continues once its host function has returned. */
static void *call_host_functions(void *unused) {
  (void)unused;
  pthread_mutex_lock(&lock);
  for (;;) {
    Stream *stream = find_host_function();
    if (stream == NULL) {
      pthread_cond_wait(&host_reached, &lock);
      continue;
    }
    /* The driver calls no host function once the context has failed. */
    if (stub.fault == SUCCESS) {
      HostFunction function = stream->head->function;
      void *data = stream->head->data;
      stub.host_running = true;
      stub.host_calls++;
      if (pthread_equal(pthread_self(), stub.main_thread)) stub.host_calls_on_main++;
      pthread_mutex_unlock(&lock);
      function(data);
      pthread_mutex_lock(&lock);
      stub.host_running = false;
    }
    run_first(stream);
    run_all();
    pthread_cond_broadcast(&host_called);
  }
  return NULL;
}

/* The thread runs code of this library, so the library stays loaded when its last user unloads it. */
static void start_host_thread(void) {
  pthread_t thread;
  if (pthread_create(&thread, NULL, call_host_functions, NULL) == 0) pthread_detach(thread);
}

static pthread_once_t host_thread_once = PTHREAD_ONCE_INIT;

/* Waits until every reached host function has been called. */
static void await_host_functions(void) {
  while (stub.host_running || find_host_function() != NULL) pthread_cond_wait(&host_called, &lock);
}

static Op *enqueue(Stream *stream, OpKind kind) {
  Op *op = calloc(1, sizeof(Op));
  bool memory = kind == ALLOCATE || kind == FREE;
  op->kind = kind;
  bool moves = kind == COPY || kind == FILL || kind == PREFETCH;
  op->rows = 1;
  op->held = kind == WORK || ((stub.pending & 1) && moves) || ((stub.pending & 2) && memory) ||
             ((stub.pending & 4) && kind == LAUNCH);
  append(stream, op, op);
  return op;
}

static Record *make_record(void) {
  Record *record = calloc(1, sizeof(Record));
  record->next = stub.records;
  stub.records = record;
  return record;
}

/* ---- Contexts and streams by handle. ---- */

static Handle make_stream(Handle context, unsigned flags, int priority, uint64_t id, bool internal) {
  Stream *stream = calloc(1, sizeof(Stream));
  *stream = (Stream){.alive = true, .internal = internal, .context = context, .flags = flags, .priority = priority};
  stream->id = id == 0 ? stub.next_id++ : id;
  return make(STREAM, stream);
}

static Handle make_context(int device) {
  Context *context = calloc(1, sizeof(Context));
  Handle handle = make(CONTEXT, context);
  context->alive = true;
  context->device = device;
  context->legacy = make_stream(handle, 0, 0, 7, true);
  context->per_thread = make_stream(handle, 0, 0, 15, true);
  return handle;
}

static Context *context_of(Call *call, Handle handle) {
  Context *context = find(CONTEXT, handle);
  if (context != NULL && context->alive) return context;
  wrong(call, "no such context", handle);
  return NULL;
}

/* The context that others of its device are parts of. */
static Handle primary_of(Handle handle) {
  Context *context = find(CONTEXT, handle);
  return context == NULL || context->primary == 0 ? handle : context->primary;
}

/* The multiprocessors of the current context. */
static int multiprocessors(const Call *call) {
  Context *context = find(CONTEXT, call->context);
  return context == NULL || context->multiprocessors == 0 ? 132 : (int)context->multiprocessors;
}

/* No resource of a device may be used once its context is released. */
static bool is_current_use(Call *call, Handle context_handle) {
  Context *context = find(CONTEXT, context_handle);
  if (context != NULL && context->alive) return true;
  wrong(call, "a resource of a released context", context_handle);
  return false;
}

/* 0 and 1 are the legacy default stream of the current context, 2 is its per-thread one. */
static Stream *stream_of(Call *call, Handle handle) {
  if (handle <= 2) {
    Context *context = find(CONTEXT, call->context);
    if (context != NULL) return find(STREAM, handle == 2 ? context->per_thread : context->legacy);
    if (call->status == SUCCESS) {
      misuse("%s on a default stream without a current context", call->name);
      call->status = INVALID_CONTEXT;
    }
    return NULL;
  }
  Stream *stream = find(STREAM, handle);
  if (stream != NULL && stream->alive) return is_current_use(call, stream->context) ? stream : NULL;
  wrong(call, "no such stream", handle);
  return NULL;
}

static Event *event_of(Call *call, Handle handle) {
  Event *event = find(EVENT, handle);
  if (event != NULL && event->alive) return is_current_use(call, event->context) ? event : NULL;
  wrong(call, "no such event", handle);
  return NULL;
}

static Pool *pool_of(Call *call, Handle handle) {
  Pool *pool = find(POOL, handle);
  if (pool != NULL && pool->alive) return pool;
  wrong(call, "no such pool", handle);
  return NULL;
}

static bool is_device(Call *call, int device) {
  if (call->status != SUCCESS) return false;
  if (device >= 0 && device < stub.devices) return true;
  call->status = INVALID_DEVICE;
  return false;
}

static bool ok(const Call *call) { return call->status == SUCCESS; }

/* True also when the call returns a fault: the driver then frees resources with their context. */
static bool gives_back(const Call *call) { return ok(call) || call->faulted; }

/* ---- The driver: versions, errors, devices. ---- */

EXPORT Status cuInit(unsigned flags) {
  Call call = begin("cuInit", ALWAYS);
  add_int(&call, flags);
  if (ok(&call)) call.status = stub.init_status;
  if (ok(&call)) stub.initialized = true;
  return end(&call);
}

EXPORT Status cuDriverGetVersion(int *version) {
  Call call = begin("cuDriverGetVersion", ALWAYS);
  if (ok(&call)) add_int(&call, *version = stub.version);
  return end(&call);
}

static Status describe(Call *call, int status, const char **out, const char *text) {
  bool known = status == 12345;
  add_int(call, status);
  *out = known ? text : NULL;
  if (ok(call) && !known) call->status = INVALID_VALUE;
  return end(call);
}

EXPORT Status cuGetErrorName(int status, const char **name) {
  Call call = begin("cuGetErrorName", ALWAYS);
  return describe(&call, status, name, "CUDA_ERROR_OF_THE_STUB");
}

EXPORT Status cuGetErrorString(int status, const char **text) {
  Call call = begin("cuGetErrorString", ALWAYS);
  return describe(&call, status, text, "a status that only the stub knows");
}

EXPORT Status cuDeviceGetCount(int *count) {
  Call call = begin("cuDeviceGetCount", ALWAYS);
  if (ok(&call)) add_int(&call, *count = stub.devices);
  return end(&call);
}

/* Device handles differ from ordinals, so that tests detect mix-ups. */
#define DEVICE_BASE 40

EXPORT Status cuDeviceGet(int *device, int ordinal) {
  Call call = begin("cuDeviceGet", ALWAYS);
  if (is_device(&call, ordinal)) add_int(&call, *device = ordinal + DEVICE_BASE);
  add_int(&call, ordinal);
  return end(&call);
}

EXPORT Status cuDeviceGetName(char *name, int size, int device) {
  Call call = begin("cuDeviceGetName", ALWAYS);
  if (is_device(&call, device - DEVICE_BASE)) snprintf(name, (size_t)size, "Stub GPU %d", device - DEVICE_BASE);
  add_int(&call, size);
  add_int(&call, device);
  return end(&call);
}

EXPORT Status cuDeviceGetUuid_v2(uint8_t *uuid, int device) {
  Call call = begin("cuDeviceGetUuid_v2", ALWAYS);
  if (is_device(&call, device - DEVICE_BASE)) {
    for (int i = 0; i < 16; i++) uuid[i] = (uint8_t)(i * 16 + device - DEVICE_BASE);
  }
  add_int(&call, device);
  return end(&call);
}

EXPORT Status cuDeviceTotalMem_v2(size_t *bytes, int device) {
  Call call = begin("cuDeviceTotalMem_v2", ALWAYS);
  if (is_device(&call, device - DEVICE_BASE)) add_wide(&call, *bytes = stub.memory);
  add_int(&call, device);
  return end(&call);
}

EXPORT Status cuDeviceGetAttribute(int *value, int attribute, int device) {
  Call call = begin("cuDeviceGetAttribute", ALWAYS);
  if (is_device(&call, device - DEVICE_BASE)) {
    bool told = attribute >= 0 && attribute < 256 && stub.attributes[attribute] >= 0;
    int usual = attribute == 75 ? 9 : attribute == 76 ? 0 : 1000 + attribute;
    add_int(&call, *value = told ? stub.attributes[attribute] : usual);
  }
  add_int(&call, attribute);
  add_int(&call, device);
  return end(&call);
}

EXPORT Status cuDeviceGetPCIBusId(char *text, int size, int device) {
  Call call = begin("cuDeviceGetPCIBusId", ALWAYS);
  if (is_device(&call, device - DEVICE_BASE)) snprintf(text, (size_t)size, "0000:%02X:00.0", device);
  add_int(&call, size);
  add_int(&call, device);
  return end(&call);
}

EXPORT Status cuDeviceCanAccessPeer(int *can, int device, int peer) {
  Call call = begin("cuDeviceCanAccessPeer", ALWAYS);
  if (is_device(&call, device - DEVICE_BASE) && is_device(&call, peer - DEVICE_BASE)) {
    add_int(&call, *can = device != peer && !stub.unlinked);
  }
  add_int(&call, device);
  add_int(&call, peer);
  return end(&call);
}

/* Attribute 1, the rank of the link, is 0 for the best one; the others are 1 where they are supported. */
EXPORT Status cuDeviceGetP2PAttribute(int *value, int attribute, int device, int peer) {
  Call call = begin("cuDeviceGetP2PAttribute", ALWAYS);
  if (is_device(&call, device - DEVICE_BASE) && is_device(&call, peer - DEVICE_BASE)) {
    if (device == peer) call.status = 101;
    else if (attribute < 1 || attribute > 4) call.status = 1;
    else add_int(&call, *value = attribute == 1 ? 0 : 1);
  }
  add_int(&call, attribute);
  add_int(&call, device);
  add_int(&call, peer);
  return end(&call);
}

/* ---- Contexts. ---- */

EXPORT Status cuDevicePrimaryCtxRetain(Handle *out, int device) {
  Call call = begin("cuDevicePrimaryCtxRetain", ALWAYS);
  int ordinal = device - DEVICE_BASE;
  if (is_device(&call, ordinal)) {
    if (stub.primary[ordinal] == 0) stub.primary[ordinal] = make_context(ordinal);
    Context *context = find(CONTEXT, stub.primary[ordinal]);
    context->retained++;
    context->alive = true;
    add_wide(&call, *out = stub.primary[ordinal]);
  }
  add_int(&call, device);
  return end(&call);
}

EXPORT Status cuDevicePrimaryCtxRelease_v2(int device) {
  Call call = begin("cuDevicePrimaryCtxRelease_v2", ALWAYS);
  int ordinal = device - DEVICE_BASE;
  add_int(&call, device);
  Context *context = is_device(&call, ordinal) ? find(CONTEXT, stub.primary[ordinal]) : NULL;
  if (context != NULL && context->retained > 0) {
    context->alive = --context->retained > 0;
  } else if (ok(&call)) {
    misuse("a primary context was released that nobody retains");
    call.status = INVALID_CONTEXT;
  }
  return end(&call);
}

EXPORT Status cuCtxPushCurrent_v2(Handle context) {
  Call call = begin("cuCtxPushCurrent_v2", ALWAYS);
  add_wide(&call, context);
  if (context_of(&call, context) != NULL && ok(&call)) stack[depth++] = context;
  return end(&call);
}

EXPORT Status cuCtxPopCurrent_v2(Handle *out) {
  Call call = begin("cuCtxPopCurrent_v2", ALWAYS);
  if (ok(&call) && depth == 0) {
    misuse("a context was popped that nobody pushed");
    call.status = INVALID_CONTEXT;
  }
  if (ok(&call)) add_wide(&call, *out = stack[--depth]);
  return end(&call);
}

/* The current context and the one of a peer; NULL unless both are live. */
static Context *with_peer(Call *call, Handle handle, Context **peer) {
  add_wide(call, handle);
  *peer = context_of(call, handle);
  Context *context = ok(call) ? find(CONTEXT, call->context) : NULL;
  return ok(call) ? context : NULL;
}

EXPORT Status cuCtxEnablePeerAccess(Handle handle, unsigned flags) {
  Call call = begin("cuCtxEnablePeerAccess", NEEDS_CONTEXT);
  Context *peer;
  Context *context = with_peer(&call, handle, &peer);
  add_int(&call, (int)flags);
  if (context == NULL) return end(&call);
  unsigned bit = 1u << peer->device;
  if (flags != 0) call.status = INVALID_VALUE;
  else if (context->device == peer->device || stub.unlinked) call.status = 217;
  else if (context->peers & bit) call.status = 704;
  else context->peers |= bit;
  return end(&call);
}

EXPORT Status cuCtxDisablePeerAccess(Handle handle) {
  Call call = begin("cuCtxDisablePeerAccess", NEEDS_CONTEXT);
  Context *peer;
  Context *context = with_peer(&call, handle, &peer);
  if (context == NULL) return end(&call);
  unsigned bit = 1u << peer->device;
  if ((context->peers & bit) == 0) call.status = 705;
  context->peers &= ~bit;
  return end(&call);
}

EXPORT Status cuCtxGetStreamPriorityRange(int *least, int *greatest) {
  Call call = begin("cuCtxGetStreamPriorityRange", NEEDS_CONTEXT);
  if (ok(&call)) add_int(&call, *least = stub.least);
  if (ok(&call)) add_int(&call, *greatest = stub.greatest);
  return end(&call);
}

static uint64_t taken_memory(int device) {
  uint64_t bytes = 0;
  EACH(Pool, pool, POOL) {
    if (pool->device == device) bytes += pool->used + pool->unseen + pool->kept;
  }
  return bytes;
}

EXPORT Status cuMemGetInfo_v2(size_t *available, size_t *total) {
  Call call = begin("cuMemGetInfo_v2", NEEDS_CONTEXT);
  Context *context = ok(&call) ? context_of(&call, call.context) : NULL;
  if (context != NULL) {
    add_wide(&call, *available = stub.memory - taken_memory(context->device));
    add_wide(&call, *total = stub.memory);
  }
  return end(&call);
}

EXPORT Status cuProfilerStart(void) {
  Call call = begin("cuProfilerStart", NEEDS_CONTEXT);
  return end(&call);
}

EXPORT Status cuProfilerStop(void) {
  Call call = begin("cuProfilerStop", NEEDS_CONTEXT);
  return end(&call);
}

/* ---- Streams. ---- */

EXPORT Status cuStreamCreateWithPriority(Handle *out, unsigned flags, int priority) {
  Call call = begin("cuStreamCreateWithPriority", NEEDS_CONTEXT);
  if (ok(&call) && flags > 1) call.status = INVALID_VALUE;
  if (ok(&call)) add_wide(&call, *out = make_stream(call.context, flags, priority, 0, false));
  add_int(&call, flags);
  add_int(&call, priority);
  return end(&call);
}

EXPORT Status cuStreamDestroy_v2(Handle handle) {
  Call call = begin("cuStreamDestroy_v2", 0);
  add_wide(&call, handle);
  Stream *stream = stream_of(&call, handle);
  if (stream != NULL && gives_back(&call)) {
    if (stream->internal) misuse("a stream was destroyed that belongs to others");
    stream->alive = false;
  }
  return end(&call);
}

EXPORT Status cuStreamQuery(Handle handle) {
  Call call = begin("cuStreamQuery", 0);
  add_wide(&call, handle);
  Stream *stream = stream_of(&call, handle);
  if (ok(&call) && stream->head != NULL) call.status = NOT_READY;
  return end(&call);
}

static void see_frees(int device) {
  EACH(Pool, pool, POOL) {
    if (pool->device != device) continue;
    pool->kept += pool->unseen;
    pool->unseen = 0;
  }
}

EXPORT Status cuStreamSynchronize(Handle handle) {
  Call call = begin("cuStreamSynchronize", 0);
  add_wide(&call, handle);
  Stream *stream = stream_of(&call, handle);
  if (ok(&call) && stream->head != NULL) misuse("cuStreamSynchronize would block the thread");
  if (ok(&call)) see_frees(((Context *)find(CONTEXT, stream->context))->device);
  return end(&call);
}

EXPORT Status cuStreamWaitEvent(Handle handle, Handle event_handle, unsigned flags) {
  Call call = begin("cuStreamWaitEvent", 0);
  add_wide(&call, handle);
  add_wide(&call, event_handle);
  add_int(&call, flags);
  Stream *stream = stream_of(&call, handle);
  Event *event = event_of(&call, event_handle);
  if (ok(&call) && event->record != NULL) {
    enqueue(stream, WAIT)->record = event->record;
    run_all();
  }
  return end(&call);
}

EXPORT Status cuStreamGetId(Handle handle, uint64_t *id) {
  Call call = begin("cuStreamGetId", 0);
  add_wide(&call, handle);
  Stream *stream = stream_of(&call, handle);
  if (ok(&call)) add_wide(&call, *id = stream->id);
  return end(&call);
}

EXPORT Status cuStreamGetPriority(Handle handle, int *priority) {
  Call call = begin("cuStreamGetPriority", 0);
  add_wide(&call, handle);
  Stream *stream = stream_of(&call, handle);
  if (ok(&call)) add_int(&call, *priority = stream->priority);
  return end(&call);
}

EXPORT Status cuStreamGetFlags(Handle handle, unsigned *flags) {
  Call call = begin("cuStreamGetFlags", 0);
  add_wide(&call, handle);
  Stream *stream = stream_of(&call, handle);
  if (ok(&call)) add_int(&call, *flags = stream->flags);
  return end(&call);
}

EXPORT Status cuStreamGetCtx(Handle handle, Handle *context) {
  Call call = begin("cuStreamGetCtx", 0);
  add_wide(&call, handle);
  Stream *stream = stream_of(&call, handle);
  if (ok(&call)) add_wide(&call, *context = stream->context);
  return end(&call);
}

/* ---- Events. ---- */

static Handle make_event(Handle context, unsigned flags, Record *record) {
  Event *event = calloc(1, sizeof(Event));
  *event = (Event){.alive = true, .context = context, .flags = flags, .record = record};
  return make(EVENT, event);
}

EXPORT Status cuEventCreate(Handle *out, unsigned flags) {
  Call call = begin("cuEventCreate", NEEDS_CONTEXT);
  if (ok(&call) && (flags > 7 || (flags & 6) == 4)) call.status = INVALID_VALUE;
  if (ok(&call)) add_wide(&call, *out = make_event(call.context, flags, NULL));
  add_int(&call, flags);
  return end(&call);
}

EXPORT Status cuEventDestroy_v2(Handle handle) {
  Call call = begin("cuEventDestroy_v2", 0);
  add_wide(&call, handle);
  Event *event = event_of(&call, handle);
  if (event != NULL && gives_back(&call)) event->alive = false;
  return end(&call);
}

EXPORT Status cuEventRecord(Handle handle, Handle stream_handle) {
  Call call = begin("cuEventRecord", 0);
  add_wide(&call, handle);
  add_wide(&call, stream_handle);
  Event *event = event_of(&call, handle);
  Stream *stream = stream_of(&call, stream_handle);
  if (ok(&call) && event->context != primary_of(stream->context)) wrong(&call, "the stream is of another context than event", handle);
  if (ok(&call)) {
    event->record = make_record();
    enqueue(stream, RECORD)->record = event->record;
    run_all();
  }
  return end(&call);
}

EXPORT Status cuEventQuery(Handle handle) {
  Call call = begin("cuEventQuery", 0);
  add_wide(&call, handle);
  Event *event = event_of(&call, handle);
  if (ok(&call) && event->record != NULL && !event->record->done) call.status = NOT_READY;
  return end(&call);
}

EXPORT Status cuEventSynchronize(Handle handle) {
  Call call = begin("cuEventSynchronize", 0);
  add_wide(&call, handle);
  Event *event = event_of(&call, handle);
  if (ok(&call) && event->record != NULL && !event->record->done) misuse("cuEventSynchronize would block the event loop");
  Context *context = ok(&call) ? find(CONTEXT, event->context) : NULL;
  if (context != NULL) see_frees(context->device);
  return end(&call);
}

static Status elapsed(const Event *start, const Event *stop, float *milliseconds) {
  if (((start->flags | stop->flags) & 2) || start->record == NULL || stop->record == NULL) return INVALID_HANDLE;
  if (start->context != stop->context) return INVALID_HANDLE;
  if (!start->record->done || !stop->record->done) return NOT_READY;
  *milliseconds = (float)((double)(stop->record->time - start->record->time) / 1e6);
  return SUCCESS;
}

static Status elapsed_time(const char *name, float *milliseconds, Handle start_handle, Handle stop_handle) {
  Call call = begin(name, 0);
  add_wide(&call, start_handle);
  add_wide(&call, stop_handle);
  Event *start = event_of(&call, start_handle);
  Event *stop = event_of(&call, stop_handle);
  if (ok(&call)) call.status = elapsed(start, stop, milliseconds);
  return end(&call);
}

EXPORT Status cuEventElapsedTime(float *milliseconds, Handle start, Handle stop) {
  return elapsed_time("cuEventElapsedTime", milliseconds, start, stop);
}

/* Does not report faults. */
EXPORT Status cuEventElapsedTime_v2(float *milliseconds, Handle start, Handle stop) {
  int fault = stub.fault;
  stub.fault = SUCCESS;
  Status status = elapsed_time("cuEventElapsedTime_v2", milliseconds, start, stop);
  stub.fault = fault;
  return status;
}

/* Interprocess handles: the first eight bytes identify the event, the rest is a pattern that detects wrong copies. */
typedef struct {
  uint8_t bytes[64];
} IpcHandle;

static void fill_ipc(uint8_t *bytes, uint64_t value) {
  for (int i = 0; i < 64; i++) bytes[i] = (uint8_t)(i * 7 + 3);
  memcpy(bytes, &value, sizeof value);
}

EXPORT Status cuIpcGetEventHandle(IpcHandle *out, Handle handle) {
  Call call = begin("cuIpcGetEventHandle", NEEDS_CONTEXT);
  add_wide(&call, handle);
  Event *event = event_of(&call, handle);
  if (ok(&call) && !(event->flags & 4)) call.status = INVALID_VALUE;
  if (ok(&call)) fill_ipc(out->bytes, handle);
  return end(&call);
}

EXPORT Status cuIpcOpenEventHandle(Handle *out, IpcHandle handle) {
  Call call = begin("cuIpcOpenEventHandle", NEEDS_CONTEXT);
  IpcHandle expected;
  uint64_t remote;
  memcpy(&remote, handle.bytes, sizeof remote);
  fill_ipc(expected.bytes, remote);
  bool known = remote < (uint64_t)stub.remote_count && memcmp(&expected, &handle, sizeof handle) == 0;
  if (ok(&call) && !known) call.status = find(EVENT, remote) == NULL ? INVALID_VALUE : INVALID_CONTEXT;
  if (ok(&call)) add_wide(&call, *out = make_event(call.context, 6, stub.remotes[remote]));
  add_bytes(&call, &handle, 64);
  return end(&call);
}

/* ---- Device memory: pools with stream-ordered allocations and releases. ---- */

typedef struct {
  int alloc_type, handle_types, location_type, location_id;
  void *security;
  size_t max_size;
  uint8_t rest[56];
} PoolProperties;

EXPORT Status cuMemPoolCreate(Handle *out, const PoolProperties *properties) {
  Call call = begin("cuMemPoolCreate", 0);
  bool valid = properties->alloc_type == 1 && properties->location_type == 1 &&
    (properties->handle_types == 0 || properties->handle_types == 1);
  if (ok(&call) && (!valid || properties->location_id < 0 || properties->location_id >= stub.devices)) {
    call.status = INVALID_VALUE;
  }
  if (ok(&call)) {
    Pool *pool = calloc(1, sizeof(Pool));
    *pool = (Pool){
      .alive = true, .device = properties->location_id, .max = properties->max_size, .reuse = {0, 1, 1, 1},
      .shareable = properties->handle_types == 1};
    add_wide(&call, *out = make(POOL, pool));
  }
  add_bytes(&call, properties, sizeof *properties);
  return end(&call);
}

EXPORT Status cuMemPoolDestroy(Handle handle) {
  Call call = begin("cuMemPoolDestroy", 0);
  add_wide(&call, handle);
  Pool *pool = pool_of(&call, handle);
  if (ok(&call) && pool->imported && pool->used > 0) call.status = INVALID_VALUE;
  if (ok(&call) && !pool->imported && pool->used + pool->unseen > 0) {
    misuse("a pool was destroyed before its memory was free, and the driver knew it");
  }
  if (pool != NULL && gives_back(&call)) {
    pool->alive = false;
    pool->unseen = pool->kept = 0;
  }
  return end(&call);
}

typedef struct {
  int location_type, location_id, flags;
} PoolAccess;

EXPORT Status cuMemPoolSetAccess(Handle handle, const PoolAccess *access, size_t count) {
  Call call = begin("cuMemPoolSetAccess", 0);
  add_wide(&call, handle);
  Pool *pool = pool_of(&call, handle);
  for (size_t i = 0; ok(&call) && i < count; i++) {
    add_int(&call, access[i].location_id);
    add_int(&call, access[i].flags);
    bool gives = access[i].flags == 3;
    if (access[i].location_type != 1 || (!gives && access[i].flags != 0)) call.status = INVALID_VALUE;
    if (!is_device(&call, access[i].location_id)) continue;
    if (!gives && access[i].location_id == pool->device) call.status = INVALID_DEVICE;
    else if (gives) pool->accessible |= 1u << access[i].location_id;
    else pool->accessible &= ~(1u << access[i].location_id);
  }
  return end(&call);
}

static uint64_t reserved_of(const Pool *pool) { return pool->used + pool->unseen + pool->kept; }

EXPORT Status cuMemPoolSetAttribute(Handle handle, int attribute, void *value) {
  Call call = begin("cuMemPoolSetAttribute", 0);
  bool narrow = attribute >= 1 && attribute <= 3;
  add_wide(&call, handle);
  add_int(&call, attribute);
  if (narrow) add_int(&call, *(int *)value);
  else add_wide(&call, *(uint64_t *)value);
  Pool *pool = pool_of(&call, handle);
  if (ok(&call) && (attribute < 1 || attribute > 8 || pool->imported)) call.status = INVALID_VALUE;
  if (ok(&call) && attribute > 4 && *(uint64_t *)value != 0) call.status = INVALID_VALUE;
  if (ok(&call) && narrow) pool->reuse[attribute] = *(int *)value;
  if (ok(&call) && attribute == 4) pool->threshold = *(uint64_t *)value;
  if (ok(&call) && attribute == 6) pool->reserved_high = reserved_of(pool);
  if (ok(&call) && attribute == 8) pool->used_high = pool->used;
  return end(&call);
}

EXPORT Status cuMemPoolGetAttribute(Handle handle, int attribute, void *value) {
  Call call = begin("cuMemPoolGetAttribute", 0);
  add_wide(&call, handle);
  add_int(&call, attribute);
  Pool *pool = pool_of(&call, handle);
  if (ok(&call) && (attribute < 1 || attribute > 8 || pool->imported)) call.status = INVALID_VALUE;
  if (ok(&call) && attribute <= 3) {
    add_int(&call, *(int *)value = pool->reuse[attribute]);
  } else if (ok(&call)) {
    uint64_t values[] = {pool->threshold, reserved_of(pool), pool->reserved_high, pool->used, pool->used_high};
    add_wide(&call, *(uint64_t *)value = values[attribute - 4]);
  }
  return end(&call);
}

EXPORT Status cuMemPoolTrimTo(Handle handle, size_t keep) {
  Call call = begin("cuMemPoolTrimTo", 0);
  add_wide(&call, handle);
  add_wide(&call, keep);
  Pool *pool = pool_of(&call, handle);
  if (ok(&call) && pool->imported) call.status = INVALID_VALUE;
  if (ok(&call) && pool->kept > keep) pool->kept = keep;
  return end(&call);
}

/* Memory comes from what the pool keeps, then from the device. */
static bool reserve(Pool *pool, uint64_t bytes) {
  uint64_t reused = bytes < pool->kept ? bytes : pool->kept;
  if (taken_memory(pool->device) - reused + bytes > stub.memory) return false;
  if (pool->max > 0 && reserved_of(pool) - reused + bytes > pool->max) return false;
  pool->kept -= reused;
  pool->used += bytes;
  if (pool->used > pool->used_high) pool->used_high = pool->used;
  if (reserved_of(pool) > pool->reserved_high) pool->reserved_high = reserved_of(pool);
  return true;
}

static Allocation *allocate(Pool *pool, uint64_t bytes) {
  int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  void *address = mmap(NULL, bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
  if (address == MAP_FAILED) return NULL;
  Allocation *allocation = calloc(1, sizeof(Allocation));
  *allocation = (Allocation){.address = address, .bytes = bytes, .pool = pool, .next = stub.allocations};
  return stub.allocations = allocation;
}

EXPORT Status cuMemAllocFromPoolAsync(Handle *out, size_t bytes, Handle pool_handle, Handle stream_handle) {
  Call call = begin("cuMemAllocFromPoolAsync", 0);
  Pool *pool = pool_of(&call, pool_handle);
  Stream *stream = stream_of(&call, stream_handle);
  if (ok(&call) && (bytes == 0 || pool->imported)) call.status = INVALID_VALUE;
  if (ok(&call) && !reserve(pool, bytes)) call.status = OUT_OF_MEMORY;
  Allocation *allocation = ok(&call) ? allocate(pool, bytes) : NULL;
  if (ok(&call) && allocation == NULL) call.status = OUT_OF_MEMORY;
  if (ok(&call)) {
    add_wide(&call, *out = (Handle)allocation->address);
    stub.coming++;
    enqueue(stream, ALLOCATE)->allocation = allocation;
    run_all();
  }
  add_wide(&call, bytes);
  add_wide(&call, pool_handle);
  add_wide(&call, stream_handle);
  return end(&call);
}

static Allocation *allocation_at(const uint8_t *address, uint64_t bytes) {
  for (Allocation *a = stub.allocations; a != NULL; a = a->next) {
    if (address >= a->address && address + bytes <= a->address + a->bytes) return a;
  }
  return NULL;
}

/* The live allocation that starts at an address. */
static Allocation *allocation_from(const uint8_t *address) {
  for (Allocation *a = stub.allocations; a != NULL; a = a->next) {
    if (a->address == address && !a->released) return a;
  }
  return NULL;
}

EXPORT Status cuMemFreeAsync(Handle address, Handle stream_handle) {
  Call call = begin("cuMemFreeAsync", 0);
  add_wide(&call, address);
  add_wide(&call, stream_handle);
  Stream *stream = stream_of(&call, stream_handle);
  Allocation *allocation = allocation_from((uint8_t *)address);
  if (allocation == NULL) wrong(&call, "not an allocation to free", address);
  if (allocation != NULL && ok(&call)) {
    allocation->released = true;
    enqueue(stream, FREE)->allocation = allocation;
    run_all();
  } else if (allocation != NULL && call.faulted) {
    allocation->pool->used -= allocation->bytes;
    forget(allocation);
  }
  return end(&call);
}

/* ---- Managed memory, from a hidden pool per device. ---- */

static Pool *managed_pool(int device) {
  EACH(Pool, pool, POOL) {
    if (pool->managed && pool->device == device) return pool;
  }
  Pool *pool = calloc(1, sizeof(Pool));
  *pool = (Pool){.managed = true, .device = device};
  make(POOL, pool);
  return pool;
}

static bool is_busy(int device);
static void wait_in_driver(int device);

EXPORT Status cuMemAllocManaged(Handle *out, size_t bytes, unsigned flags) {
  Call call = begin("cuMemAllocManaged", NEEDS_CONTEXT);
  Context *context = ok(&call) ? context_of(&call, call.context) : NULL;
  if (ok(&call) && (bytes == 0 || flags != 1)) call.status = INVALID_VALUE;
  Pool *pool = ok(&call) ? managed_pool(context->device) : NULL;
  if (ok(&call) && !reserve(pool, bytes)) call.status = OUT_OF_MEMORY;
  Allocation *allocation = ok(&call) ? allocate(pool, bytes) : NULL;
  if (ok(&call) && allocation == NULL) call.status = OUT_OF_MEMORY;
  if (ok(&call)) {
    allocation->there = true;
    add_wide(&call, *out = (Handle)allocation->address);
  }
  add_wide(&call, bytes);
  add_int(&call, flags);
  return end(&call);
}

EXPORT Status cuMemFree_v2(Handle address) {
  Call call = begin("cuMemFree_v2", NEEDS_CONTEXT);
  add_wide(&call, address);
  Allocation *allocation = allocation_from((uint8_t *)address);
  if (allocation == NULL || !(allocation->pool->managed || allocation->pool->plain)) {
    wrong(&call, "not managed memory or an allocation to free", address);
  } else if (gives_back(&call)) {
    wait_in_driver(allocation->pool->device);
    retract(allocation->address, allocation->bytes, "managed memory or an allocation was freed");
    allocation->pool->used -= allocation->bytes;
    forget(allocation);
  }
  return end(&call);
}

/* ---- Memory of other processes. Its handles hold its size, and those of this process the address. ---- */

EXPORT Status cuMemPoolExportToShareableHandle(int *out, Handle handle, int type, uint64_t flags) {
  Call call = begin("cuMemPoolExportToShareableHandle", 0);
  Pool *pool = pool_of(&call, handle);
  if (ok(&call) && (!pool->shareable || type != 1 || flags != 0)) call.status = INVALID_VALUE;
  if (ok(&call)) {
    pool->exported = true;
    add_int(&call, *out = open("/dev/null", O_RDONLY | O_CLOEXEC));
  }
  add_wide(&call, handle);
  add_int(&call, type);
  return end(&call);
}

/* A pool that is opened again has the same handle. */
static Pool *imported_pool(uint64_t descriptor) {
  EACH(Pool, pool, POOL) {
    if (pool->alive && pool->imported && pool->descriptor == descriptor) return pool;
  }
  return NULL;
}

EXPORT Status cuMemPoolImportFromShareableHandle(Handle *out, uint64_t descriptor, int type, uint64_t flags) {
  Call call = begin("cuMemPoolImportFromShareableHandle", NEEDS_CONTEXT);
  Context *context = ok(&call) ? context_of(&call, call.context) : NULL;
  if (ok(&call) && (type != 1 || flags != 0)) call.status = INVALID_VALUE;
  if (ok(&call)) {
    Pool *pool = imported_pool(descriptor);
    if (pool == NULL) {
      pool = calloc(1, sizeof(Pool));
      *pool = (Pool){.alive = true, .imported = true, .device = context->device, .descriptor = descriptor};
      make(POOL, pool);
    }
    add_wide(&call, *out = handle_of(POOL, pool));
  }
  add_wide(&call, descriptor);
  add_int(&call, type);
  return end(&call);
}

EXPORT Status cuMemPoolExportPointer(uint8_t *out, Handle address) {
  Call call = begin("cuMemPoolExportPointer", 0);
  add_wide(&call, address);
  Allocation *allocation = allocation_from((uint8_t *)address);
  /* Only memory of pools that were exported. */
  if (ok(&call) && (allocation == NULL || !allocation->pool->exported)) call.status = INVALID_VALUE;
  if (ok(&call)) fill_ipc(out, address);
  return end(&call);
}

/* Opens memory whose handle holds its size. */
static Allocation *open_memory(Call *call, Pool *pool, const uint8_t *handle) {
  uint8_t expected[64];
  uint64_t bytes;
  memcpy(&bytes, handle, sizeof bytes);
  fill_ipc(expected, bytes);
  bool known = memcmp(expected, handle, sizeof expected) == 0 && bytes > 0;
  if (ok(call) && known && allocation_from((uint8_t *)bytes) != NULL) call->status = INVALID_CONTEXT;
  if (ok(call) && !known) call->status = INVALID_VALUE;
  if (!ok(call)) return NULL;
  Allocation *allocation = allocate(pool, bytes);
  allocation->there = true;
  memcpy(allocation->handle, handle, sizeof allocation->handle);
  pool->used += bytes;
  return allocation;
}

EXPORT Status cuMemPoolImportPointer(Handle *out, Handle handle, const uint8_t *data) {
  Call call = begin("cuMemPoolImportPointer", 0);
  Pool *pool = pool_of(&call, handle);
  if (ok(&call) && !pool->imported) call.status = INVALID_VALUE;
  for (Allocation *a = stub.allocations; a != NULL && ok(&call); a = a->next) {
    if (a->pool == pool && memcmp(a->handle, data, 64) == 0) misuse("memory of a pool was opened while it was open");
  }
  Allocation *allocation = open_memory(&call, pool, data);
  if (ok(&call)) add_wide(&call, *out = (Handle)allocation->address);
  add_wide(&call, handle);
  add_bytes(&call, data, 64);
  return end(&call);
}

/* The hidden pool of a device for allocations of this process, or for those of others. */
static Pool *plain_pool(int device, bool opened) {
  EACH(Pool, pool, POOL) {
    if (pool->device == device && (opened ? pool->opened : pool->plain)) return pool;
  }
  Pool *pool = calloc(1, sizeof(Pool));
  *pool = (Pool){.plain = !opened, .opened = opened, .device = device};
  make(POOL, pool);
  return pool;
}

EXPORT Status cuMemAlloc_v2(Handle *out, size_t bytes) {
  Call call = begin("cuMemAlloc_v2", NEEDS_CONTEXT);
  Context *context = ok(&call) ? context_of(&call, call.context) : NULL;
  if (ok(&call) && bytes == 0) call.status = INVALID_VALUE;
  Pool *pool = ok(&call) ? plain_pool(context->device, false) : NULL;
  if (ok(&call) && !reserve(pool, bytes)) call.status = OUT_OF_MEMORY;
  Allocation *allocation = ok(&call) ? allocate(pool, bytes) : NULL;
  if (ok(&call) && allocation == NULL) call.status = OUT_OF_MEMORY;
  if (ok(&call)) {
    allocation->there = true;
    add_wide(&call, *out = (Handle)allocation->address);
  }
  add_wide(&call, bytes);
  return end(&call);
}

EXPORT Status cuIpcGetMemHandle(IpcHandle *out, Handle address) {
  Call call = begin("cuIpcGetMemHandle", NEEDS_CONTEXT);
  add_wide(&call, address);
  Allocation *allocation = allocation_from((uint8_t *)address);
  if (ok(&call) && (allocation == NULL || !allocation->pool->plain)) call.status = INVALID_VALUE;
  if (ok(&call)) fill_ipc(out->bytes, address);
  return end(&call);
}

EXPORT Status cuIpcOpenMemHandle_v2(Handle *out, IpcHandle handle, unsigned flags) {
  Call call = begin("cuIpcOpenMemHandle_v2", NEEDS_CONTEXT);
  Context *context = ok(&call) ? context_of(&call, call.context) : NULL;
  if (ok(&call) && flags != 1) call.status = INVALID_VALUE;
  Allocation *allocation = ok(&call) ? open_memory(&call, plain_pool(context->device, true), handle.bytes) : NULL;
  if (ok(&call)) add_wide(&call, *out = (Handle)allocation->address);
  add_bytes(&call, &handle, 64);
  add_int(&call, flags);
  return end(&call);
}

EXPORT Status cuIpcCloseMemHandle(Handle address) {
  Call call = begin("cuIpcCloseMemHandle", NEEDS_CONTEXT);
  add_wide(&call, address);
  Allocation *allocation = allocation_from((uint8_t *)address);
  if (allocation == NULL || !allocation->pool->opened) {
    wrong(&call, "not memory of another process to close", address);
  } else if (gives_back(&call)) {
    wait_in_driver(allocation->pool->device);
    retract(allocation->address, allocation->bytes, "memory of another process was closed");
    allocation->pool->used -= allocation->bytes;
    forget(allocation);
  }
  return end(&call);
}

/* ---- Green contexts: 132 multiprocessors, in 15 groups of 8 and a rest of 12. ---- */

#define GROUPS 15
#define GROUP_SIZE 8
#define REST_SIZE 12

/* The groups are bits, and the rest is the bit after them. A number tells the splits apart. */
typedef struct {
  int type;
  int device;
  uint64_t groups, split;
  uint8_t padding[72];
  unsigned count, least, aligned;
  uint8_t rest[36];
} Resource;

_Static_assert(sizeof(Resource) == 144 && offsetof(Resource, count) == 96, "CUdevResource");

static unsigned count_of(uint64_t groups) {
  unsigned count = 0;
  for (int i = 0; i < GROUPS; i++) count += (groups >> i & 1) * GROUP_SIZE;
  return count + (groups >> GROUPS & 1) * REST_SIZE;
}

static Resource resource_of(int device, uint64_t groups, uint64_t split) {
  Resource resource = {.type = 1, .device = device, .groups = groups, .split = split, .count = count_of(groups)};
  resource.least = resource.aligned = GROUP_SIZE;
  return resource;
}

EXPORT Status cuDeviceGetDevResource(int device, Resource *out, int type) {
  Call call = begin("cuDeviceGetDevResource", 0);
  add_int(&call, device);
  add_int(&call, type);
  if (ok(&call) && type != 1) call.status = INVALID_VALUE;
  if (is_device(&call, device - DEVICE_BASE)) *out = resource_of(device - DEVICE_BASE, (1 << (GROUPS + 1)) - 1, 0);
  return end(&call);
}

EXPORT Status cuDevSmResourceSplitByCount(Resource *out, unsigned *count, const Resource *from, Resource *rest,
                                          unsigned flags, unsigned least) {
  static uint64_t splits;
  Call call = begin("cuDevSmResourceSplitByCount", 0);
  add_int(&call, *count);
  add_int(&call, flags);
  add_int(&call, least);
  if (ok(&call) && (from->type != 1 || from->split != 0 || flags != 0 || least > GROUP_SIZE)) call.status = INVALID_VALUE;
  if (ok(&call)) {
    splits++;
    if (*count > GROUPS) *count = GROUPS;
    for (unsigned i = 0; i < *count; i++) out[i] = resource_of(from->device, 1ull << i, splits);
    *rest = resource_of(from->device, 1 << GROUPS, splits);
  }
  return end(&call);
}

EXPORT Status cuDevResourceGenerateDesc(Handle *out, const Resource *resources, unsigned count) {
  Call call = begin("cuDevResourceGenerateDesc", 0);
  uint64_t groups = 0;
  for (unsigned i = 0; i < count; i++) {
    add_wide(&call, resources[i].groups);
    bool same = resources[i].split != 0 && resources[i].split == resources[0].split;
    if (ok(&call) && (!same || (groups & resources[i].groups) != 0)) call.status = INVALID_VALUE;
    groups |= resources[i].groups;
  }
  if (ok(&call) && count == 0) call.status = INVALID_VALUE;
  if (ok(&call)) {
    Descriptor *descriptor = calloc(1, sizeof(Descriptor));
    *descriptor = (Descriptor){.device = resources->device, .groups = groups, .count = count_of(groups)};
    add_wide(&call, *out = make(DESCRIPTOR, descriptor));
  }
  return end(&call);
}

static bool is_busy(int device);
static void wait_in_driver(int device);

EXPORT Status cuGreenCtxCreate(Handle *out, Handle handle, int device, unsigned flags) {
  Call call = begin("cuGreenCtxCreate", 0);
  Descriptor *descriptor = find(DESCRIPTOR, handle);
  if (ok(&call) && flags != 1) call.status = INVALID_VALUE;
  if (descriptor == NULL || descriptor->device != device - DEVICE_BASE) wrong(&call, "no such descriptor", handle);
  if (ok(&call)) {
    wait_in_driver(descriptor->device);
    Green *green = calloc(1, sizeof(Green));
    *green = (Green){.alive = true, .device = descriptor->device, .context = make_context(descriptor->device)};
    Context *context = find(CONTEXT, green->context);
    context->multiprocessors = descriptor->count;
    context->primary = stub.primary[descriptor->device];
    add_wide(&call, *out = make(GREEN, green));
  }
  add_wide(&call, handle);
  add_int(&call, device);
  add_int(&call, flags);
  return end(&call);
}

static Green *green_of(Call *call, Handle handle) {
  Green *green = find(GREEN, handle);
  if (green != NULL && green->alive) return green;
  wrong(call, "no such green context", handle);
  return NULL;
}

EXPORT Status cuGreenCtxDestroy(Handle handle) {
  Call call = begin("cuGreenCtxDestroy", 0);
  add_wide(&call, handle);
  Green *green = green_of(&call, handle);
  if (green != NULL && gives_back(&call)) {
    EACH(Stream, stream, STREAM) {
      if (stream->alive && !stream->internal && stream->context == green->context) {
        misuse("a green context was destroyed before its streams");
      }
    }
    green->alive = false;
    ((Context *)find(CONTEXT, green->context))->alive = false;
  }
  return end(&call);
}

EXPORT Status cuCtxFromGreenCtx(Handle *out, Handle handle) {
  Call call = begin("cuCtxFromGreenCtx", 0);
  Green *green = green_of(&call, handle);
  if (ok(&call)) add_wide(&call, *out = green->context);
  add_wide(&call, handle);
  return end(&call);
}

EXPORT Status cuGreenCtxStreamCreate(Handle *out, Handle handle, unsigned flags, int priority) {
  Call call = begin("cuGreenCtxStreamCreate", 0);
  Green *green = green_of(&call, handle);
  if (ok(&call) && flags != 1) call.status = INVALID_VALUE;
  if (ok(&call)) add_wide(&call, *out = make_stream(green->context, flags, priority, 0, false));
  add_wide(&call, handle);
  add_int(&call, flags);
  add_int(&call, priority);
  return end(&call);
}

/* ---- Virtual memory. ---- */

#define GRANULARITY (2ull << 20)

typedef struct {
  int type, handle_types, location_type, location_id;
  void *security;
  uint8_t flags[8];
} AllocationProperties;

static void add_properties(Call *call, const AllocationProperties *properties) {
  bool valid = properties->type == 1 && properties->handle_types == 0 && properties->location_type == 1;
  if (ok(call) && !valid) call->status = INVALID_VALUE;
  is_device(call, properties->location_id);
  add_bytes(call, properties, sizeof *properties);
}

EXPORT Status cuMemGetAllocationGranularity(size_t *out, const AllocationProperties *properties, int option) {
  Call call = begin("cuMemGetAllocationGranularity", 0);
  add_properties(&call, properties);
  if (ok(&call) && option != 1) call.status = INVALID_VALUE;
  if (ok(&call)) *out = GRANULARITY;
  add_int(&call, option);
  return end(&call);
}

EXPORT Status cuMemAddressReserve(Handle *out, size_t bytes, size_t alignment, Handle wanted, uint64_t flags) {
  Call call = begin("cuMemAddressReserve", 0);
  if (ok(&call) && (bytes == 0 || bytes % GRANULARITY != 0 || alignment != 0 || wanted != 0 || flags != 0)) {
    call.status = INVALID_VALUE;
  }
  int kind = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  void *address = ok(&call) ? mmap(NULL, bytes, PROT_NONE, kind, -1, 0) : NULL;
  if (ok(&call) && address == MAP_FAILED) call.status = OUT_OF_MEMORY;
  if (ok(&call)) {
    Range *range = calloc(1, sizeof(Range));
    *range = (Range){.address = address, .bytes = bytes, .next = stub.ranges};
    stub.ranges = range;
    add_wide(&call, *out = (Handle)address);
  }
  add_wide(&call, bytes);
  return end(&call);
}

static void drop_range(Range *range) {
  Range **link = &stub.ranges;
  while (*link != range) link = &(*link)->next;
  *link = range->next;
  munmap(range->address, range->bytes);
  free(range);
}

EXPORT Status cuMemAddressFree(Handle address, size_t bytes) {
  Call call = begin("cuMemAddressFree", 0);
  add_wide(&call, address);
  add_wide(&call, bytes);
  Range *range = stub.ranges;
  while (range != NULL && (range->address != (uint8_t *)address || range->bytes != bytes)) range = range->next;
  if (range == NULL) wrong(&call, "not a reserved range", address);
  else if (range->count > 0 && ok(&call)) {
    misuse("cuMemAddressFree of addresses that are mapped");
    call.status = INVALID_VALUE;
  } else if (gives_back(&call)) drop_range(range);
  return end(&call);
}

/* Memory that is mapped counts as used by a hidden pool of the device. */
static Pool *mapped_pool(int device) { return managed_pool(device); }

EXPORT Status cuMemCreate(Handle *out, size_t bytes, const AllocationProperties *properties, uint64_t flags) {
  Call call = begin("cuMemCreate", 0);
  add_wide(&call, bytes);
  add_properties(&call, properties);
  if (ok(&call) && (bytes == 0 || bytes % GRANULARITY != 0 || flags != 0)) call.status = INVALID_VALUE;
  if (ok(&call) && !reserve(mapped_pool(properties->location_id), bytes)) call.status = OUT_OF_MEMORY;
  if (ok(&call)) {
    Memory *memory = calloc(1, sizeof(Memory));
    *memory = (Memory){.alive = true, .device = properties->location_id, .bytes = bytes};
    add_wide(&call, *out = make(MEMORY, memory));
  }
  return end(&call);
}

static void return_if_unused(Memory *memory) {
  if (!memory->alive && memory->mappings == 0) mapped_pool(memory->device)->used -= memory->bytes;
}

EXPORT Status cuMemRelease(Handle handle) {
  Call call = begin("cuMemRelease", 0);
  add_wide(&call, handle);
  Memory *memory = find(MEMORY, handle);
  if (memory == NULL || !memory->alive) wrong(&call, "no such memory", handle);
  else if (gives_back(&call)) {
    memory->alive = false;
    return_if_unused(memory);
  }
  return end(&call);
}

static Range *range_at(const uint8_t *address, uint64_t bytes) {
  for (Range *range = stub.ranges; range != NULL; range = range->next) {
    if (address >= range->address && address + bytes <= range->address + range->bytes) return range;
  }
  return NULL;
}

static uint64_t mapped_bytes(const Range *range) {
  uint64_t bytes = 0;
  for (int i = 0; i < range->count; i++) bytes += range->mapped[i]->bytes;
  return bytes;
}

EXPORT Status cuMemMap(Handle address, size_t bytes, size_t offset, Handle handle, uint64_t flags) {
  Call call = begin("cuMemMap", 0);
  add_wide(&call, address);
  add_wide(&call, bytes);
  add_wide(&call, handle);
  Range *range = range_at((uint8_t *)address, bytes);
  Memory *memory = find(MEMORY, handle);
  bool fits = range != NULL && memory != NULL && memory->alive && memory->bytes == bytes && offset == 0 && flags == 0;
  if (ok(&call) && (!fits || range->address + mapped_bytes(range) != (uint8_t *)address || range->count == MAX_MAPPINGS)) {
    misuse("cuMemMap does not continue a range");
    call.status = INVALID_VALUE;
  }
  if (ok(&call)) {
    range->mapped[range->count++] = memory;
    memory->mappings++;
  }
  return end(&call);
}

typedef struct {
  int location_type, location_id, flags;
} MappedAccess;

EXPORT Status cuMemSetAccess(Handle address, size_t bytes, const MappedAccess *access, size_t count) {
  Call call = begin("cuMemSetAccess", 0);
  add_wide(&call, address);
  add_wide(&call, bytes);
  for (size_t i = 0; i < count; i++) add_bytes(&call, &access[i], sizeof access[i]);
  Range *range = range_at((uint8_t *)address, bytes);
  uint64_t mapped = range == NULL ? 0 : mapped_bytes(range);
  if (ok(&call) && (range == NULL || (uint8_t *)address + bytes > range->address + mapped)) call.status = INVALID_VALUE;
  if (ok(&call) && (count != 1 || access->location_type != 1 || access->flags != 3)) call.status = INVALID_VALUE;
  if (ok(&call) && is_device(&call, access->location_id)) {
    mprotect((void *)address, bytes, PROT_READ | PROT_WRITE);
    if (range->allocation == NULL) {
      Allocation *allocation = calloc(1, sizeof(Allocation));
      *allocation = (Allocation){.address = range->address, .there = true, .next = stub.allocations};
      allocation->pool = mapped_pool(access->location_id);
      range->allocation = stub.allocations = allocation;
    }
    range->allocation->bytes = mapped;
  }
  return end(&call);
}

/* The addresses stay reserved. */
static void hide(Range *range, uint8_t *address, uint64_t bytes) {
  retract(address, bytes, "memory was unmapped");
  madvise(address, bytes, MADV_DONTNEED);
  mprotect(address, bytes, PROT_NONE);
  Allocation *allocation = range->allocation;
  if (allocation == NULL) return;
  uint64_t left = (uint64_t)(address - range->address);
  if (left < allocation->bytes) allocation->bytes = left;
  if (left > 0) return;
  Allocation **link = &stub.allocations;
  while (*link != allocation) link = &(*link)->next;
  *link = allocation->next;
  free(allocation);
  range->allocation = NULL;
}

/* Does not wait for work. */
EXPORT Status cuMemUnmap(Handle address, size_t bytes) {
  Call call = begin("cuMemUnmap", 0);
  add_wide(&call, address);
  add_wide(&call, bytes);
  Range *range = range_at((uint8_t *)address, bytes);
  uint64_t left = range == NULL ? 0 : mapped_bytes(range);
  int count = range == NULL ? 0 : range->count;
  while (count > 0 && range->address + left > (uint8_t *)address) left -= range->mapped[--count]->bytes;
  bool whole = range != NULL && range->address + left == (uint8_t *)address && left + bytes == mapped_bytes(range);
  if (ok(&call) && !whole) {
    misuse("cuMemUnmap of something else than the last pieces of a range");
    call.status = INVALID_VALUE;
  }
  if (whole && gives_back(&call)) {
    hide(range, (uint8_t *)address, bytes);
    while (range->count > count) {
      Memory *memory = range->mapped[--range->count];
      memory->mappings--;
      return_if_unused(memory);
    }
  }
  return end(&call);
}

/* ---- Pinned host memory. ---- */

static Registration *registration_at(const uint8_t *address, uint64_t bytes) {
  for (Registration *r = stub.registrations; r != NULL; r = r->next) {
    if (overlap(r->address, r->bytes, address, bytes)) return r;
  }
  return NULL;
}

EXPORT Status cuMemHostRegister_v2(uint8_t *address, size_t bytes, unsigned flags) {
  Call call = begin("cuMemHostRegister_v2", NEEDS_CONTEXT);
  add_wide(&call, (uint64_t)address);
  add_wide(&call, bytes);
  add_int(&call, flags);
  if (ok(&call) && bytes == 0) call.status = INVALID_VALUE;
  if (ok(&call) && registration_at(address, bytes) != NULL) call.status = ALREADY_REGISTERED;
  if (ok(&call)) {
    Registration *registration = calloc(1, sizeof(Registration));
    *registration = (Registration){.address = address, .bytes = bytes, .next = stub.registrations};
    stub.registrations = registration;
  }
  return end(&call);
}

static bool unregister(uint8_t *address) {
  for (Registration **link = &stub.registrations; *link != NULL; link = &(*link)->next) {
    Registration *registration = *link;
    if (registration->address != address) continue;
    retract(address, registration->bytes, "pinned memory was unregistered");
    *link = registration->next;
    free(registration);
    return true;
  }
  return false;
}

EXPORT Status cuMemHostUnregister(uint8_t *address) {
  Call call = begin("cuMemHostUnregister", NEEDS_CONTEXT);
  add_wide(&call, (uint64_t)address);
  if (gives_back(&call) && !unregister(address) && ok(&call)) {
    misuse("cuMemHostUnregister of memory that is not registered");
    call.status = NOT_REGISTERED;
  }
  return end(&call);
}

/* ---- Addresses. ---- */

/* Memory that is not known has 0 for every attribute. Memory of pools has no range if ranges are hidden. */
EXPORT Status cuPointerGetAttributes(unsigned count, const int *attributes, void **data, const uint8_t *address) {
  Call call = begin("cuPointerGetAttributes", NEEDS_CONTEXT);
  add_int(&call, count);
  add_wide(&call, (uint64_t)address);
  Allocation *allocation = allocation_at(address, 1);
  Registration *registration = registration_at(address, 1);
  if (allocation != NULL && allocation->released) allocation = NULL;
  bool managed = allocation != NULL && allocation->pool != NULL && allocation->pool->managed;
  bool hidden = allocation != NULL && stub.hides_ranges;
  uint64_t values[18] = {0};
  if (allocation != NULL || registration != NULL) {
    values[2] = allocation != NULL ? 2 : 1;
    values[8] = managed;
    values[9] = allocation != NULL && allocation->pool != NULL ? (uint64_t)allocation->pool->device : 0;
    values[17] = allocation != NULL && allocation->pool != NULL && !stub.hides_pools ? handle_of(POOL, allocation->pool) : 0;
    values[11] = hidden ? 0 : (uint64_t)(allocation != NULL ? allocation->address : registration->address);
    values[12] = hidden ? 0 : allocation != NULL ? allocation->bytes : registration->bytes;
  }
  for (unsigned i = 0; i < count && ok(&call); i++) {
    int attribute = attributes[i];
    if (attribute == 11 || attribute == 12 || attribute == 17) *(uint64_t *)data[i] = values[attribute];
    else if (attribute == 2 || attribute == 8 || attribute == 9) *(uint32_t *)data[i] = (uint32_t)values[attribute];
    else call.status = INVALID_VALUE;
  }
  return end(&call);
}

/* ---- Copies and fills. ---- */

/* A copy's host range must lie in one registration; the driver rejects ranges that span two. */
static void check_host(Call *call, const uint8_t *address, uint64_t bytes) {
  if (!ok(call)) return;
  Registration *registration = registration_at(address, bytes);
  if (registration == NULL) misuse("%s: host memory that is not pinned", call->name);
  else if (address < registration->address || address + bytes > registration->address + registration->bytes) {
    call->status = INVALID_VALUE;
  }
}

static void check_device(Call *call, const uint8_t *address, uint64_t bytes) {
  if (!ok(call)) return;
  Allocation *allocation = allocation_at(address, bytes);
  if (allocation != NULL && !allocation->released) return;
  misuse("%s: device memory that is not allocated", call->name);
  call->status = INVALID_VALUE;
}

/* Without a current context, the driver refuses copies across the end of a piece of mapped memory. */
static void check_piece(Call *call, const uint8_t *address, uint64_t bytes) {
  Range *range = range_at(address, bytes);
  const uint8_t *end = range == NULL ? NULL : range->address;
  for (int i = 0; range != NULL && call->context == 0 && i < range->count; i++) {
    end += range->mapped[i]->bytes;
    if (address >= end) continue;
    if (ok(call) && address + bytes > end) call->status = INVALID_VALUE;
    return;
  }
}

static Status copy(Call *call, uint8_t *to, const uint8_t *from, uint64_t bytes, Handle stream_handle) {
  check_piece(call, to, bytes);
  check_piece(call, from, bytes);
  add_wide(call, bytes);
  add_wide(call, stream_handle);
  Stream *stream = stream_of(call, stream_handle);
  if (ok(call)) {
    Op *op = enqueue(stream, COPY);
    op->to = to;
    op->from = from;
    op->bytes = bytes;
    run_all();
  }
  return end(call);
}

EXPORT Status cuMemcpyHtoDAsync_v2(uint8_t *to, const uint8_t *from, size_t bytes, Handle stream) {
  Call call = begin("cuMemcpyHtoDAsync_v2", 0);
  add_wide(&call, (uint64_t)to);
  add_wide(&call, (uint64_t)from);
  check_device(&call, to, bytes);
  check_host(&call, from, bytes);
  return copy(&call, to, from, bytes, stream);
}

EXPORT Status cuMemcpyDtoHAsync_v2(uint8_t *to, const uint8_t *from, size_t bytes, Handle stream) {
  Call call = begin("cuMemcpyDtoHAsync_v2", 0);
  add_wide(&call, (uint64_t)to);
  add_wide(&call, (uint64_t)from);
  check_host(&call, to, bytes);
  check_device(&call, from, bytes);
  return copy(&call, to, from, bytes, stream);
}

/* Only cuMemcpyPeerAsync copies between pools of devices without access. */
static void check_pools(Call *call, const uint8_t *to_address, const uint8_t *from_address) {
  Allocation *to = allocation_at(to_address, 1), *from = allocation_at(from_address, 1);
  if (!ok(call) || to == NULL || from == NULL || to->pool == NULL || from->pool == NULL) return;
  if (to->pool->managed || from->pool->managed || to->pool->device == from->pool->device) return;
  bool both = (to->pool->accessible & 1u << from->pool->device) && (from->pool->accessible & 1u << to->pool->device);
  if (!both) call->status = INVALID_VALUE;
}

EXPORT Status cuMemcpyDtoDAsync_v2(uint8_t *to, const uint8_t *from, size_t bytes, Handle stream) {
  Call call = begin("cuMemcpyDtoDAsync_v2", 0);
  add_wide(&call, (uint64_t)to);
  add_wide(&call, (uint64_t)from);
  check_device(&call, to, bytes);
  check_device(&call, from, bytes);
  check_pools(&call, to, from);
  return copy(&call, to, from, bytes, stream);
}

EXPORT Status cuMemcpyPeerAsync(uint8_t *to, Handle to_context, const uint8_t *from, Handle from_context, size_t bytes,
                                Handle stream) {
  Call call = begin("cuMemcpyPeerAsync", 0);
  add_wide(&call, (uint64_t)to);
  add_wide(&call, to_context);
  add_wide(&call, (uint64_t)from);
  add_wide(&call, from_context);
  context_of(&call, to_context);
  context_of(&call, from_context);
  check_device(&call, to, bytes);
  check_device(&call, from, bytes);
  return copy(&call, to, from, bytes, stream);
}

typedef struct {
  uint64_t x, y;
  int type;
  uint8_t *host, *device;
  Handle array;
  uint64_t pitch;
} RowsEnd;

typedef struct {
  RowsEnd from, to;
  uint64_t width, height;
} Rows;

/* One end of a 2D copy, whose whole range the driver must know. */
static uint8_t *rows_end(Call *call, const RowsEnd *end, uint64_t width, uint64_t height) {
  uint8_t *address = end->type == 1 ? end->host : end->device;
  uint64_t span = (height - 1) * end->pitch + width;
  add_int(call, end->type);
  add_wide(call, (uint64_t)address);
  add_wide(call, end->pitch);
  bool plain = end->x == 0 && end->y == 0 && end->array == 0 && (end->type == 1 ? end->device : end->host) == NULL;
  if (ok(call) && (end->pitch < width || !plain)) call->status = INVALID_VALUE;
  if (end->type == 1) check_host(call, address, span);
  else check_device(call, address, span);
  return address;
}

EXPORT Status cuMemcpy2DAsync_v2(const Rows *rows, Handle stream_handle) {
  Call call = begin("cuMemcpy2DAsync_v2", 0);
  uint8_t *to = rows_end(&call, &rows->to, rows->width, rows->height);
  uint8_t *from = rows_end(&call, &rows->from, rows->width, rows->height);
  add_wide(&call, rows->width);
  add_wide(&call, rows->height);
  add_wide(&call, stream_handle);
  Stream *stream = stream_of(&call, stream_handle);
  check_pools(&call, to, from);
  if (ok(&call)) {
    Op *op = enqueue(stream, COPY);
    op->to = to;
    op->from = from;
    op->bytes = rows->width;
    op->rows = rows->height;
    op->to_pitch = rows->to.pitch;
    op->from_pitch = rows->from.pitch;
    run_all();
  }
  return end(&call);
}

static void check_either(Call *call, const uint8_t *address, uint64_t bytes) {
  if (registration_at(address, bytes) != NULL) check_host(call, address, bytes);
  else check_device(call, address, bytes);
}

/* The driver rejects batches on the legacy default stream, and empty copies. */
EXPORT Status cuMemcpyBatchAsync(uint8_t **to, uint8_t **from, const size_t *bytes, size_t count, const int *attributes,
                                 const size_t *indices, size_t attribute_count, size_t *failed_at,
                                 Handle stream_handle) {
  Call call = begin("cuMemcpyBatchAsync", NEEDS_CONTEXT);
  add_wide(&call, count);
  add_int(&call, attributes[0]);
  add_wide(&call, stream_handle);
  *failed_at = (size_t)-1;
  Stream *stream = stream_of(&call, stream_handle);
  bool described = attribute_count == 1 && indices[0] == 0 && attributes[0] == 1;
  if (ok(&call) && (count == 0 || !described || stream_handle == 1)) call.status = INVALID_VALUE;
  for (size_t i = 0; i < count; i++) {
    add_wide(&call, (uint64_t)to[i]);
    add_wide(&call, (uint64_t)from[i]);
    add_wide(&call, bytes[i]);
    check_either(&call, to[i], bytes[i]);
    check_either(&call, from[i], bytes[i]);
    check_pools(&call, to[i], from[i]);
    if (ok(&call) && bytes[i] == 0) call.status = INVALID_VALUE;
  }
  for (size_t i = 0; ok(&call) && i < count; i++) {
    Op *op = enqueue(stream, COPY);
    op->to = to[i];
    op->from = from[i];
    op->bytes = bytes[i];
  }
  run_all();
  return end(&call);
}

typedef struct {
  int type, id;
} Location;

static void check_managed(Call *call, const uint8_t *address, uint64_t bytes, Location location) {
  check_device(call, address, bytes);
  Allocation *allocation = allocation_at(address, bytes);
  if (ok(call) && !allocation->pool->managed) call->status = INVALID_VALUE;
  if (ok(call) && location.type == 1 && (location.id < 0 || location.id >= stub.devices)) call->status = INVALID_DEVICE;
  if (ok(call) && location.type != 1 && location.type != 2) call->status = INVALID_VALUE;
}

EXPORT Status cuMemPrefetchAsync_v2(uint8_t *address, size_t bytes, Location location, unsigned flags,
                                    Handle stream_handle) {
  Call call = begin("cuMemPrefetchAsync_v2", 0);
  add_wide(&call, (uint64_t)address);
  add_wide(&call, bytes);
  add_int(&call, location.type);
  add_int(&call, location.id);
  add_int(&call, flags);
  add_wide(&call, stream_handle);
  check_managed(&call, address, bytes, location);
  Stream *stream = stream_of(&call, stream_handle);
  if (ok(&call)) {
    Op *op = enqueue(stream, PREFETCH);
    op->to = address;
    op->bytes = bytes;
    run_all();
  }
  return end(&call);
}

EXPORT Status cuMemAdvise_v2(uint8_t *address, size_t bytes, int advice, Location location) {
  Call call = begin("cuMemAdvise_v2", NEEDS_CONTEXT);
  add_wide(&call, (uint64_t)address);
  add_wide(&call, bytes);
  add_int(&call, advice);
  add_int(&call, location.type);
  add_int(&call, location.id);
  if (ok(&call) && (advice < 1 || advice > 6)) call.status = INVALID_VALUE;
  check_managed(&call, address, bytes, location);
  return end(&call);
}

static Status fill(Call *call, uint8_t *to, uint32_t value, int width, uint64_t count, Handle stream_handle) {
  add_wide(call, (uint64_t)to);
  add_int(call, value);
  add_wide(call, count);
  add_wide(call, stream_handle);
  if (ok(call) && (uint64_t)to % (uint64_t)width != 0) call->status = INVALID_VALUE;
  check_device(call, to, count * (uint64_t)width);
  Stream *stream = stream_of(call, stream_handle);
  if (ok(call)) {
    Op *op = enqueue(stream, FILL);
    op->to = to;
    op->bytes = count * (uint64_t)width;
    op->value = value;
    op->width = width;
    run_all();
  }
  return end(call);
}

EXPORT Status cuMemsetD8Async(uint8_t *to, uint8_t value, size_t count, Handle stream) {
  Call call = begin("cuMemsetD8Async", 0);
  return fill(&call, to, value, 1, count, stream);
}

EXPORT Status cuMemsetD16Async(uint8_t *to, uint16_t value, size_t count, Handle stream) {
  Call call = begin("cuMemsetD16Async", 0);
  return fill(&call, to, value, 2, count, stream);
}

EXPORT Status cuMemsetD32Async(uint8_t *to, uint32_t value, size_t count, Handle stream) {
  Call call = begin("cuMemsetD32Async", 0);
  return fill(&call, to, value, 4, count, stream);
}

/* ---- Host functions. ---- */

EXPORT Status cuLaunchHostFunc(Handle stream_handle, HostFunction function, void *data) {
  Call call = begin("cuLaunchHostFunc", 0);
  add_wide(&call, stream_handle);
  add_wide(&call, (uint64_t)function);
  add_wide(&call, (uint64_t)data);
  Stream *stream = stream_of(&call, stream_handle);
  if (ok(&call) && function == NULL) call.status = INVALID_VALUE;
  if (ok(&call)) {
    pthread_once(&host_thread_once, start_host_thread);
    Op *op = enqueue(stream, HOST);
    op->function = function;
    op->data = data;
    run_all();
  }
  return end(&call);
}

/* ---- Libraries and kernels, read from PTX text. ---- */

/* True if the stream has more to do than to call a host function, which takes microseconds unless the machine is busy. */
static bool has_work(const Stream *stream) {
  return stream->head != NULL && !(at_host_function(stream) && stream->head->next == NULL);
}

/* True while a stream of the device has work: the driver waits for it before it loads or unloads code. */
static bool is_busy(int device) {
  bool busy = false;
  EACH(Stream, stream, STREAM) {
    Context *context = find(CONTEXT, stream->context);
    busy = busy || (context != NULL && context->device == device && has_work(stream));
  }
  return busy;
}

static void wait_in_driver(int device) { stub.blocked += is_busy(device); }

static bool is_space(char c) { return c == ' ' || c == '\n' || c == '\t'; }

static const char *skip_space(const char *at) {
  while (is_space(*at)) at++;
  return at;
}

static const char *copy_word(const char *at, char *out, int size) {
  int used = 0;
  at = skip_space(at);
  while (*at != 0 && !is_space(*at) && strchr("(),;[{=", *at) == NULL) {
    if (used < size - 1) out[used++] = *at;
    at++;
  }
  out[used] = 0;
  return at;
}

/* Reads a declaration after `.param` or `.global`: alignment, type, name, length. Returns the rest of the text. */
static const char *read_declaration(const char *at, char *name, int *size, int *align) {
  char word[64];
  *align = 0;
  *size = 1;
  for (at = copy_word(at, word, sizeof word); word[0] == '.'; at = copy_word(at, word, sizeof word)) {
    if (strcmp(word, ".align") == 0) {
      at = copy_word(at, word, sizeof word);
      *align = atoi(word);
    } else {
      *size = atoi(word + 2) / 8;
      if (*align == 0) *align = *size;
    }
  }
  strcpy(name, word);
  at = skip_space(at);
  if (*at == '[') *size *= atoi(at + 1);
  return at;
}

static void read_kernel(Library *library, const char *at) {
  Kernel *kernel = calloc(1, sizeof(Kernel));
  kernel->alive = true;
  kernel->max_threads = 1024;
  at = copy_word(at, kernel->name, sizeof kernel->name);
  const char *end = strchr(at, ')');
  const char *body = strchr(at, '{');
  const char *limit = strstr(at, ".maxntid");
  if (limit != NULL && limit < body) kernel->max_threads = atoi(limit + strlen(".maxntid"));
  int offset = 0;
  while ((at = strstr(at, ".param")) != NULL && at < end) {
    char name[64];
    int align;
    at = read_declaration(at + strlen(".param"), name, &kernel->sizes[kernel->count], &align);
    offset = (offset + align - 1) / align * align;
    kernel->offsets[kernel->count] = offset;
    offset += kernel->sizes[kernel->count++];
  }
  library->kernels[library->kernel_count++] = make(KERNEL, kernel);
}

static void read_image(Library *library, const char *text) {
  for (const char *at = text; (at = strstr(at, ".entry")) != NULL; at++) read_kernel(library, at + strlen(".entry"));
  for (const char *at = text; (at = strstr(at, ".global")) != NULL; at++) {
    if (at > text && !is_space(at[-1])) continue;
    Global *global = &library->globals[library->global_count++];
    int size, align;
    read_declaration(at + strlen(".global"), global->name, &size, &align);
    global->bytes = (uint64_t)size;
  }
}

/* The driver's status for an image: for PTX that names one, and for an invalid image. */
static Status problem_of(const char *text) {
  if (strstr(text, "sm_999") != NULL) return NO_BINARY;
  if (strstr(text, "broken") != NULL) return INVALID_PTX;
  return strstr(text, ".version") == NULL && strncmp(text, "\177ELF", 4) != 0 ? INVALID_IMAGE : SUCCESS;
}

static void write_log(const int *options, void **values, unsigned count) {
  char *buffer = NULL;
  size_t size = 0;
  for (unsigned i = 0; i < count; i++) {
    if (options[i] == 5) buffer = values[i];
    if (options[i] == 6) size = (size_t)values[i];
  }
  if (buffer != NULL) snprintf(buffer, size, "ptxas application ptx input, line 3; fatal : broken\n");
}

/* Returns 0 for any image. Problems are reported when its first kernel is requested. */
EXPORT Status cuLibraryLoadData(Handle *out, const char *image, int *options, void **values, unsigned count,
                                void *library_options, void *library_values, unsigned library_count) {
  Call call = begin("cuLibraryLoadData", 0);
  while (stub.loads_held) pthread_cond_wait(&loads_let_go, &lock);
  if (ok(&call)) {
    Library *library = calloc(1, sizeof(Library));
    library->alive = true;
    library->problem = problem_of(image);
    if (library->problem == SUCCESS) read_image(library, image);
    if (library->problem == INVALID_PTX) write_log(options, values, count);
    add_wide(&call, *out = make(LIBRARY, library));
  }
  add_wide(&call, strlen(image));
  for (unsigned i = 0; i < count; i++) add_int(&call, options[i]);
  if (library_options != NULL || library_values != NULL) add_int(&call, library_count);
  return end(&call);
}

static Library *library_of(Call *call, Handle handle) {
  Library *library = find(LIBRARY, handle);
  if (library != NULL && library->alive) return library;
  wrong(call, "no such library", handle);
  return NULL;
}

static Kernel *kernel_of(Call *call, Handle handle) {
  Kernel *kernel = find(KERNEL, handle);
  if (kernel != NULL && kernel->alive) return kernel;
  wrong(call, "no such kernel", handle);
  return NULL;
}

EXPORT Status cuLibraryUnload(Handle handle) {
  Call call = begin("cuLibraryUnload", 0);
  add_wide(&call, handle);
  Library *library = library_of(&call, handle);
  if (library == NULL || !gives_back(&call)) return end(&call);
  for (int device = 0; device < MAX_DEVICES; device++) wait_in_driver(device);
  library->alive = false;
  for (int i = 0; i < library->kernel_count; i++) ((Kernel *)find(KERNEL, library->kernels[i]))->alive = false;
  for (int i = 0; i < library->global_count; i++) {
    for (int device = 0; device < MAX_DEVICES; device++) {
      Allocation *allocation = library->globals[i].on[device];
      if (allocation == NULL) continue;
      retract(allocation->address, allocation->bytes, "a global variable was unloaded");
      forget(allocation);
    }
  }
  return end(&call);
}

EXPORT Status cuLibraryGetKernel(Handle *out, Handle handle, const char *name) {
  Call call = begin("cuLibraryGetKernel", 0);
  Library *library = library_of(&call, handle);
  if (ok(&call)) call.status = library->problem;
  Handle found = 0;
  for (int i = 0; ok(&call) && i < library->kernel_count; i++) {
    if (strcmp(((Kernel *)find(KERNEL, library->kernels[i]))->name, name) == 0) found = library->kernels[i];
  }
  if (ok(&call) && found == 0) call.status = NOT_FOUND;
  if (ok(&call)) add_wide(&call, *out = found);
  add_wide(&call, handle);
  add(&call, "\"%s\"", name);
  return end(&call);
}

static Allocation *global_on(Global *global, int device) {
  if (global->on[device] != NULL) return global->on[device];
  wait_in_driver(device);
  Allocation *made = global->on[device] = allocate(NULL, global->bytes);
  if (made != NULL) made->there = true;
  return made;
}

EXPORT Status cuLibraryGetGlobal(Handle *out, size_t *bytes, Handle handle, const char *name) {
  Call call = begin("cuLibraryGetGlobal", NEEDS_CONTEXT);
  Library *library = library_of(&call, handle);
  Global *found = NULL;
  for (int i = 0; ok(&call) && i < library->global_count; i++) {
    if (strcmp(library->globals[i].name, name) == 0) found = &library->globals[i];
  }
  if (ok(&call) && found == NULL) call.status = NOT_FOUND;
  if (ok(&call)) {
    Context *context = find(CONTEXT, call.context);
    add_wide(&call, *out = (Handle)global_on(found, context->device)->address);
    add_wide(&call, *bytes = found->bytes);
  }
  add_wide(&call, handle);
  add(&call, "\"%s\"", name);
  return end(&call);
}

static void load_code(Kernel *kernel, int device) {
  if (!kernel->resident[device]) wait_in_driver(device);
  kernel->resident[device] = true;
}

EXPORT Status cuKernelGetFunction(Handle *out, Handle handle) {
  Call call = begin("cuKernelGetFunction", NEEDS_CONTEXT);
  Kernel *kernel = kernel_of(&call, handle);
  if (ok(&call)) {
    load_code(kernel, ((Context *)find(CONTEXT, call.context))->device);
    add_wide(&call, *out = handle);
  }
  add_wide(&call, handle);
  return end(&call);
}

EXPORT Status cuKernelGetParamInfo(Handle handle, size_t index, size_t *offset, size_t *size) {
  Call call = begin("cuKernelGetParamInfo", NEEDS_CONTEXT);
  add_wide(&call, handle);
  add_wide(&call, index);
  Kernel *kernel = kernel_of(&call, handle);
  if (ok(&call) && index >= (size_t)kernel->count) call.status = INVALID_VALUE;
  if (ok(&call)) {
    add_wide(&call, *offset = (size_t)kernel->offsets[index]);
    add_wide(&call, *size = (size_t)kernel->sizes[index]);
  }
  return end(&call);
}

static int attribute_of(const Kernel *kernel, int attribute, int device) {
  if (kernel->is_set[device][attribute]) return kernel->set[device][attribute];
  if (attribute == 0) return kernel->max_threads;
  if (attribute == 1) return 0;
  return attribute == 8 ? 48 * 1024 : 100 + attribute;
}

EXPORT Status cuKernelGetAttribute(int *value, int attribute, Handle handle, int device) {
  Call call = begin("cuKernelGetAttribute", 0);
  Kernel *kernel = kernel_of(&call, handle);
  bool known = attribute >= 0 && attribute < 16;
  if (ok(&call) && !known) call.status = INVALID_VALUE;
  if (is_device(&call, device - DEVICE_BASE)) {
    add_int(&call, *value = attribute_of(kernel, attribute, device - DEVICE_BASE));
  }
  add_int(&call, attribute);
  add_wide(&call, handle);
  add_int(&call, device);
  return end(&call);
}

EXPORT Status cuKernelSetAttribute(int attribute, int value, Handle handle, int device) {
  Call call = begin("cuKernelSetAttribute", 0);
  add_int(&call, attribute);
  add_int(&call, value);
  add_wide(&call, handle);
  add_int(&call, device);
  Kernel *kernel = kernel_of(&call, handle);
  bool known = attribute >= 8 && attribute < 16;
  if (ok(&call) && !known) call.status = INVALID_VALUE;
  if (is_device(&call, device - DEVICE_BASE)) {
    kernel->set[device - DEVICE_BASE][attribute] = value;
    kernel->is_set[device - DEVICE_BASE][attribute] = true;
  }
  return end(&call);
}

typedef struct {
  unsigned grid[3], block[3], shared;
  Handle stream;
  const struct {
    int id, unused;
    union {
      unsigned dimensions[3];
      int on;
      uint8_t bytes[64];
    };
  } * attributes;
  unsigned count;
} LaunchConfig;

/* Copies the bytes of each parameter. The memory that they point to is in use until the kernel has run. */
static void take_parameters(Call *call, const Kernel *kernel, void **parameters, Op *op) {
  for (int i = 0; i < kernel->count; i++) {
    add_bytes(call, parameters[i], kernel->sizes[i]);
    if (kernel->sizes[i] != 8) continue;
    const uint8_t *address;
    memcpy(&address, parameters[i], sizeof address);
    if (allocation_at(address, 0) != NULL) op->touched[i] = address;
  }
}

static Status launch(Call *call, Handle handle, const LaunchConfig *config, void **parameters, void **extra) {
  add_wide(call, handle);
  for (int i = 0; i < 3; i++) add_int(call, config->grid[i]);
  for (int i = 0; i < 3; i++) add_int(call, config->block[i]);
  add_int(call, config->shared);
  add_wide(call, config->stream);
  Stream *stream = stream_of(call, config->stream);
  Kernel *kernel = kernel_of(call, handle);
  if (!ok(call)) return end(call);
  int device = ((Context *)find(CONTEXT, stream->context))->device;
  const unsigned *grid = config->grid, *block = config->block;
  uint64_t blocks = (uint64_t)grid[0] * grid[1] * grid[2], threads = (uint64_t)block[0] * block[1] * block[2];
  bool fits = (int64_t)config->shared <= attribute_of(kernel, 8, device);
  if (blocks == 0 || threads == 0 || threads > (uint64_t)kernel->max_threads || !fits || extra != NULL) {
    call->status = INVALID_VALUE;
    return end(call);
  }
  load_code(kernel, device);
  take_parameters(call, kernel, parameters, enqueue(stream, LAUNCH));
  run_all();
  return end(call);
}

static void add_config(Call *call, const LaunchConfig *config) {
  for (unsigned i = 0; i < config->count; i++) {
    add_int(call, config->attributes[i].id);
    bool is_cluster = config->attributes[i].id == 4;
    for (int axis = 0; axis < 3 && is_cluster; axis++) add_int(call, config->attributes[i].dimensions[axis]);
    if (!is_cluster) add_int(call, config->attributes[i].on);
  }
}

EXPORT Status cuLaunchKernelEx(const LaunchConfig *config, Handle kernel, void **parameters, void **extra) {
  Call call = begin("cuLaunchKernelEx", 0);
  add_config(&call, config);
  return launch(&call, kernel, config, parameters, extra);
}

EXPORT Status cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, Handle kernel, int threads, size_t shared) {
  Call call = begin("cuOccupancyMaxActiveBlocksPerMultiprocessor", NEEDS_CONTEXT);
  kernel_of(&call, kernel);
  if (ok(&call)) add_int(&call, *blocks = 2048 / threads);
  add_wide(&call, kernel);
  add_int(&call, threads);
  add_wide(&call, shared);
  return end(&call);
}

EXPORT Status cuOccupancyMaxPotentialBlockSize(int *grid, int *block, Handle handle, void *function, size_t shared,
                                               int limit) {
  Call call = begin("cuOccupancyMaxPotentialBlockSize", NEEDS_CONTEXT);
  Kernel *kernel = kernel_of(&call, handle);
  if (ok(&call) && function != NULL) call.status = INVALID_VALUE;
  if (ok(&call)) {
    add_int(&call, *grid = 2 * multiprocessors(&call));
    add_int(&call, *block = limit > 0 && limit < kernel->max_threads ? limit : kernel->max_threads);
  }
  add_wide(&call, handle);
  add_wide(&call, shared);
  add_int(&call, limit);
  return end(&call);
}

static Status clusters(Call *call, int *out, int value, Handle kernel, const LaunchConfig *config) {
  kernel_of(call, kernel);
  if (ok(call)) add_int(call, *out = value);
  add_wide(call, kernel);
  for (int i = 0; i < 3; i++) add_int(call, config->grid[i]);
  for (int i = 0; i < 3; i++) add_int(call, config->block[i]);
  add_int(call, config->shared);
  add_config(call, config);
  return end(call);
}

EXPORT Status cuOccupancyMaxActiveClusters(int *count, Handle kernel, const LaunchConfig *config) {
  Call call = begin("cuOccupancyMaxActiveClusters", NEEDS_CONTEXT);
  return clusters(&call, count, multiprocessors(&call) / 2, kernel, config);
}

EXPORT Status cuOccupancyMaxPotentialClusterSize(int *size, Handle kernel, const LaunchConfig *config) {
  Call call = begin("cuOccupancyMaxPotentialClusterSize", NEEDS_CONTEXT);
  return clusters(&call, size, 8, kernel, config);
}

/* ---- Graphs. ---- */

static Graph *graph_of(Call *call, Handle handle) {
  Graph *graph = find(GRAPH, handle);
  if (graph != NULL && graph->alive) return graph;
  wrong(call, "no such graph", handle);
  return NULL;
}

static Node *node_of(Call *call, Handle handle) {
  Node *node = find(NODE, handle);
  if (node != NULL && node->alive) return node;
  wrong(call, "no such graph node", handle);
  return NULL;
}

static Exec *exec_of(Call *call, Handle handle) {
  Exec *exec = find(EXEC, handle);
  if (exec != NULL && exec->alive) return exec;
  wrong(call, "no such executable graph", handle);
  return NULL;
}

static Graph *make_graph(bool is_body) {
  Graph *graph = calloc(1, sizeof(Graph));
  graph->alive = true;
  graph->is_body = is_body;
  graph->self = make(GRAPH, graph);
  return graph;
}

EXPORT Status cuGraphCreate(Handle *out, unsigned flags) {
  Call call = begin("cuGraphCreate", 0);
  if (ok(&call) && flags != 0) call.status = INVALID_VALUE;
  if (ok(&call)) {
    add_wide(&call, *out = make_graph(false)->self);
  }
  add_int(&call, flags);
  return end(&call);
}

/* With its nodes, its conditions and their bodies. */
static void destroy_graph(Graph *graph) {
  graph->alive = false;
  for (int i = 0; i < graph->count; i++) {
    Node *node = find(NODE, graph->nodes[i]);
    node->alive = false;
    if (node->type == CONDITIONAL_NODE) destroy_graph(find(GRAPH, node->body));
  }
  EACH(Condition, condition, CONDITION) {
    if (condition->graph == graph->self) condition->alive = false;
  }
}

EXPORT Status cuGraphDestroy(Handle handle) {
  Call call = begin("cuGraphDestroy", 0);
  add_wide(&call, handle);
  Graph *graph = graph_of(&call, handle);
  if (graph != NULL && graph->is_body) wrong(&call, "the body of a condition", handle);
  if (graph != NULL && !graph->is_body && gives_back(&call)) destroy_graph(graph);
  return end(&call);
}

/* Logs handles as one text, separated by commas. */
static void add_handles(Call *call, const Handle *handles, size_t count) {
  char text[2000] = "";
  size_t used = 0;
  for (size_t i = 0; i < count && used < sizeof text - 32; i++) {
    used += (size_t)sprintf(text + used, i == 0 ? "%llu" : ",%llu", (unsigned long long)handles[i]);
  }
  add(call, "\"%s\"", text);
}

static void depend(Node *node, Handle before) {
  node->before = realloc(node->before, (size_t)(node->before_count + 1) * sizeof(Handle));
  node->before[node->before_count++] = before;
}

static Exec *copy_exec(const Exec *exec);

static void drop_node(Node *node) {
  if (node->inside != NULL) drop_exec(node->inside);
  for (int i = 0; i < MAX_PARAMETERS; i++) free(node->parameters[i]);
  free(node->before);
}

/* Adds a node that has been read, whose parameters were logged. */
static Status add_node(Call *call, Handle *out, Handle graph_handle, const Handle *before, size_t count, Node node) {
  Graph *graph = graph_of(call, graph_handle);
  for (size_t i = 0; ok(call) && i < count; i++) {
    Node *other = node_of(call, before[i]);
    if (other != NULL && other->graph != graph_handle) wrong(call, "a node of another graph", before[i]);
    for (size_t j = 0; j < i; j++) {
      if (before[j] == before[i]) call->status = INVALID_VALUE;
    }
  }
  if (ok(call) && graph->count == MAX_NODES) call->status = OUT_OF_MEMORY;
  if (ok(call)) {
    Node *made = malloc(sizeof(Node));
    *made = node;
    made->alive = true;
    made->graph = graph_handle;
    made->index = graph->count;
    for (size_t i = 0; i < count; i++) depend(made, before[i]);
    made->self = graph->nodes[graph->count++] = *out = make(NODE, made);
  }
  add_wide(call, graph_handle);
  add_handles(call, before, count);
  if (ok(call)) add_wide(call, *out);
  else drop_node(&node);
  return end(call);
}

typedef struct {
  Handle function;
  unsigned grid[3], block[3], shared;
  void **parameters, **extra;
  Handle kernel, context;
} KernelParams;

static void read_kernel_params(Call *call, const KernelParams *params, Node *node) {
  node->type = KERNEL_NODE;
  node->kernel = params->kernel;
  node->context = params->context;
  node->shared = params->shared;
  memcpy(node->grid, params->grid, sizeof node->grid);
  memcpy(node->block, params->block, sizeof node->block);
  add_wide(call, params->kernel);
  for (int i = 0; i < 3; i++) add_int(call, node->grid[i]);
  for (int i = 0; i < 3; i++) add_int(call, node->block[i]);
  add_int(call, node->shared);
  add_wide(call, params->context);
  Kernel *kernel = kernel_of(call, params->kernel);
  Context *context = context_of(call, params->context);
  if (!ok(call)) return;
  uint64_t blocks = (uint64_t)node->grid[0] * node->grid[1] * node->grid[2];
  uint64_t threads = (uint64_t)node->block[0] * node->block[1] * node->block[2];
  bool fits = (int64_t)node->shared <= attribute_of(kernel, 8, context->device);
  if (blocks == 0 || threads == 0 || threads > (uint64_t)kernel->max_threads || !fits || params->extra != NULL ||
      params->function != 0) {
    call->status = INVALID_VALUE;
    return;
  }
  for (int i = 0; i < kernel->count; i++) {
    add_bytes(call, params->parameters[i], kernel->sizes[i]);
    node->parameters[i] = malloc((size_t)kernel->sizes[i]);
    memcpy(node->parameters[i], params->parameters[i], (size_t)kernel->sizes[i]);
  }
}

EXPORT Status cuGraphAddKernelNode_v2(Handle *out, Handle graph, const Handle *before, size_t count,
                                      const KernelParams *params) {
  Call call = begin("cuGraphAddKernelNode_v2", 0);
  Node node = {0};
  read_kernel_params(&call, params, &node);
  return add_node(&call, out, graph, before, count, node);
}

typedef struct {
  uint64_t x, y, z, lod;
  int type;
  uint8_t *host, *device;
  Handle array, reserved;
  uint64_t pitch, height;
} CopyEnd;

typedef struct {
  CopyEnd from, to;
  uint64_t width, height, depth;
} CopyParams;

/* A node may use memory of another device only if its pool lets it. */
static void check_access(Call *call, const uint8_t *address, Handle context_handle) {
  Context *context = find(CONTEXT, context_handle);
  Allocation *allocation = allocation_at(address, 1);
  if (!ok(call) || context == NULL || allocation == NULL || allocation->pool == NULL) return;
  const Pool *pool = allocation->pool;
  if (pool->managed || pool->device == context->device) return;
  if ((pool->accessible & 1u << context->device) == 0) call->status = INVALID_VALUE;
}

static uint8_t *read_copy_end(Call *call, const CopyEnd *end, uint64_t width, uint64_t height) {
  uint8_t *address = end->type == 1 ? end->host : end->device;
  add_int(call, end->type);
  add_wide(call, (uint64_t)address);
  add_wide(call, end->pitch);
  bool plain = end->x == 0 && end->y == 0 && end->z == 0 && end->lod == 0 && end->array == 0 && end->reserved == 0 &&
               (end->type == 1 ? end->device : end->host) == NULL;
  if (ok(call) && (!plain || (end->type != 1 && end->type != 2))) call->status = INVALID_VALUE;
  if (ok(call) && height > 1 && end->pitch < width) call->status = INVALID_VALUE;
  /* Host memory is checked at the launch. */
  if (end->type == 2) check_device(call, address, (height - 1) * end->pitch + width);
  return address;
}

static void read_copy_params(Call *call, const CopyParams *params, Handle context, Node *node) {
  node->type = COPY_NODE;
  node->context = context;
  node->to_type = params->to.type;
  node->from_type = params->from.type;
  node->bytes = params->width;
  node->rows = params->height;
  node->to_pitch = params->to.pitch;
  node->from_pitch = params->from.pitch;
  bool empty = params->width == 0 || params->height == 0;
  if (ok(call) && (empty || params->depth != 1)) call->status = INVALID_VALUE;
  node->to = read_copy_end(call, &params->to, params->width, params->height);
  node->from = read_copy_end(call, &params->from, params->width, params->height);
  add_wide(call, params->width);
  add_wide(call, params->height);
  add_wide(call, context);
  context_of(call, context);
  if (node->to_type == 2) check_access(call, node->to, context);
  if (node->from_type == 2) check_access(call, node->from, context);
}

EXPORT Status cuGraphAddMemcpyNode(Handle *out, Handle graph, const Handle *before, size_t count,
                                   const CopyParams *params, Handle context) {
  Call call = begin("cuGraphAddMemcpyNode", 0);
  Node node = {0};
  read_copy_params(&call, params, context, &node);
  return add_node(&call, out, graph, before, count, node);
}

typedef struct {
  uint8_t *to;
  uint64_t pitch;
  uint32_t value, size;
  uint64_t width, height;
} FillParams;

static void read_fill_params(Call *call, const FillParams *params, Handle context, Node *node) {
  node->type = FILL_NODE;
  node->context = context;
  node->to = params->to;
  node->value = params->value;
  node->width = (int)params->size;
  node->bytes = params->width * params->size;
  add_wide(call, (uint64_t)params->to);
  add_wide(call, params->value);
  add_int(call, params->size);
  add_wide(call, params->width);
  add_wide(call, params->height);
  add_wide(call, context);
  bool sized = params->size == 1 || params->size == 2 || params->size == 4;
  bool valid = sized && params->width > 0 && params->height == 1 && (uint64_t)params->to % params->size == 0;
  if (ok(call) && (!valid || params->value >= 1ull << (8 * params->size))) call->status = INVALID_VALUE;
  check_device(call, params->to, node->bytes);
  context_of(call, context);
}

EXPORT Status cuGraphAddMemsetNode(Handle *out, Handle graph, const Handle *before, size_t count,
                                   const FillParams *params, Handle context) {
  Call call = begin("cuGraphAddMemsetNode", 0);
  Node node = {0};
  read_fill_params(&call, params, context, &node);
  return add_node(&call, out, graph, before, count, node);
}

EXPORT Status cuGraphAddEventRecordNode(Handle *out, Handle graph, const Handle *before, size_t count, Handle event) {
  Call call = begin("cuGraphAddEventRecordNode", 0);
  add_wide(&call, event);
  event_of(&call, event);
  return add_node(&call, out, graph, before, count, (Node){.type = RECORD_NODE, .event = event});
}

EXPORT Status cuGraphAddEmptyNode(Handle *out, Handle graph, const Handle *before, size_t count) {
  Call call = begin("cuGraphAddEmptyNode", 0);
  return add_node(&call, out, graph, before, count, (Node){.type = EMPTY_NODE});
}

/* Conditional handles use all 64 bits. */
#define CONDITION_BITS 0xc0de000000000001ull

static Condition *condition_of(Call *call, Handle handle) {
  Condition *condition = find(CONDITION, handle ^ CONDITION_BITS);
  if (condition != NULL && condition->alive) return condition;
  wrong(call, "no such condition", handle);
  return NULL;
}

EXPORT Status cuGraphConditionalHandleCreate(Handle *out, Handle graph, Handle context, unsigned value,
                                             unsigned flags) {
  Call call = begin("cuGraphConditionalHandleCreate", 0);
  graph_of(&call, graph);
  context_of(&call, context);
  if (ok(&call) && (value > 1 || flags > 1)) call.status = INVALID_VALUE;
  if (ok(&call)) {
    Condition *condition = calloc(1, sizeof(Condition));
    *condition = (Condition){.alive = true, .graph = graph};
    add_wide(&call, *out = make(CONDITION, condition) ^ CONDITION_BITS);
  }
  add_wide(&call, graph);
  add_wide(&call, context);
  add_int(&call, value);
  add_int(&call, flags);
  return end(&call);
}

typedef struct {
  int type, unused[3];
  Handle condition;
  int kind;
  unsigned size;
  Handle *bodies;
  Handle context;
  uint64_t reserved[26];
} NodeParams;

static bool is_conditional(const NodeParams *params) {
  bool zero = params->unused[0] == 0 && params->unused[1] == 0 && params->unused[2] == 0 && params->bodies == NULL;
  for (int i = 0; i < 26; i++) zero = zero && params->reserved[i] == 0;
  return zero && params->type == CONDITIONAL_NODE && params->size == 1 && (params->kind == 0 || params->kind == 1);
}

/* Only conditions with one body are supported: 0 runs it if its condition holds, 1 while it holds. */
EXPORT Status cuGraphAddNode_v2(Handle *out, Handle graph, const Handle *before, const void *edges, size_t count,
                                NodeParams *params) {
  Call call = begin("cuGraphAddNode_v2", 0);
  add_int(&call, params->type);
  add_wide(&call, params->condition);
  add_int(&call, params->kind);
  add_int(&call, params->size);
  add_wide(&call, params->context);
  Condition *condition = condition_of(&call, params->condition);
  context_of(&call, params->context);
  bool free_here = condition != NULL && condition->graph == graph && !condition->has_node;
  if (ok(&call) && (edges != NULL || !is_conditional(params) || !free_here)) call.status = INVALID_VALUE;
  Graph *body = ok(&call) ? make_graph(true) : NULL;
  Node node = {.type = CONDITIONAL_NODE, .condition = params->condition, .context = params->context};
  node.loops = params->kind == 1;
  if (body != NULL) node.body = body->self;
  Status status = add_node(&call, out, graph, before, count, node);
  if (status != SUCCESS) {
    if (body != NULL) body->alive = false;
    return status;
  }
  condition->has_node = true;
  params->bodies = &body->self;
  return status;
}

/* Only programmatic edges are supported: from one kernel node to another. */
EXPORT Status cuGraphAddDependencies_v2(Handle graph, const Handle *from, const Handle *to, const uint8_t *edges,
                                        size_t count) {
  Call call = begin("cuGraphAddDependencies_v2", 0);
  add_wide(&call, graph);
  graph_of(&call, graph);
  for (size_t i = 0; i < count; i++) {
    add_wide(&call, from[i]);
    add_wide(&call, to[i]);
    add_bytes(&call, edges + 8 * i, 8);
    Node *before = node_of(&call, from[i]), *after = node_of(&call, to[i]);
    if (!ok(&call)) continue;
    bool programmatic = edges[8 * i] == 1 && edges[8 * i + 1] == 0 && edges[8 * i + 2] == 1;
    bool kernels = before->type == KERNEL_NODE && after->type == KERNEL_NODE;
    if (!programmatic || !kernels || before->graph != graph || after->graph != graph) call.status = INVALID_VALUE;
    else depend(after, from[i]);
  }
  return end(&call);
}

EXPORT Status cuGraphKernelNodeSetAttribute(Handle handle, int attribute, const unsigned *value) {
  Call call = begin("cuGraphKernelNodeSetAttribute", 0);
  add_wide(&call, handle);
  add_int(&call, attribute);
  for (int i = 0; i < (attribute == 4 ? 3 : 1); i++) add_int(&call, (int)value[i]);
  Node *node = node_of(&call, handle);
  bool known = attribute == 2 || attribute == 4 || attribute == 8;
  if (ok(&call) && (!known || node->type != KERNEL_NODE)) call.status = INVALID_VALUE;
  if (ok(&call)) memcpy(node->attributes[attribute], value, sizeof node->attributes[attribute]);
  return end(&call);
}

static Exec *exec_from(const Graph *graph);

/* A node of an executable graph has its own parameters, and its own copy of a body. */
static Node copy_node(const Node *node) {
  Node copied = *node;
  Kernel *kernel = node->type == KERNEL_NODE ? find(KERNEL, node->kernel) : NULL;
  for (int i = 0; kernel != NULL && i < kernel->count; i++) {
    copied.parameters[i] = malloc((size_t)kernel->sizes[i]);
    memcpy(copied.parameters[i], node->parameters[i], (size_t)kernel->sizes[i]);
  }
  copied.before = NULL;
  copied.before_count = 0;
  for (int i = 0; i < node->before_count; i++) depend(&copied, node->before[i]);
  if (node->inside != NULL) copied.inside = copy_exec(node->inside);
  else if (node->type == CONDITIONAL_NODE) copied.inside = exec_from(find(GRAPH, node->body));
  return copied;
}

static Exec *exec_from(const Graph *graph) {
  Exec *exec = calloc(1, sizeof(Exec));
  *exec = (Exec){.alive = true, .graph = graph->self};
  exec->nodes = calloc((size_t)graph->count + 1, sizeof(Node));
  for (exec->count = 0; exec->count < graph->count; exec->count++) {
    exec->nodes[exec->count] = copy_node(find(NODE, graph->nodes[exec->count]));
  }
  return exec;
}

static Exec *copy_exec(const Exec *exec) {
  Exec *copied = calloc(1, sizeof(Exec));
  *copied = *exec;
  copied->nodes = calloc((size_t)exec->count + 1, sizeof(Node));
  for (int i = 0; i < exec->count; i++) copied->nodes[i] = copy_node(&exec->nodes[i]);
  return copied;
}

static void drop_nodes(Exec *exec) {
  for (int i = 0; i < exec->count; i++) drop_node(&exec->nodes[i]);
  exec->count = 0;
}

static void drop_exec(Exec *exec) {
  drop_nodes(exec);
  free(exec->nodes);
  free(exec);
}

/* The node has its own copy of the other graph, which can be destroyed. */
EXPORT Status cuGraphAddChildGraphNode(Handle *out, Handle graph, const Handle *before, size_t count, Handle inside) {
  Call call = begin("cuGraphAddChildGraphNode", 0);
  add_wide(&call, inside);
  Graph *child = graph_of(&call, inside);
  for (int i = 0; ok(&call) && i < child->count; i++) {
    NodeType type = ((Node *)find(NODE, child->nodes[i]))->type;
    bool refused = type == ALLOCATE_NODE || type == FREE_NODE || type == CONDITIONAL_NODE;
    if (refused) call.status = NOT_SUPPORTED;
  }
  Node node = {.type = GRAPH_NODE};
  if (ok(&call)) node.inside = exec_from(child);
  return add_node(&call, out, graph, before, count, node);
}

EXPORT Status cuGraphGetNodes(Handle handle, Handle *nodes, size_t *count) {
  Call call = begin("cuGraphGetNodes", 0);
  add_wide(&call, handle);
  Graph *graph = graph_of(&call, handle);
  if (ok(&call)) {
    for (size_t i = 0; i < *count; i++) nodes[i] = i < (size_t)graph->count ? graph->nodes[i] : 0;
    if (*count > (size_t)graph->count) *count = (size_t)graph->count;
    add_wide(&call, *count);
  }
  return end(&call);
}

EXPORT Status cuGraphNodeGetType(Handle handle, int *type) {
  Call call = begin("cuGraphNodeGetType", 0);
  add_wide(&call, handle);
  Node *node = node_of(&call, handle);
  if (ok(&call)) add_int(&call, *type = node->type);
  return end(&call);
}

/* Captures have a mode; only relaxed ones are supported. */
EXPORT Status cuStreamBeginCapture_v2(Handle handle, int mode) {
  Call call = begin("cuStreamBeginCapture_v2", 0);
  add_wide(&call, handle);
  add_int(&call, mode);
  Stream *stream = stream_of(&call, handle);
  if (ok(&call) && (mode != 2 || stream->captures || stream->head != NULL)) call.status = INVALID_VALUE;
  if (ok(&call)) stream->captures = true;
  return end(&call);
}

/* A captured operation as a node; only fills and copies keep what they do. */
static Node node_from(const Op *op, Handle context) {
  Node node = {.alive = true, .context = context, .to = op->to, .from = op->from, .bytes = op->bytes, .rows = op->rows};
  node.to_pitch = op->to_pitch;
  node.from_pitch = op->from_pitch;
  node.value = op->value;
  node.width = op->width;
  node.type = op->kind == COPY       ? COPY_NODE
              : op->kind == FILL     ? FILL_NODE
              : op->kind == ALLOCATE ? ALLOCATE_NODE
              : op->kind == FREE     ? FREE_NODE
                                     : EMPTY_NODE;
  node.to_type = op->to != NULL && allocation_at(op->to, 0) != NULL ? 2 : 1;
  node.from_type = op->from != NULL && allocation_at(op->from, 0) != NULL ? 2 : 1;
  return node;
}

static Handle graph_from(Op *op, Handle context) {
  Graph *graph = make_graph(false);
  while (op != NULL) {
    Op *next = op->next;
    Node *node = malloc(sizeof(Node));
    *node = node_from(op, context);
    node->graph = graph->self;
    node->index = graph->count;
    if (graph->count > 0) depend(node, graph->nodes[graph->count - 1]);
    node->self = graph->nodes[graph->count++] = make(NODE, node);
    if (op->kind == ALLOCATE) {
      op->allocation->pool->used -= op->allocation->bytes;
      forget(op->allocation);
    }
    drop_op(op);
    op = next;
  }
  return graph->self;
}

EXPORT Status cuStreamEndCapture(Handle handle, Handle *out) {
  Call call = begin("cuStreamEndCapture", 0);
  add_wide(&call, handle);
  Stream *stream = stream_of(&call, handle);
  if (ok(&call) && !stream->captures) call.status = INVALID_VALUE;
  if (stream != NULL && stream->captures) {
    /* A capture that fails ends, too. */
    stream->captures = false;
    Op *captured = stream->head;
    stream->head = stream->tail = NULL;
    Handle graph = graph_from(captured, stream->context);
    if (ok(&call)) add_wide(&call, *out = graph);
    else destroy_graph(find(GRAPH, graph));
  }
  return end(&call);
}

static bool node_touches(const Node *node, const uint8_t *memory, uint64_t bytes) {
  if (node->disabled) return false;
  if (node->inside != NULL) return body_touches(node->inside, memory, bytes);
  const Kernel *kernel = node->type == KERNEL_NODE ? find(KERNEL, node->kernel) : NULL;
  for (int i = 0; kernel != NULL && i < kernel->count; i++) {
    const uint8_t *address;
    if (kernel->sizes[i] != 8) continue;
    memcpy(&address, node->parameters[i], sizeof address);
    if (overlap(address, 1, memory, bytes)) return true;
  }
  uint64_t later = node->rows > 1 ? node->rows - 1 : 0;
  return overlap(node->to, node->bytes + later * node->to_pitch, memory, bytes) ||
         overlap(node->from, node->bytes + later * node->from_pitch, memory, bytes);
}

static bool body_touches(const Exec *body, const uint8_t *memory, uint64_t bytes) {
  for (int i = 0; i < body->count; i++) {
    if (node_touches(&body->nodes[i], memory, bytes)) return true;
  }
  return false;
}

static void load_all(const Exec *exec) {
  for (int i = 0; i < exec->count; i++) {
    const Node *node = &exec->nodes[i];
    if (node->inside != NULL) load_all(node->inside);
    if (node->type != KERNEL_NODE) continue;
    load_code(find(KERNEL, node->kernel), ((Context *)find(CONTEXT, node->context))->device);
  }
}

static bool has_conditions(const Graph *graph) {
  for (int i = 0; i < graph->count; i++) {
    if (((Node *)find(NODE, graph->nodes[i]))->type == CONDITIONAL_NODE) return true;
  }
  return false;
}

/* Whether a handle of the graph or of its bodies has no node. */
static bool has_loose_condition(const Graph *graph) {
  bool loose = false;
  EACH(Condition, condition, CONDITION) {
    loose = loose || (condition->graph == graph->self && !condition->has_node);
  }
  for (int i = 0; i < graph->count; i++) {
    const Node *node = find(NODE, graph->nodes[i]);
    loose = loose || (node->type == CONDITIONAL_NODE && has_loose_condition(find(GRAPH, node->body)));
  }
  return loose;
}

static Handle refused_node(const Graph *graph) {
  return stub.graph_node < 0 || stub.graph_node >= graph->count ? 0 : graph->nodes[stub.graph_node];
}

EXPORT Status cuGraphInstantiateWithParams(Handle *out, Handle handle, uint64_t *params) {
  Call call = begin("cuGraphInstantiateWithParams", NEEDS_CONTEXT);
  add_wide(&call, handle);
  add_wide(&call, params[0]);
  Graph *graph = graph_of(&call, handle);
  if (graph != NULL && !ok(&call)) {
    params[2] = refused_node(graph);
    params[3] = (uint64_t)stub.graph_result;
  }
  if (ok(&call) && ((params[0] & ~8ull) != 0 || graph->is_body)) call.status = INVALID_VALUE;
  if (ok(&call) && graph->is_instantiated && has_conditions(graph)) call.status = NOT_SUPPORTED;
  if (ok(&call) && has_loose_condition(graph)) {
    params[3] = 5;
    call.status = INVALID_VALUE;
  }
  if (ok(&call)) {
    Exec *exec = exec_from(graph);
    exec->uses_priorities = params[0] == 8;
    graph->is_instantiated = true;
    load_all(exec);
    add_wide(&call, *out = make(EXEC, exec));
  }
  return end(&call);
}

EXPORT Status cuGraphExecDestroy(Handle handle) {
  Call call = begin("cuGraphExecDestroy", 0);
  add_wide(&call, handle);
  Exec *exec = exec_of(&call, handle);
  if (exec != NULL && gives_back(&call)) {
    exec->alive = false;
    drop_nodes(exec);
  }
  return end(&call);
}

static Node *node_in(Exec *exec, const Node *node) {
  if (exec->graph == node->graph) {
    bool there = node->index < exec->count && exec->nodes[node->index].self == node->self;
    return there ? &exec->nodes[node->index] : NULL;
  }
  Node *found = NULL;
  for (int i = 0; found == NULL && i < exec->count; i++) {
    if (exec->nodes[i].inside != NULL) found = node_in(exec->nodes[i].inside, node);
  }
  return found;
}

/* The copy of a graph's node in an executable graph, which is named by the node of the graph it was made from. */
static Node *exec_node(Call *call, Handle exec_handle, Handle node_handle) {
  add_wide(call, exec_handle);
  add_wide(call, node_handle);
  Exec *exec = exec_of(call, exec_handle);
  Node *node = node_of(call, node_handle);
  if (!ok(call)) return NULL;
  Node *found = node_in(exec, node);
  if (found == NULL) wrong(call, "a node that the executable graph does not have", node_handle);
  return found;
}

/* Gives a node other parameters. */
static void set_params(Node *node, const Node *with) {
  Node old = *node;
  *node = *with;
  node->alive = old.alive;
  node->disabled = old.disabled;
  node->graph = old.graph;
  node->self = old.self;
  node->index = old.index;
  node->before = old.before;
  node->before_count = old.before_count;
  memcpy(node->attributes, old.attributes, sizeof node->attributes);
  old.before = NULL;
  drop_node(&old);
}

EXPORT Status cuGraphExecKernelNodeSetParams_v2(Handle exec, Handle handle, const KernelParams *params) {
  Call call = begin("cuGraphExecKernelNodeSetParams_v2", 0);
  Node *node = exec_node(&call, exec, handle), with = {0};
  read_kernel_params(&call, params, &with);
  if (ok(&call) && (node->type != KERNEL_NODE || node->context != with.context)) call.status = INVALID_VALUE;
  if (ok(&call)) set_params(node, &with);
  else drop_node(&with);
  return end(&call);
}

static bool same_copies(const Node *node, const Node *with) {
  return node->to_type == with->to_type && node->from_type == with->from_type && node->context == with->context;
}

/* The driver changes copies of one row only, and not between which kinds of memory they copy. */
EXPORT Status cuGraphExecMemcpyNodeSetParams(Handle exec, Handle handle, const CopyParams *params, Handle context) {
  Call call = begin("cuGraphExecMemcpyNodeSetParams", 0);
  Node *node = exec_node(&call, exec, handle), with = {0};
  read_copy_params(&call, params, context, &with);
  if (ok(&call) && (node->type != COPY_NODE || !same_copies(node, &with) || node->rows != 1 || with.rows != 1)) {
    call.status = INVALID_VALUE;
  }
  if (ok(&call)) set_params(node, &with);
  return end(&call);
}

EXPORT Status cuGraphExecMemsetNodeSetParams(Handle exec, Handle handle, const FillParams *params, Handle context) {
  Call call = begin("cuGraphExecMemsetNodeSetParams", 0);
  Node *node = exec_node(&call, exec, handle), with = {0};
  read_fill_params(&call, params, context, &with);
  if (ok(&call) && (node->type != FILL_NODE || node->context != context)) call.status = INVALID_VALUE;
  if (ok(&call)) set_params(node, &with);
  return end(&call);
}

EXPORT Status cuGraphExecEventRecordNodeSetEvent(Handle exec, Handle handle, Handle event) {
  Call call = begin("cuGraphExecEventRecordNodeSetEvent", 0);
  Node *node = exec_node(&call, exec, handle);
  add_wide(&call, event);
  event_of(&call, event);
  if (ok(&call) && node->type != RECORD_NODE) call.status = INVALID_VALUE;
  // The driver reads the event that the node has.
  if (ok(&call)) event_of(&call, node->event);
  if (ok(&call)) node->event = event;
  return end(&call);
}

EXPORT Status cuGraphNodeSetEnabled(Handle exec, Handle handle, unsigned enabled) {
  Call call = begin("cuGraphNodeSetEnabled", 0);
  Node *node = exec_node(&call, exec, handle);
  add_int(&call, enabled);
  if (ok(&call) && node->type > FILL_NODE) call.status = INVALID_VALUE;
  if (ok(&call)) node->disabled = enabled == 0;
  return end(&call);
}

/* Whether a node of another graph depends on the nodes at the same positions. */
static bool same_edges(const Node *node, const Graph *graph, const Node *with) {
  if (node->before_count != with->before_count) return false;
  for (int i = 0; i < node->before_count; i++) {
    if (graph->nodes[((Node *)find(NODE, node->before[i]))->index] != with->before[i]) return false;
  }
  return true;
}

/* Whether a copy of rows is unchanged. The driver changes copies of one row only. */
static bool same_rows(const Node *node, const Node *with) {
  if (node->rows == 1 && with->rows == 1) return true;
  bool pitches = node->to_pitch == with->to_pitch && node->from_pitch == with->from_pitch;
  return pitches && node->rows == with->rows && node->bytes == with->bytes && node->to == with->to &&
         node->from == with->from;
}

static bool same_attributes(const Exec *exec, const Node *node, const Node *with) {
  bool same = memcmp(node->attributes[2], with->attributes[2], sizeof node->attributes[2]) == 0 &&
              memcmp(node->attributes[4], with->attributes[4], sizeof node->attributes[4]) == 0;
  return same && (!exec->uses_priorities || node->attributes[8][0] == with->attributes[8][0]);
}

/* The result of an update for one node: 0, or why it cannot be updated. */
static int compare(const Exec *exec, const Node *node, const Graph *graph, const Node *with) {
  if (node->type != with->type) return 3;
  if (node->type == CONDITIONAL_NODE) return 6;
  if (!same_edges(node, graph, with)) return 2;
  if (node->type == GRAPH_NODE && node->inside->count != with->inside->count) return 2;
  if (node->type == COPY_NODE && (!same_copies(node, with) || !same_rows(node, with))) return 5;
  if (node->context != with->context) return 5;
  return same_attributes(exec, node, with) ? 0 : 8;
}

typedef struct {
  int result;
  Handle node, from;
} UpdateResult;

static void apply_update(Exec *exec, const Graph *graph) {
  for (int i = 0; i < graph->count; i++) {
    Node with = copy_node(find(NODE, graph->nodes[i]));
    free(with.before);
    set_params(&exec->nodes[i], &with);
  }
}

EXPORT Status cuGraphExecUpdate_v2(Handle handle, Handle graph_handle, UpdateResult *out) {
  Call call = begin("cuGraphExecUpdate_v2", 0);
  add_wide(&call, handle);
  add_wide(&call, graph_handle);
  Exec *exec = exec_of(&call, handle);
  Graph *graph = graph_of(&call, graph_handle);
  *out = (UpdateResult){0};
  // The driver reads the events that the nodes have.
  for (int i = 0; ok(&call) && i < exec->count; i++) {
    if (exec->nodes[i].type == RECORD_NODE) event_of(&call, exec->nodes[i].event);
  }
  if (graph != NULL && !ok(&call)) *out = (UpdateResult){.result = stub.graph_result, .node = refused_node(graph)};
  if (ok(&call) && graph->count != exec->count) out->result = 2;
  for (int i = 0; ok(&call) && out->result == 0 && i < graph->count; i++) {
    Node *with = find(NODE, graph->nodes[i]);
    out->result = compare(exec, &exec->nodes[i], graph, with);
    if (out->result != 0) out->node = graph->nodes[i];
  }
  if (ok(&call) && out->result != 0) call.status = UPDATE_FAILURE;
  if (ok(&call)) apply_update(exec, graph);
  add_int(&call, out->result);
  return end(&call);
}

EXPORT Status cuGraphUpload(Handle handle, Handle stream_handle) {
  Call call = begin("cuGraphUpload", 0);
  add_wide(&call, handle);
  add_wide(&call, stream_handle);
  exec_of(&call, handle);
  stream_of(&call, stream_handle);
  return end(&call);
}

static void check_end(Call *call, int type, const uint8_t *address, uint64_t bytes) {
  if (type == 1) check_host(call, address, bytes);
  else check_device(call, address, bytes);
}

static bool is_setter(const Kernel *kernel) { return strcmp(kernel->name, "effect_cuda_condition") == 0; }

/* The value that a setter reads, and the condition that it sets. */
static void read_setter(const Node *node, const uint8_t **value, Handle *condition) {
  memcpy(condition, node->parameters[0], sizeof *condition);
  memcpy(value, node->parameters[1], sizeof *value);
}

static void check_setter(Call *call, const Node *node) {
  const uint8_t *value;
  Handle condition;
  read_setter(node, &value, &condition);
  condition_of(call, condition);
  check_device(call, (uint8_t *)value, 4);
}

static void check_all(Call *call, const Exec *exec);

/* Everything that a node uses must still be there when it is launched. */
static void check_node(Call *call, const Node *node) {
  uint64_t later = node->rows > 1 ? node->rows - 1 : 0;
  if (node->type == RECORD_NODE) event_of(call, node->event);
  if (node->inside != NULL) check_all(call, node->inside);
  Kernel *kernel = node->type == KERNEL_NODE ? kernel_of(call, node->kernel) : NULL;
  if (kernel != NULL && is_setter(kernel)) check_setter(call, node);
  if (node->type == FILL_NODE) check_device(call, node->to, node->bytes);
  if (node->type == COPY_NODE) check_end(call, node->to_type, node->to, node->bytes + later * node->to_pitch);
  if (node->type == COPY_NODE) check_end(call, node->from_type, node->from, node->bytes + later * node->from_pitch);
}

static void check_all(Call *call, const Exec *exec) {
  for (int i = 0; ok(call) && i < exec->count; i++) {
    if (!exec->nodes[i].disabled) check_node(call, &exec->nodes[i]);
  }
}

static void become_setter(Op *op, const Node *node) {
  Handle condition;
  read_setter(node, &op->from, &condition);
  op->condition = find(CONDITION, condition ^ CONDITION_BITS);
  op->bytes = sizeof op->value;
  memcpy(&op->value, node->parameters[2], sizeof op->value);
  uint32_t negated;
  memcpy(&negated, node->parameters[3], sizeof negated);
  op->negated = negated != 0;
}

static void enqueue_launch(Stream *stream, const Node *node) {
  Op *op = enqueue(stream, LAUNCH);
  const Kernel *kernel = find(KERNEL, node->kernel);
  if (is_setter(kernel)) become_setter(op, node);
  for (int i = 0; i < kernel->count; i++) {
    if (kernel->sizes[i] != 8) continue;
    const uint8_t *address;
    memcpy(&address, node->parameters[i], sizeof address);
    if (allocation_at(address, 0) != NULL) op->touched[i] = address;
  }
}

static void enqueue_node(Stream *stream, const Node *node) {
  if (node->type == EMPTY_NODE || node->disabled) return;
  if (node->type == KERNEL_NODE) {
    enqueue_launch(stream, node);
    return;
  }
  if (node->type == RECORD_NODE) {
    Event *event = find(EVENT, node->event);
    event->record = make_record();
    enqueue(stream, RECORD)->record = event->record;
    return;
  }
  if (node->type == CONDITIONAL_NODE) {
    Op *branch = enqueue(stream, BRANCH);
    branch->condition = find(CONDITION, node->condition ^ CONDITION_BITS);
    branch->loops = node->loops;
    branch->body = copy_exec(node->inside);
    return;
  }
  if (node->type == GRAPH_NODE) {
    enqueue_nodes(stream, node->inside);
    return;
  }
  Op *op = enqueue(stream, node->type == COPY_NODE ? COPY : FILL);
  op->to = node->to;
  op->from = node->from;
  op->bytes = node->bytes;
  op->rows = node->type == COPY_NODE ? node->rows : 1;
  op->to_pitch = node->to_pitch;
  op->from_pitch = node->from_pitch;
  op->value = node->value;
  op->width = node->width;
}

static bool is_ready(const Exec *exec, const Node *node) {
  for (int i = 0; i < node->before_count; i++) {
    if (!exec->nodes[((Node *)find(NODE, node->before[i]))->index].done) return false;
  }
  return !node->done;
}

/* Enqueues the nodes. The last node that is ready comes first, so that programs cannot rely on the order in which they were added. */
static void enqueue_nodes(Stream *stream, Exec *exec) {
  for (int i = 0; i < exec->count; i++) exec->nodes[i].done = false;
  for (bool moved = true; moved;) {
    moved = false;
    for (int i = exec->count - 1; i >= 0; i--) {
      if (!is_ready(exec, &exec->nodes[i])) continue;
      enqueue_node(stream, &exec->nodes[i]);
      exec->nodes[i].done = moved = true;
    }
  }
}

EXPORT Status cuGraphLaunch(Handle handle, Handle stream_handle) {
  Call call = begin("cuGraphLaunch", 0);
  add_wide(&call, handle);
  add_wide(&call, stream_handle);
  Exec *exec = exec_of(&call, handle);
  Stream *stream = stream_of(&call, stream_handle);
  if (exec != NULL) check_all(&call, exec);
  if (ok(&call)) {
    enqueue_nodes(stream, exec);
    run_all();
  }
  return end(&call);
}

/* ---- For the tests. ---- */

static void drop_queues(void) {
  EACH(Stream, stream, STREAM) {
    while (stream->head != NULL) {
      Op *op = stream->head;
      stream->head = op->next;
      drop_op(op);
    }
    stream->tail = NULL;
  }
}

static void drop_lists(void) {
  while (stub.ranges != NULL) {
    stub.ranges->count = 0;
    hide(stub.ranges, stub.ranges->address, stub.ranges->bytes);
    drop_range(stub.ranges);
  }
  while (stub.allocations != NULL) forget(stub.allocations);
  while (stub.registrations != NULL) unregister(stub.registrations->address);
  while (stub.records != NULL) {
    Record *next = stub.records->next;
    free(stub.records);
    stub.records = next;
  }
  while (stub.failures != NULL) {
    Failure *next = stub.failures->next;
    free(stub.failures);
    stub.failures = next;
  }
}

static void set_defaults(void) {
  stub.hides_ranges = false;
  stub.hides_pools = false;
  memset(stub.primary, 0, sizeof stub.primary);
  stub.remote_count = 0;
  stub.initialized = false;
  stub.devices = STUB_DEVICES;
  stub.unlinked = false;
  stub.version = STUB_VERSION;
  stub.init_status = STUB_INIT;
  stub.fault = stub.pending = 0;
  stub.least = 0;
  stub.greatest = -5;
  stub.memory = 8ull << 30;
  stub.next_id = 16;
  stub.clock = stub.calls = stub.misuses = 0;
  stub.misuse[0] = 0;
  stub.hosts_held = false;
  stub.host_calls = stub.host_calls_on_main = stub.blocked = 0;
  stub.loads_held = false;
  stub.graph_result = 0;
  stub.graph_node = -1;
  memset(stub.attributes, -1, sizeof stub.attributes);
}

/* Resets everything. The calling thread becomes the main thread, and earlier handles are stale. */
EXPORT void stub_reset(void) {
  pthread_mutex_lock(&lock);
  while (stub.host_running) pthread_cond_wait(&host_called, &lock);
  drop_queues();
  drop_lists();
  for (int kind = CONTEXT; kind <= GREEN; kind++) stub.tables[kind].first = stub.tables[kind].count;
  set_defaults();
  stub.main_thread = pthread_self();
  depth = 0;
  logged.used = logged.repeats = 0;
  pthread_mutex_unlock(&lock);
}

/* The log so far, one line of JSON per call. Valid until the next call of this function. */
EXPORT const char *stub_log(void) {
  pthread_mutex_lock(&lock);
  if (logged.repeats > 0) log_repeats();
  logged.repeats = 0;
  free(logged.snapshot);
  logged.snapshot = logged.used == 0 ? strdup("") : strndup(logged.text, logged.used);
  pthread_mutex_unlock(&lock);
  return logged.snapshot;
}

EXPORT void stub_log_clear(void) {
  pthread_mutex_lock(&lock);
  logged.used = logged.repeats = 0;
  pthread_mutex_unlock(&lock);
}

/* Makes a function return a status without doing its work: `times` calls (-1: all) after the next `after` calls. */
EXPORT void stub_fail(const char *name, int status, int after, int times) {
  pthread_mutex_lock(&lock);
  Failure *failure = calloc(1, sizeof(Failure));
  snprintf(failure->name, sizeof failure->name, "%s", name);
  failure->status = status;
  failure->after = after;
  failure->times = times;
  failure->next = stub.failures;
  stub.failures = failure;
  pthread_mutex_unlock(&lock);
}

/* Injected failures that have not happened yet. */
EXPORT int stub_failures_left(void) {
  int left = 0;
  for (Failure *failure = stub.failures; failure != NULL; failure = failure->next) {
    if (failure->times > 0) left += failure->times;
  }
  return left;
}

EXPORT void stub_set_devices(int count) { stub.devices = count; }
EXPORT void stub_set_unlinked(int unlinked) { stub.unlinked = unlinked != 0; }
EXPORT void stub_set_version(int version) { stub.version = version; }
EXPORT void stub_set_memory(uint64_t bytes) { stub.memory = bytes; }

EXPORT void stub_set_priorities(int least, int greatest) {
  stub.least = least;
  stub.greatest = greatest;
}

/* Bit mask of what stays pending until `stub_finish`: 1 copies and fills, 2 allocations and releases, 4 kernels. */
EXPORT void stub_set_pending(int mask) { stub.pending = mask; }

/* Makes every later call return this status, except those that need no context. */
EXPORT void stub_fault(int status) { stub.fault = status; }
EXPORT int stub_current_fault(void) { return stub.fault; }

static Stream *any_stream(Handle handle, int device) {
  if (handle > 2) return find(STREAM, handle);
  Context *context = find(CONTEXT, stub.primary[device]);
  return find(STREAM, handle == 2 ? context->per_thread : context->legacy);
}

/* Enqueues work that stays pending, like a long kernel. The device distinguishes default streams. */
EXPORT void stub_work(Handle handle, int device) {
  pthread_mutex_lock(&lock);
  enqueue(any_stream(handle, device), WORK);
  pthread_mutex_unlock(&lock);
}

static int let_go(Stream *stream, int count) {
  int gone = 0;
  for (Op *op = stream->head; op != NULL && count != 0; op = op->next) {
    if (!op->held) continue;
    op->held = false;
    gone++;
    count--;
  }
  return gone;
}

/* Finishes the first `count` pending pieces of work of a stream (-1: all). Returns how many there were. */
EXPORT int stub_finish(Handle handle, int device, int count) {
  pthread_mutex_lock(&lock);
  int gone = let_go(any_stream(handle, device), count);
  run_all();
  pthread_mutex_unlock(&lock);
  return gone;
}

/* Finishes all pending work on every stream. */
EXPORT int stub_finish_all(void) {
  pthread_mutex_lock(&lock);
  int gone = 0;
  EACH(Stream, stream, STREAM) gone += let_go(stream, -1);
  run_all();
  pthread_mutex_unlock(&lock);
  return gone;
}

/* Holds back reached host functions, like a driver with a busy thread, or releases them. */
EXPORT void stub_hold_hosts(int held) {
  pthread_mutex_lock(&lock);
  stub.hosts_held = held != 0;
  pthread_cond_signal(&host_reached);
  pthread_mutex_unlock(&lock);
}

/* The number of host functions called: 0 all, 1 those on the thread that reset the stub. Waits for those due. */
EXPORT int stub_host_calls(int which) {
  pthread_mutex_lock(&lock);
  await_host_functions();
  int calls = which == 0 ? stub.host_calls : stub.host_calls_on_main;
  pthread_mutex_unlock(&lock);
  return calls;
}

/* Sets the value that `cuDeviceGetAttribute` returns. */
EXPORT void stub_set_attribute(int attribute, int value) { stub.attributes[attribute] = value; }

/* Holds back library loads, like a driver that compiles PTX, or releases them. */
EXPORT void stub_hold_loads(int held) {
  pthread_mutex_lock(&lock);
  stub.loads_held = held != 0;
  pthread_cond_broadcast(&loads_let_go);
  pthread_mutex_unlock(&lock);
}

/* What a graph call that is made to fail reports: a result, and the node at an index (-1: none). */
EXPORT void stub_refuse_graph(int result, int node) {
  stub.graph_result = result;
  stub.graph_node = node;
}

/* How many calls would have blocked in the driver on a busy device. */
EXPORT int stub_blocked(void) { return stub.blocked; }

/*
 * Live resources: 0 streams, 1 events, 2 pools, 3 registrations, 4 allocations with reserved addresses and unmapped memory, 5 retained contexts, 6 pending work, 7 libraries,
 * 8 graphs, 9 executable graphs, 10 green contexts.
 */
EXPORT int stub_live(int kind) {
  int count = 0;
  pthread_mutex_lock(&lock);
  await_host_functions();
  if (kind == 0) EACH(Stream, stream, STREAM) count += stream->alive && !stream->internal;
  if (kind == 1) EACH(Event, event, EVENT) count += event->alive;
  if (kind == 2) EACH(Pool, pool, POOL) count += pool->alive;
  if (kind == 3) for (Registration *r = stub.registrations; r != NULL; r = r->next) count++;
  if (kind == 4) for (Allocation *a = stub.allocations; a != NULL; a = a->next) count += a->pool != NULL;
  if (kind == 4) for (Range *range = stub.ranges; range != NULL; range = range->next) count++;
  if (kind == 4) EACH(Memory, memory, MEMORY) count += memory->alive;
  if (kind == 5) EACH(Context, context, CONTEXT) count += context->retained;
  if (kind == 6) EACH(Stream, stream, STREAM) count += stream->head != NULL;
  if (kind == 7) EACH(Library, library, LIBRARY) count += library->alive;
  if (kind == 8) EACH(Graph, graph, GRAPH) count += graph->alive && !graph->is_body;
  if (kind == 9) EACH(Exec, exec, EXEC) count += exec->alive;
  if (kind == 10) EACH(Green, green, GREEN) count += green->alive;
  pthread_mutex_unlock(&lock);
  return count;
}

EXPORT int stub_misuses(void) { return (int)stub.misuses; }
EXPORT const char *stub_misuse(void) { return stub.misuse; }
EXPORT double stub_calls(void) { return (double)stub.calls; }

/* Foreign native code in the process: its own context or stream. */

EXPORT Handle stub_push_foreign(void) {
  pthread_mutex_lock(&lock);
  Handle context = make_context(0);
  stack[depth++] = context;
  pthread_mutex_unlock(&lock);
  return context;
}

EXPORT void stub_pop_foreign(void) { depth--; }
EXPORT Handle stub_current(void) { return current(); }
EXPORT int stub_depth(void) { return depth; }

/* A stream on a device's primary context, or (with -1) on another context. Never counted as live. */
EXPORT Handle stub_foreign_stream(int device, unsigned flags, int priority) {
  pthread_mutex_lock(&lock);
  Handle context = device < 0 ? make_context(0) : stub.primary[device];
  Handle stream = make_stream(context, flags, priority, 0, true);
  pthread_mutex_unlock(&lock);
  return stream;
}

EXPORT void stub_hide_pools(int hidden) { stub.hides_pools = hidden != 0; }

/* Whether the driver does not know the range of device memory. */
EXPORT void stub_hide_ranges(int hidden) {
  pthread_mutex_lock(&lock);
  stub.hides_ranges = hidden != 0;
  pthread_mutex_unlock(&lock);
}

/* An interprocess event of another process, recorded there and pending until `stub_remote_finish`. Returns its number. */
EXPORT int stub_remote_event(uint8_t *handle) {
  pthread_mutex_lock(&lock);
  int remote = stub.remote_count++;
  stub.remotes[remote] = make_record();
  fill_ipc(handle, (uint64_t)remote);
  pthread_mutex_unlock(&lock);
  return remote;
}

/* Memory of another process: the handle of an allocation of some size. */
EXPORT void stub_remote_memory(uint8_t *handle, uint64_t bytes) { fill_ipc(handle, bytes); }

EXPORT void stub_remote_finish(int remote) {
  pthread_mutex_lock(&lock);
  stub.remotes[remote]->done = true;
  run_all();
  pthread_mutex_unlock(&lock);
}

/* The stub is ready for a process that does not control it. */
__attribute__((constructor)) static void start(void) { stub_reset(); }
