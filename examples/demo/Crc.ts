/**
 * CRC-32 of pieces that lie anywhere in a file, as in `kernels.cu`: bytes are polynomials whose coefficients are bits,
 * the highest bit of a checksum is the coefficient of x^0, and the sum is XOR.
 */

const divisor = 0xedb88320

const timesX = (a: number): number => (a >>> 1) ^ (a & 1 ? divisor : 0)

const multiply = (a: number, b: number): number => {
  let product = 0
  let shifted = b
  for (let bit = 31; bit >= 0; bit--) {
    if ((a >>> bit) & 1) product ^= shifted
    shifted = timesX(shifted)
  }
  return product
}

const x8 = 1 << 23

/** What a checksum becomes by so many zeros that follow: its product with x^(8 · zeros), by squaring. */
export const followedBy = (sum: number, zeros: number): number => {
  let product = sum
  let power = x8
  // Division, since more zeros than 32 bits count may follow.
  for (let rest = zeros; rest > 0; rest = Math.floor(rest / 2)) {
    if (rest % 2 === 1) product = multiply(product, power)
    power = multiply(power, power)
  }
  return product >>> 0
}

/**
 * The CRC-32 of so many zeros. It is not 0, since CRC-32 flips the first 32 bits and the last: what that adds is the same
 * for all files of a length. What the bytes themselves add is the rest.
 */
export const ofZeros = (count: number): number => (followedBy(0xffffffff, count) ^ 0xffffffff) >>> 0
