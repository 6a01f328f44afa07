/**
 * Memory that was released while the program has its address: raw addresses in it must not be used any longer. Plain data, without Effect.
 */
import type { MemoryRef } from "../CudaRuntime.ts"
import type { Where } from "./Checks.ts"

/** Memory that was released. */
export interface Freed {
  readonly from: number
  readonly to: number
  readonly memory: string
  readonly where: Where | undefined
}

/** The most that are kept. */
const mostFreed = 1000

export class FreedMemory {
  readonly #given = new WeakSet<MemoryRef>()
  #freed: Array<Freed> = []

  get size(): number {
    return this.#freed.length
  }

  /** Notes that the program has the address of memory. */
  giveOut(memory: MemoryRef): void {
    this.#given.add(memory)
  }

  release(memory: MemoryRef, where: Where | undefined): void {
    if (!this.#given.has(memory)) return
    const { address, byteLength } = memory
    this.#freed.push({ from: address, to: address + byteLength, memory: String(memory), where })
    if (this.#freed.length > mostFreed) this.#freed.shift()
  }

  /** Notes memory that lives. */
  made({ address, byteLength }: MemoryRef): void {
    if (this.#freed.length === 0) return
    this.#freed = this.#freed.filter(({ from, to }) => to <= address || from >= address + byteLength)
  }

  find(address: number): Freed | undefined {
    return this.#freed.find(({ from, to }) => from <= address && address < to)
  }
}
