/**
 * The operations of every runtime that make memory and release it.
 */
import * as Effect from "effect/Effect"
import { constants } from "node:buffer"
import { notReady, success } from "../../cuda/status.ts"
import type { CudaError } from "../../CudaError.ts"
import type { CudaRuntimeService, DeviceMemoryOptions, MemoryOptions } from "../CudaRuntime.ts"
import { accessOperations } from "./accesses.ts"
import type { Core } from "./Core.ts"
import { refuse, refuseArgument, refuseResource } from "./failures.ts"
import { operation } from "./operation.ts"
import { Ordering } from "./ordering.ts"
import type { Refusal } from "./ranges.ts"
import { ownMemory, ownPool, ownStream, unusable } from "./resources.ts"
import type { AnyMemoryResource, DeviceMemoryResource, MemoryPoolResource, StreamResource } from "./resources.ts"

type MemoryOperations = Pick<
  CudaRuntimeService,
  | "memoryAllocate"
  | "managedAllocate"
  | "memoryReclaim"
  | "hostAllocate"
  | "memoryFree"
  | "memoryBegin"
  | "memoryEnd"
  | "memorySettled"
>

export const memoryOperations = (core: Core): MemoryOperations => ({
  ...accessOperations(core),
  memoryAllocate: operation((device: number, byteLength: number, options: DeviceMemoryOptions = {}) =>
    core.whenOpen("CudaMemory.allocate", device, () => allocate(core, device, byteLength, options))
  ),
  managedAllocate: (device, byteLength, options = {}) =>
    Effect.uninterruptible(
      core.onDevice("CudaMemory.allocateManaged", device, () => allocateManaged(core, device, byteLength, options))
    ),
  memoryReclaim: (device) =>
    core.onDevice(
      "CudaMemory.reclaim",
      device,
      () => reclaim(core, "CudaMemory.reclaim", device, () => poolsOf(core, device))
    ),
  hostAllocate: (byteLength, options = {}) =>
    Effect.uninterruptible(
      core.onDevice("CudaMemory.allocateHost", 0, () =>
        refuseByteLength("CudaMemory.allocateHost", byteLength) ??
          Effect.mapBoth(core.pinning.withPermit(core.backend.hostAllocate(byteLength)), {
            onSuccess: (memory) => {
              core.hostMemory.add(memory)
              return withOptions(memory, options)
            },
            onFailure: ({ call, status }) => core.error("CudaMemory.allocateHost", status, 0, pinned(byteLength), call)
          }))
    ),
  memoryFree: (ref) =>
    Effect.suspend(() => {
      const memory = ownMemory(ref)
      if (memory.owner !== core.backend) return refuseResource("CudaMemory.release", core.backend, memory)
      return memory.state === "live" ? free(core, memory) : Effect.void
    })
})

const withOptions = <Memory extends AnyMemoryResource>(memory: Memory, { ordered }: MemoryOptions): Memory => {
  if (ordered === true) memory.ordering = new Ordering()
  return memory
}

const allocate = (
  core: Core,
  device: number,
  byteLength: number,
  options: DeviceMemoryOptions
): Effect.Effect<DeviceMemoryResource, CudaError> => {
  const operation = "CudaMemory.allocate"
  const pool = options.pool && ownPool(options.pool)
  const stream = options.stream && ownStream(options.stream)
  const refused = refuseByteLength(operation, byteLength) ?? refusePlace(core, operation, device, options)
  if (refused !== undefined) return refused
  const status = core.backend.memoryAllocate(device, byteLength, pool, stream)
  if (status !== success) {
    return core.failOn(
      operation,
      status,
      device,
      `${byteLength} bytes ${pool === undefined ? `on device ${device}` : `of ${pool}`}`
    )
  }
  const memory = withOptions(core.backend.memory!, options)
  core.deviceMemory.add(memory)
  return stream === undefined
    ? whenReady(core, operation, memory)
    : amongWorkOf(core, operation, memory, stream)
}

/** The pool and the stream of an allocation are there, and on its device. */
const refusePlace = (core: Core, operation: string, device: number, options: DeviceMemoryOptions): Refusal => {
  for (const part of [options.pool && ownPool(options.pool), options.stream && ownStream(options.stream)]) {
    if (part === undefined) continue
    if (unusable(core.backend, part)) return refuseResource(operation, core.backend, part)
    if (part.device === device) continue
    const resources = [String(part), `memory of device ${device}`] as const
    return refuse(operation, { _tag: "DeviceMismatch", resources, devices: [part.device, device] })
  }
  return undefined
}

/** Waits until memory can be used on every stream. */
const whenReady = (
  core: Core,
  operation: string,
  memory: DeviceMemoryResource
): Effect.Effect<DeviceMemoryResource, CudaError> => {
  const { device } = memory
  const status = core.backend.allocationQuery(device)
  if (status === success) return Effect.succeed(memory)
  if (status !== notReady) return Effect.andThen(undo(core, memory), core.fail(operation, status, memory))
  const ready = core.wait(operation, device, String(memory), (onDone) => core.backend.watchAllocation(device, onDone))
  return Effect.uninterruptible(Effect.as(Effect.onError(ready, () => undo(core, memory)), memory))
}

const undo = (core: Core, memory: DeviceMemoryResource): Effect.Effect<void> =>
  Effect.suspend(() => memory.state === "live" ? Effect.ignore(free(core, memory)) : Effect.void)

/** Marks the allocation on its stream, so that the first use on any other one waits for it. */
const amongWorkOf = (
  core: Core,
  operation: string,
  memory: DeviceMemoryResource,
  stream: StreamResource
): Effect.Effect<DeviceMemoryResource, CudaError> => {
  const { backend } = core
  memory.allocatedOn = stream
  memory.usedOn(stream)
  const status = backend.markerRecord(stream)
  if (status !== success) return Effect.andThen(undo(core, memory), core.fail(operation, status, memory))
  const marker = backend.marker!
  memory.beforeFirstUse = (other) => backend.markerWait(other, marker)
  memory.onRelease = () => backend.markerRelease(marker)
  return Effect.succeed(memory)
}

const allocateManaged = (core: Core, device: number, byteLength: number, options: MemoryOptions) => {
  const operation = "CudaMemory.allocateManaged"
  const refused = refuseByteLength(operation, byteLength)
  if (refused !== undefined) return refused
  const status = core.backend.managedAllocate(device, byteLength)
  if (status !== success) {
    return core.failOn(operation, status, device, `${byteLength} bytes of managed memory of device ${device}`)
  }
  const memory = withOptions(core.backend.managed!, options)
  core.deviceMemory.add(memory)
  return Effect.succeed(memory)
}

const free = (core: Core, memory: AnyMemoryResource): Effect.Effect<void, CudaError> => {
  memory.state = "released"
  memory.ordering?.close()
  if (memory.kind === "host") {
    core.hostMemory.delete(memory)
    const status = core.backend.hostFree(memory)
    return status === success ? Effect.void : core.failOn("CudaMemory.release", status, 0, String(memory))
  }
  core.deviceMemory.delete(memory)
  const status = core.backend.memoryFree(memory)
  memory.onRelease?.()
  return status === success ? Effect.void : core.fail("CudaMemory.release", status, memory)
}

/** Waits for the releases enqueued so far, and has the device take back what its pools do not use, beyond some bytes of each. */
export const reclaim = (
  core: Core,
  operation: string,
  device: number,
  pools: () => ReadonlyArray<MemoryPoolResource>,
  keepBytes = 0
): Effect.Effect<void, CudaError> =>
  Effect.flatMap(
    core.wait(operation, device, `device ${device}`, (onDone) => core.backend.watchReleases(device, onDone)),
    () => {
      for (const pool of pools()) {
        if (unusable(core.backend, pool)) return refuseResource(operation, core.backend, pool)
        const status = core.backend.poolTrim(pool, keepBytes)
        if (status !== success) return core.fail(operation, status, pool)
      }
      return Effect.void
    }
  )

/** All pools of a device that are there. */
const poolsOf = (core: Core, device: number): ReadonlyArray<MemoryPoolResource> => [
  core.backend.poolOfDevice(device),
  ...Array.from(core.pools).filter((pool) => pool.device === device)
]

/** JavaScript has to see all of the memory by one array, so there is never more. */
const pinned = (byteLength: number): string => {
  const { MAX_LENGTH: most } = constants
  return `${byteLength} bytes of pinned memory${byteLength > most ? `, of ${most} that an array can have at most` : ""}`
}

const refuseByteLength = (operation: string, byteLength: number): Refusal =>
  Number.isSafeInteger(byteLength) && byteLength > 0
    ? undefined
    : refuseArgument(operation, "byteLength", byteLength, "a positive whole number of bytes below 2^53")
