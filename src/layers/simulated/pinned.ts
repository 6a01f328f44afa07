/**
 * Pinned host memory of a simulated runtime.
 */
import * as Effect from "effect/Effect"
import { statuses, success } from "../../cuda/status.ts"
import type { PinnedBackend } from "../shared/pinned.ts"
import type { HostMemoryResource } from "../shared/resources.ts"
import type { DriverFailure } from "../shared/waits.ts"
import type { AddressSpace } from "./addressSpace.ts"
import type { SimulatedDriver } from "./Driver.ts"
import { ArrayStorage, Storage } from "./model/Storage.ts"
import { memoryPart, SimulatedHostMemory, streamPart } from "./resources.ts"

export class SimulatedPinned implements PinnedBackend {
  readonly #driver: SimulatedDriver
  readonly #addresses: AddressSpace
  /** The pinned memory of the program. */
  readonly #arrays = new Map<HostMemoryResource, ArrayRange>()
  /** The buffers of pinned memory that the runtime allocated. */
  readonly #own = new WeakSet<ArrayBufferLike>()

  constructor(driver: SimulatedDriver, addresses: AddressSpace) {
    this.#driver = driver
    this.#addresses = addresses
  }

  allocate(byteLength: number): Effect.Effect<HostMemoryResource, DriverFailure> {
    return Effect.suspend(() => {
      const status = this.#driver.begin("cuMemHostRegister", this.#driver.device(0))
      const memory = status === success ? this.#take(byteLength) : status
      return typeof memory === "number" ? this.#driver.fail(memory) : Effect.succeed(memory)
    })
  }

  #take(byteLength: number): SimulatedHostMemory | number {
    const { model, options, owner } = this.#driver
    const part = new Storage(undefined, byteLength)
    if (model.usedHostMemory + byteLength > options.hostMemory || !part.tryTouch()) return statuses.OutOfMemory.code
    model.usedHostMemory += byteLength
    const memory = new SimulatedHostMemory(owner, part, model.makeAddress(byteLength))
    this.#addresses.add(memory)
    this.#own.add(memory.bytes.buffer)
    return memory
  }

  pin(bytes: Uint8Array<ArrayBuffer>): Effect.Effect<HostMemoryResource, DriverFailure> {
    return Effect.suspend(() => {
      const status = this.#driver.begin("cuMemHostRegister", this.#driver.device(0)) || this.#refuse(bytes)
      if (status !== success) return this.#driver.fail(status)
      const { model, owner } = this.#driver
      const { buffer, byteLength, byteOffset } = bytes
      model.usedHostMemory += byteLength
      const part = new ArrayStorage(new Uint8Array(buffer, byteOffset, byteLength))
      const memory = new SimulatedHostMemory(owner, part, model.makeAddress(byteLength))
      this.#addresses.add(memory)
      this.#arrays.set(memory, rangeOf(bytes))
      return Effect.succeed(memory)
    })
  }

  /** A status: refuses memory that is pinned otherwise or only in part, and more memory than there is. */
  #refuse(bytes: Uint8Array): number {
    const { buffer, from, to } = rangeOf(bytes)
    if (this.#own.has(buffer)) return statuses.HostMemoryAlreadyRegistered.code
    const others = Array.from(this.#arrays.values()).filter((other) =>
      other.buffer === buffer && other.from < to && from < other.to
    )
    const areShared = others.some((other) => other.from <= from && to <= other.to)
    if (others.length > 0 && !areShared) return statuses.HostMemoryAlreadyRegistered.code
    const { model, options } = this.#driver
    return model.usedHostMemory + bytes.byteLength > options.hostMemory ? statuses.OutOfMemory.code : success
  }

  free(memory: HostMemoryResource): number {
    this.#arrays.delete(memory)
    this.#driver.call = "cuMemHostUnregister"
    this.#driver.now()
    this.#addresses.forget(memory)
    const part = memoryPart(memory)
    part.detach()
    memory.bytes = new Uint8Array(0)
    this.#driver.model.releaseHost(part, memory.pendingUsers.map(streamPart))
    return success
  }
}

/** Memory of the program, by its offsets in its buffer. */
interface ArrayRange {
  readonly buffer: ArrayBufferLike
  readonly from: number
  readonly to: number
}

const rangeOf = ({ buffer, byteLength, byteOffset }: Uint8Array): ArrayRange => ({
  buffer,
  from: byteOffset,
  to: byteOffset + byteLength
})
