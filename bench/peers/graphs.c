/*
 * The C peer of the graphs benchmark: graphs of kernels in a row, made of explicit nodes, and the calls of a program one by one.
 *
 * Answers `OPERATION SIZE host|end COUNT BATCHES` with the nanoseconds of each batch of COUNT operations on SIZE nodes, or with nothing
 * if it does not have the operation. The stream is drained before every batch, outside the measurement. With "end", the measurement
 * includes waiting for the work at the end of the batch.
 */
#include "driver.h"

enum { BYTES = 4096, MOST_NODES = 1000, MOST_GRAPHS = 16 };

/* A graph of equal kernels in a row. */
struct graph {
  CUfunction kernel;
  int size;
  CUgraph handle;
  CUgraphExec exec;
  CUgraphNode nodes[MOST_NODES];
};

static CUstream stream;
static CUfunction none, three;
static CUdeviceptr target, buffers[2];
static struct graph known[MOST_GRAPHS], *current;
static int known_count, turn;

/* The arguments of "three". Every turn has another buffer. */
static CUdeviceptr to, from;
static unsigned count = BYTES / 8;
static void *arguments[] = {&to, &from, &count};

static void next_buffer(void) { from = buffers[turn ^= 1]; }

static CUDA_KERNEL_NODE_PARAMS parameters_of(CUfunction kernel) {
  return (CUDA_KERNEL_NODE_PARAMS){
      .func = kernel, .grid = {1, 1, 1}, .block = {1, 1, 1}, .kernelParams = kernel == three ? arguments : NULL};
}

static void build(struct graph *graph) {
  CHECK(cuGraphCreate, (&graph->handle, 0));
  for (int i = 0; i < graph->size; i++) {
    CUDA_KERNEL_NODE_PARAMS parameters = parameters_of(graph->kernel);
    const CUgraphNode *before = i > 0 ? &graph->nodes[i - 1] : NULL;
    CHECK(cuGraphAddKernelNode_v2, (&graph->nodes[i], graph->handle, before, i > 0, &parameters));
  }
}

static void instantiate(struct graph *graph) {
  CUDA_GRAPH_INSTANTIATE_PARAMS parameters = {0};
  build(graph);
  CHECK(cuGraphInstantiateWithParams, (&graph->exec, graph->handle, &parameters));
}

/* Graphs are kept, so that only the first launch of each moves it to the device. */
static void use_graph(CUfunction kernel, int size) {
  for (int i = 0; i < known_count; i++) {
    current = &known[i];
    if (current->kernel == kernel && current->size == size) return;
  }
  if (known_count == MOST_GRAPHS || size > MOST_NODES) fail("no room for another graph of %d nodes", size);
  current = &known[known_count++];
  current->kernel = kernel;
  current->size = size;
  instantiate(current);
}

static void use_none(int size) { use_graph(none, size); }

static void use_three(int size) { use_graph(three, size); }

static void launch(int size) {
  (void)size;
  CHECK(cuGraphLaunch, (current->exec, stream));
}

static void rebind(int size) {
  next_buffer();
  for (int i = 0; i < size; i++) {
    CUDA_KERNEL_NODE_PARAMS parameters = parameters_of(three);
    CHECK(cuGraphExecKernelNodeSetParams_v2, (current->exec, current->nodes[i], &parameters));
  }
  launch(size);
}

static void make_and_destroy(int size) {
  static struct graph made;
  made.kernel = three;
  made.size = size;
  instantiate(&made);
  CHECK(cuGraphExecDestroy, (made.exec));
  CHECK(cuGraphDestroy, (made.handle));
}

static void update(int size) {
  static struct graph other;
  CUgraphExecUpdateResultInfo result = {0};
  next_buffer();
  other.kernel = three;
  other.size = size;
  build(&other);
  CHECK(cuGraphExecUpdate_v2, (current->exec, other.handle, &result));
  CHECK(cuGraphDestroy, (other.handle));
}

/* A program of launches, fills and copies in turn. */
static void calls(int size) {
  for (int i = 0; i < size; i++) {
    if (i % 3 == 0) CHECK(cuLaunchKernel, (none, 1, 1, 1, 1, 1, 1, 0, stream, NULL, NULL));
    if (i % 3 == 1) CHECK(cuMemsetD8Async, (buffers[0], 0, BYTES, stream));
    if (i % 3 == 2) CHECK(cuMemcpyDtoDAsync_v2, (target, buffers[0], BYTES, stream));
  }
}

static void nothing(int size) { (void)size; }

static const struct {
  const char *name;
  void (*prepare)(int size);
  void (*run)(int size);
} operations[] = {
  {"launch", use_none, launch},
  {"same", use_three, launch},
  {"rebind", use_three, rebind},
  {"instantiate", nothing, make_and_destroy},
  {"update", use_three, update},
  {"calls", nothing, calls},
};

static void measure(size_t index, int size, int to_the_end, int repeats, int batches) {
  void (*run)(int) = operations[index].run;
  operations[index].prepare(size);
  for (int batch = 0; batch < batches; batch++) {
    CHECK(cuStreamSynchronize, (stream));
    uint64_t start = now();
    for (int i = 0; i < repeats; i++) run(size);
    if (to_the_end) CHECK(cuStreamSynchronize, (stream));
    answer(now() - start);
  }
  CHECK(cuStreamSynchronize, (stream));
}

static void provide(void) {
  stream = make_stream();
  CHECK(cuMemAlloc_v2, (&target, BYTES));
  CHECK(cuMemAlloc_v2, (&buffers[0], BYTES));
  CHECK(cuMemAlloc_v2, (&buffers[1], BYTES));
  none = get_function("none");
  three = get_function("three");
  to = target;
  from = buffers[0];
}

int main(int argc, char **argv) {
  open_device(argc, argv);
  provide();
  char line[256], name[32], how[32];
  int size, repeats, batches;
  while (fgets(line, sizeof line, stdin) != NULL) {
    if (sscanf(line, "%31s %d %31s %d %d", name, &size, how, &repeats, &batches) != 5) fail("cannot understand %s", line);
    size_t index = 0, last = sizeof operations / sizeof *operations;
    while (index < last && strcmp(name, operations[index].name) != 0) index++;
    if (index < last) measure(index, size, strcmp(how, "end") == 0, repeats, batches);
    end_answer();
  }
  return 0;
}
