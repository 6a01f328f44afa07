/**
 * The 16-bit floats of the model: the upper half of a float32.
 */

/** Rounds to the nearest, and to even between two. */
export const encode = (values: ArrayLike<number>): Uint16Array<ArrayBuffer> => {
  const floats = Float32Array.from(values)
  const bits = new Uint32Array(floats.buffer)
  const rounded = new Uint16Array(floats.length)
  for (let index = 0; index < rounded.length; index++) {
    const word = bits[index]!
    // Rounding would turn some values that are not a number into infinity.
    rounded[index] = Number.isNaN(floats[index]!) ? 0x7fc0 : (word + 0x7fff + ((word >>> 16) & 1)) >>> 16
  }
  return rounded
}

export const decode = (values: Uint16Array): Float32Array<ArrayBuffer> => {
  const bits = new Uint32Array(values.length)
  for (let index = 0; index < values.length; index++) bits[index] = values[index]! << 16
  return new Float32Array(bits.buffer)
}
