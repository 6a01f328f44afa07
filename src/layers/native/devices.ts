/**
 * Devices on the driver: opening, closing, attributes, and idle detection.
 */
import * as Effect from "effect/Effect"
import { inTurn } from "../../cuda/asyncCalls.ts"
import { deviceAttributes, peerAttributes } from "../../cuda/flags.ts"
import type { DeviceAttribute, PeerAttribute } from "../../cuda/flags.ts"
import type { CUcontext, CUdevice } from "../../cuda/handles.ts"
import { notReady, success } from "../../cuda/status.ts"
import type { DeviceProperties, MemoryInfo, PriorityRange } from "../CudaRuntime.ts"
import type { DeviceBackend } from "../shared/devices.ts"
import { watchAll } from "../shared/waits.ts"
import type { Cancel, DriverFailure, OnDone, WaitStage, Watch } from "../shared/waits.ts"
import { NativeDevice, Out } from "./Device.ts"
import type { Driver } from "./Driver.ts"
import type { NativeMemory } from "./memory.ts"
import type { NativeStreams } from "./streams.ts"

export class NativeDevices implements DeviceBackend {
  readonly all: ReadonlyArray<DeviceProperties>
  value = 0
  memoryInfoResult: MemoryInfo = { free: 0, total: 0 }
  readonly #handles: ReadonlyArray<CUdevice>
  readonly #driver: Driver
  readonly #streams: NativeStreams
  readonly #memory: NativeMemory
  readonly #integer = new Int32Array(1)
  readonly #sizes = new BigUint64Array(2)

  constructor(
    devices: ReadonlyArray<{ readonly handle: CUdevice; readonly properties: DeviceProperties }>,
    driver: Driver,
    streams: NativeStreams,
    memory: NativeMemory
  ) {
    this.all = devices.map(({ properties }) => properties)
    this.#handles = devices.map(({ handle }) => handle)
    this.#driver = driver
    this.#streams = streams
    this.#memory = memory
  }

  handleOf(index: number): CUdevice {
    return this.#handles[index]!
  }

  open(index: number): Effect.Effect<void, DriverFailure> {
    return Effect.callback((resume) => {
      const { calls, opened, warn } = this.#driver
      const handle = this.handleOf(index)
      const context = new Out<CUcontext>()
      inTurn((onEnd) => calls.cuDevicePrimaryCtxRetain.async(context.words, handle, onEnd), (_, retained) => {
        if (retained !== success) return resume(Effect.fail(this.#driver.failure("cuDevicePrimaryCtxRetain", retained)))
        const device = new NativeDevice(calls, index, handle, context.value)
        const { call, status } = device.setUp(warn)
        if (status === success) {
          opened[index] = device
          return resume(Effect.void)
        }
        warn("cuDevicePrimaryCtxRelease", calls.cuDevicePrimaryCtxRelease_v2(handle), handle)
        resume(Effect.fail(this.#driver.failure(call, status)))
      })
    })
  }

  priorityRange(index: number): PriorityRange {
    return this.#driver.device(index).priorities
  }

  attribute(index: number, attribute: DeviceAttribute): number {
    const { calls } = this.#driver
    const status = calls.cuDeviceGetAttribute(this.#integer, deviceAttributes[attribute], this.handleOf(index))
    this.value = this.#integer[0]!
    return this.#driver.answer("cuDeviceGetAttribute", status)
  }

  memoryInfo(index: number): number {
    const [free, total] = [this.#sizes.subarray(0, 1), this.#sizes.subarray(1, 2)]
    const status = this.#driver.inContextOf(
      index,
      "cuMemGetInfo",
      () => this.#driver.calls.cuMemGetInfo_v2(free, total)
    )
    this.memoryInfoResult = { free: Number(free[0]), total: Number(total[0]) }
    return status
  }

  canAccessPeer(index: number, peer: number): number {
    const { calls } = this.#driver
    const status = calls.cuDeviceCanAccessPeer(this.#integer, this.handleOf(index), this.handleOf(peer))
    this.value = this.#integer[0]!
    return this.#driver.answer("cuDeviceCanAccessPeer", status)
  }

  peerAttribute(index: number, peer: number, attribute: PeerAttribute): number {
    const number = peerAttributes[attribute]
    const { calls } = this.#driver
    const status = calls.cuDeviceGetP2PAttribute(this.#integer, number, this.handleOf(index), this.handleOf(peer))
    this.value = this.#integer[0]!
    return this.#driver.answer("cuDeviceGetP2PAttribute", status)
  }

  isIdle(index: number): boolean {
    return this.#busyOf(index).length === 0
  }

  /** True if no open device has pending work of this runtime. */
  areIdle(): boolean {
    return this.#driver.opened.every((device) => device === undefined || this.isIdle(device.index))
  }

  watchIdle(index: number, onDone: OnDone): Cancel {
    let cancel: Cancel = () => {}
    const look = (stage?: WaitStage): void => {
      const busy = this.#busyOf(index)
      if (busy.length === 0) return onDone(success, stage)
      let isOver = false
      const watch = watchAll(busy)((status, stage) => {
        isOver = true
        if (status === success) look(stage)
        else onDone(status, stage)
      }, {})
      if (!isOver) cancel = watch
    }
    look()
    return () => cancel()
  }

  /** A watch for every stream of the device with pending work. */
  #busyOf(index: number): ReadonlyArray<Watch> {
    const busy = this.#streams.busyOn(index)
    const { releases } = this.#driver.device(index)
    const status = this.#driver.calls.cuStreamQuery(releases)
    this.#driver.note(status)
    if (status === notReady) {
      busy.push((onDone) => this.#memory.watchReleases(index, onDone))
    }
    return busy
  }

  /** Releases the device's primary context, off the JS thread. */
  close({ handle }: NativeDevice, onDone: () => void): void {
    const { calls } = this.#driver
    inTurn((onEnd) => calls.cuDevicePrimaryCtxRelease_v2.async(handle, onEnd), (_, status) => {
      this.#driver.warn("cuDevicePrimaryCtxRelease", status, handle)
      onDone()
    })
  }
}
