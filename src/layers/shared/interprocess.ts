/**
 * Memory of other processes: the shared operations, and the backend functions they use.
 */
import * as Effect from "effect/Effect"
import { ipcHandleSize, memoryHandleSize } from "../../cuda/flags.ts"
import { success } from "../../cuda/status.ts"
import type { CudaError } from "../../CudaError.ts"
import type {
  MemoryOptions,
  MemoryRange,
  OpenMemoryOptions,
  PointerAttributes,
  SharedMemory,
  SharedPool
} from "../CudaRuntime.ts"
import type { InterprocessOperations } from "../runtime/interprocess.ts"
import { inBytes } from "../runtime/words.ts"
import type { Core } from "./Core.ts"
import { refuse, refuseArgument, refuseDescribed, refuseResource } from "./failures.ts"
import { allocationError, free, refuseByteLength, withOptions } from "./memory.ts"
import { allowFirst } from "./peers.ts"
import { refuseRange } from "./ranges.ts"
import type { Refusal } from "./ranges.ts"
import { refuseToRecord } from "./recordings.ts"
import { ownMemory, ownPool, unusable, unusableMemory } from "./resources.ts"
import type { DeviceMemoryResource, EventResource, MemoryPoolResource } from "./resources.ts"

export interface InterprocessBackend {
  /** Identifies the process among all processes, to refuse what it shared itself. */
  readonly origin: string
  /** The descriptor made by `sharePool` or `takeDescriptor`. */
  readonly descriptor: number
  /** The pool made by `openPool`. */
  readonly pool: MemoryPoolResource | undefined
  /** The memory made by `allocate` or `openMemory`. */
  readonly memory: DeviceMemoryResource | undefined
  /** The 64 bytes read by `share`. */
  readonly handle: Uint8Array<ArrayBuffer>
  readonly sharePool: (pool: MemoryPoolResource) => number
  /** Called when a shareable pool of this process is destroyed. */
  readonly forgetPool: (pool: MemoryPoolResource) => void
  readonly openPool: (deviceIndex: number, descriptor: number) => number
  /** Whether memory of an opened pool is in use. */
  readonly isPoolUsed: (pool: MemoryPoolResource) => boolean
  /** Closes an opened pool. Call after the releases of its memory have finished. */
  readonly closePool: (pool: MemoryPoolResource) => number
  readonly isDescriptor: (descriptor: number) => boolean
  readonly takeDescriptor: (pid: number, descriptor: number) => number
  readonly closeDescriptor: (descriptor: number) => void
  /** Allocates memory outside of pools. `MemoryBackend.free` releases it. */
  readonly allocate: (deviceIndex: number, byteLength: number) => number
  readonly share: (memory: DeviceMemoryResource) => number
  /** Whether memory must not be opened before the releases enqueued so far have finished, because one of them is of this memory. */
  readonly isReopening: (shared: SharedMemory, pool: MemoryPoolResource | undefined) => boolean
  /** Opens memory of another process. `MemoryBackend.free` releases memory of a pool, and `close` an allocation. */
  readonly openMemory: (deviceIndex: number, shared: SharedMemory, pool: MemoryPoolResource | undefined) => number
  /** The allocation that opened memory is in, if that is known. */
  readonly rangeOf: (memory: DeviceMemoryResource) => PointerAttributes["range"]
  /** Closes an allocation of another process, which no work uses any longer, at an idle moment. */
  readonly close: (memory: DeviceMemoryResource) => void
  /** Records an event after the releases enqueued so far. */
  readonly recordRelease: (deviceIndex: number, event: EventResource) => number
}

export const interprocessOperations = (core: Core): InterprocessOperations => ({
  poolShare: (pool) => Effect.suspend(() => sharePool(core, ownPool(pool))),
  poolOpen: (device, descriptor, id) =>
    core.onDevice("CudaInterprocess.openPool", device, () => openPool(core, device, descriptor, id)),
  descriptorTake: (pid, descriptor) => Effect.suspend(() => takeDescriptor(core, pid, descriptor)),
  descriptorClose: (descriptor) =>
    Effect.sync(() => {
      if (core.descriptors.delete(descriptor)) core.backend.interprocess.closeDescriptor(descriptor)
    }),
  memoryAllocateShareable: (device, byteLength, options = {}) =>
    core.onDevice("CudaInterprocess.allocate", device, () => allocate(core, device, byteLength, options)),
  memoryShare: (range) => Effect.suspend(() => share(core, range)),
  memoryOpen: (device, memory, options = {}) =>
    core.onDevice("CudaInterprocess.open", device, () => open(core, device, memory, options))
})

const sharePool = (core: Core, pool: MemoryPoolResource): Effect.Effect<SharedPool, CudaError> => {
  const operation = "CudaInterprocess.sharePool"
  if (unusable(core.backend, pool)) return refuseResource(operation, core.backend, pool)
  if (!pool.isShareable) return refuseArgument(operation, "pool", pool, "a pool made with { shareable: true }")
  const status = core.backend.interprocess.sharePool(pool)
  if (status !== success) return core.fail(operation, status, pool)
  const { descriptor } = core.backend.interprocess
  core.descriptors.add(descriptor)
  pool.sharedAs ??= crypto.randomUUID()
  return Effect.succeed({ descriptor, id: pool.sharedAs })
}

const openPool = (
  core: Core,
  deviceIndex: number,
  descriptor: number,
  id: string | undefined
): Effect.Effect<MemoryPoolResource, CudaError> => {
  const operation = "CudaInterprocess.openPool"
  const { interprocess } = core.backend
  const refused = refuseDescriptor(operation, core, descriptor)
  if (refused !== undefined) return refused
  if (isOwnPool(core, id)) return refuseOwn(operation, "token", "a pool")
  const status = interprocess.openPool(deviceIndex, descriptor)
  if (status !== success) return core.failOn(operation, status, deviceIndex, `descriptor ${descriptor}`)
  const pool = interprocess.pool!
  pool.sharedAs = id
  const allowed = allowFirst(core, pool, undefined)
  if (allowed !== success) {
    const error = core.error(operation, allowed, deviceIndex, String(pool))
    interprocess.closePool(pool)
    return Effect.fail(error)
  }
  core.pools.add(pool)
  return Effect.succeed(pool)
}

/** The driver may answer anything to a number that is not a descriptor. */
const refuseDescriptor = (operation: string, core: Core, descriptor: number): Refusal => {
  const { interprocess } = core.backend
  return Number.isSafeInteger(descriptor) && descriptor >= 0 && interprocess.isDescriptor(descriptor)
    ? undefined
    : refuseArgument(operation, "descriptor", descriptor, "an open descriptor of this process")
}

const isOwnPool = (core: Core, id: string | undefined): boolean =>
  id !== undefined && Array.from(core.pools).some(({ isShareable, sharedAs }) => isShareable && sharedAs === id)

/** The driver cannot open what its own process has shared. */
const refuseOwn = (operation: string, argument: string, what: string) =>
  refuseDescribed(
    operation,
    argument,
    `that of ${what} of this process`,
    `that of ${what} of another process: in its own process, use ${
      what === "a pool" ? "the pool" : "the buffer"
    } itself`
  )

const takeDescriptor = (core: Core, pid: number, descriptor: number): Effect.Effect<number, CudaError> => {
  const operation = "CudaInterprocess.takeDescriptor"
  for (const [name, value, least] of [["pid", pid, 1], ["descriptor", descriptor, 0]] as const) {
    if (!Number.isSafeInteger(value) || value < least || value >= 2 ** 31) {
      return refuseArgument(operation, name, value, `an integer from ${least} to 2147483647`)
    }
  }
  if (core.closed) return refuse(operation, { _tag: "ResourceReleased", resource: "the runtime" })
  const status = core.backend.interprocess.takeDescriptor(pid, descriptor)
  if (status !== success) {
    return core.failOn(operation, status, 0, `descriptor ${descriptor} of process ${pid}`)
  }
  const taken = core.backend.interprocess.descriptor
  core.descriptors.add(taken)
  return Effect.succeed(taken)
}

const allocate = (
  core: Core,
  deviceIndex: number,
  byteLength: number,
  options: MemoryOptions
): Effect.Effect<DeviceMemoryResource, CudaError> => {
  const operation = "CudaInterprocess.allocate"
  const refused = refuseByteLength(operation, byteLength)
  if (refused !== undefined) return refused
  const status = core.backend.interprocess.allocate(deviceIndex, byteLength)
  if (status !== success) {
    const subject = `${inBytes(byteLength)} on device ${deviceIndex}`
    return Effect.fail(allocationError(core, operation, status, deviceIndex, subject, byteLength))
  }
  const memory = withOptions(core.backend.interprocess.memory!, options)
  memory.sharing = "allocation"
  memory.peers = core.backend.pools.ofDevice(deviceIndex).peers
  core.deviceMemory.add(memory)
  return Effect.succeed(memory)
}

const share = (core: Core, range: MemoryRange): Effect.Effect<SharedMemory, CudaError> => {
  const operation = "CudaInterprocess.share"
  const { interprocess } = core.backend
  const memory = ownMemory(range.memory)
  if (unusableMemory(core.backend, memory)) return refuseResource(operation, core.backend, memory)
  if (memory.slot !== undefined) return refuseToRecord(operation, "memory of a recorded graph has no address yet")
  if (memory.kind === "host" || memory.sharing === undefined) {
    const expected = "memory of a pool made with { shareable: true }, or allocated with CudaInterprocess.allocate"
    return refuseArgument(operation, "buffer", memory, expected)
  }
  const refused = refuseRange(operation, "buffer", range) ??
    refuseByteLength(operation, range.byteLength, "buffer.byteLength")
  if (refused !== undefined) return refused
  const status = interprocess.share(memory)
  if (status !== success) return core.fail(operation, status, memory)
  const pool = memory.sharing === "allocation" ? undefined : memory.sharing
  if (pool !== undefined) pool.sharedAs ??= crypto.randomUUID()
  return Effect.succeed({
    kind: pool === undefined ? "allocation" : "pool",
    handle: interprocess.handle.slice(),
    offset: range.offset,
    byteLength: range.byteLength,
    origin: interprocess.origin,
    pool: pool?.sharedAs,
    returned: undefined
  })
}

const open = (
  core: Core,
  deviceIndex: number,
  shared: SharedMemory,
  options: OpenMemoryOptions,
  isReopened = false
): Effect.Effect<DeviceMemoryResource, CudaError> => {
  const operation = "CudaInterprocess.open"
  const { interprocess } = core.backend
  // An allocation needs no pool, so the one given for memory in general is ignored.
  const pool = options.pool === undefined || shared.kind === "allocation" ? undefined : ownPool(options.pool)
  const refused = refuseShared(operation, core, shared) ??
    refusePool(operation, core, deviceIndex, shared, pool)
  if (refused !== undefined) return refused
  if (!isReopened && interprocess.isReopening(shared, pool)) {
    return Effect.flatMap(
      core.wait(
        operation,
        deviceIndex,
        String(pool),
        (onDone) => core.backend.memory.watchReleases(deviceIndex, onDone)
      ),
      () => open(core, deviceIndex, shared, options, true)
    )
  }
  const status = interprocess.openMemory(deviceIndex, shared, pool)
  if (status !== success) {
    return core.failOn(operation, status, deviceIndex, `${inBytes(shared.byteLength)} of another process`)
  }
  const memory = withOptions(interprocess.memory!, options)
  memory.isForeign = shared.kind === "allocation"
  if (pool !== undefined) {
    memory.pool = pool
    memory.peers = pool.peers
  }
  const range = interprocess.rangeOf(memory)
  if (range !== undefined && memory.address + memory.byteLength > range.address + range.byteLength) {
    return Effect.andThen(Effect.ignore(free(core, memory)), refuseBeyond(operation, shared, range.byteLength))
  }
  const noted = openReturned(core, memory, shared.returned)
  if (noted !== success) {
    const failed = core.fail(operation, noted, memory)
    return Effect.andThen(Effect.ignore(free(core, memory)), failed)
  }
  core.deviceMemory.add(memory)
  return Effect.succeed(memory)
}

/** Opens the event that tells the other process when the memory is released. It belongs to the memory. */
const openReturned = (core: Core, memory: DeviceMemoryResource, handle: Uint8Array | undefined): number => {
  if (handle === undefined) return success
  const status = core.backend.events.fromIpcHandle(memory.deviceIndex, handle)
  if (status === success) memory.opened!.returned = core.backend.events.created
  return status
}

const refuseBeyond = (operation: string, { byteLength, offset }: SharedMemory, most: number) =>
  refuseArgument(
    operation,
    "byteLength",
    byteLength,
    `at most ${Math.max(0, most - offset)}, the bytes from offset ${offset} to the end of the allocation`
  )

/** Refuses what is not a description of memory, and memory of this process. */
const refuseShared = (operation: string, core: Core, shared: SharedMemory): Refusal => {
  const { byteLength, handle, kind, offset, origin, returned } = shared
  if (kind !== "pool" && kind !== "allocation") return refuseArgument(operation, "kind", kind, "pool or allocation")
  if (!(handle instanceof Uint8Array) || handle.byteLength !== memoryHandleSize) {
    return refuseArgument(operation, "handle", handle, `${memoryHandleSize} bytes`)
  }
  if (returned !== undefined && returned.byteLength !== ipcHandleSize) {
    return refuseArgument(operation, "returned", returned, `${ipcHandleSize} bytes`)
  }
  if (!Number.isSafeInteger(offset) || offset < 0) {
    return refuseArgument(operation, "offset", offset, "a non-negative integer")
  }
  if (origin === core.backend.interprocess.origin) return refuseOwn(operation, "token", "memory")
  return refuseByteLength(operation, byteLength)
}

/** Checks the pool that memory is opened with. */
const refusePool = (
  operation: string,
  core: Core,
  deviceIndex: number,
  shared: SharedMemory,
  pool: MemoryPoolResource | undefined
): Refusal => {
  if (pool !== undefined && unusable(core.backend, pool)) return refuseResource(operation, core.backend, pool)
  if (shared.kind === "allocation") return undefined
  if (pool?.origin !== "opened") {
    return refuseArgument(operation, "pool", pool, "the pool of the memory, opened with CudaInterprocess.openPool")
  }
  if (pool.deviceIndex !== deviceIndex) {
    const resources = [String(pool), `memory of device ${deviceIndex}`] as const
    return refuse(operation, { _tag: "DeviceMismatch", resources, deviceIndices: [pool.deviceIndex, deviceIndex] })
  }
  const isOther = shared.pool !== undefined && pool.sharedAs !== undefined && shared.pool !== pool.sharedAs
  return isOther
    ? refuseArgument(operation, "pool", pool, "the pool that the memory was allocated from, not another one")
    : undefined
}
