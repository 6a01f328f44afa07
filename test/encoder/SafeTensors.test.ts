/**
 * Files of tensors: what is written comes back, also on the device, and what is malformed is refused.
 */
import { assert, describe, it } from "@effect/vitest"
import { CudaMemory, CudaRuntime, SimulatedRuntime } from "effect-cuda"
import * as Effect from "effect/Effect"
import { mkdirSync, readdirSync, readFileSync, truncateSync, writeFileSync } from "node:fs"
import { dirname } from "node:path"
import * as SafeTensors from "../../examples/encoder/SafeTensors.ts"
import { upload } from "../../examples/encoder/Upload.ts"
import { leavesNothing, nothingHeld } from "../support/assertions.ts"
import { checkedMachine } from "../support/checkedMachine.ts"
import { newPath } from "./support.ts"

const bytes = (length: number, first = 0) => Uint8Array.from({ length }, (_, index) => first + index * 7)

const tensor = (
  name: string,
  dtype: SafeTensors.DType,
  shape: ReadonlyArray<number>,
  content: Uint8Array
): SafeTensors.NewTensor => ({ name, dtype, shape, make: () => content })

const several = [
  tensor("a.float", "F32", [3, 2], bytes(24)),
  tensor("half", "F16", [5], bytes(10, 1)),
  tensor("brain", "BF16", [2, 2, 2], bytes(16, 2)),
  tensor("nothing", "I32", [0, 4], bytes(0)),
  tensor("word", "I32", [1], bytes(4, 3)),
  tensor("scalar ü", "I64", [], bytes(8, 4))
]

/** A file with this header, and as many bytes after it. */
const fileWith = (header: unknown, dataBytes: number): Uint8Array => {
  const text = new TextEncoder().encode(typeof header === "string" ? header : JSON.stringify(header))
  const file = new Uint8Array(8 + text.byteLength + dataBytes)
  new DataView(file.buffer).setBigUint64(0, BigInt(text.byteLength), true)
  file.set(text, 8)
  return file
}

const opened = (content: Uint8Array) =>
  Effect.gen(function*() {
    const path = yield* newPath
    writeFileSync(path, content)
    return yield* SafeTensors.open(path)
  })

describe("a written file", () => {
  it.effect("comes back", () =>
    Effect.gen(function*() {
      const path = yield* newPath
      yield* SafeTensors.write(path, several)
      const { read, tensors } = yield* SafeTensors.open(path)
      assert.deepStrictEqual([...tensors.keys()], several.map(({ name }) => name))
      for (const { dtype, make, name, shape } of several) {
        const found = tensors.get(name)!
        assert.deepStrictEqual([found.dtype, found.shape], [dtype, shape])
        const content = new Uint8Array(found.byteLength)
        yield* read(content, found.offset)
        assert.deepStrictEqual(content, make())
      }
      assert.strictEqual(tensors.get("a.float")!.offset % 8, 0)
    }))

  it.effect("has the bytes of the format", () =>
    Effect.gen(function*() {
      const path = yield* newPath
      yield* SafeTensors.write(path, [tensor("x", "I32", [1], bytes(4))])
      const header = `{"x":{"dtype":"I32","shape":[1],"data_offsets":[0,4]}}`.padEnd(56)
      assert.deepStrictEqual(
        readFileSync(path),
        Buffer.concat([Buffer.from([56, 0, 0, 0, 0, 0, 0, 0]), Buffer.from(header), bytes(4)])
      )
    }))

  it.effect("may be without tensors", () =>
    Effect.gen(function*() {
      const path = yield* newPath
      yield* SafeTensors.write(path, [])
      assert.strictEqual((yield* SafeTensors.open(path)).tensors.size, 0)
    }))

  it.effect("does not appear before it is complete", () =>
    Effect.gen(function*() {
      const path = yield* newPath
      const failure = yield* Effect.flip(SafeTensors.write(path, [...several, tensor("short", "F32", [2], bytes(7))]))
      assert.strictEqual(failure.message, `${path}: the tensor short has 7 bytes; expected 8`)
      assert.deepStrictEqual(readdirSync(dirname(path)), [])
      const missing = yield* Effect.flip(SafeTensors.write(`${path}/model`, several))
      assert.strictEqual(missing.message, `${path}/model: no such file`)
    }))
})

describe("a foreign file", () => {
  it.effect("may have metadata, spaces, and tensors in any order", () =>
    Effect.gen(function*() {
      const header = JSON.stringify({
        second: { dtype: "BF16", shape: [2], data_offsets: [4, 8] },
        __metadata__: { format: "pt" },
        first: { dtype: "F32", shape: [1], data_offsets: [0, 4] }
      })
      const { tensors } = yield* opened(fileWith(`${header}    `, 8))
      assert.deepStrictEqual([...tensors.keys()], ["first", "second"])
    }))

  const x = (fields: object) => ({ x: { dtype: "F32", shape: [2], data_offsets: [0, 8], ...fields } })
  const two = (one: ReadonlyArray<number>, other: ReadonlyArray<number>) => ({
    one: { dtype: "F32", shape: [1], data_offsets: one },
    other: { dtype: "F32", shape: [1], data_offsets: other }
  })
  const long = (length: bigint) => new Uint8Array(BigUint64Array.of(length, 0n).buffer)

  it.effect.each<[string, Uint8Array, RegExp]>([
    ["is too short for the length of a header", bytes(7), /too short for a header/],
    ["has an absurd header length", long(2n ** 64n - 1n), /a header of \d+ bytes is too large/],
    ["has a header that is longer than the limit", long(100_000_001n), /a header of 100000001 bytes is too large/],
    ["has a header that is longer than the file", long(9n), /truncated in its header/],
    ["has no header", long(0n), /header: .*JSON/],
    ["has a header that is not JSON", fileWith("{x", 0), /header: .*JSON/],
    ["has a header that is not an object", fileWith("[1]", 0), /header: /],
    ["has an unknown type", fileWith(x({ dtype: "F8" }), 8), /header: [^]*dtype/],
    ["has a shape that is not a list", fileWith(x({ shape: 2 }), 8), /header: [^]*shape/],
    ["has a negative size", fileWith(x({ shape: [-2] }), 8), /header: [^]*shape/],
    ["has a size that is not whole", fileWith(x({ shape: [2.5] }), 8), /header: [^]*shape/],
    ["has a negative place", fileWith(x({ data_offsets: [-8, 0] }), 8), /header: [^]*data_offsets/],
    ["has a place without an end", fileWith(x({ data_offsets: [0] }), 8), /header: [^]*data_offsets/],
    ["has a place that ends before it begins", fileWith(x({ data_offsets: [8, 0] }), 8), /x has -8 bytes/],
    ["has a tensor without a type", fileWith({ x: { shape: [2], data_offsets: [0, 8] } }, 8), /header: [^]*dtype/],
    ["has a size that does not match", fileWith(x({ shape: [3] }), 8), /x has 8 bytes; F32 \[3\] has 12/],
    ["has a size beyond all numbers", fileWith(x({ shape: Array(40).fill(2 ** 40) }), 8), /x has 8 bytes/],
    ["has tensors that overlap", fileWith(two([0, 4], [2, 6]), 6), /other overlaps the one before it/],
    ["has a tensor twice in the same place", fileWith(two([0, 4], [0, 4]), 4), /other overlaps/],
    ["has a gap", fileWith(two([0, 4], [6, 10]), 10), /2 bytes before the tensor other belong to none/],
    ["has a gap before the first tensor", fileWith(x({ data_offsets: [1, 9] }), 9), /1 bytes before the tensor x/],
    ["is truncated", fileWith(x({}), 7), /truncated in the tensor x/],
    ["has more bytes than tensors", fileWith(x({}), 9), /the last 1 bytes belong to no tensor/]
  ])("is refused if it %s", ([, content, problem]) =>
    Effect.gen(function*() {
      const failure = yield* Effect.flip(opened(content))
      assert.strictEqual(failure._tag, "Malformed")
      assert.match(failure.message, problem)
    }))

  it.effect("is refused if its header is not UTF-8", () =>
    Effect.gen(function*() {
      const content = fileWith("{\"?\":1}", 0)
      content[10] = 0xff
      assert.match((yield* Effect.flip(opened(content))).message, /header: is not UTF-8/)
    }))

  it.effect("must be a file", () =>
    Effect.gen(function*() {
      const path = yield* newPath
      assert.strictEqual((yield* Effect.flip(SafeTensors.open(path))).message, `${path}: no such file`)
      mkdirSync(path)
      assert.strictEqual((yield* Effect.flip(SafeTensors.open(path))).message, `${path}: is a directory`)
    }))
})

describe("an upload", () => {
  const machine = checkedMachine(SimulatedRuntime.layer({ recordTimeline: true }))

  it.live.each([1, 3, 10, 40, 1000])(
    "brings every tensor to the device, in chunks of %d bytes",
    (chunkBytes) =>
      Effect.gen(function*() {
        const path = yield* newPath
        yield* SafeTensors.write(path, several)
        const tensors = yield* upload(yield* SafeTensors.open(path), { chunkBytes })
        assert.strictEqual(tensors.size, several.length)
        for (const { make, name } of several) {
          const slice = tensors.get(name)!
          assert.strictEqual(slice.offset % 256, 0)
          const content = new Uint8Array(slice.byteLength)
          if (content.byteLength > 0) yield* CudaMemory.download(content, slice)
          assert.deepStrictEqual(content, make())
        }
        const { liveResources } = yield* CudaRuntime.CudaRuntime
        const { deviceBuffers, hostBuffers, streams } = yield* liveResources
        assert.deepStrictEqual([deviceBuffers, hostBuffers, streams], [1, 0, 0])
      }).pipe(Effect.scoped, Effect.provide(machine))
  )

  it.live("overlaps its copies", () =>
    Effect.gen(function*() {
      const path = yield* newPath
      yield* SafeTensors.write(path, [tensor("x", "F32", [16, 1024], new Uint8Array(65536))])
      yield* upload(yield* SafeTensors.open(path), { chunkBytes: 4096, slots: 4 })
      const control = yield* SimulatedRuntime.SimulatedControl
      const copies = (yield* control.timeline).filter(({ kind }) => kind === "hostToDevice")
      assert.strictEqual(copies.length, 16)
      assert.strictEqual(new Set(copies.map(({ streamId }) => streamId)).size, 4)
    }).pipe(Effect.scoped, Effect.provide(machine)))

  it.live("of a file without tensors brings nothing", () =>
    Effect.gen(function*() {
      const path = yield* newPath
      yield* SafeTensors.write(path, [])
      assert.strictEqual((yield* upload(yield* SafeTensors.open(path))).size, 0)
    }).pipe(Effect.scoped, Effect.provide(machine)))

  it.live("fails if the file has become shorter, and leaves nothing", () =>
    leavesNothing(Effect.gen(function*() {
      const path = yield* newPath
      yield* SafeTensors.write(path, several)
      const file = yield* SafeTensors.open(path)
      truncateSync(path, readFileSync(path).byteLength - 1)
      const failure = yield* Effect.flip(upload(file, { chunkBytes: 10 }))
      assert.match(failure.message, /was truncated while it was being read/)
    })).pipe(Effect.scoped, Effect.provide(machine)))

  it.live("fails if the device has no memory for it", () =>
    Effect.gen(function*() {
      const path = yield* newPath
      yield* SafeTensors.write(path, several)
      const failure = yield* Effect.flip(Effect.scoped(Effect.flatMap(SafeTensors.open(path), (file) => upload(file))))
      assert.match(failure.message, /OUT_OF_MEMORY/)
      const { liveResources } = yield* CudaRuntime.CudaRuntime
      assert.deepStrictEqual(yield* liveResources, nothingHeld)
    }).pipe(Effect.provide(SimulatedRuntime.layer({ devices: [{ memory: 1024 }] }))))
})
