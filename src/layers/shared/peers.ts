/**
 * Access of devices to memory of other devices: the shared operations, and the backend functions they use.
 *
 * `peers` of a pool and of its buffers says what work may use. The driver may give more: access that copies and graphs need stays as long
 * as the pool.
 */
import * as Effect from "effect/Effect"
import { success } from "../../cuda/status.ts"
import { annotations } from "../../CudaError.ts"
import type { CudaError } from "../../CudaError.ts"
import type { DeviceOperations } from "../runtime/devices.ts"
import type { PoolOperations } from "../runtime/pools.ts"
import type { Core } from "./Core.ts"
import { refuseArgument, refuseResource } from "./failures.ts"
import type { Refusal } from "./ranges.ts"
import { refuseWaiting } from "./recordings.ts"
import { ownPool, unusable } from "./resources.ts"
import type { MemoryPoolResource } from "./resources.ts"
import { watchAll } from "./waits.ts"
import type { Watch } from "./waits.ts"

export interface PeerBackend {
  /** Whether every device gets access to all others that the driver lets it access. */
  readonly connectsAll: boolean
  /** Lets a device access memory of another one that is in no pool. Also succeeds if it already can. Both are open. */
  readonly enable: (deviceIndex: number, peer: number) => number
  /** Ends that access. Also succeeds if there is none. */
  readonly disable: (deviceIndex: number, peer: number) => number
  /** Lets a device access the memory of a pool. */
  readonly allow: (pool: MemoryPoolResource, deviceIndex: number) => number
  /** Ends that access, unless copies or graphs need it. */
  readonly deny: (pool: MemoryPoolResource, deviceIndex: number) => number
}

export const peerOperations = (
  core: Core
): Pick<
  DeviceOperations & PoolOperations,
  "deviceEnablePeer" | "deviceDisablePeer" | "poolAllowAccess" | "poolDenyAccess"
> => ({
  deviceEnablePeer: (device, peer) => {
    const operation = "CudaDevice.enablePeerAccess"
    return betweenDevices(core, operation, device, peer, () => {
      const status = enable(core, device, peer)
      return status === success ? Effect.void : core.failOn(operation, status, device, between(device, peer))
    })
  },
  deviceDisablePeer: (device, peer) => {
    const operation = "CudaDevice.disablePeerAccess"
    return betweenDevices(core, operation, device, peer, () => disable(core, operation, device, peer))
  },
  poolAllowAccess: (ref, device) => {
    const operation = "CudaMemoryPool.allowAccess"
    return onPoolOf(core, operation, ref, device, (pool) => {
      const status = pool.origin === "runtime" ? enable(core, device, pool.deviceIndex) : allow(core, pool, device)
      return status === success ? Effect.void : core.fail(operation, status, pool)
    })
  },
  poolDenyAccess: (ref, device) => {
    const operation = "CudaMemoryPool.denyAccess"
    return onPoolOf(core, operation, ref, device, (pool) =>
      pool.origin === "runtime"
        ? disable(core, operation, device, pool.deviceIndex)
        : deny(core, operation, pool, device))
  }
})

const between = (device: number, peer: number) => `devices ${device} and ${peer}`

/** Runs a call on two different devices, once both are open. */
const betweenDevices = (
  core: Core,
  operation: string,
  device: number,
  peer: number,
  call: () => Effect.Effect<void, CudaError>
): Effect.Effect<void, CudaError> =>
  core.onDevice(
    operation,
    device,
    () => refusePeerOf(core, operation, "peer", device, peer) ?? core.whenOpen(operation, peer, call)
  )

const refusePeerOf = (core: Core, operation: string, argument: string, device: number, peer: number): Refusal =>
  core.refuseDevice(operation, argument, peer) ??
    (device === peer ? refuseArgument(operation, argument, peer, "another device") : undefined)

/** Runs a call on a usable pool and another device, once that is open. */
const onPoolOf = (
  core: Core,
  operation: string,
  ref: Parameters<PoolOperations["poolAllowAccess"]>[0],
  device: number,
  call: (pool: MemoryPoolResource) => Effect.Effect<void, CudaError>
): Effect.Effect<void, CudaError> =>
  Effect.suspend(() => {
    const pool = ownPool(ref)
    const refuse = () => unusable(core.backend, pool) ? refuseResource(operation, core.backend, pool) : undefined
    return refuse() ?? refusePeerOf(core, operation, "device", pool.deviceIndex, device) ??
      core.whenOpen(operation, device, () => refuse() ?? call(pool))
  })

/** The pools of a device that are accessible to whatever device has access to it: the runtime's first. */
const followers = (core: Core, deviceIndex: number): ReadonlyArray<MemoryPoolResource> => [
  core.backend.pools.ofDevice(deviceIndex),
  ...Array.from(core.pools).filter((pool) => pool.deviceIndex === deviceIndex && pool.followsDevice)
]

const enable = (core: Core, device: number, peer: number): number => {
  const status = core.backend.peers.enable(device, peer)
  if (status !== success) return status
  for (const pool of followers(core, peer)) {
    const allowed = allow(core, pool, device)
    if (allowed !== success) return allowed
  }
  return success
}

/** Lets a device access a pool. Asks the driver once. */
export const allow = (core: Core, pool: MemoryPoolResource, device: number): number => {
  if (pool.peers.has(device)) return success
  const status = core.backend.peers.allow(pool, device)
  if (status === success) pool.peers.add(device)
  return status
}

/** Lets the devices that have access to the device of a new pool access the pool, or those that its options name. */
export const allowFirst = (
  core: Core,
  pool: MemoryPoolResource,
  peers: ReadonlyArray<number> | undefined
): number => {
  pool.followsDevice = peers === undefined
  for (const device of peers ?? core.backend.pools.ofDevice(pool.deviceIndex).peers) {
    const status = device === pool.deviceIndex ? success : allow(core, pool, device)
    if (status !== success) return status
  }
  return success
}

const disable = (core: Core, operation: string, device: number, peer: number): Effect.Effect<void, CudaError> => {
  const inside = core.recordings === 0 ? undefined : refuseWaiting(operation)
  if (inside !== undefined) return inside
  const pools = followers(core, peer)
  for (const pool of pools) pool.peers.delete(device)
  return afterWork(core, operation, between(device, peer), device, peer, () => {
    const [own] = pools
    // Access that was given again meanwhile stays.
    if (own?.peers.has(device) === true) return success
    for (const pool of pools) {
      const status = pool.state === "live" && !pool.peers.has(device) ? core.backend.peers.deny(pool, device) : success
      if (status !== success) return status
    }
    return core.backend.peers.disable(device, peer)
  })
}

const deny = (
  core: Core,
  operation: string,
  pool: MemoryPoolResource,
  device: number
): Effect.Effect<void, CudaError> => {
  const inside = core.recordings === 0 ? undefined : refuseWaiting(operation)
  if (inside !== undefined) return inside
  pool.peers.delete(device)
  return afterWork(
    core,
    operation,
    String(pool),
    device,
    pool.deviceIndex,
    () => pool.state !== "live" || pool.peers.has(device) ? success : core.backend.peers.deny(pool, device)
  )
}

/** Makes a call once the work on the streams of two devices so far is done, since it may use the memory. */
const afterWork = (
  core: Core,
  operation: string,
  subject: string,
  device: number,
  peer: number,
  call: () => number
): Effect.Effect<void, CudaError> => {
  const streams = [...core.streams, ...core.defaultStreams.values(), ...core.foreignStreams.values()].filter(
    ({ deviceIndex }) => deviceIndex === device || deviceIndex === peer
  )
  const waited = core.wait(operation, device, subject, (onDone, options) => {
    const left = streams.filter(({ state }) => state !== "released")
    const watches = left.map((stream): Watch => (onOneDone, own) => core.backend.streams.watch(stream, onOneDone, own))
    return watchAll(watches)(onDone, options)
  })
  return Effect.flatMap(waited, () =>
    core.refuseDevice(operation, "device", device) ?? Effect.suspend(() => {
      const status = call()
      return status === success ? Effect.void : core.failOn(operation, status, peer, subject)
    }))
}

/**
 * Gives a device that was just opened access to the other open devices, and them access to it, wherever the driver offers it. A failure
 * leaves the pair without access, and is logged.
 */
export const connect = (core: Core, deviceIndex: number, opened: ReadonlyArray<number>): Effect.Effect<void> =>
  Effect.suspend(() => {
    const { backend } = core
    if (!backend.peers.connectsAll) return Effect.void
    const failures: Array<Effect.Effect<void>> = []
    for (const other of opened) {
      for (const [device, peer] of [[deviceIndex, other], [other, deviceIndex]] as const) {
        const status = backend.devices.canAccessPeer(device, peer) ||
          (backend.devices.value === 0 ? success : enable(core, device, peer))
        if (status === success) continue
        const error = core.error("CudaDevice.enablePeerAccess", status, device, between(device, peer))
        failures.push(Effect.annotateLogs(Effect.logWarning(error.message), annotations(error)))
      }
    }
    return Effect.all(failures, { discard: true })
  })
