/**
 * Pools of device memory: the shared operations, and the backend functions they use.
 */
import * as Effect from "effect/Effect"
import { success } from "../../cuda/status.ts"
import type { CudaError } from "../../CudaError.ts"
import type { MemoryPoolOptions, MemoryPoolRef, MemoryPoolStatistics } from "../CudaRuntime.ts"
import type { PoolOperations } from "../runtime/pools.ts"
import type { Core } from "./Core.ts"
import { refuseArgument, refuseResource } from "./failures.ts"
import { reclaim } from "./memory.ts"
import { allowFirst } from "./peers.ts"
import type { Refusal } from "./ranges.ts"
import { ownPool, unusable } from "./resources.ts"
import type { MemoryPoolResource } from "./resources.ts"

export interface PoolBackend {
  /** The pool made by `create`. */
  readonly created: MemoryPoolResource | undefined
  /** The values read by `readStatistics`. */
  readonly statistics: MemoryPoolStatistics
  readonly create: (deviceIndex: number, options: MemoryPoolOptions) => number
  /** The pool that device memory is allocated from by default. Always the same. */
  readonly ofDevice: (deviceIndex: number) => MemoryPoolResource
  readonly destroy: (pool: MemoryPoolResource) => number
  readonly readStatistics: (pool: MemoryPoolResource) => number
  readonly resetHighWater: (pool: MemoryPoolResource) => number
  readonly setReleaseThreshold: (pool: MemoryPoolResource, bytes: number) => number
  /** Returns free memory in excess of `keepBytes` to the device. Call after `MemoryBackend.watchReleases`. */
  readonly trim: (pool: MemoryPoolResource, keepBytes: number) => number
}

export const poolOperations = (core: Core): Omit<PoolOperations, "poolAllowAccess" | "poolDenyAccess"> => ({
  poolCreate: (device, options) =>
    core.onDevice("CudaMemoryPool.make", device, () =>
      options.peers === undefined
        ? create(core, makeOperation, device, options)
        : Effect.andThen(
          openAll(core, options.peers),
          Effect.suspend(() => create(core, makeOperation, device, options))
        )),
  poolOfDevice: (device) =>
    core.onDevice("CudaMemoryPool.ofDevice", device, () => Effect.succeed(core.backend.pools.ofDevice(device))),
  poolDestroy: (ref) => Effect.suspend(() => destroy(core, "CudaMemoryPool.release", ownPool(ref))),
  poolStatistics: (ref) =>
    askPool(
      core,
      "CudaMemoryPool.statistics",
      ref,
      (pool) => core.backend.pools.readStatistics(pool),
      () => core.backend.pools.statistics
    ),
  poolResetHighWater: (ref) =>
    onPool(core, "CudaMemoryPool.resetHighWater", ref, (pool) => core.backend.pools.resetHighWater(pool)),
  poolSetReleaseThreshold: (ref, bytes) =>
    Effect.suspend(() => {
      const operation = "CudaMemoryPool.setReleaseThreshold"
      return refuseBytes(operation, "bytes", bytes) ??
        onPool(core, operation, ref, (pool) => core.backend.pools.setReleaseThreshold(pool, bytes))
    }),
  poolTrim: (ref, keepBytes) =>
    Effect.suspend(() => {
      const operation = "CudaMemoryPool.trim"
      const pool = ownPool(ref)
      if (unusable(core.backend, pool)) return refuseResource(operation, core.backend, pool)
      return refuseBytes(operation, "keepBytes", keepBytes) ??
        reclaim(core, operation, pool.deviceIndex, () => [pool], keepBytes)
    })
})

/** Makes a call on a usable pool, and reads its result before another call can overwrite it. */
const askPool = <A>(
  core: Core,
  operation: string,
  ref: MemoryPoolRef,
  call: (pool: MemoryPoolResource) => number,
  answer: () => A
): Effect.Effect<A, CudaError> =>
  Effect.suspend(() => {
    const pool = ownPool(ref)
    if (unusable(core.backend, pool)) return refuseResource(operation, core.backend, pool)
    const status = call(pool)
    return status === success ? Effect.succeed(answer()) : core.fail(operation, status, pool)
  })

const onPool = (core: Core, operation: string, ref: MemoryPoolRef, call: (pool: MemoryPoolResource) => number) =>
  askPool(core, operation, ref, call, () => {})

const create = (core: Core, operation: string, deviceIndex: number, options: MemoryPoolOptions) => {
  const refused = (options.maxBytes === 0 ? refuseArgument(operation, "maxBytes", 0, "more than 0") : undefined) ??
    refuseBytes(operation, "maxBytes", options.maxBytes) ??
    refuseBytes(operation, "releaseThreshold", options.releaseThreshold) ?? refuseSwitches(operation, options)
  if (refused !== undefined) return refused
  const status = core.backend.pools.create(deviceIndex, options)
  if (status !== success) return core.failOn(operation, status, deviceIndex, `a pool of device ${deviceIndex}`)
  const pool = core.backend.pools.created!
  pool.isShareable = options.shareable === true
  const allowed = allowFirst(core, pool, options.peers)
  if (allowed === success) {
    core.pools.add(pool)
    return Effect.succeed(pool)
  }
  const error = core.error(operation, allowed, deviceIndex, String(pool))
  core.backend.pools.destroy(pool)
  return Effect.fail(error)
}

const makeOperation = "CudaMemoryPool.make"

/** Opens the devices that are to access a new pool. */
const openAll = (core: Core, peers: ReadonlyArray<number>): Effect.Effect<void, CudaError> => {
  if (!Array.isArray(peers)) return refuseArgument(makeOperation, "peers", peers, "an array of devices")
  return Effect.forEach(
    peers.entries(),
    ([index, peer]) =>
      core.refuseDevice(makeOperation, `peers[${index}]`, peer) ??
        core.whenOpen(makeOperation, peer, () => Effect.void),
    { discard: true }
  )
}

/** Refuses anything but a non-negative integer or `Infinity`, which means no limit. */
const refuseBytes = (operation: string, argument: string, bytes: number): Refusal =>
  (Number.isSafeInteger(bytes) && bytes >= 0) || bytes === Number.POSITIVE_INFINITY
    ? undefined
    : refuseArgument(operation, argument, bytes, "a non-negative integer, or Infinity")

const switches = [
  "reuseFollowEventDependencies",
  "reuseAllowOpportunistic",
  "reuseAllowInternalDependencies"
] as const

const refuseSwitches = (operation: string, options: MemoryPoolOptions): Refusal => {
  if (options.shareable !== undefined && typeof options.shareable !== "boolean") {
    return refuseArgument(operation, "shareable", options.shareable, "true or false")
  }
  const wrong = switches.find((name) => typeof options[name] !== "boolean")
  return wrong && refuseArgument(operation, wrong, options[wrong], "true or false")
}

const destroy = (core: Core, operation: string, pool: MemoryPoolResource): Effect.Effect<void, CudaError> => {
  if (pool.owner !== core.backend) return refuseResource(operation, core.backend, pool)
  if (pool.origin === "runtime" || pool.state !== "live") return Effect.void
  pool.state = "released"
  core.pools.delete(pool)
  if (pool.origin === "opened") return core.acquiring.withPermit(close(core, operation, pool))
  if (pool.isShareable) core.backend.interprocess.forgetPool(pool)
  const status = core.backend.pools.destroy(pool)
  return status === success ? Effect.void : core.fail(operation, status, pool)
}

/** Closes a pool of another process once its memory is released, because the driver refuses to do so before. */
const close = (core: Core, operation: string, pool: MemoryPoolResource): Effect.Effect<void, CudaError> => {
  const { deviceIndex } = pool
  const released = core.wait(
    operation,
    deviceIndex,
    String(pool),
    (onDone) => core.backend.memory.watchReleases(deviceIndex, onDone)
  )
  return Effect.flatMap(Effect.exit(released), (exit) => {
    const status = core.backend.interprocess.closePool(pool)
    return status === success ? exit : core.fail(operation, status, pool)
  })
}
