/**
 * Statistics of measurements, and number formats.
 */

/** The quantile of a share from 0 to 1; NaN without values. */
export const quantile = (values: ReadonlyArray<number>, share: number): number => {
  const sorted = values.toSorted((left, right) => left - right)
  return sorted[Math.max(0, Math.ceil(share * sorted.length) - 1)] ?? Number.NaN
}

export const median = (values: ReadonlyArray<number>): number => quantile(values, 0.5)

/** The exponent with which the second value grows with the first: the slope of a line through their logarithms. */
export const growthExponent = (points: ReadonlyArray<readonly [number, number]>): number => {
  const logs = points.map(([x, y]) => [Math.log(x), Math.log(y)] as const)
  const mean = (index: 0 | 1) => logs.reduce((sum, log) => sum + log[index], 0) / logs.length
  const [meanX, meanY] = [mean(0), mean(1)]
  const shared = logs.reduce((sum, [x, y]) => sum + (x - meanX) * (y - meanY), 0)
  return shared / logs.reduce((sum, [x]) => sum + (x - meanX) ** 2, 0)
}

/** Formats a number with a fixed number of decimals; "–" if it was not measured. */
export const fixed = (value: number | undefined, digits = 1): string =>
  value === undefined || !Number.isFinite(value) ? "–" : value.toFixed(digits)

/** Formats a number with about three significant digits. */
export const rounded = (value: number | undefined): string => {
  const size = Math.abs(value ?? 0)
  return fixed(value, size >= 100 ? 0 : size >= 10 ? 1 : 2)
}

/** Formats a difference with its sign. */
export const signed = (value: number | undefined, digits = 1): string =>
  value !== undefined && value >= 0 ? `+${fixed(value, digits)}` : fixed(value, digits)

/** Formats a ratio. */
export const times = (value: number, reference: number | undefined): string =>
  reference === undefined || !Number.isFinite(value / reference) ? "–" : `${(value / reference).toFixed(2)}×`
