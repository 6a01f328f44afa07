/*
 * Loops of driver calls in C, within the benchmark's own process: what the calls cost there, apart from koffi and JavaScript. A process of
 * its own, like that of the C peer, has caches and memory to itself.
 */
#include <dlfcn.h>
#include <stdint.h>
#include <time.h>

typedef int (*Launch)(uint64_t exec, uint64_t stream);
typedef int (*Set)(uint64_t exec, uint64_t node, const void *parameters);

static Launch launch;
static Set set;

/* Finds the functions. Returns 0 if they are there. */
int here_open(const char *path) {
  void *library = dlopen(path, RTLD_NOW);
  if (library == NULL) return 1;
  launch = (Launch)dlsym(library, "cuGraphLaunch");
  set = (Set)dlsym(library, "cuGraphExecKernelNodeSetParams_v2");
  return launch == NULL || set == NULL;
}

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return time.tv_sec * 1e9 + time.tv_nsec;
}

/* Nanoseconds per launch; -1 if one fails. */
double here_launch(uint64_t exec, uint64_t stream, int count) {
  int status = 0;
  double start = now();
  for (int i = 0; i < count; i++) status |= launch(exec, stream);
  return status == 0 ? (now() - start) / count : -1;
}

/* Nanoseconds per launch that is preceded by rebinding all nodes, with one or the other parameters in turn; -1 if a call fails. */
double here_rebind(uint64_t exec, uint64_t stream, const uint64_t *nodes, int size, uint64_t one, uint64_t other, int count) {
  int status = 0;
  double start = now();
  for (int i = 0; i < count; i++) {
    const void *parameters = (const void *)(i % 2 == 0 ? one : other);
    for (int node = 0; node < size; node++) status |= set(exec, nodes[node], parameters);
    status |= launch(exec, stream);
  }
  return status == 0 ? (now() - start) / count : -1;
}
