/**
 * What copies and fills do to the bytes, in pieces, so that a large one can be spread over turns of the event loop.
 */
import type { RowsTransfer } from "../../shared/copies.ts"
import type { Storage } from "./Storage.ts"

/** Changes bytes, a piece at a time. */
export interface Move {
  /** True if it is so small that nobody counts its time. */
  readonly isSmall: boolean
  /** Does the next piece. Returns true after the last one. */
  step(): boolean
}

/** The bytes of a piece. */
export const pieceBytes = 2 ** 18

const smallBytes = 2 ** 14

/** Copies bytes. Overlapping ranges are copied as if the source were read first. */
export class CopyMove implements Move {
  readonly isSmall: boolean
  readonly #to: Storage
  readonly #toOffset: number
  readonly #from: Storage
  readonly #fromOffset: number
  readonly #bytes: number
  #done = 0

  constructor(to: Storage, toOffset: number, from: Storage, fromOffset: number, bytes: number) {
    this.isSmall = bytes <= smallBytes
    this.#to = to
    this.#toOffset = toOffset
    this.#from = from
    this.#fromOffset = fromOffset
    this.#bytes = bytes
  }

  step(): boolean {
    const [to, from] = [this.#to.touch(), this.#from.touch()]
    const rest = this.#bytes - this.#done
    const length = Math.min(rest, pieceBytes)
    // Backwards if a piece would otherwise overwrite the source of a later one.
    const isForward = to.byteOffset + this.#toOffset <= from.byteOffset + this.#fromOffset
    const at = isForward ? this.#done : rest - length
    to.set(from.subarray(this.#fromOffset + at, this.#fromOffset + at + length), this.#toOffset + at)
    this.#done += length
    return this.#done >= this.#bytes
  }
}

/** The rows of a 2D copy. */
export type Rows = Pick<RowsTransfer, "toOffset" | "toPitch" | "fromOffset" | "fromPitch" | "width" | "height">

/** Copies rows, one after another. A row is not divided. */
export class RowsMove implements Move {
  readonly isSmall: boolean
  readonly #to: Storage
  readonly #from: Storage
  readonly #rows: Rows
  #row = 0

  constructor(to: Storage, from: Storage, rows: Rows) {
    this.isSmall = rows.width * rows.height <= smallBytes
    this.#to = to
    this.#from = from
    this.#rows = rows
  }

  step(): boolean {
    const [to, from] = [this.#to.touch(), this.#from.touch()]
    const { fromOffset, fromPitch, height, toOffset, toPitch, width } = this.#rows
    const end = Math.min(height, this.#row + Math.max(1, Math.floor(pieceBytes / width)))
    for (; this.#row < end; this.#row++) {
      const start = fromOffset + this.#row * fromPitch
      to.set(from.subarray(start, start + width), toOffset + this.#row * toPitch)
    }
    return this.#row >= height
  }
}

/** Fills elements of 8, 16 or 32 bits. */
export class FillMove implements Move {
  readonly isSmall: boolean
  readonly #to: Storage
  readonly #offset: number
  readonly #value: number
  readonly #bits: 8 | 16 | 32
  readonly #count: number
  #done = 0

  constructor(to: Storage, offset: number, value: number, bits: 8 | 16 | 32, count: number) {
    this.isSmall = count * (bits / 8) <= smallBytes
    this.#to = to
    this.#offset = offset
    this.#value = value
    this.#bits = bits
    this.#count = count
  }

  step(): boolean {
    const elementBytes = this.#bits / 8
    const count = Math.min(this.#count - this.#done, pieceBytes / elementBytes)
    fillBytes(this.#to.touch(), this.#offset + this.#done * elementBytes, this.#value, this.#bits, count)
    this.#done += count
    return this.#done >= this.#count
  }
}

const fillBytes = (bytes: Uint8Array, offset: number, value: number, bits: 8 | 16 | 32, count: number): void => {
  if (bits === 8) bytes.fill(value, offset, offset + count)
  else if (bits === 16) new Uint16Array(bytes.buffer, bytes.byteOffset + offset, count).fill(value)
  else new Uint32Array(bytes.buffer, bytes.byteOffset + offset, count).fill(value)
}
