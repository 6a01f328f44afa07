// The demo's kernels: byte counts and a checksum. Each adds the result for one chunk of the file to the total, so chunks can be
// processed in any order, and several at once. In device memory, a chunk starts at a multiple of 16 bytes.
//
// kernels.ptx is built from this file in advance, so that the demo runs on machines without a compiler:
//
//   nvcc -arch=compute_75 -ptx kernels.cu
//   sed -i 's/^\.version .*/.version 7.0/; s/^\.target .*/.target sm_70/' kernels.ptx
//
// nvcc writes its own version and the oldest architecture it supports. The code requires neither, and older drivers and GPUs
// would refuse it.

constexpr unsigned lanes = 32;
constexpr unsigned values = 256;

// Calls a function with every byte of a word, in order.
template <typename Use> __device__ void forEachByte(uint4 word, Use use) {
  const unsigned parts[] = {word.x, word.y, word.z, word.w};
  for (unsigned part : parts) {
    for (unsigned shift = 0; shift < 32; shift += 8) use(part >> shift & 255);
  }
}

// Adds the number of occurrences of each byte to 256 counters. Requires at least 16 threads.
//
// A block counts in shared memory first, where each byte has a counter per lane of a warp, in the lane's own bank, so that lanes
// never conflict, whatever the bytes are. These counters have 32 bits, which is enough for the bytes of one launch; the counters
// of the file have 64.
extern "C" __global__ void histogram(unsigned long long* counts, const unsigned char* bytes, unsigned byteLength) {
  __shared__ unsigned counters[values][lanes];
  for (unsigned index = threadIdx.x; index < values * lanes; index += blockDim.x) {
    counters[index / lanes][index % lanes] = 0;
  }
  __syncthreads();

  const unsigned thread = blockIdx.x * blockDim.x + threadIdx.x;
  const auto count = [lane = threadIdx.x % lanes](unsigned byte) { atomicAdd(&counters[byte][lane], 1u); };
  const uint4* words = reinterpret_cast<const uint4*>(bytes);
  const unsigned threads = gridDim.x * blockDim.x;
  for (unsigned index = thread; index < byteLength / 16; index += threads) forEachByte(words[index], count);
  // The rest is less than a word: one byte for each of the first threads.
  if (thread < byteLength % 16) count(bytes[byteLength - 1 - thread]);
  __syncthreads();

  for (unsigned byte = threadIdx.x; byte < values; byte += blockDim.x) {
    unsigned total = 0;
    // Each thread starts with a different lane, to avoid bank conflicts.
    for (unsigned lane = 0; lane < lanes; lane++) total += counters[byte][(byte + lane) % lanes];
    if (total > 0) atomicAdd(&counts[byte], static_cast<unsigned long long>(total));
  }
}

// CRC-32 treats bytes as polynomials whose coefficients are bits. The checksum is the remainder of a division by this polynomial.
// The highest bit, here and in every remainder, is the coefficient of x^0.
constexpr unsigned divisor = 0xedb88320;

__device__ unsigned timesX(unsigned a) {
  return a >> 1 ^ (a & 1 ? divisor : 0);
}

__device__ unsigned multiply(unsigned a, unsigned b) {
  unsigned product = 0;
#pragma unroll 8
  for (unsigned bit = 0; bit < 32; bit++, a <<= 1, b = timesX(b)) product ^= a >> 31 ? b : 0;
  return product;
}

// The checksum after appending zero bytes: the product with x^(8 * zeros), by squaring.
__device__ unsigned followedBy(unsigned long long zeros, unsigned sum) {
  for (unsigned power = 1u << 23; zeros > 0; zeros >>= 1, power = multiply(power, power)) {
    if (zeros & 1) sum = multiply(sum, power);
  }
  return sum;
}

// Bytes per thread.
constexpr unsigned pieceBytes = 256;

// Adds a chunk to the file's CRC-32. `bytesAfter` bytes follow it in the file. Needs one thread per 256 bytes of the chunk.
//
// A file is the sum (XOR, for these polynomials) of its pieces, each padded with zeros before and after. Zeros before a piece
// change nothing, and zeros after it are a multiplication, so the checksums of pieces can be computed anywhere and added in any
// order.
//
// CRC-32 also inverts the first 32 bits and the result. The effect depends only on the length of the file, and is the initial
// value of the sum: the CRC-32 of as many zeros.
extern "C" __global__ void checksum(
  unsigned* sum, const unsigned char* bytes, unsigned byteLength, unsigned long long bytesAfter
) {
  __shared__ unsigned table[values];
  for (unsigned byte = threadIdx.x; byte < values; byte += blockDim.x) {
    unsigned remainder = byte;
    for (unsigned bit = 0; bit < 8; bit++) remainder = timesX(remainder);
    table[byte] = remainder;
  }
  __syncthreads();

  unsigned own = 0;
  const auto append = [&own](unsigned byte) { own = own >> 8 ^ table[(own ^ byte) & 255]; };
  const unsigned long long begin = (1ull * blockIdx.x * blockDim.x + threadIdx.x) * pieceBytes;
  if (begin < byteLength) {
    const unsigned length = min(1ull * pieceBytes, byteLength - begin);
    const uint4* words = reinterpret_cast<const uint4*>(bytes + begin);
    for (unsigned index = 0; index < length / 16; index++) forEachByte(words[index], append);
    for (unsigned index = length / 16 * 16; index < length; index++) append(bytes[begin + index]);
    own = followedBy(bytesAfter + byteLength - begin - length, own);
  }
  // A warp adds up its pieces, then one thread adds the sum to the file's.
  for (unsigned distance = lanes / 2; distance > 0; distance /= 2) own ^= __shfl_xor_sync(~0u, own, distance);
  if (threadIdx.x % lanes == 0) atomicXor(sum, own);
}
