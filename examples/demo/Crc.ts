/**
 * CRC-32 of pieces of a file, as in `kernels.cu`: bytes are polynomials whose coefficients are bits, the highest bit of
 * a checksum is the coefficient of x^0, and addition is XOR.
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

/** The checksum after appending zero bytes: the product with x^(8 · zeros), by squaring. */
export const followedBy = (sum: number, zeros: number): number => {
  let product = sum
  let power = x8
  // Division, because the number of zeros may exceed 32 bits.
  for (let rest = zeros; rest > 0; rest = Math.floor(rest / 2)) {
    if (rest % 2 === 1) product = multiply(product, power)
    power = multiply(power, power)
  }
  return product >>> 0
}

/**
 * The CRC-32 of a number of zero bytes. It is not 0, because CRC-32 inverts the first 32 bits and the result, which
 * contributes the same to all files of a length. The bytes themselves contribute the rest.
 */
export const ofZeros = (count: number): number => (followedBy(0xffffffff, count) ^ 0xffffffff) >>> 0
