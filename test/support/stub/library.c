/*
 * A CUDA library without a GPU, for the tests of described libraries: it enqueues through the stub driver's functions, which a test
 * passes by address. It records calls, whether they were made on the JS thread, the context at that time, and misuse.
 *
 * STUB_OLD builds a version without the newer function.
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

typedef struct {
  uint32_t magic;
  int live;
  uint64_t stream;
} Handle;

typedef struct {
  char internal[128];
} Id;

typedef int (*Fill)(uint64_t address, uint8_t value, size_t size, uint64_t stream);
typedef uint64_t (*Current)(void);

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_t mainThread;
static Fill fill;
static Current current;
static int liveHandles, delay, failStatus;
static char misuse[256], failing[64], logText[1 << 16], handleText[1 << 16];

enum { MAGIC = 0xb1a5 };

EXPORT void stub_reset(uint64_t fillAddress, uint64_t currentAddress) {
  mainThread = pthread_self();
  fill = (Fill)fillAddress;
  current = (Current)currentAddress;
  liveHandles = delay = failStatus = 0;
  misuse[0] = failing[0] = logText[0] = handleText[0] = 0;
}

EXPORT const char *stub_log(void) { return logText; }
EXPORT const char *stub_handles(void) { return handleText; }
EXPORT void stub_log_clear(void) { logText[0] = handleText[0] = 0; }
EXPORT const char *stub_misuse(void) { return misuse; }
EXPORT int stub_live(void) { return liveHandles; }
EXPORT void stub_set_delay(int milliseconds) { delay = milliseconds; }
EXPORT void stub_fail(const char *name, int status) {
  snprintf(failing, sizeof failing, "%s", name);
  failStatus = status;
}

/* Logs a call, and whether a context was current. Returns the status that it is made to fail with. */
static int call(const char *name) {
  pthread_mutex_lock(&lock);
  uint64_t context = current ? current() : 0;
  size_t used = strlen(logText);
  snprintf(logText + used, sizeof logText - used, "%s%s%s\n", name, pthread_equal(pthread_self(), mainThread) ? "" : " off",
           context ? " context" : "");
  int status = strcmp(failing, name) == 0 ? failStatus : 0;
  pthread_mutex_unlock(&lock);
  return status;
}

/* Logs the handle of a call. */
static void note(const char *name, Handle *handle) {
  pthread_mutex_lock(&lock);
  size_t used = strlen(handleText);
  snprintf(handleText + used, sizeof handleText - used, "%s %lu\n", name, (unsigned long)(uintptr_t)handle);
  pthread_mutex_unlock(&lock);
}

static bool isLive(Handle *handle, const char *name) {
  note(name, handle);
  if (handle && handle->magic == MAGIC && handle->live) return true;
  snprintf(misuse, sizeof misuse, "%s: not a live handle", name);
  return false;
}

static int create(const char *name, Handle **out) {
  int status = call(name);
  if (status) return status;
  Handle *handle = calloc(1, sizeof *handle);
  handle->magic = MAGIC;
  handle->live = 1;
  liveHandles++;
  *out = handle;
  note(name, handle);
  return 0;
}

EXPORT int demoCreate(Handle **out) { return create("demoCreate", out); }

EXPORT int demoCreateSlowly(Handle **out, int value) {
  usleep(delay * 1000);
  if (value != 7) snprintf(misuse, sizeof misuse, "demoCreateSlowly: %d", value);
  return create("demoCreateSlowly", out);
}

/* Keeps the memory, so that later uses of the handle are seen. */
EXPORT int demoDestroy(Handle *handle) {
  int status = call("demoDestroy");
  if (!isLive(handle, "demoDestroy")) return 3;
  handle->live = 0;
  liveHandles--;
  return status;
}

EXPORT int demoDestroySlowly(Handle *handle) {
  usleep(delay * 1000);
  int status = call("demoDestroySlowly");
  if (!isLive(handle, "demoDestroySlowly")) return 3;
  handle->live = 0;
  liveHandles--;
  return status;
}

EXPORT int demoSetStream(Handle *handle, uint64_t stream) {
  int status = call("demoSetStream");
  if (!isLive(handle, "demoSetStream")) return 3;
  if (!status) handle->stream = stream;
  return status;
}

/* Fills with the value of host memory, on the stream. */
EXPORT int demoFill(uint64_t to, const uint8_t *value, size_t size, uint64_t stream) {
  int status = call("demoFill");
  if (status) return status;
  return to && size ? fill(to, *value, size, stream) : 0;
}

/* Fills on the stream that the handle has. */
EXPORT int demoFillOf(Handle *handle, uint64_t to, uint8_t value, size_t size) {
  int status = call("demoFillOf");
  if (status) return status;
  if (!isLive(handle, "demoFillOf")) return 3;
  return fill(to, value, size, handle->stream);
}

/* Sums up what it was given, each in a decimal place of its own where that is possible. */
EXPORT int demoSum(int8_t a, uint16_t b, int64_t c, uint64_t d, float e, double f, bool g, const char *text, Id id, const int *in,
                   double *out) {
  int status = call("demoSum");
  *out = a + b + (double)c + (double)d + e + f + g + (text ? strlen(text) : 0) + id.internal[0] + id.internal[127] + (in ? *in : 0);
  return status;
}

EXPORT int demoWait(int value, int *out) {
  usleep(delay * 1000);
  int status = call("demoWait");
  *out = value + 1;
  return status;
}

EXPORT int demoUse(Handle *handle, int *out) {
  usleep(delay * 1000);
  int status = call("demoUse");
  if (!isLive(handle, "demoUse")) return 3;
  *out = 1;
  return status;
}

EXPORT size_t demoVersion(void) {
  call("demoVersion");
  return 9007199254740993ull;
}

EXPORT const char *demoText(int code) {
  call("demoText");
  return code == 0 ? NULL : "demo";
}

/* A 16-bit float is returned as its bits, as a struct of them is. */
EXPORT uint16_t demoHalf(void) {
  call("demoHalf");
  return 0x3e00;
}

EXPORT int64_t demoLeast(void) {
  call("demoLeast");
  return INT64_MIN;
}

EXPORT void demoNothing(void) { call("demoNothing"); }

#ifndef STUB_OLD
EXPORT int demoNew(void) { return call("demoNew"); }
#endif
