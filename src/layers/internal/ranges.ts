/**
 * The check of ranges of memory, which copies, fills and accesses share.
 */
import type * as Effect from "effect/Effect"
import type { CudaError } from "../../CudaError.ts"
import type { MemoryRange } from "../CudaRuntime.ts"
import { refuseArgument } from "./failures.ts"

/** Nothing for what is well. */
export type Refusal = Effect.Effect<never, CudaError> | undefined

/** Refuses a range that is not inside its memory. */
export const refuseRange = (operation: string, name: string, range: MemoryRange): Refusal => {
  const { byteLength, memory, offset } = range
  if (!Number.isSafeInteger(offset) || offset < 0 || offset > memory.byteLength) {
    return refuseArgument(operation, `${name}.offset`, offset, `a whole number from 0 to ${memory.byteLength}`)
  }
  const room = memory.byteLength - offset
  if (!Number.isSafeInteger(byteLength) || byteLength < 0 || byteLength > room) {
    return refuseArgument(operation, `${name}.byteLength`, byteLength, `a whole number from 0 to ${room}`)
  }
  return undefined
}
