/**
 * The cost of checking: operations on a native runtime, and on the same runtime checked. Both take turns. With the argument "stub", the
 * driver's calls return immediately, which leaves the overhead of calling it.
 */
import * as Effect from "effect/Effect"
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

type Way = Effect.Success<typeof makeWay>

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
    "launch, 3 arguments": () => CudaKernel.launch(kernel, config, values, stream)
  }
  return { operations, end: Effect.andThen(CudaStream.synchronize(stream), CudaStream.synchronize(other)) }
})

const compareWays = (name: string, { checked, plain }: { readonly plain: Way; readonly checked: Way }) =>
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

await runOnDriver("checked", (ground) =>
  Effect.gen(function*() {
    const runtime = yield* ground.makeRuntime()
    const checked = yield* CheckedRuntime.make(runtime, { mode: "fail" })
    const on = (service: typeof runtime) => Effect.provideService(makeWay, CudaRuntime, service)
    const ways = { plain: yield* on(runtime), checked: yield* on(checked.runtime) }
    const names = Object.keys(ways.plain.operations)
    const rows = yield* Effect.forEach(names, (name) => compareWays(name, ways))
    yield* checked.checker.expectNone
    printTable(
      "Operations, ns each (medians of batches)",
      ["operation", "plain", "checked", "ratio"],
      rows.map((row) => [
        row.name,
        fixed(median(row.plain), 0),
        fixed(median(row.checked), 0),
        fixed(median(row.checked) / median(row.plain), 2)
      ])
    )
    return rows.map(({ checked, name, plain }) =>
      makeFigure({ group: "Checked", name, unit: "ns" }, checked, { unchecked: plain })
    )
  }))
