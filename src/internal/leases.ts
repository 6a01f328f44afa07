/**
 * The leases of a runtime's devices: how many there are, how much memory they reserve, and who waits for one to end.
 */
import * as Effect from "effect/Effect"
import * as Semaphore from "effect/Semaphore"
import type { CudaRuntimeService } from "../layers/CudaRuntime.ts"

/** The leases of one device. */
class DeviceLeases {
  count = 0
  /** Bytes that the leases asked for. */
  reserved = 0
  /** Bytes that the program used when there was no lease: they are of no lease. */
  base = 0
}

export class Leases {
  /** Held by the fiber whose turn it is to be given a device, so that leases are given in the order they were asked for. */
  readonly turn = Semaphore.makeUnsafe(1)
  /** Counts the leases that have ended. */
  ended = 0
  readonly #devices: ReadonlyArray<DeviceLeases>
  readonly #waiting = new Set<() => void>()

  constructor(devices: number) {
    this.#devices = Array.from({ length: devices }, () => new DeviceLeases())
  }

  of(deviceIndex: number): Readonly<DeviceLeases> {
    return this.#devices[deviceIndex]!
  }

  /** Begins a lease. Returns what ends it, which may be called any number of times. */
  begin(deviceIndex: number, reserved: number, used: number): () => void {
    const device = this.#devices[deviceIndex]!
    if (device.count === 0) device.base = used
    device.count++
    device.reserved += reserved
    let isOver = false
    return () => {
      if (isOver) return
      isOver = true
      device.count--
      device.reserved -= reserved
      this.ended++
      for (const resume of this.#waiting) resume()
    }
  }

  /** Waits until more leases have ended than the given number. */
  whenEnded(known: number): Effect.Effect<void> {
    return Effect.callback((resume) => {
      const end = () => {
        this.#waiting.delete(end)
        resume(Effect.void)
      }
      if (this.ended !== known) return end()
      this.#waiting.add(end)
      return Effect.sync(() => this.#waiting.delete(end))
    })
  }
}

const byIdentity = new WeakMap<object, Leases>()

/** The leases of a runtime, shared with the layers around it. */
export const leasesOf = ({ devices, identity }: CudaRuntimeService): Leases => {
  const known = byIdentity.get(identity)
  if (known !== undefined) return known
  const made = new Leases(devices.length)
  byIdentity.set(identity, made)
  return made
}
