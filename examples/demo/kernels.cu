// The demo's kernels: how often each byte occurs, and a checksum. Each adds what it finds in a chunk of the file to what
// was found before, so that the chunks may come in any order, and several at once. In the memory of the device, a chunk
// starts at a multiple of 16 bytes.
//
// kernels.ptx is made of this file, so that no machine that runs the demo needs a compiler:
//
//   nvcc -arch=compute_75 -ptx kernels.cu
//   sed -i 's/^\.version .*/.version 7.0/; s/^\.target .*/.target sm_70/' kernels.ptx
//
// nvcc names its own version and the oldest architecture it knows, though the code needs neither: older drivers and
// GPUs would refuse it.

constexpr unsigned lanes = 32;
constexpr unsigned values = 256;

// Gives every byte of a word to a function, the first one first.
template <typename Use> __device__ void forEachByte(uint4 word, Use use) {
  const unsigned parts[] = {word.x, word.y, word.z, word.w};
  for (unsigned part : parts) {
    for (unsigned shift = 0; shift < 32; shift += 8) use(part >> shift & 255);
  }
}

// Adds how often each byte occurs to 256 counters. Needs 16 threads at least.
//
// A block counts in shared memory first, where a byte has one counter for each lane of a warp, in a bank of the lane's
// own: the lanes never wait for each other, whatever the bytes are. Those counters have 32 bits, which is enough for any
// number of bytes a launch can have; the counters of the file have 64.
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
  // What is left at the end is no whole word: a byte for each of the first threads.
  if (thread < byteLength % 16) count(bytes[byteLength - 1 - thread]);
  __syncthreads();

  for (unsigned byte = threadIdx.x; byte < values; byte += blockDim.x) {
    unsigned total = 0;
    // Each thread starts with another lane, again for the banks.
    for (unsigned lane = 0; lane < lanes; lane++) total += counters[byte][(byte + lane) % lanes];
    if (total > 0) atomicAdd(&counts[byte], static_cast<unsigned long long>(total));
  }
}

// For CRC-32, bytes are polynomials whose coefficients are bits, and the checksum is the remainder by this one. Its
// highest bit, and that of every remainder here, is the coefficient of x^0.
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

// What a checksum becomes by so many zeros that follow: its product with x^(8 · zeros), by squaring.
__device__ unsigned followedBy(unsigned long long zeros, unsigned sum) {
  for (unsigned power = 1u << 23; zeros > 0; zeros >>= 1, power = multiply(power, power)) {
    if (zeros & 1) sum = multiply(sum, power);
  }
  return sum;
}

// How many bytes a thread goes through.
constexpr unsigned pieceBytes = 256;

// Adds a chunk that so many bytes follow in the file to the file's CRC-32. There is one thread for each 256 bytes of it.
//
// A file is the sum (which for these polynomials is XOR) of its pieces with zeros before and after. Zeros before change
// nothing, and those after are a product: so the checksums of pieces can be made anywhere and added up in any order.
//
// CRC-32 also flips the first 32 bits and the last. What that comes to depends on the file's length alone, and is where
// the sum starts: the CRC-32 of as many zeros.
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
  // A warp adds its pieces up before one thread adds them to the file's.
  for (unsigned distance = lanes / 2; distance > 0; distance /= 2) own ^= __shfl_xor_sync(~0u, own, distance);
  if (threadIdx.x % lanes == 0) atomicXor(sum, own);
}
