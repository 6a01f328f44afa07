/**
 * What is told of many measurements, and how numbers are written.
 */

/** The value that a share of the values, from 0 to 1, does not exceed; NaN of none. */
export const quantile = (values: ReadonlyArray<number>, share: number): number => {
  const sorted = values.toSorted((left, right) => left - right)
  return sorted[Math.max(0, Math.ceil(share * sorted.length) - 1)] ?? Number.NaN
}

export const median = (values: ReadonlyArray<number>): number => quantile(values, 0.5)

/** The power of the first with which the second grows: the slope of a line through their logarithms. */
export const growthExponent = (points: ReadonlyArray<readonly [number, number]>): number => {
  const logs = points.map(([x, y]) => [Math.log(x), Math.log(y)] as const)
  const mean = (index: 0 | 1) => logs.reduce((sum, log) => sum + log[index], 0) / logs.length
  const [meanX, meanY] = [mean(0), mean(1)]
  const shared = logs.reduce((sum, [x, y]) => sum + (x - meanX) * (y - meanY), 0)
  return shared / logs.reduce((sum, [x]) => sum + (x - meanX) ** 2, 0)
}

/** A number with so many digits after the point; "–" for what was not measured. */
export const fixed = (value: number | undefined, digits = 1): string =>
  value === undefined || !Number.isFinite(value) ? "–" : value.toFixed(digits)

/** A number with about three digits. */
export const rounded = (value: number | undefined): string => {
  const size = Math.abs(value ?? 0)
  return fixed(value, size >= 100 ? 0 : size >= 10 ? 1 : 2)
}

/** A difference with its sign. */
export const signed = (value: number | undefined, digits = 1): string =>
  value !== undefined && value >= 0 ? `+${fixed(value, digits)}` : fixed(value, digits)

/** How many times one is the other. */
export const times = (value: number, reference: number | undefined): string =>
  reference === undefined || !Number.isFinite(value / reference) ? "–" : `${(value / reference).toFixed(2)}×`
