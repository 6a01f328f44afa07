/**
 * Files of tensors in the format of safetensors: the length of the header (8 bytes, little-endian), the header in JSON,
 * which names each tensor with its type, shape and place, and the tensors, one after another.
 */
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import { open as openHandle, rename, rm } from "node:fs/promises"
import type { FileHandle } from "node:fs/promises"
import { attempt, openFile } from "../demo/Source.ts"
import type { FileProblem } from "../demo/Source.ts"

/** Bytes per element. */
const elementBytes = { F32: 4, F16: 2, BF16: 2, I32: 4, I64: 8 } as const

export type DType = keyof typeof elementBytes

export interface Tensor {
  readonly dtype: DType
  readonly shape: ReadonlyArray<number>
  /** Bytes from the start of the file. */
  readonly offset: number
  readonly byteLength: number
}

export interface TensorFile {
  readonly path: string
  /** In the order of the file, without gaps. */
  readonly tensors: ReadonlyMap<string, Tensor>
  /** Fills `into` with the bytes at `offset`. Cannot be interrupted, because a read cannot be cancelled. */
  readonly read: (into: Uint8Array, offset: number) => Effect.Effect<void, FileProblem>
}

/** A file that is not in the format, and the reason. */
export class Malformed extends Data.TaggedError("Malformed")<{ readonly path: string; readonly problem: string }> {
  override get message(): string {
    return `${this.path}: ${this.problem}`
  }
}

/** Opens a file in a scope, and reads its header. */
export const open = (path: string): Effect.Effect<TensorFile, FileProblem | Malformed, Scope.Scope> =>
  Effect.gen(function*() {
    const { byteLength, read } = yield* openFile(path)
    const refuse = (problem: string) => new Malformed({ path, problem })
    if (byteLength < lengthBytes) return yield* refuse("is too short for a header")
    const length = new DataView(new ArrayBuffer(lengthBytes))
    yield* read(new Uint8Array(length.buffer), 0)
    // As a number, a length beyond 2^53 is not exact, but too large in any case.
    const headerBytes = Number(length.getBigUint64(0, true))
    if (headerBytes > mostHeaderBytes) return yield* refuse(`a header of ${headerBytes} bytes is too large`)
    if (headerBytes > byteLength - lengthBytes) return yield* refuse("is truncated in its header")
    const header = new Uint8Array(headerBytes)
    yield* read(header, lengthBytes)
    const entries = yield* Effect.mapError(decodeHeader(header), (problem) => refuse(`header: ${problem}`))
    const tensors = tensorsOf(entries, lengthBytes + headerBytes)
    const problem = placeProblem(tensors, lengthBytes + headerBytes, byteLength)
    if (problem !== undefined) return yield* refuse(problem)
    return { path, read, tensors }
  })

const lengthBytes = 8

/** The limit of the format's own implementation. */
const mostHeaderBytes = 100_000_000

const Size = Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: Number.MAX_SAFE_INTEGER }))

const Entry = Schema.Struct({
  dtype: Schema.Literals(["F32", "F16", "BF16", "I32", "I64"]),
  shape: Schema.Array(Size),
  /** Where the tensor begins and ends, counted from the end of the header. */
  data_offsets: Schema.Tuple([Size, Size])
})

type Entries = Readonly<Record<string, typeof Entry.Type>>

const decodeObject = Schema.decodeEffect(Schema.fromJsonString(Schema.Record(Schema.String, Schema.Unknown)))
const decodeEntries = Schema.decodeUnknownEffect(Schema.Record(Schema.String, Entry))

/** Fails with the problem. */
const decodeHeader = Effect.fnUntraced(function*(header: Uint8Array) {
  const text = yield* Effect.try({
    try: () => new TextDecoder("utf-8", { fatal: true }).decode(header),
    catch: () => "is not UTF-8"
  })
  // Text for people, which says nothing about the tensors.
  const { __metadata__: _, ...entries } = yield* Effect.mapError(decodeObject(text), ({ message }) => message)
  return yield* Effect.mapError(decodeEntries(entries), ({ message }) => message)
})

const tensorsOf = (entries: Entries, start: number): ReadonlyMap<string, Tensor> => {
  const inOrder = Object.entries(entries).sort(([, one], [, other]) =>
    one.data_offsets[0] - other.data_offsets[0] || one.data_offsets[1] - other.data_offsets[1]
  )
  return new Map(inOrder.map(([name, { data_offsets: [begin, end], dtype, shape }]) => [
    name,
    { dtype, shape, offset: start + begin, byteLength: end - begin }
  ]))
}

/** Tensors must fill the file, without gaps and without sharing bytes. */
const placeProblem = (tensors: ReadonlyMap<string, Tensor>, start: number, end: number): string | undefined => {
  let next = start
  for (const [name, { byteLength, dtype, offset, shape }] of tensors) {
    const expected = bytesOf(dtype, shape)
    if (byteLength !== expected) {
      return `the tensor ${name} has ${byteLength} bytes; ${dtype} [${shape.join(", ")}] has ${expected}`
    }
    if (offset < next) return `the tensor ${name} overlaps the one before it`
    if (offset > next) return `${offset - next} bytes before the tensor ${name} belong to none`
    next += byteLength
    if (next > end) return `is truncated in the tensor ${name}`
  }
  return next < end ? `the last ${end - next} bytes belong to no tensor` : undefined
}

const bytesOf = (dtype: DType, shape: ReadonlyArray<number>): number =>
  shape.reduce((product, size) => product * size, elementBytes[dtype])

/** A tensor for a new file. */
export interface NewTensor {
  readonly name: string
  readonly dtype: DType
  readonly shape: ReadonlyArray<number>
  /** Called when the tensor is written, so that there is only one in memory at a time. */
  readonly make: () => Uint8Array
}

/** Writes a file. It appears under its name when it is complete. */
export const write = (
  path: string,
  tensors: ReadonlyArray<NewTensor>
): Effect.Effect<void, FileProblem | Malformed> =>
  Effect.gen(function*() {
    const part = `${path}.part`
    // In this order: Windows does not remove an open file.
    yield* Effect.addFinalizer(() => Effect.ignore(attempt(part, () => rm(part, { force: true }))))
    yield* Effect.scoped(Effect.flatMap(create(path, part), (file) => writeAll(path, file, tensors)))
    yield* attempt(path, () => rename(part, path))
  }).pipe(Effect.scoped)

const create = (path: string, part: string): Effect.Effect<FileHandle, FileProblem, Scope.Scope> =>
  Effect.acquireRelease(attempt(path, () => openHandle(part, "w")), (file) => Effect.promise(() => file.close()))

const writeAll = Effect.fnUntraced(function*(path: string, file: FileHandle, tensors: ReadonlyArray<NewTensor>) {
  yield* attempt(path, () => file.writeFile(headerOf(tensors)))
  for (const { dtype, make, name, shape } of tensors) {
    const bytes = make()
    const expected = bytesOf(dtype, shape)
    if (bytes.byteLength !== expected) {
      const problem = `the tensor ${name} has ${bytes.byteLength} bytes; expected ${expected}`
      return yield* new Malformed({ path, problem })
    }
    yield* attempt(path, () => file.writeFile(bytes))
  }
})

const headerOf = (tensors: ReadonlyArray<NewTensor>): Uint8Array => {
  let end = 0
  const entries = tensors.map(({ dtype, name, shape }) => {
    const begin = end
    end += bytesOf(dtype, shape)
    return [name, { dtype, shape, data_offsets: [begin, end] }]
  })
  const text = new TextEncoder().encode(JSON.stringify(Object.fromEntries(entries)))
  // Spaces, so that the tensors begin at a multiple of 8.
  const header = new Uint8Array(lengthBytes + Math.ceil(text.byteLength / 8) * 8).fill(0x20)
  new DataView(header.buffer).setBigUint64(0, BigInt(header.byteLength - lengthBytes), true)
  header.set(text, lengthBytes)
  return header
}
