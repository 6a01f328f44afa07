/**
 * The cost of checking: operations on a native runtime, and on the same runtime checked. Both take turns. With the argument "stub", the
 * driver's calls return immediately, which leaves the overhead of calling it. Then the same on more streams, and the memory that a
 * million operations leave.
 */
import * as Effect from "effect/Effect"
import { setFlagsFromString } from "node:v8"
import { runInNewContext } from "node:vm"
import type { CudaError } from "../src/CudaError.ts"
import * as CudaEvent from "../src/CudaEvent.ts"
import * as CudaKernel from "../src/CudaKernel.ts"
import * as CudaMemory from "../src/CudaMemory.ts"
import * as CudaModule from "../src/CudaModule.ts"
import * as CudaParameter from "../src/CudaParameter.ts"
import * as CudaProgram from "../src/CudaProgram.ts"
import * as CudaStream from "../src/CudaStream.ts"
import * as CheckedRuntime from "../src/layers/CheckedRuntime.ts"
import { CudaRuntime } from "../src/layers/CudaRuntime.ts"
import { kernelsPath } from "./support/driver.ts"
import { measureEffect } from "./support/measure.ts"
import { printTable } from "./support/report.ts"
import { makeFigure } from "./support/results.ts"
import { runOnDriver } from "./support/run.ts"
import { fixed, median } from "./support/statistics.ts"

const bytes = 4096
const count = 250
const rounds = 1000

const { input, pointer, u32 } = CudaParameter

interface Way {
  readonly operations: Readonly<Record<string, () => Effect.Effect<unknown, CudaError>>>
  readonly end: Effect.Effect<unknown, CudaError>
}

/** Operations on streams in turn, each with memory of its own. */
const makeStreams = (size: number) =>
  Effect.gen(function*() {
    const make = Effect.gen(function*() {
      const [host, device] = [yield* CudaMemory.allocateHost(bytes), yield* CudaMemory.allocate(bytes)]
      return { stream: yield* CudaStream.make(), event: yield* CudaEvent.make(), host, device }
    })
    const places = yield* Effect.replicateEffect(make, size)
    const module = yield* CudaModule.load(yield* CudaProgram.fromFile(kernelsPath))
    const kernel = yield* CudaKernel.get(module, "three", [pointer, input, u32])
    const config = { grid: 1, block: 1 }
    let turn = 0
    const next = () => places[turn++ % size]!
    const launch = () => {
      const { device, stream } = next()
      return CudaKernel.launch(kernel, config, [device, device, 1], stream)
    }
    // Each stream waits for the one before it, so that all of them are ordered after all others.
    const ring = () => {
      const { event, stream } = next()
      return Effect.andThen(
        CudaEvent.record(event, stream),
        CudaStream.waitEvent(places[turn % size]!.stream, event)
      )
    }
    const operations: Readonly<Record<string, () => Effect.Effect<unknown, CudaError>>> = {
      "record, wait of the next stream": ring,
      copy: () => {
        const { device, host, stream } = next()
        return CudaMemory.copy(device, host, stream)
      },
      launch,
      "launch, record, wait of the next stream": () =>
        Effect.andThen(launch(), Effect.andThen(Effect.sync(() => turn--), Effect.suspend(ring)))
    }
    return {
      operations,
      end: Effect.forEach(places, ({ stream }) => CudaStream.synchronize(stream), { discard: true })
    }
  })

const makeWay = Effect.gen(function*() {
  const [stream, other] = [yield* CudaStream.make(), yield* CudaStream.make()]
  const event = yield* CudaEvent.make()
  const [host, device] = [yield* CudaMemory.allocateHost(bytes), yield* CudaMemory.allocate(bytes)]
  const buffer = yield* CudaMemory.allocate(bytes)
  const module = yield* CudaModule.load(yield* CudaProgram.fromFile(kernelsPath))
  const kernel = yield* CudaKernel.get(module, "three", [pointer, input, u32])
  const part = CudaMemory.slice(device, 2048)
  const [config, values] = [{ grid: 1, block: 1 }, [buffer, part, 1] as const]
  const parts = [CudaMemory.slice(buffer, 0, bytes / 2), CudaMemory.slice(buffer, bytes / 2)]
  let turn = 0
  const operations: Readonly<Record<string, () => Effect.Effect<unknown, CudaError>>> = {
    record: () => CudaEvent.record(event, stream),
    waitEvent: () => CudaStream.waitEvent(other, event),
    "record, waitEvent": () => Effect.andThen(CudaEvent.record(event, stream), CudaStream.waitEvent(other, event)),
    waitStream: () => CudaStream.waitStream(other, stream),
    "copy 4 KiB to the device": () => CudaMemory.copy(device, host, stream),
    "fill 4 KiB": () => CudaMemory.fill(device, 0, stream),
    "fill 2 KiB, in turn": () => CudaMemory.fill(parts[turn++ % 2]!, 1, stream),
    "copy, fill of the same bytes": () =>
      Effect.andThen(CudaMemory.copy(device, host, stream), CudaMemory.fill(device, 0, stream)),
    "launch, 3 arguments": () => CudaKernel.launch(kernel, config, values, stream)
  }
  return { operations, end: Effect.andThen(CudaStream.synchronize(stream), CudaStream.synchronize(other)) }
})

interface Ways {
  readonly plain: Way
  readonly checked: Way
}

const compareWays = (name: string, { checked, plain }: Ways, rounds: number) =>
  Effect.gen(function*() {
    const costs = { plain: Array<number>(), checked: Array<number>() }
    for (let round = 0; round < rounds; round++) {
      const cost = yield* measure(plain, name)
      const other = yield* measure(checked, name)
      // The first rounds warm up.
      if (round < rounds / 4) continue
      costs.plain.push(cost)
      costs.checked.push(other)
    }
    return { name, ...costs }
  })

const measure = ({ end, operations }: Way, name: string) =>
  Effect.tap(measureEffect(operations[name]!, count), () => end)

type Row = Effect.Success<ReturnType<typeof compareWays>>

const printRows = (title: string, rows: ReadonlyArray<Row>) =>
  printTable(
    title,
    ["operation", "plain", "checked", "ratio"],
    rows.map((row) => [
      row.name,
      fixed(median(row.plain), 0),
      fixed(median(row.checked), 0),
      fixed(median(row.checked) / median(row.plain), 2)
    ])
  )

/** Prints the heap after numbers of operations, without what a collection frees. */
const measureMemory = ({ end, operations }: Way) =>
  Effect.gen(function*() {
    setFlagsFromString("--expose-gc")
    const collect: () => void = runInNewContext("gc")
    const rows: Array<ReadonlyArray<string>> = []
    let done = 0
    for (const until of [10_000, 100_000, 1_000_000]) {
      for (; done < until; done += 2 * count) {
        yield* measureEffect(operations["launch, record, wait of the next stream"]!, count)
        yield* measureEffect(operations["copy"]!, count)
        yield* end
      }
      collect()
      rows.push([String(until), fixed(process.memoryUsage().heapUsed / 2 ** 20, 2)])
    }
    printTable("Heap of a checked runtime after operations on 16 streams", ["operations", "MiB"], rows)
  })

await runOnDriver("checked", (ground) =>
  Effect.gen(function*() {
    const runtime = yield* ground.makeRuntime()
    const checked = yield* CheckedRuntime.make(runtime, { mode: "fail" })
    const on = (service: typeof runtime) => Effect.provideService(makeWay, CudaRuntime, service)
    const compare = (ways: Ways, rounds: number) =>
      Effect.forEach(Object.keys(ways.plain.operations), (name) => compareWays(name, ways, rounds))
    const rows = yield* compare({ plain: yield* on(runtime), checked: yield* on(checked.runtime) }, rounds)
    printRows("Operations, ns each (medians of batches)", rows)
    for (const size of [1, 16, 256]) {
      const on = (service: typeof runtime) => Effect.provideService(makeStreams(size), CudaRuntime, service)
      const rows = Effect.gen(function*() {
        return yield* compare({ plain: yield* on(runtime), checked: yield* on(checked.runtime) }, rounds / 4)
      })
      printRows(`On ${size} streams in turn, ns each`, yield* Effect.scoped(rows))
    }
    yield* Effect.scoped(
      Effect.flatMap(Effect.provideService(makeStreams(16), CudaRuntime, checked.runtime), measureMemory)
    )
    yield* checked.checker.expectNone
    return rows.map(({ checked, name, plain }) =>
      makeFigure({ group: "Checked", name, unit: "ns" }, checked, { unchecked: plain })
    )
  }))
