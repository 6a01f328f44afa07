/**
 * The CPU time of waiting, as a share of one core, while the GPU works for 100 ms and for 1 s: the library's waits,
 * compared with cuEventSynchronize in C, spinning and on a blocking-sync event.
 *
 * Counts the user and system time of the whole process during the wait (`process.cpuUsage`; the process CPU clock in
 * C), and so includes the driver's threads and the launch. "Node.js, a timer" is a pause of the same length without a
 * GPU, which is the baseline of the process.
 */
import * as Effect from "effect/Effect"
import type { CudaError } from "../../src/CudaError.ts"
import * as CudaEvent from "../../src/CudaEvent.ts"
import * as CudaStream from "../../src/CudaStream.ts"
import { CudaRuntime } from "../../src/layers/CudaRuntime.ts"
import * as NativeRuntime from "../../src/layers/NativeRuntime.ts"
import type { Driver } from "../support/driver.ts"
import { pause } from "../support/loop.ts"
import { startPeer } from "../support/peer.ts"
import type { Peer } from "../support/peer.ts"
import { printTable } from "../support/report.ts"
import { makeFigure } from "../support/results.ts"
import type { Figure } from "../support/results.ts"
import { runOnGpu } from "../support/run.ts"
import { fixed, median } from "../support/statistics.ts"
import { makeWays } from "../support/ways.ts"
import type { Way } from "../support/ways.ts"

/** How long the GPU works, in milliseconds, and how often each way waits. */
const lengths = [{ millis: 100, repeats: 5 }, { millis: 1000, repeats: 2 }]

/** One measurement, in percent of a core. */
type Measure = (millis: number) => Effect.Effect<number, CudaError>

const ours = (driver: Driver, { stream, wait }: Way): Measure =>
  share((millis) =>
    Effect.suspend(() => {
      driver.spin(stream.handle, millis)
      return wait()
    })
  )

const share = (wait: (millis: number) => Effect.Effect<void, CudaError>): Measure => (millis) =>
  Effect.suspend(() => {
    const before = process.cpuUsage()
    const start = performance.now()
    return Effect.map(wait(millis), () => {
      const { system, user } = process.cpuUsage(before)
      return (system + user) / 10 / (performance.now() - start)
    })
  })

const inC = (peer: Peer, how: "spin" | "block"): Measure => (millis) =>
  Effect.map(peer.ask("kernel", millis * 1e6, how, 1, 0), ([elapsed, cpu]) => 100 * cpu! / elapsed!)

const spinning = "C, spinning"
const blocking = "C, blocking-sync"

/** The ways of the library. The default has a target. */
const figuresOf = (
  length: string,
  values: ReadonlyMap<string, ReadonlyArray<number>>,
  ways: ReadonlyArray<Way>
): ReadonlyArray<Figure> =>
  ways.map(({ name }) =>
    makeFigure(
      {
        group: "CPU while waiting, of a core",
        name: `${name}, ${length}`,
        unit: "%",
        target: name.endsWith("default") ? "waitingCpu" : undefined
      },
      values.get(name) ?? [],
      { [spinning]: values.get(spinning) ?? [], [blocking]: values.get(blocking) ?? [] }
    )
  )

/** A blocking event skips polling, whatever the policy. */
const blockingEvent = Effect.gen(function*() {
  const stream = yield* CudaStream.make()
  const event = yield* CudaEvent.make({ blocking: true })
  const wait = () => Effect.andThen(CudaEvent.record(event, stream), CudaEvent.synchronize(event))
  return { name: "blocking event, default", stream, wait }
}).pipe(Effect.provideServiceEffect(CudaRuntime, NativeRuntime.make()))

await runOnGpu("waiting/cpu", ({ driver }) =>
  Effect.gen(function*() {
    const peer = yield* startPeer("wait", { driver })
    const ways = [...yield* makeWays("default"), yield* blockingEvent, ...yield* makeWays("wake-up off")]
    const measures = new Map<string, Measure>(ways.map((way) => [way.name, ours(driver, way)]))
    measures.set("Node.js, a timer", share(pause))
    if (peer !== undefined) {
      measures.set(spinning, inC(peer, "spin"))
      measures.set(blocking, inC(peer, "block"))
    }
    const figures: Array<Figure> = []
    const rows = new Map([...measures.keys()].map((name) => [name, [name]]))
    for (const { millis, repeats } of lengths) {
      const values = new Map([...measures.keys()].map((name): [string, Array<number>] => [name, []]))
      for (const measure of measures.values()) yield* measure(10)
      for (let round = 0; round < repeats; round++) {
        for (const [name, measure] of measures) values.get(name)!.push(yield* measure(millis))
      }
      for (const [name, row] of rows) {
        const measured = values.get(name)!
        row.push(fixed(median(measured), 2), fixed(Math.max(...measured), 2))
      }
      figures.push(...figuresOf(`${millis} ms`, values, ways))
    }
    printTable(
      "CPU while waiting, % of a core",
      ["", ...lengths.flatMap(({ millis }) => [`${millis} ms: p50`, "max"])],
      [...rows.values()]
    )
    return figures
  }))
