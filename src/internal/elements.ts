/**
 * Types of elements, where two must be the same.
 */
import * as Effect from "effect/Effect"
import { elementTypesOf } from "../cuda/elements.ts"
import type { ElementType } from "../cuda/elements.ts"
import { CudaError } from "../CudaError.ts"

/** Something that may have a type of elements. */
interface MaybeTyped {
  readonly element?: ElementType | undefined
}

const untypedWords = "bytes without an element type"

/** Whether both are typed, and differently. Values that are no buffers are left to others. */
export const areMixed = (one: MaybeTyped, other: MaybeTyped): boolean => {
  const type = one?.element
  const second = other?.element
  return type !== second && type !== undefined && second !== undefined
}

/** Refuses elements of another type. */
export const refuseElements = (
  operation: string,
  argument: string,
  given: ElementType | undefined,
  expected: string
): Effect.Effect<never, CudaError> => {
  const value = given === undefined ? untypedWords : `elements of ${given}`
  return Effect.fail(new CudaError({ operation, reason: { _tag: "InvalidArgument", argument, value, expected } }))
}

/** The failure for a copy between elements of different types. */
export const refuseMixed = (operation: string, argument: string, to: MaybeTyped, from: MaybeTyped) =>
  refuseElements(
    operation,
    argument,
    from.element,
    `elements of ${to.element}, as the destination has (CudaMemory.slice takes the bytes of either)`
  )

/** Whether a typed array cannot hold elements of a type. Without a type, any array holds the bytes. */
export const cannotHold = (array: unknown, type: ElementType | undefined): boolean =>
  type !== undefined && ArrayBuffer.isView(array) && !(array instanceof DataView) &&
  elementTypesOf(array)?.includes(type) !== true
