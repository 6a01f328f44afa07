/**
 * The floating-point formats of matrices, decoded from their definition, and rounding checked by searching. Independent of the library's code.
 */

/** Bits of the exponent and the fraction. */
const formats = { f16: [5, 10], bf16: [8, 7], f8e4m3: [4, 3], f8e5m2: [5, 2] } as const

export type SmallFloat = keyof typeof formats

/** All finite numbers of a format with their bits, ascending. */
export const finiteNumbers = (type: SmallFloat): ReadonlyArray<readonly [value: number, bits: number]> => {
  const [exponentBits, fractionBits] = formats[type]
  const bias = 2 ** (exponentBits - 1) - 1
  const numbers: Array<readonly [number, number]> = []
  for (let bits = 0; bits < 2 ** (1 + exponentBits + fractionBits); bits++) {
    const text = bits.toString(2).padStart(1 + exponentBits + fractionBits, "0")
    const exponent = Number.parseInt(text.slice(1, 1 + exponentBits), 2)
    const fraction = Number.parseInt(text.slice(1 + exponentBits), 2) / 2 ** fractionBits
    const isLast = !text.slice(1, 1 + exponentBits).includes("0")
    if (isLast && (type !== "f8e4m3" || !text.slice(1).includes("0"))) continue
    const magnitude = exponent === 0 ? fraction * 2 ** (1 - bias) : (1 + fraction) * 2 ** (exponent - bias)
    numbers.push([text[0] === "1" ? -magnitude : magnitude, bits])
  }
  return numbers.sort(([one], [other]) => one - other)
}
