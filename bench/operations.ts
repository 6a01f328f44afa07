/**
 * What single operations cost, in nanoseconds: in a plain C loop, as raw koffi calls, and as Effects of the library.
 *
 * The Effects run in one fiber, in an `Effect.whileLoop` whose body makes and yields the operation each time, as
 * programs do; the same loop around `Effect.void` is measured alike and subtracted. Raw koffi calls run in a plain
 * loop. Every batch is followed by draining the streams outside the measurement, so that no queue of the driver runs
 * full. C, koffi and Effects take turns within a round; the table has medians of batches.
 *
 * "create, destroy (scoped)" is `Effect.scoped(CudaEvent.make())`, what programs write, and "create, destroy (service)"
 * the two members of `CudaRuntime` alone. The unfinished query is of an event behind a kernel of 20 ms.
 */
import * as Effect from "effect/Effect"
import type { CudaError } from "../src/CudaError.ts"
import * as CudaEvent from "../src/CudaEvent.ts"
import * as CudaMemory from "../src/CudaMemory.ts"
import * as CudaStream from "../src/CudaStream.ts"
import { CudaRuntime } from "../src/layers/CudaRuntime.ts"
import * as NativeRuntime from "../src/layers/NativeRuntime.ts"
import { check } from "./support/driver.ts"
import type { Driver } from "./support/driver.ts"
import { turn } from "./support/loop.ts"
import { measureEffect, measureRaw } from "./support/measure.ts"
import { startPeer } from "./support/peer.ts"
import { printTable, run } from "./support/report.ts"
import { fixed, median, times } from "./support/statistics.ts"

const rounds = 8
const batches = 10
const copyBytes = 4096
const eventFlags = 2
const busyMillis = 20

interface Operation {
  readonly name: string
  /** What the C peer calls it. */
  readonly peer: string
  /** Calls per batch: few enough not to fill the driver's queues. */
  readonly count: number
  readonly busy?: true
  readonly raw: () => void
  readonly effect: () => Effect.Effect<unknown, CudaError>
}

/** What the operations work on. */
const makeSubjects = Effect.gen(function*() {
  return {
    runtime: yield* CudaRuntime,
    stream: yield* CudaStream.make(),
    other: yield* CudaStream.make(),
    event: yield* CudaEvent.make(),
    marker: yield* CudaEvent.make(),
    host: yield* CudaMemory.allocateHost(copyBytes),
    device: yield* CudaMemory.allocate(copyBytes)
  }
})

type Subjects = Effect.Success<typeof makeSubjects>

const enqueues = ({ calls }: Driver, subjects: Subjects): ReadonlyArray<Operation> => {
  const { device, event, host, marker, other, stream } = subjects
  return [
    {
      name: "record",
      peer: "record",
      count: 500,
      raw: () => check("cuEventRecord", calls.cuEventRecord(event.handle, stream.handle)),
      effect: () => CudaEvent.record(event, stream)
    },
    {
      name: "waitEvent",
      peer: "waitEvent",
      count: 500,
      raw: () => check("cuStreamWaitEvent", calls.cuStreamWaitEvent(other.handle, event.handle, 0)),
      effect: () => CudaStream.waitEvent(other, event)
    },
    {
      name: "waitStream",
      peer: "waitStream",
      count: 250,
      raw: () => {
        check("cuEventRecord", calls.cuEventRecord(marker.handle, stream.handle))
        check("cuStreamWaitEvent", calls.cuStreamWaitEvent(other.handle, marker.handle, 0))
      },
      effect: () => CudaStream.waitStream(other, stream)
    },
    {
      name: "copy 4 KiB to the device",
      peer: "copy",
      count: 250,
      raw: () =>
        check(
          "cuMemcpyHtoDAsync",
          calls.cuMemcpyHtoDAsync_v2(device.address, host.address, copyBytes, stream.handle)
        ),
      effect: () => CudaMemory.copy(device, host, stream)
    },
    {
      name: "fill 4 KiB",
      peer: "fill",
      count: 250,
      raw: () => check("cuMemsetD8Async", calls.cuMemsetD8Async(device.address, 0, copyBytes, stream.handle)),
      effect: () => CudaMemory.fill(device, 0, { stream })
    }
  ]
}

const others = ({ calls, make }: Driver, { event, runtime }: Subjects): ReadonlyArray<Operation> => {
  const query = { count: 5000, raw: () => void calls.cuEventQuery(event.handle), effect: () => CudaEvent.query(event) }
  const create = {
    peer: "createDestroy",
    count: 2000,
    raw: () => check("cuEventDestroy", calls.cuEventDestroy_v2(make("cuEventCreate", eventFlags)))
  }
  const scoped = Effect.scoped(CudaEvent.make()).pipe(Effect.provideService(CudaRuntime, runtime))
  return [
    { ...query, name: "query, finished", peer: "queryFinished" },
    { ...query, name: "query, unfinished", peer: "queryUnfinished", busy: true },
    { ...create, name: "create, destroy (scoped)", effect: () => scoped },
    {
      ...create,
      name: "create, destroy (service)",
      effect: () => Effect.flatMap(runtime.eventCreate(0, eventFlags), runtime.eventDestroy)
    }
  ]
}

/** Has the operation find the streams as it needs them: drained, or busy. */
const prepare = (driver: Driver, { event, other, stream }: Subjects, { busy }: Operation): void => {
  const { calls } = driver
  for (const { handle } of [stream, other]) check("cuStreamSynchronize", calls.cuStreamSynchronize(handle))
  if (busy === true) driver.spin(stream.handle, busyMillis)
  check("cuEventRecord", calls.cuEventRecord(event.handle, stream.handle))
  if (busy !== true) check("cuStreamSynchronize", calls.cuStreamSynchronize(stream.handle))
}

/** The nanoseconds of every batch, by way. */
interface Costs {
  readonly c: Array<number>
  readonly raw: Array<number>
  readonly effect: Array<number>
  readonly loop: Array<number>
}

const measureOnce = (driver: Driver, subjects: Subjects, operation: Operation, costs: Costs): void => {
  const { count } = operation
  for (let batch = 0; batch < batches; batch++) {
    prepare(driver, subjects, operation)
    costs.raw.push(driver.inContext(() => measureRaw(operation.raw, count)))
    prepare(driver, subjects, operation)
    costs.effect.push(measureEffect(operation.effect, count))
    costs.loop.push(measureEffect(() => Effect.void, count))
  }
}

await run("operations", (driver) =>
  Effect.gen(function*() {
    const peer = yield* startPeer("operations")
    const subjects = yield* makeSubjects
    const operations = [...enqueues(driver, subjects), ...others(driver, subjects)]
    const costs = operations.map((): Costs => ({ c: [], raw: [], effect: [], loop: [] }))
    for (let round = -1; round < rounds; round++) {
      for (const [index, operation] of operations.entries()) {
        // The first round compiles and is not kept.
        const kept = round < 0 ? { c: [], raw: [], effect: [], loop: [] } : costs[index]!
        if (peer !== undefined) {
          const answer = yield* peer.ask(operation.peer, operation.count, batches)
          kept.c.push(...answer.map((nanos) => nanos / operation.count))
        }
        measureOnce(driver, subjects, operation, kept)
        yield* turn
      }
    }
    const rows = operations.map(({ name }, index) => {
      const { c, effect, loop, raw } = costs[index]!
      const [inC, direct, whole] = [median(c), median(raw), median(effect) - median(loop)]
      return [
        name,
        ...[inC, direct, whole, whole - direct, median(loop)].map((nanos) => fixed(nanos, 0)),
        times(direct, inC),
        times(whole, inC)
      ]
    })
    printTable(
      `Operations, ns each (medians of ${rounds * batches} batches)`,
      ["", "C", "koffi", "Effect", "over koffi", "empty loop", "koffi / C", "Effect / C"],
      rows
    )
    for (const { handle } of [subjects.stream, subjects.other]) driver.calls.cuStreamSynchronize(handle)
  }).pipe(Effect.provideServiceEffect(CudaRuntime, NativeRuntime.make())))
