/**
 * Device memory: the shared operations that allocate and release it, and the backend functions they use.
 */
import * as Effect from "effect/Effect"
import { notReady, success } from "../../cuda/status.ts"
import { CudaError } from "../../CudaError.ts"
import type { DeviceMemoryOptions, MemoryOptions, PointerAttributes } from "../CudaRuntime.ts"
import type { MemoryOperations } from "../runtime/memory.ts"
import { inBytes } from "../runtime/words.ts"
import type { Core } from "./Core.ts"
import { refuse, refuseArgument, refuseResource } from "./failures.ts"
import { operation } from "./operation.ts"
import { Ordering } from "./ordering.ts"
import type { Refusal } from "./ranges.ts"
import { refuseToRecord } from "./recordings.ts"
import { ownMemory, ownPool, ownStream, unusable } from "./resources.ts"
import type { AnyMemoryResource, DeviceMemoryResource, MemoryPoolResource, StreamResource } from "./resources.ts"
import { watchUsers } from "./waits.ts"
import type { Cancel, OnDone } from "./waits.ts"

export interface MemoryBackend {
  /** The memory made by `allocate`. */
  readonly allocated: DeviceMemoryResource | undefined
  /**
   * Allocates from a pool, by default the device's. The memory is usable in stream order, or on every stream once
   * `watchAllocation` ends.
   */
  readonly allocate: (
    deviceIndex: number,
    byteLength: number,
    pool: MemoryPoolResource | undefined,
    stream: StreamResource | undefined
  ) => number
  /** Enqueues the release after the work of all streams that used the memory. */
  readonly free: (memory: DeviceMemoryResource) => number
  /** Whether every stream can use the latest allocations of a device. */
  readonly allocationQuery: (deviceIndex: number) => number
  /** Reports when every stream can use the latest allocations of a device. */
  readonly watchAllocation: (deviceIndex: number, onDone: OnDone) => Cancel
  /** What `attributes` found; undefined for memory that the driver does not know. */
  readonly found: PointerAttributes | undefined
  readonly attributes: (deviceIndex: number, address: number) => number
  /** Makes a resource of memory of other code, which `attributes` has just found. */
  readonly adopt: (deviceIndex: number, address: number, byteLength: number) => DeviceMemoryResource
  /** Reports when every release enqueued so far on a device has finished. */
  readonly watchReleases: (deviceIndex: number, onDone: OnDone) => Cancel
}

export const memoryOperations = (
  core: Core
): Omit<MemoryOperations, "memoryFromAddress" | "memoryAttributes"> => ({
  memoryAllocate: operation((deviceIndex: number, byteLength: number, options: DeviceMemoryOptions = {}) =>
    core.whenOpen("CudaMemory.allocate", deviceIndex, () => allocate(core, deviceIndex, byteLength, options))
  ),
  memoryReclaim: (device) =>
    core.onDevice(
      "CudaMemory.reclaim",
      device,
      () => reclaim(core, "CudaMemory.reclaim", device, () => poolsOf(core, device))
    ),
  memoryFree: (ref) =>
    Effect.suspend(() => {
      const memory = ownMemory(ref)
      if (memory.owner !== core.backend) return refuseResource("CudaMemory.release", core.backend, memory)
      return memory.state === "live" ? free(core, memory) : Effect.void
    })
})

export const withOptions = <Memory extends AnyMemoryResource>(memory: Memory, { ordered }: MemoryOptions): Memory => {
  if (ordered === true) memory.ordering = new Ordering()
  return memory
}

export const allocate = (
  core: Core,
  deviceIndex: number,
  byteLength: number,
  options: DeviceMemoryOptions,
  operation = "CudaMemory.allocate"
): Effect.Effect<DeviceMemoryResource, CudaError> => {
  const pool = options.pool === undefined ? undefined : ownPool(options.pool)
  const stream = options.stream === undefined ? undefined : ownStream(options.stream)
  const refused = refuseByteLength(operation, byteLength) ?? refusePlace(core, operation, deviceIndex, pool, stream)
  if (refused !== undefined) return refused
  const status = core.backend.memory.allocate(deviceIndex, byteLength, pool, stream)
  if (status !== success) {
    const subject = `${inBytes(byteLength)} ${pool === undefined ? `on device ${deviceIndex}` : `of ${pool}`}`
    return Effect.fail(allocationError(core, operation, status, deviceIndex, subject, byteLength))
  }
  const memory = withOptions(core.backend.memory.allocated!, options)
  memory.pool = pool ?? core.backend.pools.ofDevice(deviceIndex)
  memory.peers = memory.pool.peers
  if (pool?.isShareable === true) memory.sharing = pool
  core.deviceMemory.add(memory)
  return stream === undefined
    ? whenReady(core, operation, memory)
    : amongWorkOf(core, operation, memory, stream)
}

/** The failure of an allocation. For `OutOfMemory`, includes the free and total memory. */
export const allocationError = (
  core: Core,
  operation: string,
  status: number,
  deviceIndex: number,
  subject: string,
  requested: number
): CudaError => {
  const error = core.error(operation, status, deviceIndex, subject)
  if (error.reason._tag !== "OutOfMemory" || core.backend.devices.memoryInfo(deviceIndex) !== success) return error
  return new CudaError({ ...error, memory: { requested, ...core.backend.devices.memoryInfoResult } })
}

/** Checks that the pool and the stream of an allocation are usable and on its device. */
const refusePlace = (
  core: Core,
  operation: string,
  deviceIndex: number,
  pool: MemoryPoolResource | undefined,
  stream: StreamResource | undefined
): Refusal => {
  if (pool?.origin === "opened" && !unusable(core.backend, pool)) {
    return refuseArgument(
      operation,
      "pool",
      pool,
      "a pool of this process: only the one that made it allocates from it"
    )
  }
  for (const part of [pool, stream]) {
    if (part === undefined) continue
    if (unusable(core.backend, part)) return refuseResource(operation, core.backend, part)
    if ("recording" in part && part.recording !== undefined) {
      return refuseToRecord(operation, "inside a recording, allocate with the CudaRuntime of its context")
    }
    if (part.deviceIndex === deviceIndex) continue
    const resources = [String(part), `memory of device ${deviceIndex}`] as const
    return refuse(operation, { _tag: "DeviceMismatch", resources, deviceIndices: [part.deviceIndex, deviceIndex] })
  }
  return undefined
}

/** Waits until every stream can use the memory. */
const whenReady = (
  core: Core,
  operation: string,
  memory: DeviceMemoryResource
): Effect.Effect<DeviceMemoryResource, CudaError> => {
  const { deviceIndex } = memory
  const status = core.backend.memory.allocationQuery(deviceIndex)
  if (status === success) return Effect.succeed(memory)
  if (status !== notReady) return Effect.andThen(undo(core, memory), core.fail(operation, status, memory))
  const ready = core.wait(
    operation,
    deviceIndex,
    String(memory),
    (onDone) => core.backend.memory.watchAllocation(deviceIndex, onDone)
  )
  return Effect.uninterruptible(Effect.as(Effect.onError(ready, () => undo(core, memory)), memory))
}

const undo = (core: Core, memory: DeviceMemoryResource): Effect.Effect<void> =>
  Effect.suspend(() => memory.state === "live" ? Effect.ignore(free(core, memory)) : Effect.void)

/** Marks an allocation in stream order, so that the first use on any other stream waits for it. */
const amongWorkOf = (
  core: Core,
  operation: string,
  memory: DeviceMemoryResource,
  stream: StreamResource
): Effect.Effect<DeviceMemoryResource, CudaError> => {
  const { backend } = core
  memory.allocatedOn = stream
  memory.usedOn(stream)
  const status = backend.markers.record(stream)
  if (status !== success) return Effect.andThen(undo(core, memory), core.fail(operation, status, memory))
  const marker = backend.markers.made!
  memory.beforeFirstUse = (other) => backend.markers.wait(other, marker)
  memory.onRelease = () => backend.markers.release(marker)
  return Effect.succeed(memory)
}

export const free = (core: Core, memory: AnyMemoryResource): Effect.Effect<void, CudaError> => {
  memory.state = "released"
  memory.ordering?.close()
  if (memory.slot !== undefined) return Effect.void
  if (memory.kind === "host") {
    core.hostMemory.delete(memory)
    const status = core.backend.pinned.free(memory)
    return status === success ? Effect.void : core.failOn("CudaMemory.release", status, 0, String(memory))
  }
  core.deviceMemory.delete(memory)
  // The runtime is not released meanwhile, because its release would end the wait.
  if (memory.isForeign) {
    const unused = untilUnused(core, memory)
    return core.acquiring.withPermit(
      memory.opened === undefined ? unused : Effect.ensuring(unused, closing(core, memory))
    )
  }
  const status = core.backend.memory.free(memory) || noteReturn(core, memory)
  memory.onRelease?.()
  return status === success ? Effect.void : core.fail("CudaMemory.release", status, memory)
}

/** Tells the process that shared the memory when it is released. */
const noteReturn = (core: Core, { deviceIndex, opened }: DeviceMemoryResource): number => {
  const returned = opened?.returned
  if (returned === undefined) return success
  return core.backend.interprocess.recordRelease(deviceIndex, returned) || core.backend.events.destroy(returned)
}

/** Closes an allocation of another process. Its event is left as it is, because no work uses the memory. */
const closing = (core: Core, memory: DeviceMemoryResource): Effect.Effect<void> =>
  Effect.sync(() => {
    const returned = memory.opened?.returned
    if (returned !== undefined) core.backend.events.destroy(returned)
    core.backend.interprocess.close(memory)
  })

/**
 * Waits until no work uses the memory. If waiting fails for a reason other than a fault, the streams are polled, because their work may
 * still use it.
 */
const untilUnused = (core: Core, memory: DeviceMemoryResource): Effect.Effect<void, CudaError> => {
  const users = memory.pendingUsers
  if (users.length === 0) return Effect.void
  const { streams } = core.backend
  const watch = watchUsers(streams, memory)
  const waited = core.wait("CudaMemory.release", memory.deviceIndex, String(memory), watch)
  const isUsed = () => users.some((user) => user.state !== "released" && streams.query(user) === notReady)
  return Effect.catch(waited, (error) => {
    const isHung = error.reason._tag === "NeverFinishes"
    const unused = Effect.whileLoop({ while: () => !isHung && isUsed(), body: () => Effect.sleep(1), step: () => {} })
    return Effect.andThen(unused, Effect.fail(error))
  })
}

/** Waits for the releases enqueued so far, then trims the pools to `keepBytes` each. */
export const reclaim = (
  core: Core,
  operation: string,
  deviceIndex: number,
  pools: () => ReadonlyArray<MemoryPoolResource>,
  keepBytes = 0
): Effect.Effect<void, CudaError> =>
  Effect.flatMap(
    core.wait(operation, deviceIndex, `device ${deviceIndex}`, (onDone) =>
      core.backend.memory.watchReleases(deviceIndex, onDone)),
    () => {
      for (const pool of pools()) {
        if (unusable(core.backend, pool)) {
          return refuseResource(operation, core.backend, pool)
        }
        const status = core.backend.pools.trim(pool, keepBytes)
        if (status !== success) {
          return core.fail(operation, status, pool)
        }
      }
      return Effect.void
    }
  )

/** All live pools of a device, except those of other processes, which trim them. */
const poolsOf = (core: Core, deviceIndex: number): ReadonlyArray<MemoryPoolResource> => [
  core.backend.pools.ofDevice(deviceIndex),
  ...Array.from(core.pools).filter((pool) => pool.deviceIndex === deviceIndex && pool.origin !== "opened")
]

export const refuseByteLength = (operation: string, byteLength: number, argument = "byteLength"): Refusal =>
  Number.isSafeInteger(byteLength) && byteLength > 0
    ? undefined
    : refuseArgument(operation, argument, byteLength, "a positive integer below 2^53")
