/**
 * Memory of the simulation: an ArrayBuffer that comes into being when something first touches it.
 */
import type { Device, Pool } from "./parts.ts"

export class Storage {
  /** Nothing for memory of the host. */
  readonly device: Device | undefined
  readonly byteLength: number
  /** What it was taken from; nothing for memory of the host and for variables of modules. */
  readonly pool: Pool | undefined
  #bytes: Uint8Array<ArrayBuffer> | undefined

  constructor(device: Device | undefined, byteLength: number, pool?: Pool) {
    this.device = device
    this.byteLength = byteLength
    this.pool = pool
  }

  /** The bytes, all 0 at first. Throws a RangeError when the process cannot hold so many. */
  touch(): Uint8Array<ArrayBuffer> {
    return this.#bytes ??= new Uint8Array(this.byteLength)
  }

  /** Makes sure that the bytes are there; false when the process cannot hold them. */
  tryTouch(): boolean {
    if (this.#bytes !== undefined) return true
    try {
      this.touch()
      return true
    } catch {
      return false
    }
  }

  /** 0, or the fault that ended the context that the memory was in. */
  get lost(): number {
    return this.device === undefined ? 0 : this.device.lost
  }

  /** Takes the memory from every view of it that is out there; the simulation keeps the content. */
  detach(): void {
    if (this.#bytes === undefined) return
    const { buffer } = this.#bytes
    this.#bytes = new Uint8Array(structuredClone(buffer, { transfer: [buffer] }))
  }

  drop(): void {
    this.#bytes = undefined
  }
}
