/**
 * Random programs of nested branches, and random task graphs, over several simulated devices: the memory holds what the program would leave if it ran step by
 * step, and a checker finds no accesses without order.
 */
import { assert, describe, it } from "@effect/vitest"
import { CheckedRuntime, CudaBranch, CudaMemory, CudaStream, CudaTaskGraph, SimulatedRuntime } from "effect-cuda"
import type { CudaError } from "effect-cuda/CudaError"
import type { CudaRuntime } from "effect-cuda/CudaRuntime"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { makeRandom } from "./support/random.ts"

const size = 64

type Step =
  | { readonly op: "busy"; readonly micros: number }
  | { readonly op: "fill"; readonly cell: number; readonly value: number }
  | { readonly op: "copy"; readonly to: number; readonly from: number }
  | {
    readonly op: "all"
    readonly devices: ReadonlyArray<number>
    readonly streams: number | undefined
    readonly concurrency: number | "unbounded" | undefined
    readonly branches: ReadonlyArray<Program>
  }

type Program = ReadonlyArray<Step>

/** A program that uses these cells, and no others. Branches that run side by side use different ones. */
const drawProgram = (
  random: (below: number) => number,
  devices: number,
  cells: ReadonlyArray<number>,
  depth: number
): Program => {
  const cell = () => cells[random(cells.length)]!
  return Array.from({ length: 1 + random(5) }, (): Step => {
    const kind = random(depth > 0 && cells.length > 1 ? 5 : 3)
    if (kind === 0) return { op: "busy", micros: random(200) }
    const [to, from] = [cell(), cell()]
    if (kind === 1 || (kind === 2 && to === from)) return { op: "fill", cell: to, value: random(256) }
    if (kind === 2) return { op: "copy", to, from }
    const count = 1 + random(Math.min(cells.length, 5))
    const shares = Array.from({ length: count }, (_, share) => cells.filter((_, index) => index % count === share))
    const list = Array.from({ length: 1 + random(3) }, () => random(devices))
    return {
      op: "all",
      devices: list,
      streams: random(2) === 0 ? undefined : list.length + random(3),
      concurrency: [undefined, 2, "unbounded"][random(3)] as 2 | "unbounded" | undefined,
      branches: shares.map((share) => drawProgram(random, devices, share, depth - 1))
    }
  })
}

/** The values of the cells after a program, run step by step. */
const interpret = (program: Program, values: Array<number>): Array<number> => {
  for (const step of program) {
    if (step.op === "fill") values[step.cell] = step.value
    if (step.op === "copy") values[step.to] = values[step.from]!
    if (step.op === "all") { for (const branch of step.branches) interpret(branch, values) }
  }
  return values
}

type Run = Effect.Effect<void, CudaError, CudaRuntime | SimulatedRuntime.SimulatedControl>

const run = (program: Program, cells: ReadonlyArray<CudaMemory.DeviceBuffer>): Run =>
  Effect.forEach(program, (step): Run =>
    Effect.gen(function*() {
      const stream = yield* CudaStream.current()
      if (step.op === "busy") {
        const control = yield* SimulatedRuntime.SimulatedControl
        return yield* control.launch(stream, { duration: `${step.micros} micros` })
      }
      if (step.op === "fill") return yield* CudaMemory.fill(cells[step.cell]!, step.value, stream)
      if (step.op === "copy") return yield* CudaMemory.copy(cells[step.to]!, cells[step.from]!, stream)
      const { branches, concurrency, devices, streams } = step
      yield* CudaBranch.forEach(
        branches,
        (branch, index) =>
          Effect.gen(function*() {
            assert.strictEqual((yield* CudaStream.current()).deviceIndex, devices[index % devices.length])
            yield* run(branch, cells)
          }),
        { devices, streams, concurrency, discard: true }
      )
    }), { discard: true })

const runtime = (devices: number) =>
  CheckedRuntime.layer({ mode: "fail" }).pipe(
    Layer.provideMerge(
      SimulatedRuntime.layer({ devices: Array.from({ length: devices }, () => ({ memory: 2 ** 24 })), peers: "all" })
    )
  )

describe("branches over devices", () => {
  for (const devices of [2, 3, 4]) {
    it.live(`leave what a program would leave step by step, on ${devices} devices`, () =>
      Effect.gen(function*() {
        for (let seed = 1; seed <= 60; seed++) {
          const random = makeRandom(seed * 7919 + devices)
          const places = Array.from({ length: 8 }, (_, cell) => cell % devices)
          const program = drawProgram(random, devices, [...places.keys()], 3)
          const values = yield* Effect.gen(function*() {
            const origin = yield* CudaStream.make()
            const cells = yield* Effect.forEach(places, (device) => CudaMemory.allocate(size, { device }))
            const whole = Effect.gen(function*() {
              for (const cell of cells) yield* CudaMemory.fill(cell, 0, origin)
              yield* run(program, cells)
              const host = yield* CudaMemory.allocateHost(size * cells.length)
              for (const [index, cell] of cells.entries()) {
                yield* CudaMemory.copy(CudaMemory.slice(host, index * size, size), cell, origin)
              }
              yield* CudaStream.synchronize(origin)
              return cells.map((_, index) => new Set(host.bytes.subarray(index * size, (index + 1) * size)))
            })
            return yield* CudaStream.withStream(whole, origin)
          }).pipe(Effect.scoped, Effect.provide(runtime(devices)))
          assert.deepStrictEqual(
            values,
            interpret(program, places.map(() => 0)).map((value) => new Set([value])),
            `seed ${seed}`
          )
        }
      }))
  }
})

/** Tasks with earlier ones that they depend on, and a device each. */
const drawTasks = (random: (below: number) => number, devices: number) =>
  Array.from({ length: 2 + random(14) }, (_, task) => ({
    device: random(devices),
    after: Array.from({ length: task }, (_, other) => other).filter(() => random(task) < 2)
  }))

describe("task graphs over devices", () => {
  for (const devices of [2, 3]) {
    it.live(`give each task what the tasks before it have written, on ${devices} devices`, () =>
      Effect.gen(function*() {
        for (let seed = 1; seed <= 60; seed++) {
          const random = makeRandom(seed * 104_729 + devices)
          const tasks = drawTasks(random, devices)
          const ofTask = (task: number) => `task ${task}`
          const seen = yield* Effect.gen(function*() {
            const { launch } = yield* SimulatedRuntime.SimulatedControl
            const origin = yield* CudaStream.make()
            const cells = yield* Effect.forEach(tasks, ({ device }) => CudaMemory.allocate(size, { device }))
            const byteOf = (cell: CudaMemory.DeviceBuffer, at: number) => CudaMemory.slice(cell, at, 1)
            const work = (task: number) =>
              Effect.gen(function*() {
                const stream = yield* CudaStream.current()
                assert.strictEqual(stream.deviceIndex, tasks[task]!.device)
                yield* launch(stream, { duration: `${random(100)} micros` })
                yield* CudaMemory.fill(cells[task]!, task + 1, stream)
                for (const other of tasks[task]!.after) {
                  yield* CudaMemory.copy(byteOf(cells[task]!, other), byteOf(cells[other]!, size - 1), stream)
                }
              })
            const list = tasks.map(({ after }, task) => ({
              name: ofTask(task),
              after: after.map(ofTask),
              run: () => work(task)
            }))
            const graph = yield* CudaTaskGraph.fromTasks(list)
            const places = Object.fromEntries(tasks.map(({ device }, task) => [ofTask(task), device]))
            const concurrency = random(2) === 0 ? 1 : "unbounded"
            const host = yield* CudaMemory.allocateHost(size * cells.length)
            yield* Effect.gen(function*() {
              yield* CudaTaskGraph.run(graph, { devices: places, concurrency })
              for (const [index, cell] of cells.entries()) {
                yield* CudaMemory.copy(CudaMemory.slice(host, index * size, size), cell, origin)
              }
              yield* CudaStream.synchronize(origin)
            }).pipe(CudaStream.withStream(origin))
            return cells.map((_, index) => [...host.bytes.subarray(index * size, (index + 1) * size)])
          }).pipe(Effect.scoped, Effect.provide(runtime(devices)))
          const expected = tasks.map(({ after }, task) =>
            Array.from({ length: size }, (_, at) => after.includes(at) ? at + 1 : task + 1)
          )
          assert.deepStrictEqual(seen, expected, `seed ${seed}`)
        }
      }))
  }
})
