/**
 * What launching a kernel costs, in nanoseconds: in a plain C loop, as raw koffi calls, as Effects of the library, and with the
 * Python peers cuda.core and CuPy where they are installed. The kernels do nothing, and have no arguments, three, or 32.
 *
 * The Effects run in one fiber, in an `Effect.whileLoop` whose body makes and yields the launch each time, as programs do;
 * the same loop around `Effect.void` is measured alike and subtracted. The raw calls are given arguments that were written
 * before, C and the others write theirs for each launch. Every batch is followed by draining the stream, outside the
 * measurement. All take turns within a round; the table has medians of batches.
 */
import * as Effect from "effect/Effect"
import koffi from "koffi"
import { readFileSync } from "node:fs"
import { fileURLToPath } from "node:url"
import type { CudaError } from "../src/CudaError.ts"
import * as CudaKernel from "../src/CudaKernel.ts"
import * as CudaMemory from "../src/CudaMemory.ts"
import * as CudaProgram from "../src/CudaProgram.ts"
import * as CudaStream from "../src/CudaStream.ts"
import { CudaRuntime } from "../src/layers/CudaRuntime.ts"
import * as NativeRuntime from "../src/layers/NativeRuntime.ts"
import { check } from "./support/driver.ts"
import type { Driver } from "./support/driver.ts"
import { turn } from "./support/loop.ts"
import { measureEffect, measureRaw } from "./support/measure.ts"
import { startPeer, startPythonPeer } from "./support/peer.ts"
import type { Peer } from "./support/peer.ts"
import { printTable, run } from "./support/report.ts"
import { fixed, median, times } from "./support/statistics.ts"

const rounds = 8
const batches = 10
/** Launches per batch: few enough not to fill the driver's queue. */
const count = 250
const path = fileURLToPath(new URL("./peers/launch.ptx", import.meta.url))
const config = { grid: 1, block: 1 }

interface Launch {
  /** As the peers call the kernel. */
  readonly kernel: string
  readonly title: string
  readonly raw: () => void
  readonly effect: () => Effect.Effect<void, CudaError>
}

const makeSubjects = Effect.gen(function*() {
  const { f32, get, input, pointer, u32, u64 } = CudaKernel
  const module = yield* CudaKernel.load(yield* CudaProgram.fromFile(path))
  const four = [pointer, u32, f32, u64] as const
  return {
    stream: yield* CudaStream.make(),
    device: yield* CudaMemory.allocate(4096),
    none: yield* get(module, "none", []),
    three: yield* get(module, "three", [pointer, input, u32]),
    many: yield* get(module, "many", [...four, ...four, ...four, ...four, ...four, ...four, ...four, ...four])
  }
})

type Subjects = Effect.Success<typeof makeSubjects>

/** The kernels past the library, each with a launch of arguments that stay the same. */
const makeRaw = ({ calls, inContext, make }: Driver, { stream }: Subjects) => {
  const module = inContext(() => make("cuModuleLoadData", Buffer.from(`${readFileSync(path, "utf8")}\0`)))
  return (name: string, values: ReadonlyArray<number>) => {
    const kernel = inContext(() => make("cuModuleGetFunction", module, name))
    const slots = BigUint64Array.from(values, BigInt)
    const start = Number(koffi.address(slots.buffer))
    const table = BigUint64Array.from(values, (_, index) => BigInt(start + 8 * index))
    return () => {
      const status = calls.cuLaunchKernel(kernel, 1, 1, 1, 1, 1, 1, 0, stream.handle, table, null)
      // The table points into the slots, which live as long as this function.
      if (status !== 0) throw new Error(`cuLaunchKernel answered ${status}, with ${slots.length} arguments`)
    }
  }
}

const makeLaunches = (driver: Driver, subjects: Subjects): ReadonlyArray<Launch> => {
  const { device, many, none, stream, three } = subjects
  const raw = makeRaw(driver, subjects)
  const part = CudaMemory.slice(device, 2048)
  const address = device.address
  const words = Array.from({ length: 32 }, (_, index) => index % 4 === 0 ? address : index)
  return [
    {
      kernel: "none",
      title: "no arguments",
      raw: raw("none", []),
      effect: () => CudaKernel.launch(none, config, [], stream)
    },
    {
      kernel: "three",
      title: "3 arguments",
      raw: raw("three", [address, address + 2048, 512]),
      effect: () => CudaKernel.launch(three, config, [device, part, 512], stream)
    },
    {
      kernel: "many",
      title: "32 arguments",
      raw: raw("many", words),
      effect: () =>
        CudaKernel.launch(many, config, [
          device,
          1,
          0.5,
          7,
          device,
          1,
          0.5,
          7,
          device,
          1,
          0.5,
          7,
          device,
          1,
          0.5,
          7,
          device,
          1,
          0.5,
          7,
          device,
          1,
          0.5,
          7,
          device,
          1,
          0.5,
          7,
          device,
          1,
          0.5,
          7
        ], stream)
    }
  ]
}

/** The nanoseconds of every batch, by way. */
interface Costs {
  readonly c: Array<number>
  readonly raw: Array<number>
  readonly effect: Array<number>
  readonly loop: Array<number>
  readonly core: Array<number>
  readonly cupy: Array<number>
}

const noCosts = (): Costs => ({ c: [], raw: [], effect: [], loop: [], core: [], cupy: [] })

const ask = (peer: Peer | undefined, kernel: string): Effect.Effect<ReadonlyArray<number>> =>
  peer === undefined
    ? Effect.succeed([])
    : Effect.map(peer.ask(kernel, count, batches), (answer) => answer.map((nanos) => nanos / count))

const row = ({ title }: Launch, costs: Costs): ReadonlyArray<string> => {
  const [c, raw, core, cupy] = [median(costs.c), median(costs.raw), median(costs.core), median(costs.cupy)]
  const effect = median(costs.effect) - median(costs.loop)
  const figures = [c, raw, effect, core, cupy].map((nanos) => fixed(nanos, 0))
  return [title, ...figures, times(raw, c), times(effect, c), times(core, c), times(cupy, c)]
}

await run("launch", (driver) =>
  Effect.gen(function*() {
    const peers = {
      c: yield* startPeer("launch"),
      core: yield* startPythonPeer("launch", "cuda.core"),
      cupy: yield* startPythonPeer("launch", "cupy")
    }
    const subjects = yield* makeSubjects
    const launches = makeLaunches(driver, subjects)
    const drain = () => check("cuStreamSynchronize", driver.calls.cuStreamSynchronize(subjects.stream.handle))
    const costs = launches.map(noCosts)
    for (let round = -1; round < rounds; round++) {
      for (const [index, launch] of launches.entries()) {
        // The first round compiles and is not kept.
        const kept = round < 0 ? noCosts() : costs[index]!
        for (const name of ["c", "core", "cupy"] as const) kept[name].push(...(yield* ask(peers[name], launch.kernel)))
        for (let batch = 0; batch < batches; batch++) {
          drain()
          kept.raw.push(measureRaw(launch.raw, count))
          drain()
          kept.effect.push(measureEffect(launch.effect, count))
          kept.loop.push(measureEffect(() => Effect.void, count))
        }
        drain()
        yield* turn
      }
    }
    printTable(
      `Launches of an empty kernel, ns each (medians of ${rounds * batches} batches)`,
      ["", "C", "koffi", "Effect", "cuda.core", "CuPy", "koffi / C", "Effect / C", "cuda.core / C", "CuPy / C"],
      launches.map((launch, index) => row(launch, costs[index]!))
    )
  }).pipe(Effect.provideServiceEffect(CudaRuntime, NativeRuntime.make())))
