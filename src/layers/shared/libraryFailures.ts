/**
 * What the codes of described libraries mean.
 */
import * as Predicate from "effect/Predicate"
import { reasonFromStatus } from "../../CudaError.ts"
import type { CudaErrorReason } from "../../CudaError.ts"
import type { LibraryRef } from "../CudaRuntime.ts"
import type { Core } from "./Core.ts"
import type { StreamResource } from "./resources.ts"
import { findDefault } from "./streams.ts"

/** The reason for a code. Behind some codes there may be a fault of the GPU, which the driver knows. */
export const reasonOf = (
  core: Core,
  operation: string,
  { definition }: LibraryRef,
  code: number,
  place: StreamResource | number
): CudaErrorReason => {
  const { faults = [], name: library } = definition
  if (faults.includes(code)) findFault(core, operation, place)
  const meaning = typeof definition.statuses === "function" ? definition.statuses(code) : definition.statuses[code]
  if (Predicate.hasProperty(meaning, "_tag")) return meaning
  const [name, description] = typeof meaning === "string" ? [meaning, ""] : meaning ?? [undefined, ""]
  return { _tag: "LibraryFailed", library, code, name, description, advice: "", isRetryable: false }
}

/** Asks a stream, or a device by its default stream. A stream that records is not one of the driver. */
const findFault = (core: Core, operation: string, place: StreamResource | number): void => {
  const stream = typeof place === "number" ? findDefault(core, place, "legacy") : place
  if (typeof stream === "object" && stream.recording !== undefined) return
  const reason = reasonFromStatus(typeof stream === "number" ? stream : core.backend.streams.query(stream))
  if (!("isSticky" in reason) || !reason.isSticky) return
  const deviceIndex = typeof place === "number" ? place : place.deviceIndex
  core.origins.first ??= { operation, deviceIndex, status: reason, at: Date.now() }
}
