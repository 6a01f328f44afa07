/*
 * Driver calls that return immediately. They check, keep and log nothing, so that a benchmark measures only the overhead of calling the
 * driver. They replace the calls of the tests' stub driver, which is built with its own versions renamed (`slow_...`) and provides
 * the rest. All work finishes as soon as it is enqueued, except a kernel named "spin", which runs until a stream is synchronized.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))
#define UNUSED __attribute__((unused))

enum { SUCCESS = 0, NOT_READY = 600 };

typedef int Status;
typedef uint64_t Handle;

Status slow_cuCtxPushCurrent_v2(Handle context);
Status slow_cuLibraryGetKernel(Handle *out, Handle library, const char *name);

/* Every handle and address is a different number, outside the range of the stub's. */
static Handle last_handle = 1ull << 44;
static Handle current_context, spin_kernel;
static bool is_spinning;

static Status make_handle(Handle *out) {
  *out = last_handle += 1 << 16;
  return SUCCESS;
}

/* ---- Contexts: the stub's calls only require a current one. ---- */

EXPORT Status cuCtxSetCurrent(Handle context) {
  static __thread bool is_known;
  current_context = context;
  if (is_known) return SUCCESS;
  is_known = true;
  return slow_cuCtxPushCurrent_v2(context);
}

EXPORT Status cuCtxPushCurrent_v2(Handle context) { return cuCtxSetCurrent(context); }

EXPORT Status cuCtxPopCurrent_v2(Handle *out) {
  *out = current_context;
  return SUCCESS;
}

/* ---- Streams and events. ---- */

EXPORT Status cuStreamCreateWithPriority(Handle *out, UNUSED unsigned flags, UNUSED int priority) {
  return make_handle(out);
}

EXPORT Status cuStreamDestroy_v2(UNUSED Handle stream) { return SUCCESS; }

EXPORT Status cuStreamQuery(UNUSED Handle stream) { return is_spinning ? NOT_READY : SUCCESS; }

EXPORT Status cuStreamSynchronize(UNUSED Handle stream) {
  is_spinning = false;
  return SUCCESS;
}

EXPORT Status cuStreamWaitEvent(UNUSED Handle stream, UNUSED Handle event, UNUSED unsigned flags) { return SUCCESS; }

EXPORT Status cuStreamGetId(Handle stream, uint64_t *id) {
  *id = stream >> 16;
  return SUCCESS;
}

EXPORT Status cuEventCreate(Handle *out, UNUSED unsigned flags) { return make_handle(out); }

EXPORT Status cuEventDestroy_v2(UNUSED Handle event) { return SUCCESS; }

EXPORT Status cuEventRecord(UNUSED Handle event, UNUSED Handle stream) { return SUCCESS; }

EXPORT Status cuEventQuery(UNUSED Handle event) { return is_spinning ? NOT_READY : SUCCESS; }

EXPORT Status cuEventSynchronize(UNUSED Handle event) { return cuStreamSynchronize(0); }

EXPORT Status cuEventElapsedTime(float *milliseconds, UNUSED Handle start, UNUSED Handle end) {
  *milliseconds = 1;
  return SUCCESS;
}

EXPORT Status cuEventElapsedTime_v2(float *milliseconds, UNUSED Handle start, UNUSED Handle end) {
  *milliseconds = 1;
  return SUCCESS;
}

/* ---- Memory, which is never accessed. ---- */

EXPORT Status cuMemAlloc_v2(Handle *out, UNUSED size_t bytes) { return make_handle(out); }

EXPORT Status cuMemHostAlloc(Handle *out, size_t bytes, UNUSED unsigned flags) {
  *out = (Handle)malloc(bytes);
  return SUCCESS;
}

EXPORT Status cuMemAllocFromPoolAsync(Handle *out, UNUSED size_t bytes, UNUSED Handle pool, UNUSED Handle stream) {
  return make_handle(out);
}

EXPORT Status cuMemFreeAsync(UNUSED Handle address, UNUSED Handle stream) { return SUCCESS; }

EXPORT Status cuMemHostRegister_v2(UNUSED Handle address, UNUSED size_t bytes, UNUSED unsigned flags) { return SUCCESS; }

EXPORT Status cuMemHostUnregister(UNUSED Handle address) { return SUCCESS; }

EXPORT Status cuMemcpyHtoDAsync_v2(UNUSED Handle to, UNUSED Handle from, UNUSED size_t bytes, UNUSED Handle stream) {
  return SUCCESS;
}

EXPORT Status cuMemcpyDtoHAsync_v2(UNUSED Handle to, UNUSED Handle from, UNUSED size_t bytes, UNUSED Handle stream) {
  return SUCCESS;
}

EXPORT Status cuMemcpyDtoDAsync_v2(UNUSED Handle to, UNUSED Handle from, UNUSED size_t bytes, UNUSED Handle stream) {
  return SUCCESS;
}

EXPORT Status cuMemsetD8Async(UNUSED Handle to, UNUSED uint8_t value, UNUSED size_t count, UNUSED Handle stream) {
  return SUCCESS;
}

/* ---- Kernels. ---- */

EXPORT Status cuLibraryGetKernel(Handle *out, Handle library, const char *name) {
  Status status = slow_cuLibraryGetKernel(out, library, name);
  if (status == SUCCESS && strcmp(name, "spin") == 0) spin_kernel = *out;
  return status;
}

EXPORT Status cuLaunchKernel(Handle kernel, UNUSED unsigned grid_x, UNUSED unsigned grid_y, UNUSED unsigned grid_z,
                             UNUSED unsigned block_x, UNUSED unsigned block_y, UNUSED unsigned block_z,
                             UNUSED unsigned shared, UNUSED Handle stream, UNUSED void **parameters,
                             UNUSED void **extra) {
  if (kernel == spin_kernel) is_spinning = true;
  return SUCCESS;
}

EXPORT Status cuLaunchKernelEx(UNUSED const void *config, UNUSED Handle kernel, UNUSED void **parameters,
                               UNUSED void **extra) {
  return SUCCESS;
}

EXPORT Status cuLaunchHostFunc(UNUSED Handle stream, void (*function)(void *), void *data) {
  function(data);
  return SUCCESS;
}

/* ---- Graphs, which do nothing. ---- */

EXPORT Status cuGraphCreate(Handle *out, UNUSED unsigned flags) { return make_handle(out); }

EXPORT Status cuGraphDestroy(UNUSED Handle graph) { return SUCCESS; }

EXPORT Status cuGraphAddKernelNode_v2(Handle *out, UNUSED Handle graph, UNUSED const Handle *before, UNUSED size_t count,
                                      UNUSED const void *params) {
  return make_handle(out);
}

EXPORT Status cuGraphAddMemcpyNode(Handle *out, UNUSED Handle graph, UNUSED const Handle *before, UNUSED size_t count,
                                   UNUSED const void *params, UNUSED Handle context) {
  return make_handle(out);
}

EXPORT Status cuGraphAddMemsetNode(Handle *out, UNUSED Handle graph, UNUSED const Handle *before, UNUSED size_t count,
                                   UNUSED const void *params, UNUSED Handle context) {
  return make_handle(out);
}

EXPORT Status cuGraphAddEventRecordNode(Handle *out, UNUSED Handle graph, UNUSED const Handle *before,
                                        UNUSED size_t count, UNUSED Handle event) {
  return make_handle(out);
}

EXPORT Status cuGraphAddEmptyNode(Handle *out, UNUSED Handle graph, UNUSED const Handle *before, UNUSED size_t count) {
  return make_handle(out);
}

EXPORT Status cuGraphAddDependencies_v2(UNUSED Handle graph, UNUSED const Handle *from, UNUSED const Handle *to,
                                        UNUSED const void *edges, UNUSED size_t count) {
  return SUCCESS;
}

EXPORT Status cuGraphKernelNodeSetAttribute(UNUSED Handle node, UNUSED int attribute, UNUSED const void *value) {
  return SUCCESS;
}

EXPORT Status cuGraphInstantiateWithParams(Handle *out, UNUSED Handle graph, UNUSED uint64_t *params) {
  return make_handle(out);
}

EXPORT Status cuGraphExecDestroy(UNUSED Handle exec) { return SUCCESS; }

EXPORT Status cuGraphExecKernelNodeSetParams_v2(UNUSED Handle exec, UNUSED Handle node, UNUSED const void *params) {
  return SUCCESS;
}

EXPORT Status cuGraphExecMemcpyNodeSetParams(UNUSED Handle exec, UNUSED Handle node, UNUSED const void *params,
                                             UNUSED Handle context) {
  return SUCCESS;
}

EXPORT Status cuGraphExecMemsetNodeSetParams(UNUSED Handle exec, UNUSED Handle node, UNUSED const void *params,
                                             UNUSED Handle context) {
  return SUCCESS;
}

EXPORT Status cuGraphNodeSetEnabled(UNUSED Handle exec, UNUSED Handle node, UNUSED unsigned enabled) { return SUCCESS; }

EXPORT Status cuGraphExecUpdate_v2(UNUSED Handle exec, UNUSED Handle graph, UNUSED void *result) { return SUCCESS; }

EXPORT Status cuGraphUpload(UNUSED Handle exec, UNUSED Handle stream) { return SUCCESS; }

EXPORT Status cuGraphLaunch(UNUSED Handle exec, UNUSED Handle stream) { return SUCCESS; }
