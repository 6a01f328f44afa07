// The encoder's kernels between the matrix products. Activations are bf16, sums are float.
//
// kernels.ptx is built from this file in advance, so that the example runs on machines without a compiler:
//
//   nvcc -O3 -arch=compute_80 -ptx kernels.cu
//   sed -i 's/^\.version .*/.version 7.0/' kernels.ptx
//
// nvcc writes its own version. The code does not require it, and older drivers would refuse it. Tensor cores for bf16 need sm_80.

typedef unsigned short bf16;
typedef unsigned int u32;

static const u32 whole = 0xffffffff;

__device__ __forceinline__ u32 pack(float low, float high) {
  u32 packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}
__device__ __forceinline__ float lowOf(u32 packed) { return __uint_as_float(packed << 16); }
__device__ __forceinline__ float highOf(u32 packed) { return __uint_as_float(packed & 0xffff0000); }

/* ---- rows of hidden numbers, one warp per row ---- */

/* Numbers per lane: 8 at a time, for up to 1024 in a row. */
enum { chunks = 4, perChunk = 8 };

struct Row {
  float values[chunks][perChunk];
};

__device__ __forceinline__ void addRow(Row &row, const bf16 *from, int hidden, int lane) {
#pragma unroll
  for (int chunk = 0; chunk < chunks; chunk++) {
    int at = (chunk * 32 + lane) * perChunk;
    if (at >= hidden) break;
    uint4 loaded = *(const uint4 *)(from + at);
    u32 pairs[4] = {loaded.x, loaded.y, loaded.z, loaded.w};
#pragma unroll
    for (int pair = 0; pair < 4; pair++) {
      row.values[chunk][2 * pair] += lowOf(pairs[pair]);
      row.values[chunk][2 * pair + 1] += highOf(pairs[pair]);
    }
  }
}

__device__ __forceinline__ float sumOfWarp(float value) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) value += __shfl_xor_sync(whole, value, distance);
  return value;
}

/* Normalizes a row to mean 0 and variance 1, then scales and shifts it. */
__device__ __forceinline__ void normalize(const Row &row, const bf16 *gamma, const bf16 *beta, bf16 *out, int hidden, int lane) {
  float sum = 0, squares = 0;
#pragma unroll
  for (int chunk = 0; chunk < chunks; chunk++)
#pragma unroll
    for (int index = 0; index < perChunk; index++) sum += row.values[chunk][index];
  float mean = sumOfWarp(sum) / hidden;
#pragma unroll
  for (int chunk = 0; chunk < chunks; chunk++) {
    if ((chunk * 32 + lane) * perChunk >= hidden) break;
#pragma unroll
    for (int index = 0; index < perChunk; index++) {
      float centered = row.values[chunk][index] - mean;
      squares += centered * centered;
    }
  }
  float scale = rsqrtf(sumOfWarp(squares) / hidden + 1e-12f);
#pragma unroll
  for (int chunk = 0; chunk < chunks; chunk++) {
    int at = (chunk * 32 + lane) * perChunk;
    if (at >= hidden) break;
    uint4 g = *(const uint4 *)(gamma + at), b = *(const uint4 *)(beta + at), result;
    const u32 *gs = &g.x, *bs = &b.x;
    u32 *results = &result.x;
#pragma unroll
    for (int pair = 0; pair < 4; pair++) {
      float low = (row.values[chunk][2 * pair] - mean) * scale * lowOf(gs[pair]) + lowOf(bs[pair]);
      float high = (row.values[chunk][2 * pair + 1] - mean) * scale * highOf(gs[pair]) + highOf(bs[pair]);
      results[pair] = pack(low, high);
    }
    *(uint4 *)(out + at) = result;
  }
}

/* out = norm(words[id] + positions[token % length]). An id outside the vocabulary is clamped. */
extern "C" __global__ __launch_bounds__(128) void embed(const int *__restrict__ ids, const bf16 *__restrict__ words,
                                                        const bf16 *__restrict__ positions, const bf16 *__restrict__ gamma,
                                                        const bf16 *__restrict__ beta, bf16 *__restrict__ out, int tokens,
                                                        int length, int hidden, int vocabulary) {
  int token = blockIdx.x * 4 + threadIdx.x / 32, lane = threadIdx.x % 32;
  if (token >= tokens) return;
  int id = min(max(ids[token], 0), vocabulary - 1);
  Row row = {};
  addRow(row, words + (size_t)id * hidden, hidden, lane);
  addRow(row, positions + (size_t)(token % length) * hidden, hidden, lane);
  normalize(row, gamma, beta, out + (size_t)token * hidden, hidden, lane);
}

/* out = norm(x), row by row. */
extern "C" __global__ __launch_bounds__(128) void layerNorm(const bf16 *__restrict__ x, const bf16 *__restrict__ gamma,
                                                       const bf16 *__restrict__ beta, bf16 *__restrict__ out, int tokens,
                                                       int hidden) {
  int token = blockIdx.x * 4 + threadIdx.x / 32, lane = threadIdx.x % 32;
  if (token >= tokens) return;
  Row row = {};
  addRow(row, x + (size_t)token * hidden, hidden, lane);
  normalize(row, gamma, beta, out + (size_t)token * hidden, hidden, lane);
}

/* The mean of a sequence's tokens, divided by its length as a vector. */
extern "C" __global__ __launch_bounds__(256) void pool(const bf16 *__restrict__ x, const int *__restrict__ lengths,
                                                       float *__restrict__ out, int length, int hidden) {
  __shared__ float sums[8][chunks * 32 * perChunk];
  __shared__ float squares[8];
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32, sequence = blockIdx.x;
  int count = min(lengths[sequence], length);
  Row row = {};
  for (int token = warp; token < count; token += 8) addRow(row, x + ((size_t)sequence * length + token) * hidden, hidden, lane);
#pragma unroll
  for (int chunk = 0; chunk < chunks; chunk++)
#pragma unroll
    for (int index = 0; index < perChunk; index++) sums[warp][(chunk * 32 + lane) * perChunk + index] = row.values[chunk][index];
  __syncthreads();
  float square = 0;
  for (int at = threadIdx.x; at < hidden; at += 256) {
    float sum = 0;
    for (int other = 0; other < 8; other++) sum += sums[other][at];
    float mean = count == 0 ? 0 : sum / count;
    sums[0][at] = mean;
    square += mean * mean;
  }
  square = sumOfWarp(square);
  if (lane == 0) squares[warp] = square;
  __syncthreads();
  float total = 0;
  for (int other = 0; other < 8; other++) total += squares[other];
  float scale = total == 0 ? 0 : rsqrtf(total);
  for (int at = threadIdx.x; at < hidden; at += 256) out[(size_t)sequence * hidden + at] = sums[0][at] * scale;
}

/* ---- attention ---- */

/*
 * Attention of heads of 64 numbers, in tiles of 64 keys, with the softmax computed as the tiles come (as in FlashAttention). Products
 * are tensor-core instructions on 16 × 8 results with sums over 16. A tile is 64 rows of 8 pieces of 16 bytes in shared memory; where a
 * piece is depends on its row, so that reading a column of pieces touches all banks.
 */
enum { head = 64, tile = 64, tileBytes = tile * head * 2, pieces = 8, warps = 4 };

__device__ __forceinline__ u32 addressOf(const void *shared) { return (u32)__cvta_generic_to_shared(shared); }
__device__ __forceinline__ u32 pieceAt(u32 base, int row, int piece) { return base + row * 128 + ((piece ^ (row & 7)) << 4); }

/* Copies 16 bytes to shared memory, or zeros. */
__device__ __forceinline__ void copyPiece(u32 to, const void *from, bool isValid) {
  int bytes = isValid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes));
}
__device__ __forceinline__ void commitCopies() { asm volatile("cp.async.commit_group;"); }
template <int remaining> __device__ __forceinline__ void waitForCopies() { asm volatile("cp.async.wait_group %0;" ::"n"(remaining)); }

__device__ __forceinline__ void load4(u32 (&r)[4], u32 address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address));
}
__device__ __forceinline__ void load4Transposed(u32 (&r)[4], u32 address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address));
}
__device__ __forceinline__ void multiply(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ __forceinline__ float exp2Of(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}
__device__ __forceinline__ float maxOfQuad(float value) {
  value = fmaxf(value, __shfl_xor_sync(whole, value, 1));
  return fmaxf(value, __shfl_xor_sync(whole, value, 2));
}
__device__ __forceinline__ float sumOfQuad(float value) {
  value += __shfl_xor_sync(whole, value, 1);
  return value + __shfl_xor_sync(whole, value, 2);
}

/* Starts copying rows of a tile. Rows beyond the limit become zeros. */
template <int rows>
__device__ __forceinline__ void copyRows(u32 to, const bf16 *from, int first, int limit, int stride) {
#pragma unroll
  for (int step = 0; step < rows * pieces / (warps * 32); step++) {
    int index = step * warps * 32 + threadIdx.x, row = index / pieces, piece = index % pieces;
    bool isValid = first + row < limit;
    copyPiece(pieceAt(to, row, piece), from + (size_t)(isValid ? first + row : 0) * stride + piece * 8, isValid);
  }
}

/* Each warp has this many times 16 queries. */
template <int strips>
__device__ __forceinline__ void attend(const bf16 *__restrict__ qkv, const int *__restrict__ lengths, bf16 *__restrict__ out,
                                       int length, int heads) {
  constexpr int queries = strips * 16 * warps;
  __shared__ __align__(128) bf16 queryTile[queries * head];
  __shared__ __align__(128) bf16 keyTiles[2][tile * head];
  __shared__ __align__(128) bf16 valueTiles[2][tile * head];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int hidden = heads * head, stride = 3 * hidden, first = blockIdx.x * queries;
  const int count = min(lengths[blockIdx.z], length);
  const bf16 *base = qkv + (size_t)blockIdx.z * length * stride + blockIdx.y * head;
  const u32 q = addressOf(queryTile), k = addressOf(keyTiles), v = addressOf(valueTiles);
  const int tiles = first < count ? (count + tile - 1) / tile : 0;

  float o[strips][8][4] = {}, most[strips][2], sums[strips][2] = {};
#pragma unroll
  for (int strip = 0; strip < strips; strip++) most[strip][0] = most[strip][1] = -1e30f;
  u32 a[strips][4][4];

  if (tiles > 0) {
    copyRows<queries>(q, base, first, length, stride);
    copyRows<tile>(k, base + hidden, 0, count, stride);
    commitCopies();
    copyRows<tile>(v, base + 2 * hidden, 0, count, stride);
    commitCopies();
  }
  for (int index = 0; index < tiles; index++) {
    const u32 now = (index & 1) * tileBytes, next = tileBytes - now;
    waitForCopies<1>();
    __syncthreads();
    if (index == 0) {
#pragma unroll
      for (int strip = 0; strip < strips; strip++)
#pragma unroll
        for (int step = 0; step < 4; step++)
          load4(a[strip][step], pieceAt(q, (warp * strips + strip) * 16 + (lane & 15), step * 2 + (lane >> 4)));
    }
    float s[strips][8][4] = {};
#pragma unroll
    for (int step = 0; step < 4; step++)
#pragma unroll
      for (int pair = 0; pair < 4; pair++) {
        u32 b[4];
        load4(b, pieceAt(k + now, pair * 16 + ((lane >> 4) << 3) + (lane & 7), step * 2 + ((lane >> 3) & 1)));
#pragma unroll
        for (int strip = 0; strip < strips; strip++) {
          multiply(s[strip][2 * pair], a[strip][step], b[0], b[1]);
          multiply(s[strip][2 * pair + 1], a[strip][step], b[2], b[3]);
        }
      }
    /* The other buffers were read in the round before, which all warps have left. */
    if (index + 1 < tiles) copyRows<tile>(k + next, base + hidden, (index + 1) * tile, count, stride);
    commitCopies();

    if ((index + 1) * tile > count) {
#pragma unroll
      for (int column = 0; column < 8; column++)
#pragma unroll
        for (int element = 0; element < 2; element++)
          if (index * tile + column * 8 + (lane & 3) * 2 + element >= count) {
#pragma unroll
            for (int strip = 0; strip < strips; strip++) s[strip][column][element] = s[strip][column][element + 2] = -1e30f;
          }
    }
    /* softmax(s / 8), with powers of two. */
    const float factor = 0.125f * 1.4426950408889634f;
#pragma unroll
    for (int strip = 0; strip < strips; strip++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        float top = most[strip][half];
#pragma unroll
        for (int column = 0; column < 8; column++) top = fmaxf(top, fmaxf(s[strip][column][2 * half], s[strip][column][2 * half + 1]));
        top = maxOfQuad(top);
        float rescale = exp2Of((most[strip][half] - top) * factor), sum = 0, offset = top * factor;
        most[strip][half] = top;
#pragma unroll
        for (int column = 0; column < 8; column++)
#pragma unroll
          for (int element = 2 * half; element < 2 * half + 2; element++) {
            s[strip][column][element] = exp2Of(s[strip][column][element] * factor - offset);
            sum += s[strip][column][element];
            o[strip][column][element] *= rescale;
          }
        sums[strip][half] = sums[strip][half] * rescale + sum;
      }

    waitForCopies<1>();
    __syncthreads();
#pragma unroll
    for (int step = 0; step < 4; step++) {
      u32 p[strips][4];
#pragma unroll
      for (int strip = 0; strip < strips; strip++) {
        p[strip][0] = pack(s[strip][2 * step][0], s[strip][2 * step][1]);
        p[strip][1] = pack(s[strip][2 * step][2], s[strip][2 * step][3]);
        p[strip][2] = pack(s[strip][2 * step + 1][0], s[strip][2 * step + 1][1]);
        p[strip][3] = pack(s[strip][2 * step + 1][2], s[strip][2 * step + 1][3]);
      }
#pragma unroll
      for (int pair = 0; pair < 4; pair++) {
        u32 b[4];
        load4Transposed(b, pieceAt(v + now, step * 16 + (lane & 15), pair * 2 + (lane >> 4)));
#pragma unroll
        for (int strip = 0; strip < strips; strip++) {
          multiply(o[strip][2 * pair], p[strip], b[0], b[1]);
          multiply(o[strip][2 * pair + 1], p[strip], b[2], b[3]);
        }
      }
    }
    if (index + 1 < tiles) copyRows<tile>(v + next, base + 2 * hidden, (index + 1) * tile, count, stride);
    commitCopies();
  }

#pragma unroll
  for (int strip = 0; strip < strips; strip++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float sum = sumOfQuad(sums[strip][half]), scale = sum == 0 ? 0 : 1 / sum;
      int row = first + (warp * strips + strip) * 16 + half * 8 + lane / 4;
      if (row >= length) continue;
      bf16 *to = out + ((size_t)blockIdx.z * length + row) * hidden + blockIdx.y * head + (lane & 3) * 2;
#pragma unroll
      for (int column = 0; column < 8; column++)
        *(u32 *)(to + column * 8) = pack(o[strip][column][2 * half] * scale, o[strip][column][2 * half + 1] * scale);
    }
}

/* out = softmax(q · kᵀ / 8) · v, with 64 queries per block, for few sequences. Keys beyond a sequence's length are left out. */
extern "C" __global__ __launch_bounds__(128) void attention64(const bf16 *__restrict__ qkv, const int *__restrict__ lengths,
                                                              bf16 *__restrict__ out, int length, int heads) {
  attend<1>(qkv, lengths, out, length, heads);
}

/* The same with 128 queries per block, which read each key less often. */
extern "C" __global__ __launch_bounds__(128) void attention128(const bf16 *__restrict__ qkv, const int *__restrict__ lengths,
                                                               bf16 *__restrict__ out, int length, int heads) {
  attend<2>(qkv, lengths, out, length, heads);
}
