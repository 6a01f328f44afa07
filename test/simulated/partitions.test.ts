/**
 * Partitions of simulated devices, in virtual time.
 */
import { assert, it } from "@effect/vitest"
import { CudaGraph, CudaKernel, CudaModule, CudaPartition, CudaStream, SimulatedRuntime } from "effect-cuda"
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as TestClock from "effect/testing/TestClock"
import { program } from "../support/kernels.ts"

const kernels = {
  batch: SimulatedRuntime.kernel({ parameters: [], cost: "100 millis", run: () => {} }),
  request: SimulatedRuntime.kernel({ parameters: [], cost: "1 millis", run: () => {} })
}

/** A device that runs one kernel at a time, and one in each partition. */
const device = SimulatedRuntime.layer({ devices: [{ concurrentKernels: 1 }], kernels })

const launches = Effect.gen(function*() {
  const module = yield* CudaModule.load(yield* program)
  const launch = (name: string) =>
    Effect.map(
      CudaKernel.get(module, name, []),
      (kernel) => (stream: CudaStream.CudaStream) => CudaKernel.launch(kernel, { grid: 1, block: 1 }, [], stream)
    )
  return { batch: yield* launch("batch"), request: yield* launch("request") }
})

/** How many virtual milliseconds pass until a stream is done. */
const millisUntil = (stream: CudaStream.CudaStream) =>
  Effect.gen(function*() {
    const start = yield* Clock.currentTimeMillis
    const waiting = yield* Effect.forkChild(
      Effect.andThen(CudaStream.synchronize(stream), Clock.currentTimeMillis),
      { startImmediately: true }
    )
    for (let millis = 0; millis < 250; millis++) yield* TestClock.adjust(Duration.millis(1))
    return (yield* Fiber.join(waiting)) - start
  })

it.effect("a request waits for a batch on the same multiprocessors, and not for one in another partition", () =>
  Effect.gen(function*() {
    const { batch, request } = yield* launches
    const streams = { batch: yield* CudaStream.make(), request: yield* CudaStream.make({ priority: "high" }) }
    yield* batch(streams.batch)
    yield* request(streams.request)
    assert.isAtLeast(yield* millisUntil(streams.request), 101)

    const [requests, rest] = yield* CudaPartition.split([16, "rest"])
    const apart = {
      batch: yield* CudaStream.make({ partition: rest }),
      request: yield* CudaStream.make({ partition: requests })
    }
    yield* batch(apart.batch)
    yield* request(apart.request)
    assert.isAtMost(yield* millisUntil(apart.request), 2)
    yield* TestClock.adjust("1 second")
  }).pipe(Effect.scoped, Effect.provide(device)))

it.effect("a kernel of a graph runs in the partition in which it was recorded", () =>
  Effect.gen(function*() {
    const { batch, request } = yield* launches
    const [requests, rest] = yield* CudaPartition.split([16, "rest"])
    const graph = yield* CudaGraph.record(Effect.flatMap(CudaStream.current(), request)).pipe(
      CudaPartition.within(requests)
    )
    const exec = yield* CudaGraph.instantiate(graph)
    const stream = yield* CudaStream.make()
    yield* batch(yield* CudaStream.make({ partition: rest }))
    yield* CudaGraph.launch(exec, stream)
    assert.isAtMost(yield* millisUntil(stream), 2)
    yield* batch(yield* CudaStream.make({ partition: requests }))
    yield* CudaGraph.launch(exec, stream)
    assert.isAtLeast(yield* millisUntil(stream), 101)
    yield* TestClock.adjust("1 second")
  }).pipe(Effect.scoped, Effect.provide(device)))
