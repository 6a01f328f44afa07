/**
 * The contract of described libraries: their calls are operations with the checks, the order and the lifetimes of any other, and their handles
 * are resources. On a GPU the calls go to a small C library, and on simulated devices to the functions of its description.
 */
import { assert, layer } from "@effect/vitest"
import { CudaGraph, CudaLibrary, CudaMemory, CudaParameter, CudaStream } from "effect-cuda"
import type { DeviceBuffer } from "effect-cuda/CudaMemory"
import { CudaRuntime } from "effect-cuda/CudaRuntime"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Scope from "effect/Scope"
import { failsWith, leavesNothing, refuses } from "../support/assertions.ts"
import { Busy } from "../support/Rig.ts"
import type { Rig } from "../support/Rig.ts"
import { demo, StubLibrary } from "../support/stubLibrary.ts"

const size = 64

const bytesOf = (buffer: DeviceBuffer, stream?: CudaStream.CudaStream) =>
  Effect.suspend(() => {
    const bytes = new Uint8Array(size)
    return Effect.as(CudaMemory.download(bytes, buffer, stream), bytes)
  })

const holds = (buffer: DeviceBuffer, value: number, stream?: CudaStream.CudaStream) =>
  Effect.map(bytesOf(buffer, stream), (bytes) => assert.deepStrictEqual(bytes, new Uint8Array(size).fill(value)))

const make = { create: "demoCreate", destroy: "demoDestroy", setStream: "demoSetStream" } as const

export const libraryContract = (rig: Rig): void =>
  layer(rig.layer, { excludeTestServices: true })("libraries", (it) => {
    const isNative = rig.name !== "simulated"
    const path = isNative ? new StubLibrary("libcuda.so.1").path : undefined
    const load = CudaLibrary.load(demo, { path })
    type Library = Effect.Success<typeof load>

    const fill = (library: Library, buffer: DeviceBuffer | null, value: number, stream?: CudaStream.CudaStream) =>
      CudaLibrary.call(library, "demoFill", [buffer, Uint8Array.of(value), size], stream)

    it.effect("are bound to their runtime, and know where they are", () =>
      leavesNothing(Effect.gen(function*() {
        const library = yield* load
        assert.isTrue(CudaLibrary.isCudaLibrary(library))
        assert.strictEqual(library.path, path)
        assert.strictEqual(library.definition, demo)
      })))

    it.effect("enqueue on the given stream, on the current one, and on the default one", () =>
      leavesNothing(Effect.gen(function*() {
        const library = yield* load
        const [one, other] = [yield* CudaMemory.allocate(size), yield* CudaMemory.allocate(size)]
        const stream = yield* CudaStream.make()
        const steps = (given?: CudaStream.CudaStream) =>
          Effect.gen(function*() {
            yield* CudaMemory.fill(one, 1, given)
            yield* fill(library, one, 2, given)
            yield* fill(library, null, 3, given)
            yield* CudaMemory.copy(other, one, given)
            yield* holds(other, 2, given)
          })
        yield* steps(stream)
        yield* CudaStream.withStream(steps(), stream)
        yield* steps()
      })))

    it.effect("keep the order of ordered buffers, and their memory until the work is done", () =>
      leavesNothing(Effect.gen(function*() {
        const library = yield* load
        const [left, right] = [yield* CudaStream.make(), yield* CudaStream.make()]
        const [kept, ordered] = [yield* CudaMemory.allocate(size), yield* CudaMemory.allocate(size, { ordered: true })]
        yield* (yield* Busy).enqueue(left, 20)
        yield* CudaMemory.fill(ordered, 1, left)
        yield* fill(library, ordered, 2, right)
        yield* CudaMemory.copy(kept, ordered, left)
        yield* holds(kept, 2, left)
        yield* (yield* Busy).enqueue(left, 20)
        yield* Effect.scoped(Effect.gen(function*() {
          const buffer = yield* CudaMemory.allocate(size)
          yield* fill(library, buffer, 3, left)
          yield* CudaMemory.copy(kept, buffer, left)
        }))
        yield* holds(kept, 3, left)
      })))

    it.effect("read memory of the host during the call", () =>
      leavesNothing(Effect.gen(function*() {
        const library = yield* load
        const [stream, buffer] = [yield* CudaStream.make(), yield* CudaMemory.allocate(size)]
        const value = Uint8Array.of(4)
        yield* (yield* Busy).enqueue(stream, 50)
        yield* CudaLibrary.call(library, "demoFill", [buffer, value, BigInt(size)], stream)
        value[0] = 9
        yield* holds(buffer, 4, stream)
      })))

    it.effect("pass every kind of argument, and return values", () =>
      leavesNothing(Effect.gen(function*() {
        const library = yield* load
        const id = new Uint8Array(128)
        id[0] = 3
        id[127] = 4
        const out = new Float64Array(1)
        yield* CudaLibrary.call(library, "demoSum", [
          -100,
          60000,
          -5n,
          2 ** 40,
          0.5,
          0.25,
          true,
          "four",
          id,
          Int32Array.of(1000),
          out
        ])
        assert.strictEqual(out[0], -100 + 60000 - 5 + 2 ** 40 + 0.5 + 0.25 + 1 + 4 + 7 + 1000)
        const view = new DataView(new ArrayBuffer(16), 8)
        yield* CudaLibrary.call(library, "demoSum", [0, 0, 0, 0, 0, 0, false, null, id, null, view])
        assert.strictEqual(view.getFloat64(0, true), 7)
        assert.strictEqual(yield* CudaLibrary.call(library, "demoVersion", []), 9007199254740993n)
        assert.strictEqual(yield* CudaLibrary.call(library, "demoText", [1]), "demo")
        assert.strictEqual(yield* CudaLibrary.call(library, "demoHalf", []), 1.5)
        assert.strictEqual(yield* CudaLibrary.call(library, "demoLeast", []), -(2n ** 63n))
        const part = new Uint8Array(200).subarray(50, 178).fill(3, 0, 1)
        const outs = new Float64Array(3)
        const most = [0, 0, -(2n ** 63n), 2n ** 64n - 1n, 0, 0, false, "", part, null, outs.subarray(1, 2)] as const
        yield* CudaLibrary.call(library, "demoSum", most)
        assert.deepStrictEqual([...outs], [0, 2 ** 63 + 3, 0])
      })))

    it.effect("run off the JS thread if they block, but not in a recording", () =>
      leavesNothing(Effect.gen(function*() {
        const library = yield* load
        const out = new Int32Array(1)
        yield* CudaLibrary.call(library, "demoWait", [5, out])
        assert.strictEqual(out[0], 6)
        const recorded = CudaGraph.record(CudaLibrary.call(library, "demoWait", [5, out]))
        assert.include((yield* failsWith(recorded, "CannotRecord")).because, "off the JS thread")
      })))

    it.effect("become nodes of a recording, named after the function", () =>
      leavesNothing(Effect.gen(function*() {
        const library = yield* load
        const [one, other] = [yield* CudaMemory.allocate(size), yield* CudaMemory.allocate(size)]
        const handle = yield* CudaLibrary.handle(library, make)
        const graph = yield* CudaGraph.record(Effect.gen(function*() {
          yield* fill(library, one, 4)
          yield* CudaLibrary.call(library, "demoFillOf", [handle, other, 5, size]).pipe(CudaGraph.named("mine"))
        }))
        assert.deepStrictEqual(graph.nodes.map(({ kind, name, operation }) => [kind, name, operation]), [
          ["graph", "demoFill", "CudaLibrary.call"],
          ["graph", "mine", "CudaLibrary.call"]
        ])
        const [stream, exec] = [yield* CudaStream.make(), yield* CudaGraph.instantiate(graph)]
        for (let launch = 0; launch < 2; launch++) {
          yield* CudaMemory.fill(one, 1, stream)
          yield* CudaMemory.fill(other, 1, stream)
          yield* CudaGraph.launch(exec, stream)
          yield* holds(one, 4, stream)
          yield* holds(other, 5, stream)
        }
        yield* CudaLibrary.call(library, "demoFillOf", [handle, other, 6, size], stream)
        yield* holds(other, 6, stream)
      })))

    it.effect("with an ordered handle wait for those on other streams, also in and among graphs", () =>
      leavesNothing(Effect.gen(function*() {
        const library = yield* load
        const handle = yield* CudaLibrary.handle(library, { ...make, ordered: true })
        const [left, right] = [yield* CudaStream.make(), yield* CudaStream.make()]
        const buffer = yield* CudaMemory.allocate(size)
        const busy = (stream: CudaStream.CudaStream) => Effect.flatMap(Busy, ({ enqueue }) => enqueue(stream, 20))
        const using = (value: number, stream?: CudaStream.CudaStream) =>
          CudaLibrary.call(library, "demoFillOf", [handle, buffer, value, size], stream)
        const ends = (value: number) =>
          Effect.andThen(
            CudaStream.synchronize(left),
            Effect.andThen(CudaStream.synchronize(right), holds(buffer, value))
          )
        yield* busy(left)
        yield* using(1, left)
        yield* using(2, right)
        yield* ends(2)
        yield* busy(right)
        yield* using(3, right)
        yield* using(4, left)
        yield* using(5, left)
        yield* ends(5)
        const graph = yield* CudaGraph.record(Effect.gen(function*() {
          const side = yield* CudaStream.make()
          const inside = yield* CudaStream.make()
          yield* CudaStream.waitStream(side, inside)
          yield* using(6, side)
          yield* using(7, inside)
          for (const stream of [side, inside]) yield* CudaStream.waitStream(yield* CudaStream.current(), stream)
        }))
        assert.deepStrictEqual(graph.nodes.map(({ dependencies }) => dependencies), [[], [0]])
        const exec = yield* CudaGraph.instantiate(graph, { instances: 2 })
        yield* busy(left)
        yield* CudaGraph.launch(exec, left)
        yield* using(8, right)
        yield* ends(8)
        yield* busy(right)
        yield* using(9, right)
        yield* CudaGraph.launch(exec, left)
        yield* ends(7)
        const other = yield* CudaGraph.instantiate(yield* CudaGraph.record(using(10)))
        yield* busy(left)
        yield* CudaGraph.launch(exec, left)
        yield* CudaGraph.launch(other, right)
        yield* ends(10)
        const outer = yield* CudaGraph.record(Effect.gen(function*() {
          const side = yield* CudaStream.make()
          yield* using(11, side)
          yield* CudaGraph.embed(graph)
          yield* using(12, side)
          yield* CudaStream.waitStream(yield* CudaStream.current(), side)
        }))
        assert.deepStrictEqual(outer.nodes.map(({ dependencies }) => dependencies), [[], [0], [1], [2]])
        const condition = yield* CudaMemory.allocate(4)
        const conditional = yield* CudaGraph.record(Effect.gen(function*() {
          const side = yield* CudaStream.make()
          yield* using(13, side)
          yield* CudaGraph.when(condition, using(14))
          yield* using(15, side)
          yield* CudaStream.waitStream(yield* CudaStream.current(), side)
        }))
        const [first, body, when, last] = conditional.nodes
        assert.deepStrictEqual(
          [first, body, when, last].map((node) => [node?.kind, node?.dependencies]),
          [["graph", []], ["graph", []], ["conditional", [0]], ["graph", [2]]]
        )
      })))

    it.effect("use the handle of their stream, which is made by the first call, and destroyed after the stream", () =>
      leavesNothing(Effect.gen(function*() {
        const library = yield* load
        const buffer = yield* CudaMemory.allocate(size)
        const { liveResources } = yield* CudaRuntime
        const counts = (expected: number) =>
          Effect.map(liveResources, ({ handles }) => assert.strictEqual(handles, expected))
        const slow = { ...make, create: "demoCreateSlowly", values: [7], destroy: "demoDestroySlowly" } as const
        const creations = [
          CudaLibrary.handle(library, { ...make, perStream: true }),
          CudaLibrary.handle(library, { ...slow, perStream: true })
        ]
        for (const creation of creations) {
          yield* Effect.scoped(Effect.gen(function*() {
            const handles = yield* creation
            assert.isTrue(CudaLibrary.isStreamHandles(handles))
            assert.isFalse(CudaLibrary.isLibraryHandle(handles))
            assert.strictEqual(String(handles), "StreamHandles(demo, device 0)")
            const using = (value: number, stream?: CudaStream.CudaStream) =>
              CudaLibrary.call(library, "demoFillOf", [handles, buffer, value, size], stream)
            yield* counts(0)
            yield* Effect.scoped(Effect.gen(function*() {
              for (const stream of [yield* CudaStream.make(), yield* CudaStream.make()]) {
                yield* (yield* Busy).enqueue(stream, 50)
                yield* CudaMemory.fill(buffer, 1, stream)
                yield* Effect.all([using(3, stream), using(3, stream)], { concurrency: 2 })
                yield* holds(buffer, 3, stream)
              }
              yield* counts(2)
            }))
            yield* using(4)
            yield* holds(buffer, 4)
            yield* counts(1)
          }))
          yield* counts(0)
        }
      })))

    it.effect("that enqueue nothing use the handle of the stream that they are given, and need one", () =>
      leavesNothing(Effect.gen(function*() {
        const library = yield* load
        const stream = yield* CudaStream.make()
        const handles = yield* CudaLibrary.handle(library, { ...make, perStream: true })
        const using = (on?: CudaStream.CudaStream) =>
          CudaLibrary.call(library, "demoUse", [handles, new Int32Array(1)], on)
        const { expected } = yield* failsWith(using(), "InvalidArgument")
        assert.include(expected, "the stream whose handle is meant")
        yield* refuses(CudaStream.withStream(using(), stream), "arguments[0]")
        yield* using(stream)
        yield* using(stream)
        assert.strictEqual((yield* (yield* CudaRuntime).liveResources).handles, 1)
        const gone = yield* Effect.scoped(CudaStream.make())
        yield* failsWith(using(gone), "ResourceReleased")
        const released = yield* Effect.scoped(CudaLibrary.handle(library, { ...make, perStream: true }))
        const late = CudaLibrary.call(library, "demoUse", [released, new Int32Array(1)], stream)
        assert.include((yield* failsWith(late, "ResourceReleased")).resource, "demo handles of streams")
      })))

    it.effect("in a recording use a handle of the recording, whose launches are ordered", () =>
      leavesNothing(Effect.gen(function*() {
        const library = yield* load
        const scope = yield* Scope.make()
        const slow = { create: "demoCreateSlowly", values: [7], destroy: "demoDestroySlowly" } as const
        const making = CudaLibrary.handle(library, { ...slow, setStream: "demoSetStream", perStream: true })
        const handles = yield* making.pipe(Scope.provide(scope))
        const { liveResources } = yield* CudaRuntime
        const buffer = yield* CudaMemory.allocate(size)
        const [left, right] = [yield* CudaStream.make(), yield* CudaStream.make()]
        const using = (value: number, stream?: CudaStream.CudaStream) =>
          CudaLibrary.call(library, "demoFillOf", [handles, buffer, value, size], stream)
        const graph = yield* CudaGraph.record(Effect.gen(function*() {
          const [one, other] = [yield* CudaStream.make(), yield* CudaStream.make()]
          yield* using(1, one)
          yield* using(2, other)
          yield* CudaStream.waitStream(yield* CudaStream.current(), other)
        }))
        assert.deepStrictEqual(graph.nodes.map(({ dependencies }) => dependencies), [[], [0]])
        assert.strictEqual((yield* liveResources).handles, 1)
        const outer = yield* CudaGraph.record(Effect.andThen(CudaGraph.embed(graph), CudaMemory.fill(buffer, 3)))
        const exec = yield* CudaGraph.instantiate(graph, { instances: 2 })
        const embedding = yield* CudaGraph.instantiate(outer)
        const ends = (value: number) =>
          Effect.andThen(
            CudaStream.synchronize(left),
            Effect.andThen(CudaStream.synchronize(right), holds(buffer, value))
          )
        yield* (yield* Busy).enqueue(left, 20)
        yield* CudaGraph.launch(embedding, left)
        yield* CudaGraph.launch(exec, right)
        yield* ends(2)
        yield* (yield* Busy).enqueue(right, 20)
        yield* CudaGraph.launch(exec, right)
        yield* CudaGraph.launch(embedding, left)
        yield* ends(3)
        yield* (yield* Busy).enqueue(left, 20)
        yield* CudaGraph.launch(exec, left)
        yield* Scope.close(scope, Exit.void)
        assert.isTrue(yield* CudaStream.query(left))
        assert.strictEqual((yield* liveResources).handles, 0)
        for (const each of [exec, embedding]) {
          const { resource } = yield* failsWith(CudaGraph.launch(each, left), "ResourceReleased")
          assert.include(resource, "demo handle")
        }
        yield* failsWith(CudaGraph.record(using(1)), "ResourceReleased")
      })))

    it.effect("make graphs that hold their handles: a launch fails with the name of one that was released", () =>
      leavesNothing(Effect.gen(function*() {
        const library = yield* load
        const [stream, buffer] = [yield* CudaStream.make(), yield* CudaMemory.allocate(size)]
        const scope = yield* Scope.make()
        const handle = yield* CudaLibrary.handle(library, make).pipe(Scope.provide(scope))
        const using = yield* CudaGraph.record(CudaLibrary.call(library, "demoFillOf", [handle, buffer, 5, size]))
        const embedding = yield* CudaGraph.record(CudaGraph.embed(using))
        const kept = yield* CudaLibrary.handle(library, make)
        const other = yield* CudaGraph.record(CudaLibrary.call(library, "demoFillOf", [kept, buffer, 6, size]))
        const [direct, outer, updated, replaced, freed] = [
          yield* CudaGraph.instantiate(using),
          yield* CudaGraph.instantiate(embedding),
          yield* CudaGraph.instantiate(other),
          yield* CudaGraph.instantiate(yield* CudaGraph.record(CudaMemory.fill(buffer, 1))),
          yield* CudaGraph.instantiate(using)
        ]
        yield* CudaGraph.update(updated, using)
        yield* CudaGraph.updateOrReplace(replaced, embedding)
        yield* CudaGraph.update(freed, other)
        for (const exec of [direct, outer, updated, replaced]) {
          yield* CudaMemory.fill(buffer, 1, stream)
          yield* CudaGraph.launch(exec, stream)
          yield* holds(buffer, 5, stream)
        }
        yield* Scope.close(scope, Exit.void)
        for (const exec of [direct, outer, updated, replaced]) {
          const { resource } = yield* failsWith(CudaGraph.launch(exec, stream), "ResourceReleased")
          assert.include(resource, "demo handle")
        }
        yield* failsWith(CudaGraph.instantiate(embedding), "ResourceReleased")
        yield* failsWith(CudaGraph.record(CudaGraph.embed(using)), "ResourceReleased")
        yield* failsWith(CudaGraph.update(freed, using), "ResourceReleased")
        yield* CudaGraph.launch(freed, stream)
        yield* CudaGraph.updateOrReplace(direct, other)
        yield* CudaGraph.launch(direct, stream)
        yield* holds(buffer, 6, stream)
      })))

    it.effect("are in graphs whose launches keep the handle until they are done", () =>
      leavesNothing(Effect.gen(function*() {
        const library = yield* load
        const [stream, buffer] = [yield* CudaStream.make(), yield* CudaMemory.allocate(size)]
        const scope = yield* Scope.make()
        const handle = yield* CudaLibrary.handle(library, make).pipe(Scope.provide(scope))
        const recorded = CudaGraph.record(CudaLibrary.call(library, "demoFillOf", [handle, buffer, 5, size]))
        const exec = yield* CudaGraph.instantiate(yield* recorded)
        yield* (yield* Busy).enqueue(stream, 30)
        yield* CudaGraph.launch(exec, stream)
        yield* CudaGraph.updateOrReplace(exec, yield* CudaGraph.record(CudaMemory.fill(buffer, 1)))
        assert.isFalse(yield* CudaStream.query(stream))
        yield* Scope.close(scope, Exit.void)
        assert.isTrue(yield* CudaStream.query(stream))
      })))

    it.effect("enqueue on the stream of the call through a handle that has a stream", () =>
      leavesNothing(Effect.gen(function*() {
        const library = yield* load
        const handle = yield* CudaLibrary.handle(library, make)
        assert.isTrue(CudaLibrary.isLibraryHandle(handle))
        assert.strictEqual(handle.kind, "demo")
        const buffer = yield* CudaMemory.allocate(size)
        const streams = [yield* CudaStream.make(), yield* CudaStream.make()]
        for (const stream of streams) {
          yield* (yield* Busy).enqueue(stream, 50)
          yield* CudaMemory.fill(buffer, 1, stream)
          yield* CudaLibrary.call(library, "demoFillOf", [handle, buffer, 7, size], stream)
          yield* holds(buffer, 7, stream)
        }
      })))

    it.effect("refuse arguments that are wrong before the call", () =>
      leavesNothing(Effect.gen(function*() {
        const library = yield* load
        const [stream, buffer] = [yield* CudaStream.make(), yield* CudaMemory.allocate(size)]
        const gone = yield* Effect.scoped(CudaMemory.allocate(size))
        const value = Uint8Array.of(1)
        const filling = (...values: ReadonlyArray<unknown>) =>
          CudaLibrary.call(library, "demoFill", values as never, stream)
        yield* refuses(filling(buffer, value), "arguments")
        yield* refuses(CudaLibrary.call(library, "demoFill", null as never, stream), "arguments")
        yield* refuses(filling(3, value, size), "arguments[0]")
        yield* refuses(filling(buffer, null, size), "arguments[1]")
        yield* refuses(filling(buffer, new Uint8Array(0), size), "arguments[1]")
        yield* refuses(filling(buffer, 1, size), "arguments[1]")
        yield* refuses(filling(buffer, value, -1), "arguments[2]")
        yield* refuses(filling(buffer, value, 0.5), "arguments[2]")
        yield* refuses(filling(CudaMemory.slice(buffer, 60, 8), value, 8), "arguments[0].byteLength")
        yield* failsWith(filling(gone, value, size), "ResourceReleased")
        yield* refuses(CudaLibrary.call(library, "demoWat" as never, [] as never), "name")
        yield* refuses(CudaLibrary.call(library, "toString" as never, [] as never), "name")
        yield* refuses(CudaLibrary.call(library, "demoCreate" as never, [] as never), "name")
        yield* refuses(CudaLibrary.call({} as never, "demoFill" as never, [] as never), "library")
        yield* refuses(CudaLibrary.call(library, "demoNew", [], 3 as never), "stream")
        yield* refuses(CudaLibrary.call(library, "demoFill", [buffer, value, size], 3 as never), "stream")
        const sum = (index: number, wrong: unknown) => {
          const values: Array<unknown> = [0, 0, 0, 0, 0, 0, false, null, new Uint8Array(128), null, new Float64Array(1)]
          values[index] = wrong
          return refuses(CudaLibrary.call(library, "demoSum", values as never), `arguments[${index}]`)
        }
        const moved = new Float64Array(1)
        structuredClone(moved, { transfer: [moved.buffer] })
        const wrongs = [128, 65536, 2n ** 63n, -1n, "1", null, 1, "a\0b", new Uint8Array(127), [1], moved]
        for (const [index, wrong] of wrongs.entries()) yield* sum(index, wrong)
        const shared = new Uint8Array(new SharedArrayBuffer(4))
        assert.include(
          (yield* failsWith(filling(buffer, shared, size), "InvalidArgument")).expected,
          "SharedArrayBuffer"
        )
        const { message } = yield* Effect.flip(filling(buffer, value, -1))
        assert.include(message, "CudaLibrary.call (demoFill): arguments[2] is -1; expected ")
      })))

    it.effect("refuse handles that are released, of another kind, or no handles", () =>
      leavesNothing(Effect.gen(function*() {
        const library = yield* load
        const scope = yield* Scope.make()
        const handle = yield* CudaLibrary.handle(library, make).pipe(Scope.provide(scope))
        const buffer = yield* CudaMemory.allocate(size)
        const using = (given: unknown) =>
          CudaLibrary.call(library, "demoFillOf", [given as typeof handle, buffer, 1, size])
        yield* using(handle)
        yield* refuses(using(handle.handle), "arguments[0]")
        yield* refuses(using(null), "arguments[0]")
        yield* refuses(using(buffer), "arguments[0]")
        yield* Scope.close(scope, Exit.void)
        yield* failsWith(using(handle), "ResourceReleased")
        const other = CudaLibrary.define({
          ...demo,
          functions: {
            demoCreate: CudaLibrary.func([CudaLibrary.newHandleOf("other")], { simulate: () => 0 }),
            demoDestroy: CudaLibrary.func([CudaLibrary.handleOf("other")])
          }
        })
        const made = yield* CudaLibrary.handle(yield* CudaLibrary.load(other, { path }), {
          create: "demoCreate",
          destroy: "demoDestroy"
        })
        yield* refuses(using(made), "arguments[0]")
        const number = CudaLibrary.define({
          ...demo,
          functions: {
            demoUse: CudaLibrary.func([CudaLibrary.handleOf("other", { as: "i32" })], { simulate: () => 0 })
          }
        })
        const asNumber = CudaLibrary.call(yield* CudaLibrary.load(number, { path }), "demoUse", [made])
        assert.include((yield* failsWith(asNumber, "InvalidArgument")).expected, "as an int")
      })))

    it.effect("refuse functions that do not make or destroy handles", () =>
      leavesNothing(Effect.gen(function*() {
        const library = yield* load
        const making = (options: object) => CudaLibrary.handle(library, { ...make, ...options } as never)
        yield* refuses(making({ create: "demoFill" }), "create")
        yield* refuses(making({ create: "none" }), "create")
        assert.strictEqual((yield* failsWith(making({ create: undefined }), "InvalidArgument")).value, "undefined")
        yield* refuses(making({ destroy: "demoSetStream" }), "destroy")
        yield* refuses(making({ setStream: "demoDestroy" }), "setStream")
        yield* refuses(making({ values: [1] }), "arguments")
        yield* refuses(making({ perStream: true, values: [1] }), "arguments")
        yield* refuses(making({ perStream: true, ordered: true }), "ordered")
        yield* refuses(making({ perStream: true, device: 99 }), "device")
        yield* refuses(CudaLibrary.handle(library, null as never), "options")
        yield* refuses(CudaLibrary.handle({} as never, make as never), "library")
        yield* refuses(making({ device: 99 }), "device")
      })))

    it.effect.skipIf(rig.deviceCount < 2)(
      "refuse memory and handles of another device",
      () =>
        leavesNothing(Effect.gen(function*() {
          const library = yield* load
          const near = yield* CudaStream.make({ device: 0 })
          const far = yield* CudaMemory.allocate(size, { device: 1 })
          yield* failsWith(fill(library, far, 1, near), "DeviceMismatch")
          const handle = yield* CudaLibrary.handle(library, { ...make, device: 1 })
          assert.strictEqual(handle.deviceIndex, 1)
          const buffer = yield* CudaMemory.allocate(size, { device: 0 })
          const using = CudaLibrary.call(library, "demoFillOf", [handle, buffer, 1, size], near)
          yield* failsWith(using, "DeviceMismatch")
          yield* CudaLibrary.call(library, "demoUse", [handle, new Int32Array(1)])
          const handles = yield* CudaLibrary.handle(library, { ...make, device: 1, perStream: true })
          yield* failsWith(CudaLibrary.call(library, "demoUse", [handles, new Int32Array(1)], near), "DeviceMismatch")
          yield* failsWith(CudaLibrary.call(library, "demoFillOf", [handles, buffer, 1, size], near), "DeviceMismatch")
        }))
    )

    it.effect.skipIf(isNative)(
      "without a function for simulated devices fail typed, and the function may return a status",
      () =>
        leavesNothing(Effect.gen(function*() {
          const library = yield* load
          yield* refuses(CudaLibrary.call(library, "demoNew", []), "simulate")
          assert.include((yield* Effect.flip(CudaLibrary.call(library, "demoNew", []))).message, "demoNew")
          const handle = yield* CudaLibrary.handle(library, make)
          const stream = yield* CudaStream.make()
          const setting = CudaLibrary.call(library, "demoSetStream", [handle], stream)
          yield* refuses(setting, "simulate")
          assert.include((yield* Effect.flip(setting)).message, "demoSetStream")
          const failing = CudaLibrary.define({
            ...demo,
            functions: { now: CudaLibrary.func([CudaParameter.i32], { simulate: (code) => code }) }
          })
          const now = CudaLibrary.call(yield* CudaLibrary.load(failing), "now", [1])
          assert.strictEqual((yield* failsWith(now, "LibraryFailed")).name, "DEMO_BAD_VALUE")
        }))
    )
  })
