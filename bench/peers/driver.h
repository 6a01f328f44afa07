/*
 * Shared by the C peers of the benchmarks: the driver, loaded at run time so that the peers build without CUDA headers and without
 * linking to libcuda; the kernels; clocks; and the protocol over standard input and output. One line of words is answered with one
 * line of numbers, or with "error ...", which ends the process.
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
typedef struct CUlib_st *CUlibrary;
typedef struct CUkern_st *CUkernel;
typedef struct CUfunc_st *CUfunction;
typedef struct CUmemPoolHandle_st *CUmemoryPool;
typedef struct CUgraph_st *CUgraph;
typedef struct CUgraphNode_st *CUgraphNode;
typedef struct CUgraphExec_st *CUgraphExec;
typedef unsigned long long CUdeviceptr;

typedef struct {
  int allocType, handleTypes;
  struct {
    int type, id;
  } location;
  void *win32SecurityAttributes;
  size_t maxSize;
  unsigned char reserved[56];
} CUmemPoolProps;

typedef struct {
  CUfunction func;
  unsigned grid[3], block[3], sharedMemBytes;
  void **kernelParams, **extra;
  CUkernel kern;
  CUcontext ctx;
} CUDA_KERNEL_NODE_PARAMS;

typedef struct {
  unsigned long long flags;
  CUstream hUploadStream;
  CUgraphNode hErrNode_out;
  int result_out;
} CUDA_GRAPH_INSTANTIATE_PARAMS;

typedef struct {
  int result;
  CUgraphNode errorNode, errorFromNode;
} CUgraphExecUpdateResultInfo;

enum { NOT_READY = 600, BLOCKING_SYNC = 1, DISABLE_TIMING = 2, NON_BLOCKING = 1, RELEASE_THRESHOLD = 4 };

/* Every driver function that the peers call, with its parameters. */
#define DRIVER_FUNCTIONS(F)                                                                                            \
  F(cuInit, (unsigned))                                                                                                \
  F(cuDeviceGet, (CUdevice *, int))                                                                                    \
  F(cuDevicePrimaryCtxRetain, (CUcontext *, CUdevice))                                                                 \
  F(cuCtxSetCurrent, (CUcontext))                                                                                      \
  F(cuLibraryLoadData, (CUlibrary *, const void *, void *, void *, unsigned, void *, void *, unsigned))                \
  F(cuLibraryGetKernel, (CUkernel *, CUlibrary, const char *))                                                         \
  F(cuKernelGetFunction, (CUfunction *, CUkernel))                                                                     \
  F(cuLaunchKernel, (CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, CUstream,       \
                     void **, void **))                                                                                \
  F(cuStreamCreateWithPriority, (CUstream *, unsigned, int))                                                           \
  F(cuStreamDestroy_v2, (CUstream))                                                                                    \
  F(cuStreamSynchronize, (CUstream))                                                                                   \
  F(cuStreamWaitEvent, (CUstream, CUevent, unsigned))                                                                  \
  F(cuEventCreate, (CUevent *, unsigned))                                                                              \
  F(cuEventDestroy_v2, (CUevent))                                                                                      \
  F(cuEventRecord, (CUevent, CUstream))                                                                                \
  F(cuEventQuery, (CUevent))                                                                                           \
  F(cuEventElapsedTime, (float *, CUevent, CUevent))                                                                   \
  F(cuEventSynchronize, (CUevent))                                                                                     \
  F(cuMemPoolCreate, (CUmemoryPool *, const CUmemPoolProps *))                                                         \
  F(cuMemPoolSetAttribute, (CUmemoryPool, int, void *))                                                                \
  F(cuMemPoolSetAccess, (CUmemoryPool, const void *, size_t))                                                          \
  F(cuMemAllocFromPoolAsync, (CUdeviceptr *, size_t, CUmemoryPool, CUstream))                                          \
  F(cuMemFreeAsync, (CUdeviceptr, CUstream))                                                                           \
  F(cuMemAlloc_v2, (CUdeviceptr *, size_t))                                                                            \
  F(cuMemFree_v2, (CUdeviceptr))                                                                                       \
  F(cuMemHostAlloc, (void **, size_t, unsigned))                                                                       \
  F(cuMemcpyHtoDAsync_v2, (CUdeviceptr, const void *, size_t, CUstream))                                               \
  F(cuMemcpyDtoHAsync_v2, (void *, CUdeviceptr, size_t, CUstream))                                                     \
  F(cuMemcpyDtoDAsync_v2, (CUdeviceptr, CUdeviceptr, size_t, CUstream))                                                \
  F(cuMemcpyPeerAsync, (CUdeviceptr, CUcontext, CUdeviceptr, CUcontext, size_t, CUstream))                             \
  F(cuMemsetD8Async, (CUdeviceptr, unsigned char, size_t, CUstream))                                                   \
  F(cuGraphCreate, (CUgraph *, unsigned))                                                                              \
  F(cuGraphAddKernelNode_v2, (CUgraphNode *, CUgraph, const CUgraphNode *, size_t, const CUDA_KERNEL_NODE_PARAMS *))   \
  F(cuGraphInstantiateWithParams, (CUgraphExec *, CUgraph, CUDA_GRAPH_INSTANTIATE_PARAMS *))                           \
  F(cuGraphExecKernelNodeSetParams_v2, (CUgraphExec, CUgraphNode, const CUDA_KERNEL_NODE_PARAMS *))                    \
  F(cuGraphExecUpdate_v2, (CUgraphExec, CUgraph, CUgraphExecUpdateResultInfo *))                                       \
  F(cuGraphLaunch, (CUgraphExec, CUstream))                                                                            \
  F(cuGraphExecDestroy, (CUgraphExec))                                                                                 \
  F(cuGraphDestroy, (CUgraph))

#define DECLARE(name, parameters) static CUresult(*name) parameters;
DRIVER_FUNCTIONS(DECLARE)

static CUlibrary kernels;
static CUfunction spin_kernel;

/* Prints an error and exits. */
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

static CUfunction get_function(const char *name) {
  CUkernel kernel;
  CUfunction function;
  CHECK(cuLibraryGetKernel, (&kernel, kernels, name));
  CHECK(cuKernelGetFunction, (&function, kernel));
  return function;
}

/*
 * Loads the driver, makes the primary context of the first device current, and loads the kernels. A program's arguments are the path
 * of the kernels' PTX and, unless it is the system's, the path of the driver library.
 */
static void open_device(int argc, char **argv) {
  if (argc < 2) fail("usage: %s PTX [LIBRARY]", argv[0]);
  const char *path = argc > 2 ? argv[2] : "libcuda.so.1";
  void *library = dlopen(path, RTLD_NOW | RTLD_GLOBAL);
  if (library == NULL) fail("cannot load %s", path);
#define FIND(name, parameters) *(void **)&name = find(library, #name);
  DRIVER_FUNCTIONS(FIND)
  CUdevice device;
  CUcontext context;
  CHECK(cuInit, (0));
  CHECK(cuDeviceGet, (&device, 0));
  CHECK(cuDevicePrimaryCtxRetain, (&context, device));
  CHECK(cuCtxSetCurrent, (context));
  CHECK(cuLibraryLoadData, (&kernels, read_file(argv[1]), NULL, NULL, 0, NULL, NULL, 0));
  spin_kernel = get_function("spin");
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

/* Prints one number of an answer. `end_answer` ends the line. */
static void answer(uint64_t value) { printf("%llu ", (unsigned long long)value); }

static void end_answer(void) {
  printf("\n");
  fflush(stdout);
}
