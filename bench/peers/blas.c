/*
 * The C peer of the matrix product benchmark: cuBLASLt, called directly, with the algorithm that its heuristic proposes first.
 * "library PATH" loads it. "product M N K host|gpu COUNT BATCHES" multiplies bf16 matrices in row order,
 * M × K by the transpose of N × K, and answers with the nanoseconds of each batch: those of the calls, or those of the GPU.
 */
#include "driver.h"

typedef void *Opaque;
typedef struct {
  uint64_t algorithm[8];
  size_t workspaceSize;
  int state;
  float waves;
  int reserved[4];
} Result;

static int (*create)(Opaque *), (*descCreate)(Opaque *, int, int), (*descSet)(Opaque, int, const void *, size_t);
static int (*layoutCreate)(Opaque *, int, uint64_t, uint64_t, int64_t), (*preferenceCreate)(Opaque *);
static int (*preferenceSet)(Opaque, int, const void *, size_t);
static int (*heuristic)(Opaque, Opaque, Opaque, Opaque, Opaque, Opaque, Opaque, int, Result *, int *);
static int (*matmul)(Opaque, Opaque, const void *, CUdeviceptr, Opaque, CUdeviceptr, Opaque, const void *, CUdeviceptr, Opaque, CUdeviceptr,
                     Opaque, const void *, CUdeviceptr, size_t, CUstream);

static Opaque handle;

static void load(const char *path) {
  void *library = dlopen(path, RTLD_NOW | RTLD_GLOBAL);
  if (library == NULL) fail("%s", dlerror());
  create = find(library, "cublasLtCreate");
  descCreate = find(library, "cublasLtMatmulDescCreate");
  descSet = find(library, "cublasLtMatmulDescSetAttribute");
  layoutCreate = find(library, "cublasLtMatrixLayoutCreate");
  preferenceCreate = find(library, "cublasLtMatmulPreferenceCreate");
  preferenceSet = find(library, "cublasLtMatmulPreferenceSetAttribute");
  heuristic = find(library, "cublasLtMatmulAlgoGetHeuristic");
  matmul = find(library, "cublasLtMatmul");
  check("cublasLtCreate", create(&handle));
}

static CUdeviceptr allocate(size_t bytes) {
  CUdeviceptr address;
  CHECK(cuMemAlloc_v2, (&address, bytes));
  return address;
}

enum { bf16 = 14, f32 = 0, compute32F = 68, transA = 3, maxWorkspace = 1 };

static void product(long m, long n, long k, int isGpu, int count, int batches, CUstream stream) {
  Opaque desc, a, b, d, preference;
  int transposed = 1, found = 0;
  size_t most = 32 << 20;
  Result result;
  check("cublasLtMatmulDescCreate", descCreate(&desc, compute32F, f32));
  check("cublasLtMatmulDescSetAttribute", descSet(desc, transA, &transposed, sizeof transposed));
  check("cublasLtMatrixLayoutCreate", layoutCreate(&a, bf16, k, n, k));
  check("cublasLtMatrixLayoutCreate", layoutCreate(&b, bf16, k, m, k));
  check("cublasLtMatrixLayoutCreate", layoutCreate(&d, bf16, n, m, n));
  check("cublasLtMatmulPreferenceCreate", preferenceCreate(&preference));
  check("cublasLtMatmulPreferenceSetAttribute", preferenceSet(preference, maxWorkspace, &most, sizeof most));
  check("cublasLtMatmulAlgoGetHeuristic", heuristic(handle, desc, a, b, d, d, preference, 1, &result, &found));
  CUdeviceptr x = allocate(m * k * 2), w = allocate(n * k * 2), y = allocate(m * n * 2), workspace = allocate(most);
  CHECK(cuMemsetD8Async, (x, 0x3c, m * k * 2, stream));
  CHECK(cuMemsetD8Async, (w, 0x3c, n * k * 2, stream));
  CUevent start, end;
  CHECK(cuEventCreate, (&start, 0));
  CHECK(cuEventCreate, (&end, 0));
  float one = 1, zero = 0;
  for (int batch = -1; batch < batches; batch++) {
    CHECK(cuStreamSynchronize, (stream));
    CHECK(cuEventRecord, (start, stream));
    uint64_t begin = now();
    for (int index = 0; index < count; index++) {
      check("cublasLtMatmul", matmul(handle, desc, &one, w, a, x, b, &zero, y, d, y, d, result.algorithm, workspace,
                                     result.workspaceSize, stream));
    }
    uint64_t nanos = now() - begin;
    float millis;
    CHECK(cuEventRecord, (end, stream));
    CHECK(cuEventSynchronize, (end));
    CHECK(cuEventElapsedTime, (&millis, start, end));
    /* The first batch loads the kernel. */
    if (batch >= 0) answer(isGpu ? (uint64_t)(millis * 1e6) : nanos);
  }
  end_answer();
  CUdeviceptr all[] = {x, w, y, workspace};
  for (int index = 0; index < 4; index++) CHECK(cuMemFree_v2, (all[index]));
}

int main(int argc, char **argv) {
  open_device(argc, argv);
  CUstream stream = make_stream();
  char line[4096], path[4096], how[8];
  long m, n, k;
  int count, batches;
  while (fgets(line, sizeof line, stdin) != NULL) {
    if (sscanf(line, "library %4095[^\n]", path) == 1) {
      load(path);
      end_answer();
    } else if (sscanf(line, "product %ld %ld %ld %7s %d %d", &m, &n, &k, how, &count, &batches) == 6) {
      product(m, n, k, strcmp(how, "gpu") == 0, count, batches, stream);
    } else {
      fail("cannot understand %s", line);
    }
  }
  return 0;
}
