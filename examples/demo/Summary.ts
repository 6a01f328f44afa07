/**
 * What the kernels find out about a file: how often each byte occurs, and its CRC-32. Here the CPU finds the same, alone.
 *
 * CRC-32 since it can be put together of pieces in any order, though it depends on where each byte is, and since everyone
 * can check it: it is the checksum of gzip and PNG, and zlib's own code is what the kernels are compared with.
 */
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import { crc32 } from "node:zlib"
import type { FileProblem, Source } from "./Source.ts"

export interface Summary {
  /** How often each of the 256 bytes occurs. */
  readonly counts: BigUint64Array
  readonly checksum: number
}

export interface Options {
  readonly chunkBytes: number
  /** Given every chunk that was gone through. */
  readonly onChunk?: ((offset: number, bytes: Uint8Array) => Effect.Effect<void>) | undefined
}

/** The device found something else than the CPU. */
export class SummariesDiffer extends Data.TaggedError("SummariesDiffer")<{
  readonly name: string
  readonly what: string
  readonly expected: string
  readonly actual: string
}> {
  override get message(): string {
    return `${this.name}: ${this.what} is ${this.expected} but the device found ${this.actual}`
  }
}

/** Goes through the source on the CPU, at 1 GB/s or less: too slow to be done while a GPU is timed. */
export const summarize = (source: Source, options: Options): Effect.Effect<Summary, FileProblem> =>
  Effect.gen(function*() {
    const { byteLength } = source
    const memory = new Uint8Array(Math.min(options.chunkBytes, byteLength))
    const counts = new BigUint64Array(256)
    let checksum = 0
    for (let offset = 0; offset < byteLength; offset += memory.byteLength) {
      const chunk = memory.subarray(0, byteLength - offset)
      yield* source.read(chunk, offset)
      countBytes(counts, chunk)
      checksum = crc32(chunk, checksum)
      yield* options.onChunk?.(offset, chunk) ?? Effect.void
    }
    return { counts, checksum }
  })

/** Adds how often each byte occurs to 256 counters. The bytes begin at a whole word of their memory, as chunks do. */
export const countBytes = (counts: BigUint64Array, bytes: Uint8Array): void => {
  const words = new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength >>> 2)
  // A counter for each place in a word, so that equal bytes side by side need not wait for each other.
  const places = new Uint32Array(4 * 256)
  for (let index = 0; index < words.length; index++) {
    const word = words[index]!
    places[word & 255]!++
    places[256 + ((word >>> 8) & 255)]!++
    places[512 + ((word >>> 16) & 255)]!++
    places[768 + (word >>> 24)]!++
  }
  for (const byte of bytes.subarray(words.byteLength)) places[byte]!++
  for (const [index, count] of places.entries()) counts[index & 255]! += BigInt(count)
}

/** Fails unless the device found what the CPU did. */
export const compare = (name: string, actual: Summary, expected: Summary): Effect.Effect<void, SummariesDiffer> =>
  Effect.suspend(() => {
    if (actual.checksum !== expected.checksum) {
      const [is, found] = [formatChecksum(expected.checksum), formatChecksum(actual.checksum)]
      return Effect.fail(new SummariesDiffer({ name, what: "the CRC-32", expected: is, actual: found }))
    }
    const byte = expected.counts.findIndex((count, index) => count !== actual.counts[index])
    if (byte < 0) return Effect.void
    const [is, found] = [String(expected.counts[byte]), String(actual.counts[byte])]
    return Effect.fail(new SummariesDiffer({ name, what: `the count of byte ${byte}`, expected: is, actual: found }))
  })

export const formatChecksum = (checksum: number): string => checksum.toString(16).padStart(8, "0")

/** Which byte is most frequent, its share of all bytes, and how many bits a byte is worth: 8 where all are as frequent. */
export const describeCounts = (counts: BigUint64Array) => {
  const numbers = Array.from(counts, Number)
  const total = numbers.reduce((sum, count) => sum + count, 0)
  const parts = numbers.map((count) => count / total)
  const share = Math.max(...parts)
  return {
    byte: parts.indexOf(share),
    share,
    entropy: parts.reduce((bits, part) => part === 0 ? bits : bits - part * Math.log2(part), 0)
  }
}
