/*
 * What the C peers of the benchmarks share: the driver loaded at run time (so that they build without CUDA's headers
 * and without libcuda to link with), the spin kernel, clocks, and the conversation over standard input and output: one
 * line of words asks, one line of numbers answers, "error ..." ends it.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef int CUresult;
typedef int CUdevice;
typedef struct CUctx_st *CUcontext;
typedef struct CUstream_st *CUstream;
typedef struct CUevent_st *CUevent;
typedef struct CUmod_st *CUmodule;
typedef struct CUfunc_st *CUfunction;
typedef unsigned long long CUdeviceptr;

enum { NOT_READY = 600, BLOCKING_SYNC = 1, DISABLE_TIMING = 2, NON_BLOCKING = 1 };

/* Every driver function the peers call: its name, and its parameters. */
#define DRIVER_FUNCTIONS(F)                                                                                            \
  F(cuInit, (unsigned))                                                                                                \
  F(cuDeviceGet, (CUdevice *, int))                                                                                    \
  F(cuDevicePrimaryCtxRetain, (CUcontext *, CUdevice))                                                                 \
  F(cuCtxSetCurrent, (CUcontext))                                                                                      \
  F(cuModuleLoadData, (CUmodule *, const void *))                                                                      \
  F(cuModuleGetFunction, (CUfunction *, CUmodule, const char *))                                                       \
  F(cuLaunchKernel, (CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, CUstream,       \
                     void **, void **))                                                                                \
  F(cuStreamCreateWithPriority, (CUstream *, unsigned, int))                                                           \
  F(cuStreamSynchronize, (CUstream))                                                                                   \
  F(cuStreamWaitEvent, (CUstream, CUevent, unsigned))                                                                  \
  F(cuEventCreate, (CUevent *, unsigned))                                                                              \
  F(cuEventDestroy_v2, (CUevent))                                                                                      \
  F(cuEventRecord, (CUevent, CUstream))                                                                                \
  F(cuEventQuery, (CUevent))                                                                                           \
  F(cuEventSynchronize, (CUevent))                                                                                     \
  F(cuMemAlloc_v2, (CUdeviceptr *, size_t))                                                                            \
  F(cuMemHostAlloc, (void **, size_t, unsigned))                                                                       \
  F(cuMemcpyHtoDAsync_v2, (CUdeviceptr, const void *, size_t, CUstream))                                               \
  F(cuMemcpyDtoHAsync_v2, (void *, CUdeviceptr, size_t, CUstream))                                                     \
  F(cuMemcpyDtoDAsync_v2, (CUdeviceptr, CUdeviceptr, size_t, CUstream))                                                \
  F(cuMemsetD8Async, (CUdeviceptr, unsigned char, size_t, CUstream))

#define DECLARE(name, parameters) static CUresult(*name) parameters;
DRIVER_FUNCTIONS(DECLARE)

static CUfunction spin_kernel;

/* Ends the conversation. */
static void fail(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  printf("error ");
  vprintf(format, arguments);
  printf("\n");
  fflush(stdout);
  va_end(arguments);
  exit(1);
}

static void check(const char *call, CUresult status) {
  if (status != 0) fail("%s answered %d", call, status);
}
#define CHECK(name, arguments) check(#name, name arguments)

static void *find(void *library, const char *name) {
  void *address = dlsym(library, name);
  if (address == NULL) fail("the driver has no %s", name);
  return address;
}

static char *read_file(const char *path) {
  static char text[1 << 16];
  FILE *file = fopen(path, "r");
  if (file == NULL) fail("cannot read %s", path);
  size_t length = fread(text, 1, sizeof text - 1, file);
  text[length] = 0;
  fclose(file);
  return text;
}

/* Loads the driver, makes the primary context of the first device current, and loads the kernel of a PTX file. */
static void open_device(const char *ptx_path) {
  void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL);
  if (library == NULL) fail("cannot load libcuda.so.1");
#define FIND(name, parameters) *(void **)&name = find(library, #name);
  DRIVER_FUNCTIONS(FIND)
  CUdevice device;
  CUcontext context;
  CUmodule module;
  CHECK(cuInit, (0));
  CHECK(cuDeviceGet, (&device, 0));
  CHECK(cuDevicePrimaryCtxRetain, (&context, device));
  CHECK(cuCtxSetCurrent, (context));
  CHECK(cuModuleLoadData, (&module, read_file(ptx_path)));
  CHECK(cuModuleGetFunction, (&spin_kernel, module, "spin"));
}

static CUstream make_stream(void) {
  CUstream stream;
  CHECK(cuStreamCreateWithPriority, (&stream, NON_BLOCKING, 0));
  return stream;
}

static CUevent make_event(unsigned flags) {
  CUevent event;
  CHECK(cuEventCreate, (&event, flags));
  return event;
}

static inline void spin(CUstream stream, uint64_t nanos) {
  void *parameters[] = {&nanos};
  CHECK(cuLaunchKernel, (spin_kernel, 1, 1, 1, 1, 1, 1, 0, stream, parameters, NULL));
}

static uint64_t read_clock(clockid_t clock) {
  struct timespec now;
  clock_gettime(clock, &now);
  return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static uint64_t now(void) { return read_clock(CLOCK_MONOTONIC); }

/* One number of the answer; `end_answer` closes its line. */
static void answer(uint64_t value) { printf("%llu ", (unsigned long long)value); }

static void end_answer(void) {
  printf("\n");
  fflush(stdout);
}
