/**
 * Memory of the simulation: an ArrayBuffer that comes into being when something first touches it.
 */
import { guarded, moved } from "../../shared/buffers.ts"
import type { Device, Pool } from "./parts.ts"

export class Storage {
  /** Nothing for memory of the host. */
  readonly device: Device | undefined
  readonly byteLength: number
  /** What it was taken from; nothing for memory of the host and for variables of modules. */
  readonly pool: Pool | undefined
  #bytes: Uint8Array<ArrayBuffer> | undefined
  #wasGivenAway = false

  constructor(device: Device | undefined, byteLength: number, pool?: Pool) {
    this.device = device
    this.byteLength = byteLength
    this.pool = pool
  }

  /**
   * The bytes, all 0 at first. Throws a RangeError when the process cannot hold so many. What a program gave away by transferring
   * its buffer is replaced by memory that nobody sees, for the work that is still enqueued.
   */
  touch(): Uint8Array<ArrayBuffer> {
    if (this.#bytes === undefined || this.#isGone) {
      this.#wasGivenAway ||= this.#bytes !== undefined
      this.#bytes = new Uint8Array(guarded(new ArrayBuffer(this.byteLength)))
    }
    return this.#bytes
  }

  /** Whether a program transferred the buffer. */
  get isGivenAway(): boolean {
    return this.#wasGivenAway || this.#isGone
  }

  get #isGone(): boolean {
    return this.#bytes !== undefined && this.#bytes.byteLength < this.byteLength
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
    if (this.#bytes === undefined || this.#isGone) return
    this.#bytes = new Uint8Array(moved(this.#bytes.buffer))
  }

  drop(): void {
    this.#bytes = undefined
  }
}
