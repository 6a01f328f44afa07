/**
 * The driver, as shared by the parts of the native backend: its functions, the open devices, the call that the last status came from,
 * and whether the contexts are lost.
 *
 * Calls with a handle need no current context, since the handle carries one. All other calls run in the context of their device
 * (`inContextOf`), which then restores the context that other native code made current.
 */
import type { DriverFunctions } from "../../cuda/functions.ts"
import type { CUcontext, CUevent } from "../../cuda/handles.ts"
import type { DriverLibrary } from "../../cuda/library.ts"
import { notReady, success } from "../../cuda/status.ts"
import { reasonFromStatus } from "../../CudaError.ts"
import type { Owner } from "../shared/resources.ts"
import type { DriverFailure } from "../shared/waits.ts"
import { describeStatus } from "./Device.ts"
import type { NativeDevice, NativeStream, Warn } from "./Device.ts"

export class Driver {
  readonly owner: Owner
  readonly library: DriverLibrary
  readonly calls: DriverFunctions
  /** Logs the failure of a release, which has no caller to fail to. */
  readonly warn: Warn
  /** By device index; undefined until the device is first used. */
  readonly opened: Array<NativeDevice | undefined>
  /** The call that the last status came from. */
  call = ""
  /** True once a fault has destroyed the contexts of the process. Objects kept for reuse must not be used then, since they would hide it. */
  isLost = false

  constructor(owner: Owner, library: DriverLibrary, deviceCount: number, warn: Warn) {
    this.owner = owner
    this.library = library
    this.calls = library.calls
    this.warn = (call, status, handle) => {
      this.note(status)
      warn(call, status, handle)
    }
    this.opened = Array.from({ length: deviceCount }, () => undefined)
  }

  /** Notes the call that a status came from, and whether the contexts are lost. Returns the status. */
  answer(call: string, status: number): number {
    if (status === success) return status
    this.call = call
    this.note(status)
    return status
  }

  /** Notes whether the contexts are lost, for calls that are not named in failures. */
  note(status: number): void {
    if (status !== success && status !== notReady && reasonFromStatus(status).isSticky) this.isLost = true
  }

  /** An open device. The shared operations open a device before they create anything on it. */
  device(index: number): NativeDevice {
    return this.opened[index]!
  }

  describe(status: number): { readonly name: string; readonly description: string } | undefined {
    return describeStatus(this.library, status)
  }

  /** Makes a call with a device's context current, or that of a partition. Pass "" as the name if the call itself notes its name with `answer`. */
  inContextOf(index: number, name: string, call: () => number, context?: CUcontext): number {
    const device = this.device(index)
    const entered = device.enter(context)
    if (entered !== success) return this.answer("cuCtxPushCurrent", entered)
    const status = call()
    device.leave()
    return name === "" ? status : this.answer(name, status)
  }

  /** Makes a call in any open context, for host memory, which belongs to all of them. */
  inFirstContext(name: string, call: () => number): DriverFailure | undefined {
    const device = this.opened.find((opened) => opened !== undefined)
    if (device === undefined) return undefined
    const entered = device.enter()
    if (entered !== success) return this.failure("cuCtxPushCurrent", entered)
    const status = call()
    device.leave()
    return status === success ? undefined : this.failure(name, status)
  }

  /** The failure of an asynchronous call. */
  failure(call: string, status: number, log?: string): DriverFailure {
    this.note(status)
    return log === undefined ? { call, status } : { call, status, log }
  }

  /** Records an event on a stream. */
  record(event: CUevent, stream: NativeStream): number {
    stream.records++
    if (!stream.needsContext) return this.answer("cuEventRecord", this.calls.cuEventRecord(event, stream.handle))
    return this.inContextOf(stream.deviceIndex, "cuEventRecord", () => this.calls.cuEventRecord(event, stream.handle))
  }

  /** Makes a stream wait for an event. */
  wait(stream: NativeStream, event: CUevent): number {
    if (!stream.needsContext) {
      return this.answer("cuStreamWaitEvent", this.calls.cuStreamWaitEvent(stream.handle, event, 0))
    }
    return this.inContextOf(
      stream.deviceIndex,
      "cuStreamWaitEvent",
      () => this.calls.cuStreamWaitEvent(stream.handle, event, 0)
    )
  }

  /** The status of the device's last attempt to create an internal stream, event or pool. */
  madeBy(device: NativeDevice): number {
    return this.answer(device.made.call, device.made.status)
  }
}
