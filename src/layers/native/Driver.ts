/**
 * The driver as the parts of the native backend share it: its functions, the devices that are open, which call a status came from, and
 * whether the contexts are lost.
 *
 * Calls that only need a handle are made as they are, since the handle carries its context. The rest are made in the context of their
 * device (`inContextOf`), which restores whatever other native code made current.
 */
import type { DriverFunctions } from "../../cuda/functions.ts"
import type { CUevent } from "../../cuda/handles.ts"
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
  /** Reports the failure of a release, which no program hears of. */
  readonly warn: Warn
  /** By index; undefined until a device is first used. */
  readonly opened: Array<NativeDevice | undefined>
  /** The call that the last status came from. */
  call = ""
  /** True once a fault has ended the contexts of the process. Objects that are kept for reuse would hide that. */
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

  /** Notes which call a status came from, and whether it ends the contexts. */
  answer(call: string, status: number): number {
    if (status === success) return status
    this.call = call
    this.note(status)
    return status
  }

  /** Notes whether a status ends the contexts, for calls whose name nobody asks for. */
  note(status: number): void {
    if (status !== success && status !== notReady && reasonFromStatus(status).isSticky) this.isLost = true
  }

  /** Only for open devices: the shared operations open a device before they hand out anything of it. */
  device(index: number): NativeDevice {
    return this.opened[index]!
  }

  describe(status: number): { readonly name: string; readonly description: string } | undefined {
    return describeStatus(this.library, status)
  }

  /** Makes a call with a device's context current. Pass "" as the name of a call that notes its name itself. */
  inContextOf(index: number, name: string, call: () => number): number {
    const device = this.device(index)
    const entered = device.enter()
    if (entered !== success) return this.answer("cuCtxPushCurrent", entered)
    const status = call()
    device.leave()
    return name === "" ? status : this.answer(name, status)
  }

  /** Makes a call in any open context: host memory belongs to all of them. */
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

  /** The status of the device's last attempt to make something of its own. */
  madeBy(device: NativeDevice): number {
    return this.answer(device.made.call, device.made.status)
  }
}
