/**
 * The check of a partition that a stream is to be in.
 */
import type { Core } from "./Core.ts"
import { refuse, refuseArgument, refuseResource } from "./failures.ts"
import type { Refusal } from "./ranges.ts"
import { unusable } from "./resources.ts"
import type { PartitionResource } from "./resources.ts"

/** Refuses a partition that a stream of a device cannot be in. */
export const refusePartition = (
  core: Core,
  operation: string,
  partition: PartitionResource,
  { deviceIndex, nonBlocking }: { readonly deviceIndex: number; readonly nonBlocking: boolean }
): Refusal => {
  if (unusable(core.backend, partition)) return refuseResource(operation, core.backend, partition)
  if (partition.deviceIndex !== deviceIndex) {
    const resources = [String(partition), `a stream of device ${deviceIndex}`] as const
    return refuse(operation, {
      _tag: "DeviceMismatch",
      resources,
      deviceIndices: [partition.deviceIndex, deviceIndex]
    })
  }
  return nonBlocking
    ? undefined
    : refuseArgument(operation, "nonBlocking", nonBlocking, "true, for a stream of a partition")
}
