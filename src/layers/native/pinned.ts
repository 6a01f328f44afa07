/**
 * Pinned host memory as resources of the native runtime. `PinnedMemory` does the pinning.
 */
import * as Effect from "effect/Effect"
import { success } from "../../cuda/status.ts"
import type { PinnedBackend } from "../shared/pinned.ts"
import { HostMemoryResource } from "../shared/resources.ts"
import type { Owner } from "../shared/resources.ts"
import type { DriverFailure } from "../shared/waits.ts"
import type { Driver } from "./Driver.ts"
import type { Block, PinnedMemory } from "./PinnedMemory.ts"
import type { Releases } from "./Releases.ts"

class PinnedResource extends HostMemoryResource {
  readonly block: Block
  constructor(owner: Owner, block: Block, byteLength: number) {
    super(owner, block.address, new Uint8Array(block.buffer, 0, byteLength))
    this.block = block
  }
}

export class NativePinned implements PinnedBackend {
  readonly #driver: Driver
  readonly #pinned: PinnedMemory
  readonly #releases: Releases

  constructor(driver: Driver, pinned: PinnedMemory, releases: Releases) {
    this.#driver = driver
    this.#pinned = pinned
    this.#releases = releases
  }

  allocate(byteLength: number): Effect.Effect<HostMemoryResource, DriverFailure> {
    return Effect.map(
      this.#pinned.take(byteLength, !this.#driver.isLost),
      (block) => new PinnedResource(this.#driver.owner, block, byteLength)
    )
  }

  free(memory: HostMemoryResource): number {
    const { block } = memory as PinnedResource
    block.detach()
    memory.bytes = new Uint8Array(0)
    this.#releases.whenIdle(memory.pendingUsers, () => this.#pinned.give(block))
    return success
  }
}
