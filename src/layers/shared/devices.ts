/**
 * Devices: the shared operations, and the backend functions they use.
 */
import * as Effect from "effect/Effect"
import { deviceAttributes, peerAttributes } from "../../cuda/flags.ts"
import type { DeviceAttribute, PeerAttribute } from "../../cuda/flags.ts"
import { notReady, success } from "../../cuda/status.ts"
import type { CudaError } from "../../CudaError.ts"
import type { DeviceProperties, DeviceUsage, MemoryInfo, PriorityRange } from "../CudaRuntime.ts"
import type { DeviceOperations } from "../runtime/devices.ts"
import type { Core } from "./Core.ts"
import { refuseArgument } from "./failures.ts"
import { refuseWaiting } from "./recordings.ts"
import { watchAll } from "./waits.ts"
import type { Cancel, DriverFailure, OnDone, Watch } from "./waits.ts"

export interface DeviceBackend {
  readonly all: ReadonlyArray<DeviceProperties>
  /** The value read by `attribute`, `canAccessPeer` or `peerAttribute`. */
  readonly value: number
  /** The value read by `memoryInfo`. */
  readonly memoryInfoResult: MemoryInfo
  /** Makes a device usable. Runs once per device, off the JS thread if it can take long. */
  readonly open: (deviceIndex: number) => Effect.Effect<void, DriverFailure>
  readonly priorityRange: (deviceIndex: number) => PriorityRange
  readonly attribute: (deviceIndex: number, attribute: DeviceAttribute) => number
  readonly memoryInfo: (deviceIndex: number) => number
  readonly canAccessPeer: (deviceIndex: number, peer: number) => number
  readonly peerAttribute: (deviceIndex: number, peer: number, attribute: PeerAttribute) => number
  /** True if the device has no pending work, so that calls that wait for an idle device return immediately. */
  readonly isIdle: (deviceIndex: number) => boolean
  /** Reports when a device is idle, in the same turn of the event loop that observes it. */
  readonly watchIdle: (deviceIndex: number, onDone: OnDone) => Cancel
}

export const deviceOperations = (
  core: Core
): Omit<DeviceOperations, "deviceEnablePeer" | "deviceDisablePeer"> => ({
  deviceAttribute: (device, attribute) =>
    core.onDevice("CudaDevice.attribute", device, () => {
      if (!Object.hasOwn(deviceAttributes, attribute)) {
        return refuseArgument("CudaDevice.attribute", "attribute", attribute, "the name of a device attribute")
      }
      const status = core.backend.devices.attribute(device, attribute)
      if (status === success) return Effect.succeed(core.backend.devices.value)
      return core.failOn("CudaDevice.attribute", status, device, attribute)
    }),
  deviceMemoryInfo: (device) =>
    core.onDevice("CudaDevice.memoryInfo", device, () => {
      const status = core.backend.devices.memoryInfo(device)
      if (status === success) return Effect.succeed(core.backend.devices.memoryInfoResult)
      return core.failOn("CudaDevice.memoryInfo", status, device, `device ${device}`)
    }),
  devicePriorityRange: (device) =>
    core.onDevice("CudaDevice.priorityRange", device, () => Effect.succeed(core.backend.devices.priorityRange(device))),
  deviceCanAccessPeer: (device, peer) =>
    core.onDevice("CudaDevice.canAccessPeer", device, () => {
      const refused = core.refuseDevice("CudaDevice.canAccessPeer", "peer", peer)
      if (refused !== undefined) return refused
      const status = core.backend.devices.canAccessPeer(device, peer)
      if (status === success) return Effect.succeed(core.backend.devices.value !== 0)
      return core.failOn("CudaDevice.canAccessPeer", status, device, `devices ${device} and ${peer}`)
    }),
  devicePeerAttribute: (device, peer, attribute) => {
    const operation = "CudaDevice.peerAttribute"
    return core.onDevice(operation, device, () => {
      const refused = core.refuseDevice(operation, "peer", peer)
      if (refused !== undefined) return refused
      if (device === peer) return refuseArgument(operation, "peer", peer, "another device")
      if (!Object.hasOwn(peerAttributes, attribute)) {
        return refuseArgument(operation, "attribute", attribute, "the name of a peer attribute")
      }
      const status = core.backend.devices.peerAttribute(device, peer, attribute)
      if (status === success) return Effect.succeed(core.backend.devices.value)
      return core.failOn(operation, status, device, `${attribute} of devices ${device} and ${peer}`)
    })
  },
  deviceUsage: (device) => core.onDevice("CudaDevice.usage", device, () => usageOf(core, device)),
  deviceSynchronize: (device) =>
    core.onDevice("CudaDevice.synchronize", device, () => {
      const waits = core.recordings === 0 ? undefined : refuseWaiting("CudaDevice.synchronize")
      if (waits !== undefined) return waits
      const streams = [...core.streams, ...core.defaultStreams.values()].filter((stream) =>
        stream.deviceIndex === device
      )
      return core.wait(
        "CudaDevice.synchronize",
        device,
        `device ${device}`,
        (onDone, options) => {
          // A stream that was released before this begins was drained.
          const left = streams.filter(({ state }) => state !== "released")
          const watches = left.map((stream): Watch => (onOneDone, own) =>
            core.backend.streams.watch(stream, onOneDone, own)
          )
          return watchAll(watches)(onDone, options)
        }
      )
    })
})

const usageOf = (core: Core, deviceIndex: number): Effect.Effect<DeviceUsage, CudaError> => {
  const streams = Array.from(core.streams).filter((stream) => stream.deviceIndex === deviceIndex)
  const defaults = Array.from(core.defaultStreams.values()).filter((stream) => stream.deviceIndex === deviceIndex)
  let busyStreams = 0
  for (const stream of [...streams, ...defaults]) {
    const status = core.backend.streams.query(stream)
    if (status === notReady) busyStreams++
    else if (status !== success) return core.fail("CudaDevice.usage", status, stream)
  }
  let buffers = 0
  let bytes = 0
  for (const memory of core.deviceMemory) {
    if (memory.deviceIndex !== deviceIndex || memory.isForeign) continue
    buffers++
    bytes += memory.byteLength
  }
  return Effect.succeed({ busyStreams, streams: streams.length, buffers, bytes })
}
