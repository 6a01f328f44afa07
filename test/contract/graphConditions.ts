/**
 * The contract of conditions: recorded in a graph or run directly, they do the same.
 */
import { assert, layer } from "@effect/vitest"
import {
  CudaBranch,
  CudaEvent,
  CudaGraph,
  CudaKernel,
  CudaMemory,
  CudaModule,
  CudaParameter,
  CudaStream
} from "effect-cuda"
import type { CudaError } from "effect-cuda/CudaError"
import type { DeviceBuffer } from "effect-cuda/CudaMemory"
import type { CudaRuntime } from "effect-cuda/CudaRuntime"
import * as Effect from "effect/Effect"
import { failsWith, leavesNothing, refuses } from "../support/assertions.ts"
import { program, signatures } from "../support/kernels.ts"
import type { Rig } from "../support/Rig.ts"

const one = { grid: 1, block: 1 }

/** A buffer that holds a float. */
const float = (value: number) =>
  Effect.gen(function*() {
    const buffer = yield* CudaMemory.allocate(4)
    yield* CudaMemory.upload(buffer, Float32Array.of(value))
    return buffer
  })

const floatIn = (buffer: DeviceBuffer) =>
  Effect.suspend(() => {
    const values = new Float32Array(1)
    return Effect.map(CudaMemory.download(values, buffer), () => values[0]!)
  })

/** Runs a test with `add` on floats, on its own stream. */
const withAdd = <A, E, R>(
  body: (add: (to: DeviceBuffer, from: DeviceBuffer) => ReturnType<typeof CudaKernel.launch>) => Effect.Effect<A, E, R>
) =>
  Effect.andThen(
    CudaBranch.all(Array.from({ length: 32 }, () => Effect.void), { discard: true }),
    leavesNothing(Effect.gen(function*() {
      const module = yield* CudaModule.load(yield* program)
      const add = yield* CudaKernel.get(module, "add", signatures.add)
      const stream = yield* CudaStream.make()
      const own = body((to, from) => CudaKernel.launch(add, one, [to, from, 1]))
      yield* CudaStream.withStream(own, stream)
    }))
  )

/** Runs a program directly, then recorded and launched twice. `check` says what must hold after each. */
const bothWays = <E, R, E2, R2>(
  steps: Effect.Effect<void, E, R>,
  check: (what: string) => Effect.Effect<void, E2, R2>
) =>
  Effect.gen(function*() {
    yield* steps
    yield* check("run directly")
    const exec = yield* CudaGraph.instantiate(yield* CudaGraph.record(steps))
    for (const launch of ["first", "second"]) {
      yield* CudaGraph.launch(exec)
      yield* check(`${launch} launch`)
    }
  })

export const conditionContract = (rig: Rig): void =>
  layer(rig.layer, { excludeTestServices: true })("conditions of graphs", (it) => {
    for (const times of [0, 1, 7]) {
      it.effect(`a loop repeats its body ${times} times`, () =>
        withAdd((add) =>
          Effect.gen(function*() {
            const [start, less, more] = [yield* float(times), yield* float(-1), yield* float(1)]
            const [left, count] = [yield* float(0), yield* float(0)]
            const steps = Effect.gen(function*() {
              yield* CudaMemory.fill(count, 0)
              yield* CudaMemory.copy(left, start)
              yield* CudaGraph.whileLoop(left, Effect.andThen(add(left, less), add(count, more)))
              yield* add(count, more) // after the loop
            })
            yield* bothWays(steps, (what) =>
              Effect.gen(function*() {
                assert.strictEqual(yield* floatIn(count), times + 1, what)
                assert.strictEqual(yield* floatIn(left), 0, what)
              }))
          })
        ))
    }

    it.effect("a value chooses between two effects, or one and none", () =>
      withAdd(() =>
        Effect.gen(function*() {
          const [value, result] = [yield* CudaMemory.allocate(8), yield* CudaMemory.allocate(4)]
          const part = CudaMemory.slice(value, 4)
          for (const [bits, expected] of [[0, 0x02], [1, 0x01], [0x8000_0000, 0x01]] as const) {
            const steps = Effect.gen(function*() {
              yield* CudaMemory.fill(result, 0)
              yield* CudaMemory.fill32(part, bits)
              yield* CudaGraph.when(
                part,
                Effect.andThen(CudaMemory.fill(result, 1), CudaMemory.fill32(part, 0)),
                CudaMemory.fill(result, 2)
              )
              yield* CudaGraph.when(part, CudaMemory.fill(result, 3))
            })
            yield* bothWays(steps, (what) =>
              Effect.gen(function*() {
                const bytes = new Uint8Array(4)
                yield* CudaMemory.download(bytes, result)
                assert.strictEqual(bytes[0], expected, `${what}, ${bits}`)
              }))
          }
        })
      ))

    it.effect("a value chooses among effects by index, and none beyond", () =>
      withAdd(() =>
        Effect.gen(function*() {
          const [value, result] = [yield* CudaMemory.allocate(4), yield* CudaMemory.allocate(4)]
          const graph = yield* CudaGraph.recordWith({ value: CudaGraph.buffer(4) }, ({ value }) =>
            Effect.gen(function*() {
              yield* CudaMemory.fill(result, 9)
              yield* CudaGraph.match(value, [1, 2, 3].map((byte) => CudaMemory.fill(result, byte)))
            }))
          assert.deepStrictEqual(
            graph.nodes.map(({ inside }) => inside),
            [
              undefined,
              { nodeIndex: 4, body: 0 },
              { nodeIndex: 4, body: 1 },
              { nodeIndex: 4, body: 2 },
              undefined
            ]
          )
          const exec = yield* CudaGraph.instantiate(graph, { instances: 2 })
          const other = yield* CudaMemory.allocate(4)
          for (const [index, expected] of [1, 2, 3, 9, 9].entries()) {
            const used = index % 3 === 0 ? other : value
            yield* CudaMemory.fill32(used, index)
            yield* CudaGraph.launch(exec, { value: used })
            const bytes = new Uint8Array(4)
            yield* CudaMemory.download(bytes, result)
            assert.strictEqual(bytes[0], expected)
            yield* CudaMemory.fill(result, 9)
            yield* CudaGraph.match(used, [1, 2, 3].map((byte) => CudaMemory.fill(result, byte)))
            yield* CudaMemory.download(bytes, result)
            assert.strictEqual(bytes[0], expected)
          }
        })
      ))

    it.effect("bodies hold branches, memory, numbers given at a launch, and conditions", () =>
      withAdd((add) =>
        Effect.gen(function*() {
          const [less, more] = [yield* float(-1), yield* float(1)]
          const [left, count, inner, flag] = [
            yield* float(0),
            yield* float(0),
            yield* float(0),
            yield* CudaMemory.allocate(4)
          ]
          const module = yield* CudaModule.load(yield* program)
          const put = yield* CudaKernel.get(module, "put", signatures.put)
          const graph = yield* CudaGraph.recordWith(
            { start: CudaGraph.buffer(4), flagged: CudaParameter.u32 },
            ({ flagged, start }) =>
              Effect.gen(function*() {
                yield* CudaBranch.all([CudaMemory.fill(count, 0), CudaMemory.fill(inner, 0)])
                yield* CudaMemory.copy(left, start)
                yield* CudaGraph.whileLoop(
                  left,
                  Effect.gen(function*() {
                    const scratch = yield* CudaMemory.allocate(4)
                    yield* CudaMemory.copy(scratch, more)
                    yield* CudaBranch.all([
                      CudaKernel.launch(put, one, [flag, flagged]),
                      Effect.andThen(add(count, scratch), add(left, less))
                    ])
                    yield* CudaGraph.when(flag, add(inner, scratch))
                  })
                )
              })
          )
          const exec = yield* CudaGraph.instantiate(graph)
          const [three, five] = [yield* float(3), yield* float(5)]
          for (
            const [start, flagged, counted, inside] of [[three, 0, 3, 0], [five, 1, 5, 5], [three, 2, 3, 3]] as const
          ) {
            yield* CudaGraph.launch(exec, { start, flagged })
            assert.strictEqual(yield* floatIn(count), counted)
            assert.strictEqual(yield* floatIn(inner), inside)
          }
          assert.include(CudaGraph.toMermaid(graph), "subgraph")
          const outer = yield* CudaGraph.record(CudaGraph.embed(graph, { start: five, flagged: 7 }))
          yield* CudaGraph.launch(yield* CudaGraph.instantiate(outer))
          assert.strictEqual(yield* floatIn(inner), 5)
        })
      ))

    it.effect("scratch memory used across repetitions is not shared", () =>
      withAdd((add) =>
        Effect.gen(function*() {
          const [three, less, total, four] = [yield* float(3), yield* float(-1), yield* float(0), yield* float(4)]
          const graph = yield* CudaGraph.record(Effect.gen(function*() {
            const [left, kept] = [yield* CudaMemory.allocate(4), yield* CudaMemory.allocate(4)]
            yield* CudaMemory.copy(left, three)
            yield* CudaMemory.copy(kept, four)
            yield* CudaMemory.fill(total, 0)
            yield* CudaGraph.whileLoop(
              left,
              Effect.gen(function*() {
                yield* add(total, kept)
                const later = yield* CudaMemory.allocate(4)
                yield* CudaMemory.fill(later, 0)
                yield* add(left, less)
              })
            )
          }))
          yield* CudaGraph.launch(yield* CudaGraph.instantiate(graph))
          assert.strictEqual(yield* floatIn(total), 12)
        })
      ))

    it.effect("a body that fails leaves no nodes, if the program goes on", () =>
      withAdd(() =>
        Effect.gen(function*() {
          const [value, result] = [yield* CudaMemory.allocate(4), yield* CudaMemory.allocate(4)]
          const fill = (byte: number) => CudaMemory.fill(result, byte)
          const graph = yield* CudaGraph.record(Effect.gen(function*() {
            yield* CudaMemory.fill(value, 1)
            const failing = Effect.andThen(CudaGraph.when(value, fill(5)), Effect.fail("no"))
            yield* Effect.ignore(CudaGraph.when(value, failing))
            yield* Effect.ignore(CudaGraph.when(CudaMemory.slice(value, 2), fill(6)))
            yield* fill(1)
            yield* CudaGraph.when(value, fill(2))
            yield* CudaMemory.fill(value, 0)
          }))
          assert.deepStrictEqual(graph.nodes.map(({ kind }) => kind), ["fill", "fill", "fill", "conditional", "fill"])
          assert.deepStrictEqual(graph.nodes.map(({ dependencies }) => dependencies), [[], [0], [], [1], [3]])
          assert.deepStrictEqual(graph.nodes[2]!.inside, { nodeIndex: 3, body: 0 })
          yield* CudaGraph.launch(yield* CudaGraph.instantiate(graph))
          const bytes = new Uint8Array(4)
          yield* CudaMemory.download(bytes, result)
          assert.strictEqual(bytes[0], 2)
        })
      ))

    it.effect("what bodies cannot hold, and values that are none, are refused", () =>
      withAdd(() =>
        Effect.gen(function*() {
          const value = yield* CudaMemory.allocate(8)
          const host = yield* CudaMemory.allocateHost(4)
          const event = yield* CudaEvent.make({ timing: true })
          const inGraph = (body: Effect.Effect<void, CudaError, CudaRuntime>) =>
            CudaGraph.record(CudaGraph.when(value, body))
          const timed = Effect.flatMap(CudaStream.current(), (stream) => CudaEvent.record(event, stream))
          const reason = yield* failsWith(inGraph(timed), "CannotRecord")
          assert.include(reason.because, "bodies of conditions")
          const loose = Effect.scoped(Effect.flatMap(CudaStream.make(), (stream) => CudaMemory.fill(value, 1, stream)))
          yield* failsWith(inGraph(loose), "CannotRecord")
          const outside = CudaGraph.record(
            Effect.flatMap(CudaStream.current(), (stream) => CudaGraph.when(value, CudaMemory.fill(value, 1, stream)))
          )
          yield* failsWith(outside, "CannotRecord")
          yield* refuses(CudaGraph.record(CudaGraph.when(CudaMemory.slice(value, 2), Effect.void)), "value.offset")
          yield* refuses(CudaGraph.record(CudaGraph.when(CudaMemory.slice(value, 6), Effect.void)), "value.byteLength")
          // @ts-expect-error: pinned memory
          yield* refuses(CudaGraph.record(CudaGraph.when(host, Effect.void)), "value")
          const graph = yield* CudaGraph.record(CudaGraph.when(value, CudaMemory.fill(value, 1)))
          const exec = yield* CudaGraph.instantiate(graph)
          yield* failsWith(CudaGraph.update(exec, graph), "GraphRefused")
          yield* CudaGraph.updateOrReplace(exec, graph)
          yield* CudaGraph.launch(exec)
        })
      ))
  })
