/**
 * The result of the kernels for a file: the number of occurrences of each byte, and the CRC-32. This module computes
 * the same on the CPU.
 *
 * CRC-32 is a good example because it can be combined from pieces in any order, although it depends on the position of
 * each byte, and because it is easy to verify: gzip and PNG use it, and zlib's implementation is the reference for the
 * kernels.
 */
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import { crc32 } from "node:zlib"
import type { FileProblem, Source } from "./Source.ts"

export interface Summary {
  /** The number of occurrences of each of the 256 bytes. */
  readonly counts: BigUint64Array
  readonly checksum: number
}

export interface Options {
  readonly chunkBytes: number
  /** Called after every chunk. */
  readonly onChunk?: ((offset: number, bytes: Uint8Array) => Effect.Effect<void>) | undefined
}

/** The device's result differs from the CPU's. */
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

/** Summarizes the source on the CPU, at 1 GB/s or less: too slow to do it while a GPU is being timed. */
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

/**
 * Adds the number of occurrences of each byte to 256 counters. The bytes must start at a word boundary, as chunks do.
 */
export const countBytes = (counts: BigUint64Array, bytes: Uint8Array): void => {
  const words = new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength >>> 2)
  // Separate counters for each position in a word, so that equal adjacent bytes do not depend on each other.
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

/** Fails if the device's result differs from the CPU's. */
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

/**
 * The most frequent byte, its share of all bytes, and the entropy in bits per byte, which is 8 if all are equally
 * frequent.
 */
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
