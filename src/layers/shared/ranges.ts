/**
 * The check of ranges of memory, which copies, fills and accesses share.
 */
import type * as Effect from "effect/Effect"
import type { CudaError } from "../../CudaError.ts"
import type { MemoryRange } from "../CudaRuntime.ts"
import { refuseArgument } from "./failures.ts"

/** Nothing for what is well. */
export type Refusal = Effect.Effect<never, CudaError> | undefined

/** The name of a copy's argument, alone or at an index of a batch. */
export const nameAt = (name: string, index: number | undefined): string =>
  index === undefined ? name : `copies[${index}].${name}`

/** Refuses a range that is not inside its memory. */
export const refuseRange = (operation: string, name: string, range: MemoryRange, index?: number): Refusal => {
  const { byteLength, memory, offset } = range
  if (!Number.isSafeInteger(offset) || offset < 0 || offset > memory.byteLength) {
    const expected = `a whole number from 0 to ${memory.byteLength}`
    return refuseArgument(operation, nameAt(`${name}.offset`, index), offset, expected)
  }
  const room = memory.byteLength - offset
  if (!Number.isSafeInteger(byteLength) || byteLength < 0 || byteLength > room) {
    const expected = `a whole number from 0 to ${room}`
    return refuseArgument(operation, nameAt(`${name}.byteLength`, index), byteLength, expected)
  }
  return undefined
}
