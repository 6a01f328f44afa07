/**
 * Simulated memory: an `ArrayBuffer`, allocated on first use.
 */
import { guarded, moved } from "../../shared/buffers.ts"
import type { Device, Pool } from "./parts.ts"

export class Storage {
  /** Undefined for host memory. */
  readonly device: Device | undefined
  /** Changes only for growable memory. */
  byteLength: number
  /** The pool it was allocated from; undefined for host memory and for global variables. */
  readonly pool: Pool | undefined
  /** Called with the last contents before they are dropped. */
  atEnd: ((bytes: Uint8Array | undefined) => void) | undefined
  #bytes: Uint8Array<ArrayBuffer> | undefined
  #wasGivenAway = false

  constructor(device: Device | undefined, byteLength: number, pool?: Pool) {
    this.device = device
    this.byteLength = byteLength
    this.pool = pool
  }

  /**
   * The bytes, initially 0. Throws a `RangeError` if the process cannot allocate them. If the program has transferred the buffer,
   * allocates a new one for the work that is still enqueued.
   */
  touch(): Uint8Array<ArrayBuffer> {
    if (this.#bytes === undefined || this.#isGone) {
      this.#wasGivenAway ||= this.#bytes !== undefined
      this.#bytes = new Uint8Array(guarded(new ArrayBuffer(this.byteLength)))
    }
    return this.#bytes
  }

  /** Whether the program has transferred the buffer. */
  get isGivenAway(): boolean {
    return this.#wasGivenAway || this.#isGone
  }

  get #isGone(): boolean {
    return this.#bytes !== undefined && this.#bytes.byteLength < this.byteLength
  }

  /** Allocates the bytes. Returns false if the process cannot. */
  tryTouch(): boolean {
    if (this.#bytes !== undefined || this.device?.hasData === false) return true
    try {
      this.touch()
      return true
    } catch {
      return false
    }
  }

  /** 0, or the status of the fault that destroyed the memory's context. */
  get lost(): number {
    return this.device === undefined ? 0 : this.device.lost
  }

  /** Detaches every view that the program holds. The simulation keeps the contents. */
  detach(): void {
    if (this.#bytes === undefined || this.#isGone) return
    this.#bytes = new Uint8Array(moved(this.#bytes.buffer))
  }

  drop(): void {
    this.atEnd?.(this.#isGone ? undefined : this.contents)
    this.#bytes = undefined
  }

  /** The bytes; undefined if nothing has used them. */
  get contents(): Uint8Array | undefined {
    return this.#bytes
  }
}

/** Memory of the program. Work that is enqueued after the program has transferred it has memory of its own. */
export class ArrayStorage extends Storage {
  readonly #array: Uint8Array<ArrayBuffer>

  constructor(array: Uint8Array<ArrayBuffer>) {
    super(undefined, array.byteLength)
    this.#array = array
  }
  override touch(): Uint8Array<ArrayBuffer> {
    return this.isGivenAway ? super.touch() : this.#array
  }
  override get contents(): Uint8Array | undefined {
    return this.isGivenAway ? super.contents : this.#array
  }
  override get isGivenAway(): boolean {
    return this.#array.byteLength === 0
  }
  override tryTouch(): boolean {
    return !this.isGivenAway || super.tryTouch()
  }
  override detach(): void {}
}

/** Memory whose size changes. Its bytes move, so views of them are good until the next change. */
export class GrowableStorage extends Storage {
  #bytes: Uint8Array<ArrayBuffer> | undefined

  constructor(device: Device) {
    super(device, 0)
  }
  resize(byteLength: number): void {
    this.byteLength = byteLength
  }
  override touch(): Uint8Array<ArrayBuffer> {
    const bytes = this.#bytes
    if (bytes !== undefined && bytes.byteLength === this.byteLength) return bytes
    const next = this.#bytes = new Uint8Array(this.byteLength)
    if (bytes !== undefined) next.set(bytes.subarray(0, this.byteLength))
    return next
  }
  override get isGivenAway(): boolean {
    return false
  }
  override tryTouch(): boolean {
    if (this.device?.hasData === false) return true
    try {
      this.touch()
      return true
    } catch {
      return false
    }
  }
  override detach(): void {}
  override drop(): void {
    this.#bytes = undefined
  }
}

/** A part of other storage, which keeps the bytes. */
export class StoragePart extends Storage {
  readonly #whole: Storage
  readonly #offset: number

  constructor(whole: Storage, offset: number, byteLength: number) {
    super(whole.device, byteLength)
    this.#whole = whole
    this.#offset = offset
  }
  override touch(): Uint8Array<ArrayBuffer> {
    return this.#whole.touch().subarray(this.#offset, this.#offset + this.byteLength)
  }
  override get isGivenAway(): boolean {
    return this.#whole.isGivenAway
  }
  override tryTouch(): boolean {
    return this.#whole.tryTouch()
  }
  override detach(): void {}
  override drop(): void {}
}
