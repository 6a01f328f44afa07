/**
 * The contract of calls of other native code: each is one operation, with the checks, the order and the lifetimes of any other.
 */
import { assert, layer } from "@effect/vitest"
import { CudaBranch, CudaGraph, CudaMemory, CudaStream } from "effect-cuda"
import type { CudaError } from "effect-cuda/CudaError"
import type { DeviceBuffer, EnqueueOptions } from "effect-cuda/CudaMemory"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Scope from "effect/Scope"
import { failsWith, leavesNothing, refuses } from "../support/assertions.ts"
import { started } from "../support/fibers.ts"
import { Busy, NativeCode } from "../support/Rig.ts"
import type { Rig } from "../support/Rig.ts"

const size = 64

/** A fill by native code, in one step. */
const fill = (buffer: DeviceBuffer, value: number, options: EnqueueOptions = {}) =>
  Effect.flatMap(NativeCode, (native) =>
    CudaMemory.enqueue(
      { writes: [buffer], simulate: (_, [bytes]) => void bytes!.fill(value), ...options },
      (stream) => native.fill(stream, buffer.address, value, size)
    ))

const bytesOf = (buffer: DeviceBuffer, stream?: CudaStream.CudaStream) =>
  Effect.suspend(() => {
    const bytes = new Uint8Array(size)
    return Effect.as(CudaMemory.download(bytes, buffer, stream), bytes)
  })

const holds = (buffer: DeviceBuffer, value: number, stream?: CudaStream.CudaStream) =>
  Effect.map(bytesOf(buffer, stream), (bytes) => assert.deepStrictEqual(bytes, new Uint8Array(size).fill(value)))

export const enqueueContract = (rig: Rig): void =>
  layer(rig.layer, { excludeTestServices: true })("calls of native code", (it) => {
    const runsNative = rig.name !== "simulated"

    it.effect("run at their place on the given stream, on the current one, and on the default one", () =>
      leavesNothing(Effect.gen(function*() {
        const [one, other] = [yield* CudaMemory.allocate(size), yield* CudaMemory.allocate(size)]
        const stream = yield* CudaStream.make()
        const steps = (given: EnqueueOptions) =>
          Effect.gen(function*() {
            yield* CudaMemory.fill(one, 1, given.stream)
            yield* fill(one, 2, given)
            yield* CudaMemory.copy(other, one, given.stream)
            yield* holds(other, 2, given.stream)
          })
        yield* steps({ stream })
        yield* CudaStream.withStream(steps({}), stream)
        yield* steps({})
      })))

    it.effect("need no memory if a stream is given", () =>
      leavesNothing(Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        yield* CudaMemory.enqueue({ stream, simulate: () => {} }, () => {})
        yield* CudaMemory.enqueue({ stream, reads: [], writes: [], simulate: () => {} }, () => 0)
        yield* refuses(CudaMemory.enqueue({ simulate: () => {} }, () => {}), "stream")
      })))

    it.effect("may use parts, pinned and managed memory, and are evaluated anew each time", () =>
      leavesNothing(Effect.gen(function*() {
        const device = yield* CudaMemory.allocate(size)
        const host = yield* CudaMemory.allocateHost(size)
        const managed = yield* CudaMemory.allocateManaged(size)
        const stream = yield* CudaStream.make()
        const native = yield* NativeCode
        const parts = CudaMemory.enqueue(
          {
            stream,
            reads: [host, managed],
            writes: [CudaMemory.slice(device, 16, 8)],
            simulate: (reads, writes) => {
              assert.deepStrictEqual([...reads, ...writes].map(({ byteLength }) => byteLength), [size, size, 8])
              writes[0]!.fill(9)
            }
          },
          (handle) => native.fill(handle, device.address + 16, 9, 8)
        )
        for (const before of [1, 2]) {
          yield* CudaMemory.fill(device, before, stream)
          yield* parts
          const expected = new Uint8Array(size).fill(before).fill(9, 16, 24)
          assert.deepStrictEqual(yield* bytesOf(device, stream), expected)
        }
      })))

    it.effect("keep the order of ordered buffers, inside recordings and outside", () =>
      leavesNothing(Effect.gen(function*() {
        const [buffer, seen] = [yield* CudaMemory.allocate(size, { ordered: true }), yield* CudaMemory.allocate(size)]
        const [left, right] = [yield* CudaStream.make(), yield* CudaStream.make()]
        const steps = (one: CudaStream.CudaStream, other: CudaStream.CudaStream) =>
          Effect.gen(function*() {
            yield* CudaMemory.fill(buffer, 1, one)
            yield* fill(buffer, 2, { stream: other })
            yield* CudaMemory.copy(seen, buffer, one)
          })
        yield* (yield* Busy).enqueue(left, 20)
        yield* steps(left, right)
        yield* holds(seen, 2, left)
        const graph = yield* CudaGraph.record(Effect.gen(function*() {
          const [origin, side] = [yield* CudaStream.current(), yield* CudaStream.make()]
          yield* steps(origin, side)
        }))
        assert.deepStrictEqual(graph.nodes.map(({ dependencies }) => [...dependencies]), [[], [0], [1]])
        yield* CudaMemory.fill(seen, 7, left)
        yield* CudaGraph.launch(yield* CudaGraph.instantiate(graph), left)
        yield* holds(seen, 2, left)
      })))

    it.effect("keep their memory until the work is done", () =>
      leavesNothing(Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const kept = yield* CudaMemory.allocate(size)
        yield* (yield* Busy).enqueue(stream, 20)
        yield* Effect.scoped(Effect.gen(function*() {
          const buffer = yield* CudaMemory.allocate(size)
          yield* fill(buffer, 3, { stream })
          yield* CudaMemory.copy(kept, buffer, stream)
        }))
        const others = Effect.flatMap(CudaMemory.allocate(size), (other) => CudaMemory.fill(other, 8))
        yield* Effect.scoped(Effect.replicateEffect(others, 8))
        yield* holds(kept, 3, stream)
      })))

    it.effect("become nodes of a recording, also on branches", () =>
      leavesNothing(Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const [one, other] = [yield* CudaMemory.allocate(size), yield* CudaMemory.allocate(size)]
        const graph = yield* CudaGraph.record(Effect.gen(function*() {
          yield* CudaBranch.all([fill(one, 4), fill(other, 5).pipe(CudaGraph.named("native"))])
          yield* CudaMemory.copy(other, one)
        }))
        assert.deepStrictEqual(graph.nodes.map(({ kind, name, operation }) => [kind, name, operation]), [
          ["graph", "CudaMemory.enqueue", "CudaMemory.enqueue"],
          ["graph", "native", "CudaMemory.enqueue"],
          ["copy", "CudaMemory.copy", "CudaMemory.copy"]
        ])
        assert.deepStrictEqual(graph.nodes[0]!.writes, [{ memory: one.ref, offset: 0, byteLength: size }])
        const exec = yield* CudaGraph.instantiate(graph)
        for (const value of [6, 7]) {
          yield* CudaMemory.fill(one, value, stream)
          yield* CudaGraph.launch(exec, stream)
          yield* holds(other, 4, stream)
        }
      })))

    it.effect("cannot use memory of a recording, which has no address", () =>
      leavesNothing(Effect.gen(function*() {
        const scratch = CudaGraph.record(Effect.flatMap(CudaMemory.allocate(size), (buffer) => fill(buffer, 1)))
        assert.include((yield* failsWith(scratch, "CannotRecord")).because, "no address")
        const outside = yield* CudaStream.make()
        const buffer = yield* CudaMemory.allocate(size)
        const elsewhere = CudaGraph.record(fill(buffer, 1, { stream: outside }))
        assert.include((yield* failsWith(elsewhere, "CannotRecord")).because, "not part of the recording")
      })))

    it.effect.skipIf(!runsNative)(
      "that enqueue nothing, or fail, leave nothing in a recording",
      () =>
        leavesNothing(Effect.gen(function*() {
          const buffer = yield* CudaMemory.allocate(size)
          const nothing = CudaGraph.record(CudaMemory.enqueue({ writes: [buffer] }, () => 0))
          assert.include((yield* failsWith(nothing, "CannotRecord")).because, "nothing was enqueued")
          const failing = CudaMemory.enqueue({ writes: [buffer] }, () => 5)
          const graph = yield* CudaGraph.record(Effect.ignore(failing))
          assert.lengthOf(graph.nodes, 0)
        }))
    )

    it.effect.skipIf(!runsNative)(
      "fail with their code and its name, or with the reason it stands for",
      () =>
        leavesNothing(Effect.gen(function*() {
          const stream = yield* CudaStream.make()
          const code = (result: number, status?: EnqueueOptions["status"]) =>
            CudaMemory.enqueue({ stream, status }, () => result)
          assert.deepStrictEqual({ ...yield* failsWith(code(7), "LibraryFailed") }, {
            _tag: "LibraryFailed",
            library: undefined,
            code: 7,
            name: undefined,
            description: "",
            advice: "",
            isRetryable: false
          })
          const status = { 7: "DEMO_BAD_VALUE" }
          assert.strictEqual((yield* failsWith(code(7, status), "LibraryFailed")).name, "DEMO_BAD_VALUE")
          const error = yield* Effect.flip(code(-3, (code) => `DEMO_${-code}`))
          assert.strictEqual(error.message, `CudaMemory.enqueue (${stream.ref}): the call returned DEMO_3 (-3).`)
          assert.deepStrictEqual([error.isSticky, error.isRetryable], [false, false])
        }))
    )

    it.effect.skipIf(!runsNative)(
      "that throw are defects, and their memory is still kept",
      () =>
        leavesNothing(Effect.gen(function*() {
          const [one, other] = [yield* CudaStream.make(), yield* CudaStream.make()]
          const native = yield* NativeCode
          yield* (yield* Busy).enqueue(one, 20)
          for (const ordered of [true, false]) {
            const kept = yield* CudaMemory.allocate(size)
            yield* Effect.scoped(Effect.gen(function*() {
              const buffer = yield* CudaMemory.allocate(size, { ordered })
              const call = CudaMemory.enqueue({ writes: [buffer], stream: one }, (stream) => {
                native.fill(stream, buffer.address, 6, size)
                throw new Error("afterwards")
              })
              const exit = yield* Effect.exit(call)
              assert.isTrue(Exit.hasDies(exit))
              yield* CudaMemory.copy(kept, buffer, ordered ? other : one)
            }))
            yield* holds(kept, 6, ordered ? other : one)
          }
        }))
    )

    it.effect.skipIf(!runsNative)(
      "that return anything but a number are refused",
      () =>
        leavesNothing(Effect.gen(function*() {
          const stream = yield* CudaStream.make()
          for (
            const wrong of [Promise.resolve(0), Promise.reject(new Error("late")), "0", 0n, null, 0.5, Number.NaN, {}]
          ) {
            yield* refuses(CudaMemory.enqueue({ stream }, () => wrong as never), "result")
          }
        }))
    )

    it.effect("refuse unusable memory before the call", () =>
      leavesNothing(Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const scope = yield* Scope.make()
        const [gone, buffer] = [
          yield* Scope.provide(CudaMemory.allocate(size), scope),
          yield* CudaMemory.allocate(size)
        ]
        yield* Scope.close(scope, Exit.void)
        let calls = 0
        const using = (options: EnqueueOptions): Effect.Effect<void, CudaError> =>
          CudaMemory.enqueue({ stream, simulate: () => void calls++, ...options }, () => void calls++)
        yield* failsWith(using({ reads: [gone] }), "ResourceReleased")
        yield* failsWith(using({ reads: [buffer], writes: [gone] }), "ResourceReleased")
        yield* refuses(using({ writes: [buffer, CudaMemory.slice(buffer, 60, 8)] }), "writes[1].byteLength")
        yield* refuses(using({ reads: [CudaMemory.slice(buffer, -1)] }), "reads[0].offset")
        yield* CudaStream.synchronize(stream)
        assert.strictEqual(calls, 0)
      })))

    it.effect.skipIf(rig.deviceCount < 2)(
      "refuse memory of another device",
      () =>
        leavesNothing(Effect.gen(function*() {
          const [near, far] = [yield* CudaStream.make({ device: 0 }), yield* CudaMemory.allocate(size, { device: 1 })]
          yield* failsWith(fill(far, 1, { stream: near }), "DeviceMismatch")
          yield* fill(far, 1, { stream: yield* CudaStream.make({ device: 1 }) })
          const managed = yield* CudaMemory.allocateManaged(size, { device: 1 })
          yield* fill(managed, 1, { stream: near })
        }))
    )

    it.effect("suspend nothing: an access of another fiber is ordered in between", () =>
      leavesNothing(Effect.gen(function*() {
        const [one, other] = [yield* CudaStream.make(), yield* CudaStream.make()]
        const buffer = yield* CudaMemory.allocate(size, { ordered: true })
        const fiber = yield* started(CudaMemory.access(Effect.never, { writes: [buffer], stream: one }))
        yield* fill(buffer, 3, { stream: other })
        yield* Fiber.interrupt(fiber)
        yield* holds(buffer, 3, one)
      })))
  })
