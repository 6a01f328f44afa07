/**
 * Words for messages.
 */

/** Prints a count with its unit: `1 value`, `2 values`. */
export const counted = (count: number, unit: string): string => `${count} ${unit}${count === 1 ? "" : "s"}`

/** Prints a number of bytes: `1 byte`, `2 bytes`. */
export const inBytes = (count: number): string => counted(count, "byte")
