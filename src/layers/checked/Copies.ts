/**
 * Copies of bytes of the host, to see later whether they have changed. Of many bytes, only samples are kept: then some changes are missed,
 * but none is made up. Plain functions, without Effect.
 */

/** Bytes that were copied, and where they were. */
interface Sample {
  readonly at: number
  readonly bytes: Uint8Array
}

/** What bytes were. */
export interface Copies {
  readonly byteLength: number
  /** The number of bytes that are kept. */
  readonly kept: number
  readonly samples: ReadonlyArray<Sample>
}

/** Bytes from `from` to `to`. */
export interface Changed {
  readonly from: number
  readonly to: number
}

/** The bytes of an array that an operation copies. */
export class ArrayCopies {
  readonly #wholeUpTo: number
  readonly #kept = new Map<number, { readonly bytes: Uint8Array; readonly copies: Copies }>()
  #changed: Changed | undefined

  constructor(wholeUpTo: number) {
    this.#wholeUpTo = wholeUpTo
  }

  keep(bytes: Uint8Array): void {
    this.#kept.set(bytes.byteOffset, { bytes, copies: copyOf(bytes, this.#wholeUpTo) })
  }

  check({ byteOffset }: Uint8Array): void {
    const kept = this.#kept.get(byteOffset)
    const changed = kept === undefined ? undefined : changeOf(kept.bytes, kept.copies)
    if (changed === undefined) return
    const from = byteOffset - this.#start + changed.from
    this.#changed ??= { from, to: from + changed.to - changed.from }
  }

  get #start(): number {
    return Math.min(...this.#kept.keys())
  }

  /** The first change, from the start of the array. */
  end(): Changed | undefined {
    for (const { bytes } of this.#kept.values()) this.check(bytes)
    return this.#changed
  }
}

/** The number of samples, and the bytes of each. */
const sampleCount = 64
const sampleSize = 4096

/** Keeps what bytes are: all of them up to a size, and of more, evenly spread samples with the first and the last bytes. */
export const copyOf = (bytes: Uint8Array, wholeUpTo: number): Copies => {
  const { byteLength } = bytes
  if (byteLength <= Math.max(wholeUpTo, sampleCount * sampleSize)) {
    return { byteLength, kept: byteLength, samples: [{ at: 0, bytes: bytes.slice() }] }
  }
  const samples = Array.from({ length: sampleCount }, (_, index): Sample => {
    const at = Math.floor((byteLength - sampleSize) * index / (sampleCount - 1))
    return { at, bytes: bytes.slice(at, at + sampleSize) }
  })
  return { byteLength, kept: sampleCount * sampleSize, samples }
}

/** Where bytes have changed: from the first change to the last one. Undefined if they have not, or are gone. */
export const changeOf = (bytes: Uint8Array, { byteLength, samples }: Copies): Changed | undefined => {
  if (bytes.byteLength !== byteLength) return undefined
  let changed: Changed | undefined
  for (const sample of samples) {
    const now = bytes.subarray(sample.at, sample.at + sample.bytes.byteLength)
    if (Buffer.compare(now, sample.bytes) === 0) continue
    const from = now.findIndex((byte, index) => byte !== sample.bytes[index])
    const to = now.findLastIndex((byte, index) => byte !== sample.bytes[index]) + 1
    changed = { from: changed?.from ?? sample.at + from, to: sample.at + to }
  }
  return changed
}
