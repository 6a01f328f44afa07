/**
 * The buffers of a simulated runtime by address, to resolve pointers that a program computes.
 */
import type { AnyMemoryResource } from "../shared/resources.ts"
import { Pointer } from "./pointers.ts"
import { memoryPart } from "./resources.ts"

export class AddressSpace {
  readonly #memories = new Set<AnyMemoryResource>()

  add(memory: AnyMemoryResource): void {
    this.#memories.add(memory)
  }

  forget(memory: AnyMemoryResource): void {
    this.#memories.delete(memory)
  }

  /** A pointer from an address to the end of the buffer that contains it. */
  at(address: number, origin: string): Pointer {
    const memory = this.find(address)
    if (memory === undefined) return new Pointer(undefined, 0, 0, address, origin)
    const offset = address - memory.address
    return new Pointer(memoryPart(memory), offset, memory.byteLength - offset, address, origin)
  }

  /** The buffer that contains an address. */
  find(address: number): AnyMemoryResource | undefined {
    for (const memory of this.#memories) {
      const offset = address - memory.address
      if (offset >= 0 && offset < memory.byteLength) return memory
    }
    return undefined
  }
}
