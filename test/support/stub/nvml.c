/*
 * NVML without a GPU, for the tests of health. It has three devices, with the UUIDs of the stub driver's. A test sets
 * values, makes calls return any status, and queues events. It records calls, whether they were made on the JS thread, and misuse.
 *
 * STUB_OLD builds a library from before driver 535, which has the clocks' reasons under their first name and lacks energy and processes.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))

enum { SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7, TIMEOUT = 10, GPU_IS_LOST = 15, VERSION_MISMATCH = 25 };
enum { DEVICES = 3, XID = 8 };

typedef struct {
  unsigned int gpu, memory;
} Utilization;

typedef struct {
  unsigned int version;
  unsigned long long total, reserved, free, used;
} Memory;

typedef struct {
  unsigned int pid;
  unsigned long long usedGpuMemory;
  unsigned int gpuInstanceId, computeInstanceId;
} Process;

typedef struct {
  void *device;
  unsigned long long eventType, eventData;
  unsigned int gpuInstanceId, computeInstanceId;
} EventData;

/* In the order of the layouts' fields, each struct's size first. */
EXPORT size_t stub_layout(int what) {
  size_t layouts[] = {
    sizeof(Utilization), offsetof(Utilization, gpu), offsetof(Utilization, memory),
    sizeof(Memory), offsetof(Memory, version), offsetof(Memory, total), offsetof(Memory, reserved), offsetof(Memory, free),
    offsetof(Memory, used),
    sizeof(Process), offsetof(Process, pid), offsetof(Process, usedGpuMemory), offsetof(Process, gpuInstanceId),
    offsetof(Process, computeInstanceId),
    sizeof(EventData), offsetof(EventData, device), offsetof(EventData, eventType), offsetof(EventData, eventData),
    offsetof(EventData, gpuInstanceId), offsetof(EventData, computeInstanceId),
    sizeof(Memory) | (2 << 24)
  };
  return layouts[what];
}

typedef struct {
  int index;
  unsigned int values[8];
  unsigned long long reasons, ecc[2], energy;
  Memory memory;
  bool registered;
} Device;

typedef struct {
  int live;
  EventData queue[1024];
  int from, to;
} EventSet;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_t mainThread;
static Device devices[DEVICES];
static int initialized, liveSets, busy, processCount, delay;
static char misuse[256], failing[64], logText[1 << 16];
static int failStatus, failTimes;
static EventSet *set;

static int call(const char *name, bool needsInit) {
  pthread_mutex_lock(&lock);
  size_t used = strlen(logText);
  bool isMain = pthread_equal(pthread_self(), mainThread);
  if (used < sizeof logText - 128) snprintf(logText + used, sizeof logText - used, "%s%s\n", name, isMain ? "" : " off");
  int status = SUCCESS;
  if (needsInit && initialized == 0) {
    snprintf(misuse, sizeof misuse, "%s without nvmlInit", name);
    status = UNINITIALIZED;
  } else if (failTimes != 0 && strcmp(name, failing) == 0) {
    failTimes--;
    status = failStatus;
  }
  pthread_mutex_unlock(&lock);
  return status;
}

#define BEGIN(needsInit) \
  int begun = call(__func__, needsInit); \
  if (begun != SUCCESS) return begun

EXPORT void stub_reset(void) {
  mainThread = pthread_self();
  memset(devices, 0, sizeof devices);
  for (int i = 0; i < DEVICES; i++) {
    devices[i].index = i;
    Memory memory = {0, 80ull << 30, 1ull << 30, 70ull << 30, 9ull << 30};
    devices[i].memory = memory;
  }
  misuse[0] = failing[0] = logText[0] = 0;
  failTimes = delay = processCount = initialized = liveSets = 0;
  set = NULL;
}

/* The calls so far, one a line, each with " off" if it was not made on the JS thread. */
EXPORT const char *stub_log(void) { return logText; }
EXPORT void stub_log_clear(void) { logText[0] = 0; }
EXPORT const char *stub_misuse(void) { return misuse; }

EXPORT void stub_fail(const char *name, int status, int times) {
  snprintf(failing, sizeof failing, "%s", name);
  failStatus = status;
  failTimes = times;
}

/* 0 initializations, 1 event sets, 2 registered devices. */
EXPORT int stub_live(int what) {
  int registered = 0;
  for (int i = 0; i < DEVICES; i++) registered += devices[i].registered;
  int counts[] = {initialized, liveSets, registered};
  return counts[what];
}

/* 0 and 1 utilization, 2 temperature, 3 power, 4 its limit, 5 SM clock, 6 memory clock. */
EXPORT void stub_set(int device, int what, unsigned int value) { devices[device].values[what] = value; }
EXPORT void stub_set_long(int device, int what, uint64_t value) {
  unsigned long long *fields[] = {&devices[device].reasons, &devices[device].ecc[0], &devices[device].ecc[1], &devices[device].energy};
  *fields[what] = value;
}
EXPORT void stub_set_processes(int count) { processCount = count; }
/* How long the energy call takes, in milliseconds. */
EXPORT void stub_set_delay(int milliseconds) { delay = milliseconds; }

/* Queues an event of a device; one of no known device for -1. */
EXPORT void stub_event(int device, uint64_t data) {
  if (set == NULL || (device >= 0 && !devices[device].registered)) return;
  EventData event = {device < 0 ? (void *)0x10 : (void *)&devices[device], XID, data, ~0u, ~0u};
  set->queue[set->to++ % 1024] = event;
}

EXPORT int nvmlInit_v2(void) {
  BEGIN(false);
  initialized++;
  return SUCCESS;
}

EXPORT int nvmlShutdown(void) {
  BEGIN(true);
  if (busy > 0) snprintf(misuse, sizeof misuse, "nvmlShutdown during a call");
  if (--initialized == 0) {
    liveSets = 0;
    for (int i = 0; i < DEVICES; i++) devices[i].registered = false;
  }
  return SUCCESS;
}

/* The UUIDs of the stub driver's devices, in the opposite order: CUDA's device 0 is the last one here. */
EXPORT int nvmlDeviceGetHandleByUUID(const char *uuid, Device **device) {
  BEGIN(true);
  for (int i = 0; i < DEVICES; i++) {
    char text[64];
    int length = snprintf(text, sizeof text, "GPU-");
    for (int byte = 0; byte < 16; byte++) {
      if (byte == 4 || byte == 6 || byte == 8 || byte == 10) length += snprintf(text + length, sizeof text - length, "-");
      length += snprintf(text + length, sizeof text - length, "%02x", (byte * 16 + DEVICES - 1 - i) & 0xff);
    }
    if (strcmp(uuid, text) != 0) continue;
    *device = &devices[i];
    return SUCCESS;
  }
  return NOT_FOUND;
}

EXPORT int nvmlDeviceGetUtilizationRates(Device *device, Utilization *utilization) {
  BEGIN(true);
  utilization->gpu = device->values[0];
  utilization->memory = device->values[1];
  return SUCCESS;
}

EXPORT int nvmlDeviceGetMemoryInfo_v2(Device *device, Memory *memory) {
  BEGIN(true);
  if (memory->version != (sizeof *memory | (2 << 24))) return VERSION_MISMATCH;
  unsigned int version = memory->version;
  *memory = device->memory;
  memory->version = version;
  return SUCCESS;
}

static int word(Device *device, int what, unsigned int *value) {
  *value = device->values[what];
  return SUCCESS;
}

EXPORT int nvmlDeviceGetTemperature(Device *device, int sensor, unsigned int *value) {
  BEGIN(true);
  return sensor == 0 ? word(device, 2, value) : INVALID_ARGUMENT;
}

EXPORT int nvmlDeviceGetPowerUsage(Device *device, unsigned int *value) {
  BEGIN(true);
  return word(device, 3, value);
}

EXPORT int nvmlDeviceGetEnforcedPowerLimit(Device *device, unsigned int *value) {
  BEGIN(true);
  return word(device, 4, value);
}

EXPORT int nvmlDeviceGetClockInfo(Device *device, int clock, unsigned int *value) {
  BEGIN(true);
  return clock == 1 || clock == 2 ? word(device, 4 + clock, value) : INVALID_ARGUMENT;
}

#ifdef STUB_OLD
EXPORT int nvmlDeviceGetCurrentClocksThrottleReasons(Device *device, unsigned long long *reasons) {
  BEGIN(true);
  *reasons = device->reasons;
  return SUCCESS;
}
#else
EXPORT int nvmlDeviceGetCurrentClocksEventReasons(Device *device, unsigned long long *reasons) {
  BEGIN(true);
  *reasons = device->reasons;
  return SUCCESS;
}

EXPORT int nvmlDeviceGetTotalEnergyConsumption(Device *device, unsigned long long *energy) {
  BEGIN(true);
  __sync_fetch_and_add(&busy, 1);
  usleep(delay * 1000);
  *energy = device->energy;
  __sync_fetch_and_sub(&busy, 1);
  return SUCCESS;
}

EXPORT int nvmlDeviceGetComputeRunningProcesses_v3(Device *device, unsigned int *count, Process *processes) {
  (void)device;
  BEGIN(true);
  unsigned int capacity = *count;
  *count = processCount;
  if ((int)capacity < processCount) return INSUFFICIENT_SIZE;
  for (int i = 0; i < processCount; i++) {
    Process process = {1000 + i, i == 1 ? ~0ull : (1ull << 33) + i, ~0u, ~0u};
    processes[i] = process;
  }
  return SUCCESS;
}
#endif

EXPORT int nvmlDeviceGetTotalEccErrors(Device *device, int kind, int counter, unsigned long long *errors) {
  BEGIN(true);
  if (kind > 1 || counter != 0) return INVALID_ARGUMENT;
  *errors = device->ecc[kind];
  return SUCCESS;
}

EXPORT int nvmlEventSetCreate(EventSet **made) {
  BEGIN(true);
  *made = set = calloc(1, sizeof *set);
  liveSets++;
  return SUCCESS;
}

EXPORT int nvmlDeviceRegisterEvents(Device *device, unsigned long long types, EventSet *into) {
  BEGIN(true);
  if (types != XID || into != set) return INVALID_ARGUMENT;
  if (delay > 0) usleep(delay * 1000);
  if (into != set) {
    snprintf(misuse, sizeof misuse, "the set was freed while a device was registered in it");
    return INVALID_ARGUMENT;
  }
  device->registered = true;
  return SUCCESS;
}

EXPORT int nvmlEventSetWait_v2(EventSet *from, EventData *data, unsigned int milliseconds) {
  BEGIN(true);
  if (from != set || milliseconds != 0) return INVALID_ARGUMENT;
  /* After this Xid, the GPU is lost. */
  bool lost = from->to > 0 && from->queue[(from->to - 1) % 1024].eventData == 79;
  if (from->from == from->to) return lost ? GPU_IS_LOST : TIMEOUT;
  *data = from->queue[from->from++ % 1024];
  return SUCCESS;
}

EXPORT int nvmlEventSetFree(EventSet *freed) {
  BEGIN(true);
  if (freed != set) return INVALID_ARGUMENT;
  free(set);
  set = NULL;
  liveSets--;
  for (int i = 0; i < DEVICES; i++) devices[i].registered = false;
  return SUCCESS;
}
