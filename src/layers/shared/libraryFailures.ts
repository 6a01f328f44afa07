/**
 * What the codes of described libraries mean.
 */
import { reasonFromStatus } from "../../CudaError.ts"
import type { CudaErrorReason } from "../../CudaError.ts"
import type { LibraryRef } from "../CudaRuntime.ts"
import type { Core } from "./Core.ts"
import type { StreamResource } from "./resources.ts"

/** The reason for a code. Behind some codes there may be a fault of the GPU, which the driver knows. */
export const reasonOf = (
  core: Core,
  operation: string,
  { definition }: LibraryRef,
  code: number,
  stream: StreamResource | undefined
): CudaErrorReason => {
  const { faults = [], name: library, statuses } = definition
  if (faults.includes(code) && stream !== undefined && stream.recording === undefined) {
    findFault(core, operation, stream)
  }
  const meaning = typeof statuses === "function" ? statuses(code) : statuses[code]
  if (typeof meaning === "object" && "_tag" in meaning) return meaning
  const [name, description] = typeof meaning === "string" ? [meaning, ""] : meaning ?? [undefined, ""]
  return { _tag: "LibraryFailed", library, code, name, description, advice: "", isRetryable: false }
}

const findFault = (core: Core, operation: string, stream: StreamResource): void => {
  const reason = reasonFromStatus(core.backend.streams.query(stream))
  if (!("isSticky" in reason) || !reason.isSticky) return
  const { deviceIndex } = stream
  core.origins.first ??= { operation, deviceIndex, status: reason, at: Date.now() }
}
