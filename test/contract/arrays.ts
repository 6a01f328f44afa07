/**
 * Memory with element types: round trips of every type, parts in elements, and every mismatch of types.
 */
import { assert, layer } from "@effect/vitest"
import { CudaDevice, CudaGraph, CudaKernel, CudaMemory, CudaModule, CudaParameter, CudaStream } from "effect-cuda"
import type { DeviceArray, ElementType } from "effect-cuda/CudaMemory"
import * as Effect from "effect/Effect"
import { failsWith, leavesNothing, refuses } from "../support/assertions.ts"
import { program } from "../support/kernels.ts"
import type { Rig } from "../support/Rig.ts"

/** Values at the limits of each type, as the typed array of that type. */
const values = {
  i8: Int8Array.of(-128, -1, 0, 127),
  u8: Uint8Array.of(0, 1, 128, 255),
  i16: Int16Array.of(-32768, -1, 0, 32767),
  u16: Uint16Array.of(0, 1, 0x8000, 0xffff),
  i32: Int32Array.of(-(2 ** 31), -1, 0, 2 ** 31 - 1),
  u32: Uint32Array.of(0, 1, 2 ** 31, 2 ** 32 - 1),
  i64: BigInt64Array.of(-(2n ** 63n), -1n, 0n, 2n ** 63n - 1n),
  u64: BigUint64Array.of(0n, 1n, 2n ** 63n, 2n ** 64n - 1n),
  f16: Uint16Array.of(0x3c00, 0xc000, 0x7c00, 0x0001),
  bf16: Uint16Array.of(0x3f80, 0xc000, 0x7f80, 0x0001),
  f32: Float32Array.of(1.5, -0, Infinity, 2 ** -149),
  f64: Float64Array.of(1.5, -0, -Infinity, Number.MIN_VALUE)
} as const

const types = Object.keys(values) as ReadonlyArray<ElementType>

/** Types that are bypassed. */
const forced = <A>(value: unknown): A => value as A

export const arrayContract = (rig: Rig): void =>
  layer(rig.layer, { excludeTestServices: true })("arrays", (it) => {
    for (const type of types) {
      it.effect(`of ${type} return what they were made from`, () =>
        leavesNothing(Effect.gen(function*() {
          const stream = yield* CudaStream.make()
          const source = values[type]
          const array = yield* CudaMemory.fromArray<CudaMemory.HostArray, ElementType>(source, { type, stream })
          assert.deepStrictEqual([array.element, array.length, array.byteLength], [type, 4, source.byteLength])
          const read = yield* CudaMemory.toArray(array, stream)
          assert.strictEqual(read.constructor, source.constructor)
          assert.deepStrictEqual<unknown>(read, source)
          assert.deepStrictEqual<unknown>(
            yield* CudaMemory.toArray(CudaMemory.elements(array, 1, 2), stream),
            source.slice(1, 3)
          )
        })))
    }

    it.effect("go through pinned arrays and back", () =>
      leavesNothing(Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const pinned = yield* CudaMemory.pinnedArray("f64", 100)
        assert.deepStrictEqual([pinned.element, pinned.length, pinned.byteLength], ["f64", 100, 800])
        CudaMemory.view(pinned).set(Array.from({ length: 100 }, (_, index) => index / 2))
        const array = yield* CudaMemory.array("f64", 50, { stream })
        yield* CudaMemory.copy(array, CudaMemory.elements(pinned, 10, 50), stream)
        yield* pinned.pipe(CudaMemory.elements(0, 50), (part) => CudaMemory.copy(part, array, stream))
        yield* CudaStream.synchronize(stream)
        assert.deepStrictEqual(CudaMemory.view(CudaMemory.elements(pinned, 48, 4)), Float64Array.of(29, 29.5, 25, 25.5))
      })))

    it.effect("are buffers: bytes are copied, filled and read as before", () =>
      leavesNothing(Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const array = yield* CudaMemory.array("f32", 4)
        const bytes = yield* CudaMemory.allocate(16)
        yield* CudaMemory.fill(array, 0, stream)
        yield* CudaMemory.fill32(CudaMemory.elements(array, 2), 0x3f80_0000, stream)
        yield* CudaMemory.copy(bytes, array, stream)
        yield* CudaMemory.copy(array, bytes, stream)
        const read = new Uint8Array(16)
        yield* CudaMemory.download(read, array, stream)
        assert.deepStrictEqual(new Float32Array(read.buffer), Float32Array.of(0, 0, 1, 1))
        yield* CudaMemory.upload(array, Buffer.from(Float32Array.of(4, 3, 2, 1).buffer), stream)
        assert.deepStrictEqual(yield* CudaMemory.toArray(array, stream), Float32Array.of(4, 3, 2, 1))
        assert.isTrue(CudaMemory.isBuffer(array))
        assert.isTrue(CudaMemory.isElements(array))
        assert.isFalse(CudaMemory.isElements(bytes))
        assert.isFalse(CudaMemory.isElements(CudaMemory.slice(array, 0, 4)))
      })))

    it.effect("of bytes that have a type read as that type, also managed and growable memory", () =>
      leavesNothing(Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const bytes = yield* CudaMemory.fromArray(Uint8Array.of(9, 9, 9, 9, 0, 0, 0x80, 0x3f), { stream })
        const last = yield* bytes.pipe(CudaMemory.slice(4), CudaMemory.typed("f32"))
        assert.deepStrictEqual(yield* CudaMemory.toArray(last, stream), Float32Array.of(1))
        const growable = yield* CudaMemory.growable({ maxBytes: 2 ** 21, initial: 64 })
        const doubles = yield* CudaMemory.typed(growable, "f64")
        yield* CudaMemory.upload(CudaMemory.elements(doubles, 6), Float64Array.of(1, 2), stream)
        assert.deepStrictEqual(
          yield* CudaMemory.toArray(CudaMemory.elements(doubles, 7, 1), stream),
          Float64Array.of(2)
        )
        const half = Buffer.from(Uint16Array.of(0x3c00, 0x4000).buffer)
        const halves = yield* CudaMemory.fromArray(half, { type: "f16", stream })
        assert.deepStrictEqual(yield* CudaMemory.toArray(halves, stream), Uint16Array.of(0x3c00, 0x4000))
      })))

    it.effect("of different types are not copied to each other", () =>
      leavesNothing(Effect.gen(function*() {
        const floats = yield* CudaMemory.array("f32", 4)
        const bytes = forced<DeviceArray<"f32">>(yield* CudaMemory.array("u8", 16))
        const pinned = forced<CudaMemory.PinnedArray<"f32">>(yield* CudaMemory.pinnedArray("i32", 4))
        const mixed = yield* failsWith(CudaMemory.copy(floats, bytes), "InvalidArgument")
        assert.deepInclude(mixed, { argument: "source", value: "elements of u8" })
        assert.include(mixed.expected, "elements of f32")
        yield* refuses(floats.pipe(CudaMemory.copy(pinned)), "source")
        yield* refuses(CudaMemory.copy(pinned, CudaMemory.elements(floats, 0)), "source")
        yield* refuses(CudaMemory.copy2D(floats, bytes, { width: 4, height: 4 }), "source")
        const right = { destination: CudaMemory.slice(floats, 0, 8), source: CudaMemory.slice(bytes, 8, 8) }
        yield* refuses(CudaMemory.copyBatch([right, { destination: floats, source: bytes }]), "copies[1].source")
        yield* CudaMemory.copyBatch([right])
        yield* CudaMemory.copy(floats, CudaMemory.slice(bytes, 0))
      })))

    it.effect("of another type than a JavaScript array are neither uploaded nor downloaded", () =>
      leavesNothing(Effect.gen(function*() {
        const floats = yield* CudaMemory.array("f32", 4)
        const wrong = forced<Float32Array>(new Int32Array(4))
        yield* refuses(CudaMemory.upload(floats, wrong), "array")
        yield* refuses(CudaMemory.download(wrong, floats), "array")
        yield* refuses(CudaMemory.download(floats)(forced<Float32Array>(new Uint8ClampedArray(16))), "array")
        yield* refuses(CudaMemory.upload(floats, new Float32Array(3)), "array")
        yield* CudaMemory.upload(floats, new DataView(new ArrayBuffer(16)))
      })))

    it.effect("are the arguments of kernels that declare their types, also in graphs", () =>
      leavesNothing(Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const module = yield* Effect.flatMap(program, (made) => CudaModule.load(made))
        const parameters = [CudaParameter.pointerOf("f32"), CudaParameter.inputOf("f32"), CudaParameter.u32] as const
        const add = yield* CudaKernel.get(module, "add", parameters)
        const from = yield* CudaMemory.fromArray(Float32Array.of(1, 2, 3, 4), { stream })
        const to = yield* CudaMemory.fromArray(Float32Array.of(0.5, 0.5, 0.5, 0.5), { stream })
        const config = { grid: 1, block: 32 }
        yield* CudaKernel.launch(add, config, [to, CudaMemory.elements(from, 1), 3], stream)
        const bytes = forced<typeof from>(yield* CudaMemory.fromArray(new Uint8Array(16), { stream }))
        yield* refuses(CudaKernel.launch(add, config, [to, bytes, 4], stream), "arguments[1]")
        yield* refuses(CudaKernel.launch(add, config, [forced(bytes.buffer), from, 4], stream), "arguments[0]")
        const graph = yield* CudaGraph.recordWith(
          { to: CudaGraph.array("f32", 4) },
          ({ to }) => CudaKernel.launch(add, config, [to, from, 4])
        )
        const exec = yield* CudaGraph.instantiate(graph)
        yield* CudaGraph.launch(exec, { to }, stream)
        yield* refuses(CudaGraph.launch(exec, { to: bytes }, stream), "values.to")
        assert.deepStrictEqual(yield* CudaMemory.toArray(to, stream), Float32Array.of(3.5, 5.5, 7.5, 4.5))
      })))

    it.effect("refuse sizes, types and arguments by name", () =>
      leavesNothing(Effect.gen(function*() {
        for (const length of [0, -1, 1.5, NaN, 2 ** 53, forced<number>("4"), forced<number>(undefined)]) {
          yield* refuses(CudaMemory.array("f32", length), "length")
          yield* refuses(CudaMemory.pinnedArray("f32", length), "length")
        }
        for (const type of ["bool", "float", "toString", null, undefined, 4]) {
          yield* refuses(CudaMemory.array(forced<"f32">(type), 4), "type")
          yield* refuses(CudaMemory.pinnedArray(forced<"f32">(type), 4), "type")
          yield* refuses(Effect.flatMap(CudaMemory.allocate(4), CudaMemory.typed(forced<"f32">(type))), "type")
        }
        for (const array of [[1, 2], null, undefined, new DataView(new ArrayBuffer(4)), new ArrayBuffer(4), 1]) {
          yield* refuses(CudaMemory.fromArray(forced<Float32Array>(array)), "values")
        }
        yield* refuses(CudaMemory.fromArray(new Float32Array(0)), "length")
        yield* refuses(CudaMemory.fromArray(Uint8Array.of(1, 2, 3), { type: "f32" }), "length")
        yield* refuses(CudaMemory.fromArray(Float32Array.of(1), { type: forced<"f32">("i32") }), "type")
        const { totalMemory } = yield* CudaDevice.get(0)
        const large = yield* Effect.flip(CudaMemory.array("f64", Math.ceil(totalMemory / 4)))
        assert.deepStrictEqual([large.reason._tag, large.operation], ["OutOfMemory", "CudaMemory.array"])
        const array = yield* CudaMemory.array("f32", 4)
        const pinned = yield* CudaMemory.pinnedArray("f32", 4)
        const bytes = yield* CudaMemory.allocate(16)
        for (const wrong of [bytes, CudaMemory.slice(array, 0, 4), null, undefined, 3]) {
          yield* refuses(CudaMemory.toArray(forced<typeof array>(wrong)), "array")
        }
        yield* refuses(CudaMemory.toArray(forced<typeof array>(pinned)), "buffer")
        yield* refuses(CudaMemory.typed(forced<typeof array>(null), "f32"), "buffer")
        yield* refuses(CudaMemory.typed(CudaMemory.slice(bytes, 2, 4), "f32"), "offset")
        yield* refuses(CudaMemory.typed(CudaMemory.slice(bytes, 20, 0), "f32"), "offset")
        yield* refuses(CudaMemory.typed(CudaMemory.slice(bytes, -4, 4), "f32"), "offset")
        yield* refuses(CudaMemory.typed(CudaMemory.slice(bytes, 4, 6), "f32"), "byteLength")
        yield* refuses(CudaMemory.typed(CudaMemory.slice(bytes, 8, 12), "f32"), "byteLength")
        assert.throws(() => CudaMemory.view(forced<typeof pinned>(CudaMemory.slice(pinned, 0))), "Type")
      })))

    it.effect("refuse parts outside, and parts that are not whole elements, when they are used", () =>
      leavesNothing(Effect.gen(function*() {
        const array = yield* CudaMemory.array("f64", 4)
        const target = new Float64Array(1)
        const at = (offset: number, length?: number) => CudaMemory.elements(array, offset, length)
        const offsets = yield* failsWith(CudaMemory.fill(at(0.5, 1), 0), "InvalidArgument")
        assert.deepInclude(offsets, { value: "0.5" })
        yield* failsWith(CudaMemory.fill(at(1, 0.5), 0), "InvalidArgument")
        yield* failsWith(CudaMemory.fill(at(4, 1), 0), "InvalidArgument")
        yield* failsWith(CudaMemory.fill(at(-1, 1), 0), "InvalidArgument")
        yield* failsWith(CudaMemory.download(target, at(4, 1)), "InvalidArgument")
        yield* failsWith(CudaMemory.toArray(at(0.5)), "InvalidArgument")
        yield* failsWith(CudaMemory.toArray(at(0, -1)), "InvalidArgument")
        const untyped = forced<typeof array>(yield* CudaMemory.allocate(8))
        yield* failsWith(CudaMemory.fill(CudaMemory.elements(untyped, 0, 1), 0), "InvalidArgument")
        yield* CudaMemory.fill(at(4, 0), 0)
        yield* CudaMemory.fill(CudaMemory.elements(at(1, 2), 1), 0)
      })))

    it.effect("that were released fail by name, and so do their parts", () =>
      leavesNothing(Effect.gen(function*() {
        const gone = yield* Effect.scoped(CudaMemory.fromArray(Float32Array.of(1, 2)))
        yield* failsWith(CudaMemory.toArray(gone), "ResourceReleased")
        yield* failsWith(CudaMemory.toArray(CudaMemory.elements(gone, 1)), "ResourceReleased")
        yield* failsWith(CudaMemory.fill(yield* CudaMemory.typed(gone, "u32"), 0), "ResourceReleased")
      })))
  })
