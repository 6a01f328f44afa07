/**
 * Copies from one device to another, and both ways at once: `CudaMemory.copy`, compared with `cuMemcpyPeerAsync` in C and with PyTorch.
 * Needs two devices with a link.
 *
 * A batch is a number of copies one after another; its time is from the first call to the end of the last copy, and a figure is its time
 * per copy. All memory is of pools to which both devices have access. The library waits by polling, as C's spinning wait does. All ways
 * take turns within a round.
 */
import * as Effect from "effect/Effect"
import * as CudaDevice from "../src/CudaDevice.ts"
import type { CudaError } from "../src/CudaError.ts"
import * as CudaMemory from "../src/CudaMemory.ts"
import * as CudaStream from "../src/CudaStream.ts"
import { CudaRuntime, CurrentWaitOptions } from "../src/layers/CudaRuntime.ts"
import { turn } from "./support/loop.ts"
import { startPeer, startPythonPeer } from "./support/peer.ts"
import type { Peer } from "./support/peer.ts"
import { printTable } from "./support/report.ts"
import { makeFigure } from "./support/results.ts"
import { runOnGpu } from "./support/run.ts"
import { fixed, median } from "./support/statistics.ts"

const mebibyte = 2 ** 20
const largest = 1024 * mebibyte
const rounds = 6
const batches = 3

/** The size of copies, how many make a batch, and whether they go both ways. */
interface Load {
  readonly bytes: number
  readonly count: number
  readonly isBoth: boolean
}

const loads: ReadonlyArray<Load> = [[largest, 8], [64 * mebibyte, 40], [mebibyte, 200], [4096, 200]].flatMap(
  ([bytes = 0, count = 0]) => [{ bytes, count, isBoth: false }, { bytes, count, isBoth: true }]
)

const sizeOf = (bytes: number): string => {
  if (bytes >= largest) return "1 GiB"
  return bytes >= mebibyte ? `${bytes / mebibyte} MiB` : `${bytes / 1024} KiB`
}

const nameOf = ({ bytes, isBoth }: Load): string => `${sizeOf(bytes)}, ${isBoth ? "both ways" : "one way"}`

const makeEnd = (device: number, peer: number) =>
  Effect.all({
    stream: CudaStream.make({ device }),
    source: CudaMemory.allocate(largest, { device }),
    destination: CudaMemory.allocate(largest, { device: peer })
  })

type End = Effect.Success<ReturnType<typeof makeEnd>>

const nothing = () => {}

/** Makes the copies of a batch, and returns the time in nanoseconds. */
const measureOurs = (ends: readonly [End, End], { bytes, count, isBoth }: Load): Effect.Effect<number, CudaError> => {
  const copies = (isBoth ? ends : ends.slice(0, 1)).map(({ destination, source, stream }) => {
    const [to, from] = [CudaMemory.slice(destination, 0, bytes), CudaMemory.slice(source, 0, bytes)]
    return { copy: () => CudaMemory.copy(to, from, stream), stream }
  })
  return Effect.suspend(() => {
    const start = process.hrtime.bigint()
    let index = 0
    return Effect.whileLoop({
      while: () => index < count * copies.length,
      body: () => copies[index++ % copies.length]!.copy(),
      step: nothing
    }).pipe(
      Effect.andThen(Effect.forEach(copies, ({ stream }) => CudaStream.synchronize(stream), { discard: true })),
      Effect.map(() => Number(process.hrtime.bigint() - start))
    )
  })
}

const askPeer = (peer: Peer, { bytes, count, isBoth }: Load) =>
  peer.ask("copy", bytes, isBoth ? "both" : "one", count, batches)

const polling = Effect.provideService(CurrentWaitOptions, { pollFor: "1 second" })

/** Nanoseconds per copy of every batch, by way. */
type Times = Map<string, Array<number>>

const measure = Effect.fnUntraced(function*(ends: readonly [End, End], peers: ReadonlyArray<Peer>, load: Load) {
  const times: Times = new Map()
  const add = (way: string, nanos: ReadonlyArray<number>) =>
    times.set(way, [...times.get(way) ?? [], ...nanos.map((value) => value / load.count)])
  for (let round = -1; round < rounds; round++) {
    if (round === 0) times.clear()
    for (const peer of peers) add(peer.name, yield* askPeer(peer, load))
    for (let batch = 0; batch < batches; batch++) add("ours", [yield* polling(measureOurs(ends, load))])
    yield* turn
  }
  return times
})

const rateOf = ({ bytes, isBoth }: Load, nanos: number): number => bytes * (isBoth ? 2 : 1) / nanos

await runOnGpu("devices", (ground) =>
  Effect.gen(function*() {
    if ((yield* CudaDevice.count) < 2 || !(yield* CudaDevice.canAccessPeer(0, 1))) {
      console.log("skipped: needs two devices with a link")
      return []
    }
    const peers = [yield* startPeer("devices", ground), yield* startPythonPeer("PyTorch", "devices", "torch")]
      .filter((peer) => peer !== undefined)
    const ends = [yield* makeEnd(0, 1), yield* makeEnd(1, 0)] as const
    const results: Array<Times> = []
    for (const load of loads) results.push(yield* measure(ends, peers, load))
    const ways = ["ours", ...peers.map(({ name }) => name)]
    const of = (times: Times, way: string) => median(times.get(way) ?? [])
    printTable(
      "Copies between two devices (medians)",
      ["", ...ways.map((way) => `${way} GB/s`), ...ways.map((way) => `${way} µs`), "ours / C", "of C's bandwidth"],
      loads.map((load, index) => {
        const times = results[index]!
        const ratio = of(times, "ours") / of(times, "C")
        return [
          nameOf(load),
          ...ways.map((way) => fixed(rateOf(load, of(times, way)))),
          ...ways.map((way) => fixed(of(times, way) / 1e3, 2)),
          fixed(ratio, 3),
          `${fixed(100 / ratio)} %`
        ]
      })
    )
    return loads.map((load, index) => {
      const { C = [], PyTorch = [], ours = [] } = Object.fromEntries(
        Array.from(results[index]!, ([way, values]) => [way, values.map((nanos) => nanos / 1e3)])
      )
      const target = load.bytes >= 64 * mebibyte ? "link" : undefined
      return makeFigure({ group: "Copies between two devices", name: nameOf(load), unit: "µs", target }, ours, {
        C,
        PyTorch
      })
    })
  }).pipe(Effect.provideServiceEffect(CudaRuntime, ground.makeRuntime({ peers: "all" }))))
