/**
 * The contract of captured work: native code enqueues it, inside recordings and outside, and it does the same.
 */
import { assert, layer } from "@effect/vitest"
import { CudaBranch, CudaGraph, CudaMemory, CudaStream } from "effect-cuda"
import type { CudaError } from "effect-cuda/CudaError"
import type { DeviceBuffer } from "effect-cuda/CudaMemory"
import type { CudaRuntime } from "effect-cuda/CudaRuntime"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Scope from "effect/Scope"
import { failsWith, leavesNothing, refuses } from "../support/assertions.ts"
import { NativeCode } from "../support/Rig.ts"
import type { Rig } from "../support/Rig.ts"

const size = 64

/** A fill by native code. */
const fill = (buffer: DeviceBuffer, value: number) =>
  Effect.flatMap(NativeCode, (native) =>
    CudaGraph.capture(
      (stream) => Effect.sync(() => assert.strictEqual(native.fill(stream, buffer.address, value, size), 0)),
      { writes: [buffer], simulate: (_, [bytes]) => bytes!.fill(value) }
    ))

const bytesOf = (buffer: DeviceBuffer) =>
  Effect.suspend(() => {
    const bytes = new Uint8Array(size)
    return Effect.as(CudaMemory.download(bytes, buffer), bytes)
  })

const holds = (buffer: DeviceBuffer, value: number) =>
  Effect.map(bytesOf(buffer), (bytes) => assert.deepStrictEqual(bytes, new Uint8Array(size).fill(value)))

/** Runs a test on a stream of its own, with two buffers. */
const withBuffers = <A, E, R>(
  body: (one: DeviceBuffer, other: DeviceBuffer, stream: CudaStream.CudaStream) => Effect.Effect<A, E, R>
) =>
  leavesNothing(Effect.gen(function*() {
    const stream = yield* CudaStream.make()
    const [one, other] = [yield* CudaMemory.allocate(size), yield* CudaMemory.allocate(size)]
    return yield* CudaStream.withStream(body(one, other, stream), stream)
  }))

/** Records a program that fails or is interrupted in a capture: the graph must not have the work. */
const dropped = (program: Effect.Effect<unknown, CudaError | string, CudaRuntime | NativeCode>) =>
  Effect.map(CudaGraph.record(Effect.ignore(program)), (graph) => assert.lengthOf(graph.nodes, 0))

export const captureContract = (rig: Rig): void =>
  layer(rig.layer, { excludeTestServices: true })("captured work", (it) => {
    it.effect("runs at its place outside recordings", () =>
      withBuffers((one, other) =>
        Effect.gen(function*() {
          yield* CudaMemory.fill(one, 1)
          yield* fill(one, 2)
          yield* CudaMemory.copy(other, one)
          yield* holds(other, 2)
        })
      ))

    it.effect("becomes one node, with its name and what it reads and writes", () =>
      withBuffers((one, other) =>
        Effect.gen(function*() {
          yield* CudaMemory.fill(one, 1)
          const graph = yield* CudaGraph.record(Effect.gen(function*() {
            yield* CudaMemory.fill(one, 3)
            yield* fill(one, 4).pipe(CudaGraph.named("native"))
            yield* CudaMemory.copy(other, one)
          }))
          assert.deepStrictEqual(graph.nodes.map(({ kind, name }) => [kind, name]), [
            ["fill", "CudaMemory.fill"],
            ["graph", "native"],
            ["copy", "CudaMemory.copy"]
          ])
          assert.deepStrictEqual(graph.nodes.map(({ dependencies }) => [...dependencies]), [[], [0], [1]])
          assert.deepStrictEqual(graph.nodes[1]!.writes, [{ memory: one.ref, offset: 0, byteLength: size }])
          assert.deepStrictEqual([graph.nodes[1]!.operation, graph.nodes[1]!.reads], ["CudaGraph.capture", []])
          assert.include(CudaGraph.toMermaid(graph), `n1[["native"]]`)
          yield* holds(one, 1)
          const exec = yield* CudaGraph.instantiate(graph, { instances: 2 })
          for (const value of [5, 6, 7]) {
            yield* CudaMemory.fill(other, value)
            yield* CudaGraph.launch(exec)
            yield* holds(other, 4)
          }
        })
      ))

    it.effect("may be on a branch, in a condition and in an embedded graph", () =>
      withBuffers((one, other) =>
        Effect.gen(function*() {
          const isThere = yield* CudaMemory.allocate(4)
          yield* CudaMemory.fill32(isThere, 1)
          const inner = yield* CudaGraph.record(CudaBranch.all([fill(one, 1), fill(other, 2)]))
          assert.deepStrictEqual(inner.nodes.map(({ dependencies }) => [...dependencies]), [[], []])
          const graph = yield* CudaGraph.record(Effect.gen(function*() {
            yield* CudaGraph.embed(inner)
            yield* CudaGraph.when(isThere, fill(other, 9))
          }))
          const exec = yield* CudaGraph.instantiate(graph)
          yield* CudaGraph.launch(exec)
          yield* holds(one, 1)
          yield* holds(other, 9)
        })
      ))

    it.effect("keeps the order of ordered buffers, inside and outside", () =>
      leavesNothing(Effect.gen(function*() {
        const [buffer, seen] = [yield* CudaMemory.allocate(size, { ordered: true }), yield* CudaMemory.allocate(size)]
        const [left, right] = [yield* CudaStream.make(), yield* CudaStream.make()]
        const steps = (one: CudaStream.CudaStream, other: CudaStream.CudaStream) =>
          Effect.gen(function*() {
            yield* CudaMemory.fill(buffer, 1, one)
            yield* CudaStream.withStream(fill(buffer, 2), other)
            yield* CudaMemory.copy(seen, buffer, one)
          })
        yield* steps(left, right)
        yield* CudaStream.withStream(holds(seen, 2), left)
        const graph = yield* CudaGraph.record(Effect.gen(function*() {
          const [origin, side] = [yield* CudaStream.current(), yield* CudaStream.make()]
          yield* steps(origin, side)
        }))
        assert.deepStrictEqual(graph.nodes.map(({ dependencies }) => [...dependencies]), [[], [0], [1]])
        yield* CudaMemory.fill(seen, 7, left)
        yield* CudaGraph.launch(yield* CudaGraph.instantiate(graph), left)
        yield* CudaStream.withStream(holds(seen, 2), left)
      })))

    it.effect("goes with updates, and cannot be disabled", () =>
      withBuffers((one) =>
        Effect.gen(function*() {
          const graphOf = (value: number) => CudaGraph.record(fill(one, value))
          const exec = yield* CudaGraph.instantiate(yield* graphOf(1))
          yield* CudaGraph.update(exec, yield* graphOf(2))
          yield* CudaGraph.launch(exec)
          yield* holds(one, 2)
          yield* CudaGraph.updateOrReplace(exec, yield* CudaGraph.record(Effect.andThen(fill(one, 3), fill(one, 4))))
          yield* CudaGraph.launch(exec)
          yield* holds(one, 4)
          yield* refuses(CudaGraph.setEnabled(exec, 0, false), "node")
        })
      ))

    it.effect.skipIf(rig.name === "simulated")(
      "that failed, or was interrupted, is dropped",
      () =>
        withBuffers((one) =>
          Effect.gen(function*() {
            const native = yield* NativeCode
            const enqueue = (stream: number) => native.fill(stream, one.address, 1, size)
            const failing = CudaGraph.capture(
              (stream) => Effect.andThen(Effect.sync(() => enqueue(stream)), Effect.fail("no")),
              { simulate: () => {} }
            )
            yield* dropped(failing)
            const reached = yield* Deferred.make<void>()
            const endless = CudaGraph.capture(
              (stream) =>
                Effect.andThen(
                  Effect.sync(() => enqueue(stream)),
                  Effect.andThen(Deferred.succeed(reached, undefined), Effect.never)
                ),
              { simulate: () => {} }
            )
            yield* dropped(
              Effect.gen(function*() {
                const fiber = yield* Effect.forkChild(endless)
                yield* Deferred.await(reached)
                yield* Fiber.interrupt(fiber)
              })
            )
          })
        )
    )

    it.effect("whose native code enqueued nothing is refused", () =>
      withBuffers(() =>
        Effect.gen(function*() {
          const nothing = CudaGraph.record(CudaGraph.capture(() => Effect.void, { simulate: () => {} }))
          if (rig.name === "simulated") yield* nothing
          else assert.include((yield* failsWith(nothing, "CannotRecord")).because, "nothing was enqueued")
        })
      ))

    it.effect("that allocates memory is refused", () =>
      withBuffers(() =>
        Effect.gen(function*() {
          const native = yield* NativeCode
          const allocate = CudaGraph.record(CudaGraph.capture(
            (stream) => Effect.sync(() => assert.strictEqual(native.allocate(stream, size), 0)),
            { simulate: () => {} }
          ))
          if (rig.name === "simulated") yield* allocate
          else assert.include((yield* failsWith(allocate, "CannotRecord")).because, "allocates")
        })
      ))

    it.effect("cannot use memory of the recording", () =>
      withBuffers(() =>
        Effect.gen(function*() {
          const scratch = CudaGraph.record(Effect.flatMap(CudaMemory.allocate(size), (buffer) => fill(buffer, 1)))
          assert.include((yield* failsWith(scratch, "CannotRecord")).because, "no address")
          const parameter = CudaGraph.recordWith({ to: CudaGraph.buffer(size) }, ({ to }) => fill(to, 1))
          assert.include((yield* failsWith(parameter, "CannotRecord")).because, "no address")
        })
      ))

    it.effect.skipIf(rig.name === "simulated")(
      "cannot be mixed with operations on its stream, and must have ended with the recording",
      () =>
        withBuffers((one, other) =>
          Effect.gen(function*() {
            const native = yield* NativeCode
            const mixed = CudaGraph.record(CudaGraph.capture(
              (stream) =>
                Effect.andThen(Effect.sync(() => native.fill(stream, one.address, 1, size)), CudaMemory.fill(other, 1)),
              { writes: [one] }
            ))
            assert.include((yield* failsWith(mixed, "CannotRecord")).because, "native code")
            const scope = yield* Scope.make()
            const left = CudaGraph.record(
              Effect.andThen(
                Effect.forkIn(CudaGraph.capture(() => Effect.never), scope, { startImmediately: true }),
                Effect.void
              )
            )
            assert.include((yield* failsWith(left, "CannotRecord")).because, "nothing waits for")
            yield* Scope.close(scope, Exit.void)
          })
        )
    )

    it.effect("borrows its memory: a launch without it fails", () =>
      leavesNothing(Effect.gen(function*() {
        const scope = yield* Scope.make()
        const buffer = yield* Scope.provide(CudaMemory.allocate(size), scope)
        const exec = yield* CudaGraph.instantiate(yield* CudaGraph.record(fill(buffer, 1)))
        yield* CudaGraph.launch(exec)
        yield* Scope.close(scope, Exit.void)
        yield* failsWith(CudaGraph.launch(exec), "ResourceReleased")
        yield* failsWith(fill(buffer, 1), "ResourceReleased")
        yield* failsWith(CudaGraph.record(fill(buffer, 1)), "ResourceReleased")
      })))

    it.effect("refuses what is no memory, and on simulated devices what nothing stands in for", () =>
      withBuffers((one) =>
        Effect.gen(function*() {
          const given = { writes: [CudaMemory.slice(one, 0, size), "memory" as never], simulate: () => {} }
          yield* refuses(CudaGraph.capture(() => Effect.void, given), "writes[1]")
          if (rig.name === "simulated") {
            yield* refuses(CudaGraph.capture(() => Effect.void, { writes: [one] }), "simulate")
          }
        })
      ))
  })
