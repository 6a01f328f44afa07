/**
 * The health of devices: what its implementations share.
 */
import type * as Effect from "effect/Effect"
import type { CudaError } from "../../CudaError.ts"
import { refuseArgument } from "./failures.ts"

/** Refuses what is not the index of a device. Undefined for an index of one. */
export const refuseDevice = (
  operation: string,
  devices: ReadonlyArray<unknown>,
  index: unknown
): Effect.Effect<never, CudaError> | undefined =>
  typeof index === "number" && Number.isInteger(index) && devices[index] !== undefined
    ? undefined
    : refuseArgument(operation, "device", index, `a device index from 0 to ${devices.length - 1}`)
