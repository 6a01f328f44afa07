/**
 * The partition that streams are made in by default. Apart from `CudaPartition`, which needs the module of streams.
 */
import * as Context from "effect/Context"
import type * as Fiber from "effect/Fiber"
import type { PartitionRef } from "../layers/CudaRuntime.ts"
import { deviceIndexOf } from "./place.ts"
import type { DeviceLike } from "./place.ts"

/** The part of a partition that other modules need. */
export interface AnyPartition {
  readonly ref: PartitionRef
}

/** The partition of the innermost region that set one. */
export const CurrentPartition = Context.Reference<AnyPartition | undefined>("effect-cuda/CurrentPartition", {
  defaultValue: () => undefined
})

/** The reference of a partition. A value that is none is passed on unchanged, and the runtime refuses it. */
export function refOfPartition(partition: AnyPartition): PartitionRef
export function refOfPartition(partition: AnyPartition | undefined): PartitionRef | undefined
export function refOfPartition(partition: AnyPartition | undefined): PartitionRef | AnyPartition | undefined {
  return partition?.ref ?? partition
}

/** The device and the partition of a new stream. The current partition counts for streams of its own device. */
export const placeOfStream = (
  fiber: Fiber.Fiber<unknown, unknown>,
  { device, partition }: { readonly device?: DeviceLike | undefined; readonly partition?: AnyPartition | undefined },
  otherwise: number
): { readonly deviceIndex: number; readonly partition: PartitionRef | undefined } => {
  if (partition !== undefined) {
    const ref = refOfPartition(partition)
    return { deviceIndex: deviceIndexOf(device, ref?.deviceIndex), partition: ref }
  }
  const deviceIndex = deviceIndexOf(device, otherwise)
  const current = fiber.getRef(CurrentPartition)?.ref
  return { deviceIndex, partition: current?.deviceIndex === deviceIndex ? current : undefined }
}
