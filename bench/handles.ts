/**
 * The cost of handles: the time to open and close a scope of 1,000 streams and 10,000 events, compared with raw calls
 * and C; the memory per live stream, event, device buffer and pinned host buffer, on and off the JavaScript heap; and
 * what remains after the scope has closed.
 *
 * With the argument "stub", the driver's calls return immediately, and the simulated runtime is measured as well.
 */
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Scope from "effect/Scope"
import type { CudaError } from "../src/CudaError.ts"
import * as CudaEvent from "../src/CudaEvent.ts"
import * as CudaMemory from "../src/CudaMemory.ts"
import * as CudaStream from "../src/CudaStream.ts"
import { CudaRuntime } from "../src/layers/CudaRuntime.ts"
import * as SimulatedRuntime from "../src/layers/SimulatedRuntime.ts"
import { compare, comparedFigures, printCompared } from "./support/compare.ts"
import type { Operation } from "./support/compare.ts"
import { check } from "./support/driver.ts"
import type { Driver } from "./support/driver.ts"
import { heldSince, readHeld } from "./support/garbage.ts"
import type { Held } from "./support/garbage.ts"
import { startPeer } from "./support/peer.ts"
import { printTable } from "./support/report.ts"
import { makeFigure } from "./support/results.ts"
import type { Figure } from "./support/results.ts"
import { runOnDriver } from "./support/run.ts"
import { fixed } from "./support/statistics.ts"

const streamCount = 1000
const eventCount = 10_000
const repeats = 3
const bytes = 4096

type Acquire = Effect.Effect<unknown, CudaError, CudaRuntime | Scope.Scope>

/** Holds the handles until the scope closes, as a program would. */
const many = (make: Acquire, count: number) => Effect.replicateEffect(make, count)

const everything: Acquire = Effect.andThen(
  many(CudaStream.make(), streamCount),
  many(CudaEvent.make(), eventCount)
)

const rawScope = ({ calls, make }: Driver) => () => {
  const streams = Array.from({ length: streamCount }, () => make("cuStreamCreateWithPriority", 1, 0))
  const events = Array.from({ length: eventCount }, () => make("cuEventCreate", 2))
  for (const event of events) check("cuEventDestroy", calls.cuEventDestroy_v2(event))
  for (const stream of streams) check("cuStreamDestroy", calls.cuStreamDestroy_v2(stream))
}

/** Bytes held per handle while the handles are live, and in total after their release. */
const measureHeld = (make: Acquire, count: number) =>
  Effect.gen(function*() {
    const before = readHeld()
    const scope = yield* Scope.make()
    const live = yield* Effect.map(Scope.provide(many(make, count), scope), (made): Held => {
      const { external, heap } = heldSince(before)
      // The handles are reachable up to here.
      return { heap: heap / made.length, external: external / made.length }
    })
    yield* Scope.close(scope, Exit.void)
    return { live, left: heldSince(before) }
  })

const kinds = [
  { name: "stream", make: CudaStream.make(), count: 1000 },
  { name: "event", make: CudaEvent.make(), count: 1000 },
  { name: "device buffer", make: CudaMemory.allocate(bytes), count: 1000 },
  { name: "pinned host buffer of 4 KiB", make: CudaMemory.allocateHost(bytes), count: 1000 }
]

const measureMemory = (where: string) =>
  Effect.gen(function*() {
    const figures: Array<Figure> = []
    const group = `Memory of live handles, ${where}`
    for (const { count, make, name } of kinds) {
      // The first iteration allocates what stays: pools and compiled code.
      yield* measureHeld(make, count)
      const values: Array<{ readonly live: Held; readonly left: Held }> = []
      for (let repeat = 0; repeat < repeats; repeat++) values.push(yield* measureHeld(make, count))
      const figure = (what: string, read: (value: (typeof values)[number]) => number) =>
        makeFigure({ group, name: `${name}: ${what}`, unit: "bytes" }, values.map(read))
      const external = figure("external", ({ live }) => live.external)
      figures.push(
        figure("heap", ({ live }) => live.heap),
        ...(external.median >= 1 ? [external] : []),
        figure(`left by all ${count}`, ({ left }) => left.heap + left.external)
      )
    }
    printTable(group, ["", "bytes"], figures.map(({ median: value, name }) => [name, fixed(value, 0)]))
    return figures
  })

await runOnDriver("handles", (ground) =>
  Effect.gen(function*() {
    const { driver, isGpu, makeRuntime } = ground
    const peer = yield* startPeer("operations", ground)
    const onDriver = Effect.gen(function*() {
      const before = readHeld()
      const operation: Operation<CudaRuntime> = {
        name: "opened and closed",
        peer: "scope",
        count: 1,
        raw: rawScope(driver),
        effect: () => Effect.scoped(everything)
      }
      const compared = yield* compare({
        operations: [operation],
        peers: peer === undefined ? [] : [peer],
        prepare: () => Effect.void,
        inContext: driver.inContext,
        rounds: 3,
        batches: 3
      })
      const left = heldSince(before)
      const group = `A scope of ${streamCount} streams and ${eventCount} events`
      printCompared(`${group}, ns (medians)`, compared)
      return [
        ...comparedFigures(group, compared, "ms"),
        makeFigure({ group, name: "heap left afterwards", unit: "bytes" }, [left.heap]),
        ...(yield* measureMemory(isGpu ? "on the GPU" : "on the stub driver"))
      ]
    }).pipe(Effect.provideServiceEffect(CudaRuntime, makeRuntime()))
    const simulated = Effect.scoped(measureMemory("simulated")).pipe(Effect.provide(SimulatedRuntime.layer()))
    return [...yield* onDriver, ...(isGpu ? [] : yield* simulated)]
  }))
