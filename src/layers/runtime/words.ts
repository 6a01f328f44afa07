/**
 * Words for messages.
 */

/** A count with its unit: `1 value`, `2 values`. */
export const counted = (count: number, unit: string): string => `${count} ${unit}${count === 1 ? "" : "s"}`

/** `counted` in bytes. */
export const inBytes = (count: number): string => counted(count, "byte")
