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
import { Storage } from "./model/Storage.ts"
import { memoryPart, SimulatedHostMemory, streamPart } from "./resources.ts"

export class SimulatedPinned implements PinnedBackend {
  readonly #driver: SimulatedDriver
  readonly #addresses: AddressSpace

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
    return memory
  }

  free(memory: HostMemoryResource): number {
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
