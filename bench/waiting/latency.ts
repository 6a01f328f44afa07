/**
 * The latency between the end of GPU work and the resumption of the waiter: the library's waits, compared with
 * cuEventSynchronize in C, spinning and on a blocking-sync event, for kernels and copies of 10 µs to 10 ms.
 *
 * Every sample is the time from just before the launch to the resumption of the waiter, on one monotonic clock, minus
 * the duration of the work: for a kernel, the duration it was given, by the GPU's timer; for a copy, the median time
 * between two timed events, measured once at the start. So no GPU clock has to be related to a host clock. The rest is
 * the launch (3 to 4 µs, of which half a microsecond is koffi's overhead compared with C, at the library's expense) and
 * the resumption. The same duration is subtracted for every way, so differences between ways, shown in the second table
 * of each pair, do not depend on it. The ratio to blocking-sync is a ratio of the remaining times.
 *
 * The C peer is a separate process with its own context. Each way's first waits in a round are not counted, because
 * they switch the GPU back to that context. All ways take turns within a round.
 */
import * as Effect from "effect/Effect"
import type { CudaError } from "../../src/CudaError.ts"
import type { Driver } from "../support/driver.ts"
import { check } from "../support/driver.ts"
import { startPeer } from "../support/peer.ts"
import type { Peer } from "../support/peer.ts"
import { printTable } from "../support/report.ts"
import { makeFigure } from "../support/results.ts"
import type { Figure } from "../support/results.ts"
import { runOnGpu } from "../support/run.ts"
import { fixed, median, quantile, signed, times } from "../support/statistics.ts"
import { makeWays } from "../support/ways.ts"
import type { Way } from "../support/ways.ts"

const rounds = 5
const warmUps = 5
/** Durations of work in microseconds, and how often each way waits for it per round. */
const lengths = [
  { micros: 10, samples: 200 },
  { micros: 100, samples: 200 },
  { micros: 1000, samples: 60 },
  { micros: 10_000, samples: 20 }
]
/** Maximum size of a copy, so that pinning takes well under a second. */
const maxCopyBytes = 768 * 1024 * 1024

/** Work of a certain duration: how to enqueue it, and how to request it from the C peer. */
interface Work {
  readonly label: string
  /** An explanation of the label, if needed. */
  readonly note?: string
  readonly micros: number
  readonly samples: number
  readonly enqueue: (stream: number) => void
  readonly question: readonly [what: "kernel" | "copy", amount: number]
}

/** The time of each wait in addition to its work, in microseconds, by way. */
type Samples = Map<string, Array<number>>

const spinning = "C, spinning"
const blocking = "C, blocking-sync"

const keep = (samples: Samples, way: string, values: ReadonlyArray<number>): void => {
  const kept = samples.get(way)
  if (kept === undefined) samples.set(way, [...values])
  else kept.push(...values)
}

const waitOurs = (way: Way, work: Work): Effect.Effect<ReadonlyArray<number>, CudaError> =>
  Effect.gen(function*() {
    const values: Array<number> = []
    for (let index = -warmUps; index < work.samples; index++) {
      const start = performance.now()
      work.enqueue(way.stream.handle)
      yield* way.wait()
      const elapsed = performance.now() - start
      if (index >= 0) values.push(elapsed * 1e3 - work.micros)
    }
    return values
  })

const waitInC = (peer: Peer, work: Work, how: "spin" | "block"): Effect.Effect<ReadonlyArray<number>> =>
  Effect.map(
    peer.ask(...work.question, how, work.samples, warmUps),
    (answer) => answer.filter((_, index) => index % 2 === 0).map((nanos) => nanos / 1e3 - work.micros)
  )

const kernels = (driver: Driver): ReadonlyArray<Work> =>
  lengths.map(({ micros, samples }) => ({
    label: label(micros),
    micros,
    samples,
    enqueue: (stream) => driver.spin(stream, micros / 1e3),
    question: ["kernel", micros * 1e3]
  }))

const label = (micros: number): string => micros < 1000 ? `${micros} µs` : `${micros / 1000} ms`

/** Finds the size of a copy for each duration, and measures the actual duration. */
const copies = (driver: Driver): ReadonlyArray<Work> => {
  const { calls } = driver
  const bytes = { small: 64 * 1024, large: 64 * 1024 * 1024 }
  const [host, device, timer] = driver.inContext(() => [
    driver.make("cuMemHostAlloc", maxCopyBytes, 0),
    driver.make("cuMemAlloc_v2", maxCopyBytes),
    makeTimer(driver)
  ])
  const enqueue = (size: number) => (stream: number) =>
    check("cuMemcpyHtoDAsync", calls.cuMemcpyHtoDAsync_v2(device, host, size, stream))
  const small = timer(enqueue(bytes.small))
  const perByte = (timer(enqueue(bytes.large)) - small) / (bytes.large - bytes.small)
  return lengths.map(({ micros, samples }) => {
    const ideal = bytes.small + (micros - small) / perByte
    const size = Math.round(Math.max(4096, Math.min(maxCopyBytes, ideal)) / 4096) * 4096
    const taken = timer(enqueue(size))
    return {
      label: label(micros),
      note: `${fixed(size / 1024, 0)} KiB in ${fixed(taken)} µs`,
      micros: taken,
      samples,
      enqueue: enqueue(size),
      question: ["copy", size]
    }
  })
}

/** Measures the duration of work on the GPU, in microseconds: the median of a few runs. */
const makeTimer = (driver: Driver): (enqueue: (stream: number) => void) => number => {
  const { calls } = driver
  const stream = driver.make("cuStreamCreateWithPriority", 1, 0)
  const start = driver.make("cuEventCreate", 0)
  const end = driver.make("cuEventCreate", 0)
  const millis = new Float32Array(1)
  return (enqueue) => {
    const values = Array.from({ length: 21 }, () => {
      check("cuEventRecord", calls.cuEventRecord(start, stream))
      enqueue(stream)
      check("cuEventRecord", calls.cuEventRecord(end, stream))
      check("cuStreamSynchronize", calls.cuStreamSynchronize(stream))
      check("cuEventElapsedTime", calls.cuEventElapsedTime(millis, start, end))
      return millis[0]! * 1e3
    })
    return median(values)
  }
}

const measure = (ways: ReadonlyArray<Way>, peer: Peer | undefined, work: Work): Effect.Effect<Samples, CudaError> =>
  Effect.gen(function*() {
    const samples: Samples = new Map()
    for (let round = 0; round < rounds; round++) {
      if (peer !== undefined) {
        keep(samples, spinning, yield* waitInC(peer, work, "spin"))
        keep(samples, blocking, yield* waitInC(peer, work, "block"))
      }
      for (const way of ways) keep(samples, way.name, yield* waitOurs(way, work))
    }
    return samples
  })

const print = (title: string, works: ReadonlyArray<Work>, results: ReadonlyArray<Samples>): void => {
  const ways = [...results[0]!.keys()]
  const notes = works.flatMap((work) => work.note ?? []).join(", ")
  const p50 = (samples: Samples, way: string) => median(samples.get(way) ?? [])
  const row = (way: string, cells: (samples: Samples) => ReadonlyArray<string>) => [way, ...results.flatMap(cells)]
  printTable(
    `${title}: launch to resumption less the work, µs${notes && ` (${notes})`}`,
    ["", ...works.flatMap((work) => [`${work.label} p50`, "p99"])],
    ways.map((way) => row(way, (samples) => [fixed(p50(samples, way)), fixed(quantile(samples.get(way) ?? [], 0.99))]))
  )
  if (!ways.includes(spinning)) return
  printTable(
    `${title}: p50 compared with C: µs over spinning, and the ratio to blocking-sync`,
    ["", ...works.flatMap((work) => [`${work.label} over spin`, "/ block"])],
    ways.map((way) =>
      row(way, (samples) => [
        signed(p50(samples, way) - p50(samples, spinning)),
        times(p50(samples, way), p50(samples, blocking))
      ])
    )
  )
}

/** The longest work, in microseconds, for which a wait should be as fast as spinning. */
const longestShort = 200

/** The ways of the library. The default has a target. */
const figuresOf = (
  title: string,
  works: ReadonlyArray<Work>,
  results: ReadonlyArray<Samples>,
  ways: ReadonlyArray<Way>
): ReadonlyArray<Figure> =>
  works.flatMap(({ label: length, micros }, index) =>
    ways.map(({ name }) => {
      const samples = (way: string) => results[index]!.get(way) ?? []
      const target = micros < longestShort ? "shortWait" : "longWait"
      return makeFigure(
        {
          group: `${title}: launch to resumption less the work`,
          name: `${length}, ${name}`,
          unit: "µs",
          target: name.endsWith("default") ? target : undefined
        },
        samples(name),
        { [spinning]: samples(spinning), [blocking]: samples(blocking) }
      )
    })
  )

await runOnGpu("waiting/latency", ({ driver }) =>
  Effect.gen(function*() {
    const peer = yield* startPeer("wait", { driver })
    const byPolicy = [yield* makeWays("default"), yield* makeWays("polling off"), yield* makeWays("wake-up off")]
    const ways = byPolicy.flat()
    if (peer !== undefined) yield* peer.ask("memory", maxCopyBytes)
    const figures: Array<Figure> = []
    for (const [title, works] of [["Kernels", kernels(driver)], ["Copies", copies(driver)]] as const) {
      const results: Array<Samples> = []
      for (const work of works) results.push(yield* measure(ways, peer, work))
      print(title, works, results)
      figures.push(...figuresOf(title, works, results, ways))
    }
    return figures
  }))
