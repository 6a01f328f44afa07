/*
 * cuBLASLt without a GPU, for the tests of matrix products. It keeps descriptors and their attributes, records what the heuristic and
 * products are given, and whether calls were made on the JS thread, and notes misuse: descriptors that are of another kind, destroyed or
 * incomplete, sizes that are wrong, and addresses that are not aligned. A product fills its result and its workspace through the stub
 * driver, whose function a test passes by address, so that the driver sees whether they are live until then.
 *
 * STUB_OLD builds a version without the heuristic.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))

typedef enum { HANDLE, PRODUCT, LAYOUT, PREFERENCE, KINDS } Kind;
static const char *kindNames[] = {"handle", "product", "layout", "preference"};

enum { ATTRIBUTES = 32, RESULTS = 128 };
enum { INVALID_VALUE = 7, NOT_SUPPORTED = 15 };

/* Memory of a descriptor is kept, so that later uses of it are seen. */
typedef struct {
  uint32_t magic;
  Kind kind;
  bool live;
  /* What it was created with: the types of a product; the type, rows, columns and leading distance of a layout. */
  int64_t made[4];
  bool isSet[ATTRIBUTES];
  uint64_t values[ATTRIBUTES];
} Descriptor;

typedef struct {
  uint64_t algorithm[8];
  size_t workspace;
  int state;
  float waves;
  int reserved[4];
} Result;

_Static_assert(sizeof(Result) == 96, "the result of the heuristic has 96 bytes");

typedef int (*Fill)(uint64_t address, uint8_t value, size_t size, uint64_t stream);
typedef uint64_t (*Current)(void);

static const uint32_t MAGIC = 0xb1a517;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_t mainThread;
static Fill fill;
static Current current;
static int live[KINDS], delay, failStatus, failAfter, failTimes, resultCount;
static size_t workspaces[RESULTS];
static int states[RESULTS];
static char misuse[256], failing[64], logText[1 << 17], records[1 << 18];

EXPORT void stub_reset(uint64_t fillAddress, uint64_t currentAddress) {
  mainThread = pthread_self();
  fill = (Fill)fillAddress;
  current = (Current)currentAddress;
  memset(live, 0, sizeof live);
  memset(workspaces, 0, sizeof workspaces);
  memset(states, 0, sizeof states);
  delay = failStatus = failAfter = failTimes = 0;
  resultCount = 1;
  misuse[0] = failing[0] = logText[0] = records[0] = 0;
}

EXPORT const char *stub_log(void) { return logText; }
EXPORT const char *stub_records(void) { return records; }
EXPORT void stub_log_clear(void) { logText[0] = records[0] = 0; }
EXPORT const char *stub_misuse(void) { return misuse; }
EXPORT int stub_live(int kind) { return live[kind]; }
EXPORT void stub_set_delay(int milliseconds) { delay = milliseconds; }
EXPORT void stub_fail(const char *name, int status, int after, int times) {
  snprintf(failing, sizeof failing, "%s", name);
  failStatus = status;
  failAfter = after;
  failTimes = times;
}
EXPORT int stub_failures_left(void) { return failTimes > 0 ? failTimes : 0; }
EXPORT void stub_set_results(int count) { resultCount = count; }
EXPORT void stub_set_result(int index, uint64_t workspace, int state) {
  workspaces[index] = workspace;
  states[index] = state;
}

#define MISUSE(...) snprintf(misuse, sizeof misuse, __VA_ARGS__)

/* Logs a call, and whether a context was current. Returns the status that it is made to fail with. */
static int call(const char *name) {
  pthread_mutex_lock(&lock);
  size_t used = strlen(logText);
  snprintf(logText + used, sizeof logText - used, "%s%s%s\n", name, pthread_equal(pthread_self(), mainThread) ? "" : " off",
           current && current() ? " context" : "");
  int status = 0;
  if (strcmp(failing, name) == 0 && failTimes != 0) {
    if (failAfter > 0) failAfter--;
    else {
      status = failStatus;
      if (failTimes > 0) failTimes--;
    }
  }
  pthread_mutex_unlock(&lock);
  return status;
}

static void record(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void record(const char *format, ...) {
  size_t used = strlen(records);
  __builtin_va_list values;
  __builtin_va_start(values, format);
  vsnprintf(records + used, sizeof records - used, format, values);
  __builtin_va_end(values);
}

static bool is(const Descriptor *descriptor, Kind kind, const char *name) {
  if (descriptor == NULL || descriptor->magic != MAGIC) {
    MISUSE("%s: not a descriptor", name);
    return false;
  }
  if (descriptor->kind != kind) MISUSE("%s: a %s, not a %s", name, kindNames[descriptor->kind], kindNames[kind]);
  else if (!descriptor->live) MISUSE("%s: a %s that is destroyed", name, kindNames[kind]);
  else return true;
  return false;
}

static int create(const char *name, Kind kind, Descriptor **out, int64_t a, int64_t b, int64_t c, int64_t d) {
  int status = call(name);
  if (status) return status;
  Descriptor *descriptor = calloc(1, sizeof *descriptor);
  *descriptor = (Descriptor){.magic = MAGIC, .kind = kind, .live = true, .made = {a, b, c, d}};
  live[kind]++;
  *out = descriptor;
  return 0;
}

/* A destruction that fails has destroyed nothing. */
static int destroy(const char *name, Kind kind, Descriptor *descriptor) {
  int status = call(name);
  if (!is(descriptor, kind, name)) return INVALID_VALUE;
  if (status) return status;
  descriptor->live = false;
  live[kind]--;
  return 0;
}

/* The bytes of each attribute that is known; 0 for the others. */
static size_t sizeOf(Kind kind, int attribute) {
  switch (kind) {
  case PRODUCT:
    switch (attribute) {
    case 3: case 4: case 7: case 26: return 4;
    case 8: case 11: case 12: case 17: case 18: case 19: case 20: return 8;
    case 25: return 1;
    }
    return 0;
  case LAYOUT:
    return attribute == 5 ? 4 : attribute == 6 ? 8 : 0;
  case PREFERENCE:
    return attribute == 1 ? 8 : attribute >= 5 && attribute <= 8 ? 4 : 0;
  default:
    return 0;
  }
}

static int set(const char *name, Kind kind, Descriptor *descriptor, int attribute, const void *value, size_t size) {
  int status = call(name);
  if (!is(descriptor, kind, name)) return INVALID_VALUE;
  if (status) return status;
  size_t expected = sizeOf(kind, attribute);
  if (expected == 0 || size != expected) {
    MISUSE("%s: attribute %d with %zu bytes", name, attribute, size);
    return INVALID_VALUE;
  }
  descriptor->isSet[attribute] = true;
  descriptor->values[attribute] = 0;
  memcpy(&descriptor->values[attribute], value, size);
  return 0;
}

EXPORT int cublasLtCreate(Descriptor **out) { return create("cublasLtCreate", HANDLE, out, 0, 0, 0, 0); }
EXPORT int cublasLtDestroy(Descriptor *handle) { return destroy("cublasLtDestroy", HANDLE, handle); }
EXPORT size_t cublasLtGetVersion(void) {
  call("cublasLtGetVersion");
  return 130102;
}

EXPORT int cublasLtMatmulDescCreate(Descriptor **out, int compute, int scale) {
  return create("cublasLtMatmulDescCreate", PRODUCT, out, compute, scale, 0, 0);
}
EXPORT int cublasLtMatmulDescSetAttribute(Descriptor *descriptor, int attribute, const void *value, size_t size) {
  return set("cublasLtMatmulDescSetAttribute", PRODUCT, descriptor, attribute, value, size);
}
EXPORT int cublasLtMatmulDescDestroy(Descriptor *descriptor) {
  return destroy("cublasLtMatmulDescDestroy", PRODUCT, descriptor);
}

EXPORT int cublasLtMatrixLayoutCreate(Descriptor **out, int type, uint64_t rows, uint64_t columns, int64_t leading) {
  if ((uint64_t)leading < rows) MISUSE("cublasLtMatrixLayoutCreate: columns overlap");
  return create("cublasLtMatrixLayoutCreate", LAYOUT, out, type, (int64_t)rows, (int64_t)columns, leading);
}
EXPORT int cublasLtMatrixLayoutSetAttribute(Descriptor *descriptor, int attribute, const void *value, size_t size) {
  return set("cublasLtMatrixLayoutSetAttribute", LAYOUT, descriptor, attribute, value, size);
}
EXPORT int cublasLtMatrixLayoutDestroy(Descriptor *descriptor) {
  return destroy("cublasLtMatrixLayoutDestroy", LAYOUT, descriptor);
}

EXPORT int cublasLtMatmulPreferenceCreate(Descriptor **out) {
  return create("cublasLtMatmulPreferenceCreate", PREFERENCE, out, 0, 0, 0, 0);
}
EXPORT int cublasLtMatmulPreferenceSetAttribute(Descriptor *descriptor, int attribute, const void *value, size_t size) {
  return set("cublasLtMatmulPreferenceSetAttribute", PREFERENCE, descriptor, attribute, value, size);
}
EXPORT int cublasLtMatmulPreferenceDestroy(Descriptor *descriptor) {
  return destroy("cublasLtMatmulPreferenceDestroy", PREFERENCE, descriptor);
}

static void record_attributes(const char *name, const Descriptor *descriptor) {
  record(",\"%s\":{", name);
  const char *comma = "";
  for (int index = 0; index < ATTRIBUTES; index++) {
    if (!descriptor->isSet[index]) continue;
    record("%s\"%d\":%llu", comma, index, (unsigned long long)descriptor->values[index]);
    comma = ",";
  }
  record("}");
}

/* The type, rows, columns, leading distance, and the count and distance of a batch. */
static void record_layout(const char *name, const Descriptor *layout) {
  const int64_t *made = layout->made;
  record(",\"%s\":[%lld,%lld,%lld,%lld", name, (long long)made[0], (long long)made[1], (long long)made[2], (long long)made[3]);
  if (layout->isSet[5]) record(",%lld,%lld", (long long)layout->values[5], (long long)layout->values[6]);
  record("]");
}

/* Both operands and the result must agree in their sizes, after transposing. */
static bool agree(const char *name, const Descriptor *product, const Descriptor *a, const Descriptor *b, const Descriptor *c,
                  const Descriptor *d) {
  if (!is(product, PRODUCT, name) || !is(a, LAYOUT, name) || !is(b, LAYOUT, name) || !is(c, LAYOUT, name) || !is(d, LAYOUT, name)) {
    return false;
  }
  bool ta = product->values[3] == 1, tb = product->values[4] == 1;
  int64_t rows = a->made[ta ? 2 : 1], depth = a->made[ta ? 1 : 2];
  int64_t height = b->made[tb ? 2 : 1], columns = b->made[tb ? 1 : 2];
  bool fits = depth == height && d->made[1] == rows && d->made[2] == columns && c->made[1] == rows && c->made[2] == columns;
  if (!fits) MISUSE("%s: sizes do not fit", name);
  return fits;
}

static void record_product(const Descriptor *product, const Descriptor *a, const Descriptor *b, const Descriptor *c,
                           const Descriptor *d) {
  record(",\"types\":[%lld,%lld]", (long long)product->made[0], (long long)product->made[1]);
  record_attributes("product", product);
  record_layout("aLayout", a);
  record_layout("bLayout", b);
  record_layout("cLayout", c);
  record_layout("dLayout", d);
}

#ifndef STUB_OLD
EXPORT int cublasLtMatmulAlgoGetHeuristic(Descriptor *handle, Descriptor *product, Descriptor *a, Descriptor *b, Descriptor *c,
                                          Descriptor *d, Descriptor *preference, int most, Result *results, int *found) {
  const char *name = "cublasLtMatmulAlgoGetHeuristic";
  usleep(delay * 1000);
  int status = call(name);
  if (!is(handle, HANDLE, name) || !agree(name, product, a, b, c, d) || !is(preference, PREFERENCE, name)) return INVALID_VALUE;
  pthread_mutex_lock(&lock);
  record("{\"call\":\"heuristic\",\"most\":%d", most);
  record_product(product, a, b, c, d);
  record_attributes("preference", preference);
  record("}\n");
  pthread_mutex_unlock(&lock);
  if (status) return status;
  *found = resultCount < most ? resultCount : most;
  for (int index = 0; index < *found; index++) {
    results[index] = (Result){.workspace = workspaces[index], .state = states[index], .waves = 0.5f + (float)index};
    for (int word = 0; word < 8; word++) results[index].algorithm[word] = (uint64_t)(index + 1);
  }
  return *found == 0 ? NOT_SUPPORTED : 0;
}
#endif

static int64_t widthOf(const Descriptor *layout) {
  switch (layout->made[0]) {
  case 1: return 8;
  case 0: case 10: return 4;
  case 2: case 14: return 2;
  default: return 1;
  }
}

static int64_t bytesOf(const Descriptor *layout) {
  int64_t last = layout->isSet[5] ? ((int64_t)layout->values[5] - 1) * (int64_t)layout->values[6] : 0;
  return widthOf(layout) * (last + (layout->made[2] - 1) * layout->made[3] + layout->made[1]);
}

static double factor(const Descriptor *product, const void *value) {
  switch (product->made[1]) {
  case 1: return *(const double *)value;
  case 10: return *(const int32_t *)value;
  default: return *(const float *)value;
  }
}

EXPORT int cublasLtMatmul(Descriptor *handle, Descriptor *product, const void *alpha, uint64_t a, Descriptor *aLayout, uint64_t b,
                          Descriptor *bLayout, const void *beta, uint64_t c, Descriptor *cLayout, uint64_t d, Descriptor *dLayout,
                          const uint64_t *algorithm, uint64_t workspace, size_t workspaceSize, uint64_t stream) {
  const char *name = "cublasLtMatmul";
  int status = call(name);
  if (!is(handle, HANDLE, name) || !agree(name, product, aLayout, bLayout, cLayout, dLayout)) return INVALID_VALUE;
  bool aligned = a % widthOf(aLayout) == 0 && b % widthOf(bLayout) == 0 && c % widthOf(cLayout) == 0 && d % widthOf(dLayout) == 0;
  if (!aligned || workspace % 256 != 0) MISUSE("%s: an address that is not aligned", name);
  for (int word = 1; word < 8; word++) {
    if (algorithm[word] != algorithm[0]) MISUSE("%s: not an algorithm of the heuristic", name);
  }
  if (algorithm[0] < 1 || algorithm[0] > RESULTS || workspaces[algorithm[0] - 1] != workspaceSize) {
    MISUSE("%s: a workspace of %zu bytes for algorithm %llu", name, workspaceSize, (unsigned long long)algorithm[0]);
  }
  if ((workspace == 0) != (workspaceSize == 0)) MISUSE("%s: a workspace without memory", name);
  record("{\"call\":\"matmul\",\"alpha\":%.17g,\"beta\":%.17g", factor(product, alpha), factor(product, beta));
  record(",\"a\":%llu,\"b\":%llu,\"c\":%llu,\"d\":%llu", (unsigned long long)a, (unsigned long long)b, (unsigned long long)c,
         (unsigned long long)d);
  record(",\"algorithm\":%llu,\"workspace\":%llu,\"workspaceSize\":%zu,\"stream\":%llu", (unsigned long long)algorithm[0],
         (unsigned long long)workspace, workspaceSize, (unsigned long long)stream);
  record_product(product, aLayout, bLayout, cLayout, dLayout);
  record("}\n");
  if (status) return status;
  int failed = workspaceSize == 0 ? 0 : fill(workspace, 0xee, workspaceSize, stream);
  return failed ? 14 : fill(d, (uint8_t)algorithm[0], (size_t)bytesOf(dLayout), stream) ? 14 : 0;
}
