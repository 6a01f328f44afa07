/*
 * The cost of launching kernels in C, beside which the library's is measured: plain loops around cuLaunchKernel, the values of
 * the arguments written before each call, as a program does.
 *
 * Asked `KERNEL COUNT BATCHES`, answers the nanoseconds of each batch of so many launches. The stream is drained before every
 * batch, outside the measurement, so that no queue of the driver runs full. The kernels are those of launch.ptx, which is beside
 * the PTX file that this is given.
 */
#include "driver.h"

enum { MANY = 32 };

static CUstream stream;
static CUdeviceptr device;
static CUfunction none, three, many;

static void launch(CUfunction kernel, void **parameters) {
  CHECK(cuLaunchKernel, (kernel, 1, 1, 1, 1, 1, 1, 0, stream, parameters, NULL));
}

static void launch_none(void) { launch(none, NULL); }

static void launch_three(void) {
  CUdeviceptr to = device, from = device + 2048;
  uint32_t count = 512;
  void *parameters[] = {&to, &from, &count};
  launch(three, parameters);
}

static void launch_many(void) {
  CUdeviceptr pointers[MANY / 4];
  uint32_t words[MANY / 4];
  float floats[MANY / 4];
  uint64_t wide[MANY / 4];
  void *parameters[MANY];
  for (int i = 0; i < MANY / 4; i++) {
    pointers[i] = device;
    words[i] = (uint32_t)i;
    floats[i] = 0.5f;
    wide[i] = (uint64_t)i;
    parameters[4 * i] = &pointers[i];
    parameters[4 * i + 1] = &words[i];
    parameters[4 * i + 2] = &floats[i];
    parameters[4 * i + 3] = &wide[i];
  }
  launch(many, parameters);
}

static const struct {
  const char *name;
  void (*run)(void);
} kernels[] = {{"none", launch_none}, {"three", launch_three}, {"many", launch_many}};

static void measure(void (*run)(void), int count, int batches) {
  for (int batch = 0; batch < batches; batch++) {
    CHECK(cuStreamSynchronize, (stream));
    uint64_t start = now();
    for (int i = 0; i < count; i++) run();
    answer(now() - start);
  }
  CHECK(cuStreamSynchronize, (stream));
  end_answer();
}

static void load_kernels(const char *beside) {
  char path[4096];
  const char *slash = strrchr(beside, '/');
  snprintf(path, sizeof path, "%.*slaunch.ptx", slash == NULL ? 0 : (int)(slash - beside) + 1, beside);
  CUmodule module;
  CHECK(cuModuleLoadData, (&module, read_file(path)));
  CHECK(cuModuleGetFunction, (&none, module, "none"));
  CHECK(cuModuleGetFunction, (&three, module, "three"));
  CHECK(cuModuleGetFunction, (&many, module, "many"));
}

int main(int argc, char **argv) {
  if (argc < 2) fail("usage: launch PTX");
  open_device(argv[1]);
  load_kernels(argv[1]);
  stream = make_stream();
  CHECK(cuMemAlloc_v2, (&device, 4096));
  char line[256], name[32];
  int count, batches;
  while (fgets(line, sizeof line, stdin) != NULL) {
    if (sscanf(line, "%31s %d %d", name, &count, &batches) != 3) fail("cannot understand %s", line);
    size_t index = 0, known = sizeof kernels / sizeof *kernels;
    while (index < known && strcmp(name, kernels[index].name) != 0) index++;
    if (index == known) fail("no kernel %s", name);
    measure(kernels[index].run, count, batches);
  }
  return 0;
}
