/**
 * The check of memory ranges, shared by copies, fills and accesses.
 */
import type * as Effect from "effect/Effect"
import type { CudaError } from "../../CudaError.ts"
import type { MemoryRange } from "../CudaRuntime.ts"
import { inBytes } from "../runtime/words.ts"
import { refuseArgument } from "./failures.ts"

/** The failure for an invalid argument; undefined for a valid one. */
export type Refusal = Effect.Effect<never, CudaError> | undefined

/** The name of a copy's argument, with its index in a batch. */
export const nameAt = (name: string, index: number | undefined): string =>
  index === undefined ? name : `copies[${index}].${name}`

/** Refuses a range that is not within its buffer. */
export const refuseRange = (operation: string, name: string, range: MemoryRange, index?: number): Refusal => {
  const { byteLength, memory, offset } = range
  if (!Number.isSafeInteger(offset) || offset < 0 || offset > memory.byteLength) {
    const expected = `an integer from 0 to ${memory.byteLength}, the size of the buffer`
    return refuseArgument(operation, nameAt(`${name}.offset`, index), offset, expected)
  }
  const room = memory.byteLength - offset
  if (!Number.isSafeInteger(byteLength) || byteLength < 0 || byteLength > room) {
    const size = inBytes(memory.byteLength)
    const expected = Number.isSafeInteger(byteLength) && byteLength > room
      ? `at most ${room}: bytes ${offset} to ${offset + byteLength} do not fit in a buffer of ${size}`
      : `an integer from 0 to ${room}, for a range at offset ${offset} of a buffer of ${size}`
    return refuseArgument(operation, nameAt(`${name}.byteLength`, index), byteLength, expected)
  }
  return undefined
}
