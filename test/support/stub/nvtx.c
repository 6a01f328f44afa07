/*
 * NVTX and a profiler that listens to it, for the tests of annotations, in one library. Its functions record their arguments. As NVTX, it
 * exports them by name. As a profiler (NVTX_INJECTION64_PATH), it gives them to the real NVTX, and then shows what that passes on.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

typedef struct {
  uint16_t version, size;
  uint32_t category;
  int32_t colorType;
  uint32_t color;
  int32_t payloadType, reserved0;
  union {
    uint64_t ullValue;
    double dValue;
  } payload;
  int32_t messageType;
  union {
    const char *ascii;
    const void *registered;
  } message;
} Attributes;

EXPORT size_t stub_layout(int what) {
  size_t layout[] = {
    sizeof(Attributes), offsetof(Attributes, version), offsetof(Attributes, size), offsetof(Attributes, category),
    offsetof(Attributes, colorType), offsetof(Attributes, color), offsetof(Attributes, payloadType),
    offsetof(Attributes, payload), offsetof(Attributes, messageType), offsetof(Attributes, message)
  };
  return layout[what];
}

static char logText[1 << 16];
static int domains;
/* Beyond 2^53, as ids of a profiler may be. */
static uint64_t lastRange = 1ull << 60;

#define RECORD(...) \
  do { \
    size_t used = strlen(logText); \
    if (used < sizeof logText - 256) snprintf(logText + used, sizeof logText - used, __VA_ARGS__); \
  } while (0)

EXPORT const char *stub_log(void) { return logText; }
EXPORT void stub_log_clear(void) { logText[0] = 0; }

static void event(const char *what, uintptr_t domain, const Attributes *a) {
  if (a->version != 3 || a->size != sizeof *a || a->messageType != 1) RECORD("malformed attributes\n");
  RECORD("%s \"%s\"", what, a->message.ascii);
  if (a->colorType == 1) RECORD(" #%08x", a->color);
  if (a->category != 0) RECORD(" category %u", a->category);
  if (domain != 0) RECORD(" domain %d", (int)domain);
}

EXPORT uint64_t nvtxDomainRangeStartEx(uintptr_t domain, const Attributes *attributes) {
  event("start", domain, attributes);
  RECORD(" -> %d\n", (int)(++lastRange & 0xffff));
  return lastRange;
}

EXPORT void nvtxDomainRangeEnd(uintptr_t domain, uint64_t range) {
  RECORD("end %d", (int)(range & 0xffff));
  if (range >> 60 != 1) RECORD(" wrong id");
  if (domain != 0) RECORD(" domain %d", (int)domain);
  RECORD("\n");
}

EXPORT void nvtxDomainMarkEx(uintptr_t domain, const Attributes *attributes) {
  event("mark", domain, attributes);
  RECORD("\n");
}

EXPORT void nvtxDomainNameCategoryA(uintptr_t domain, uint32_t category, const char *name) {
  RECORD("category %u \"%s\"", category, name);
  if (domain != 0) RECORD(" domain %d", (int)domain);
  RECORD("\n");
}

EXPORT uintptr_t nvtxDomainCreateA(const char *name) {
  RECORD("domain %d \"%s\"\n", ++domains, name);
  return domains;
}

EXPORT void nvtxInitialize(const void *reserved) {
  if (reserved != NULL) RECORD("wrong argument\n");
}

EXPORT uint64_t nvtxRangeStartEx(const Attributes *attributes) { return nvtxDomainRangeStartEx(0, attributes); }
EXPORT void nvtxRangeEnd(uint64_t range) { nvtxDomainRangeEnd(0, range); }
EXPORT void nvtxMarkEx(const Attributes *attributes) { nvtxDomainMarkEx(0, attributes); }
EXPORT void nvtxNameCuStreamA(void *stream, const char *name) { RECORD("stream %s \"%s\"\n", stream == NULL ? "0" : "some", name); }
EXPORT void nvtxNameCategoryA(uint32_t category, const char *name) { nvtxDomainNameCategoryA(0, category, name); }

typedef void (*Function)(void);

/* NVTX's table of functions that a profiler may replace: an array of pointers to pointers, by module. */
typedef struct {
  size_t size;
  int (*moduleTable)(int module, Function ***table, unsigned int *count);
} Callbacks;

enum { CALLBACKS = 1, CORE = 1, CUDA = 2, CORE2 = 5 };

EXPORT int InitializeInjectionNvtx2(const void *(*exportTable)(uint32_t id)) {
  const Callbacks *callbacks = exportTable(CALLBACKS);
  Function **core, **core2, **cuda;
  unsigned int count;
  if (callbacks == NULL || !callbacks->moduleTable(CORE, &core, &count) || !callbacks->moduleTable(CORE2, &core2, &count)) return 0;
  if (!callbacks->moduleTable(CUDA, &cuda, &count)) return 0;
  *core[1] = (Function)nvtxMarkEx;
  *core[4] = (Function)nvtxRangeStartEx;
  *core[7] = (Function)nvtxRangeEnd;
  *core[12] = (Function)nvtxNameCategoryA;
  *cuda[5] = (Function)nvtxNameCuStreamA;
  *core2[1] = (Function)nvtxDomainMarkEx;
  *core2[2] = (Function)nvtxDomainRangeStartEx;
  *core2[3] = (Function)nvtxDomainRangeEnd;
  *core2[8] = (Function)nvtxDomainNameCategoryA;
  *core2[12] = (Function)nvtxDomainCreateA;
  RECORD("attached\n");
  return 1;
}
