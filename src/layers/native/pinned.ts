/**
 * Pinned host memory as resources of the native runtime. `PinnedMemory` does the pinning.
 */
import * as Effect from "effect/Effect"
import { offsetBy } from "../../cuda/handles.ts"
import type { HostPointer } from "../../cuda/handles.ts"
import { success } from "../../cuda/status.ts"
import type { PinnedBackend } from "../shared/pinned.ts"
import { HostMemoryResource } from "../shared/resources.ts"
import type { Owner } from "../shared/resources.ts"
import type { DriverFailure } from "../shared/waits.ts"
import type { Driver } from "./Driver.ts"
import type { Block, PinnedMemory, ProgramBlock } from "./PinnedMemory.ts"
import type { Releases } from "./Releases.ts"

/** Its block is private for the same reason as the bytes. */
class PinnedResource extends HostMemoryResource {
  readonly #block: Block
  constructor(owner: Owner, block: Block, byteLength: number) {
    super(owner, block.address, new Uint8Array(block.buffer, 0, byteLength))
    this.#block = block
  }
  get block(): Block {
    return this.#block
  }
}

/** Memory of the program. The block keeps it reachable, also after the release, until it is unpinned. */
class PinnedArray extends HostMemoryResource {
  readonly #block: ProgramBlock
  constructor(owner: Owner, block: ProgramBlock, address: HostPointer, bytes: Uint8Array<ArrayBuffer>) {
    super(owner, address, bytes)
    this.#block = block
    this.pinOffset = block.lead + address - block.address
  }
  get block(): ProgramBlock {
    return this.#block
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

  pin({ buffer, byteLength, byteOffset }: Uint8Array<ArrayBuffer>): Effect.Effect<HostMemoryResource, DriverFailure> {
    const { library, owner } = this.#driver
    const address = offsetBy(library.addressOf(buffer), byteOffset)
    const bytes = new Uint8Array(buffer, byteOffset, byteLength)
    return Effect.map(
      this.#pinned.pin(buffer, address, byteLength, !this.#driver.isLost),
      (block) => new PinnedArray(owner, block, address, bytes)
    )
  }

  free(memory: HostMemoryResource): number {
    if (memory instanceof PinnedArray) {
      memory.bytes = new Uint8Array(0)
      this.#releases.whenIdle(memory.pendingUsers, () => this.#pinned.unpin(memory.block))
      return success
    }
    const { block } = memory as PinnedResource
    block.detach()
    memory.bytes = new Uint8Array(0)
    this.#releases.whenIdle(memory.pendingUsers, () => this.#pinned.give(block))
    return success
  }
}
