/**
 * The cost of a kernel launch: as Effects of the library, as raw koffi calls, in C, and with the Python peers cuda.core
 * and CuPy if they are installed. The kernels are empty, with no arguments, three, or 32. See `support/compare.ts` for
 * the method.
 *
 * One launch is by `CudaMemory.enqueue`, which is given the raw call.
 *
 * The raw calls use arguments written in advance; the other ways write them for each launch. With the argument "stub",
 * the driver's calls return immediately.
 */
import * as Effect from "effect/Effect"
import koffi from "koffi"
import * as CudaMemory from "../src/CudaMemory.ts"
import { CudaRuntime } from "../src/layers/CudaRuntime.ts"
import { compare, comparedFigures, printCompared } from "./support/compare.ts"
import type { Operation } from "./support/compare.ts"
import { check } from "./support/driver.ts"
import type { Driver } from "./support/driver.ts"
import { makeLaunches } from "./support/launches.ts"
import type { Launch } from "./support/launches.ts"
import { startPeers } from "./support/peer.ts"
import { runOnDriver } from "./support/run.ts"

/** A kernel without the library, and a launch with constant arguments. */
const makeRaw = (driver: Driver, stream: number, { kernel, words }: Launch): () => void => {
  const handle = driver.getFunction(kernel)
  const slots = BigUint64Array.from(words, BigInt)
  const start = Number(koffi.address(slots.buffer))
  const table = BigUint64Array.from(words, (_, index) => BigInt(start + 8 * index))
  return () => {
    const status = driver.calls.cuLaunchKernel(handle, 1, 1, 1, 1, 1, 1, 0, stream, table, null)
    // The table points into the slots, which live as long as this function.
    if (status !== 0) throw new Error(`cuLaunchKernel returned ${status} (arguments: ${slots.length})`)
  }
}

await runOnDriver("launch", (ground) =>
  Effect.gen(function*() {
    const { driver, isGpu } = ground
    const peers = yield* startPeers(ground)
    const { buffer, launches, part, stream } = yield* makeLaunches
    const own = launches.map((launch): Operation => ({
      ...launch,
      raw: makeRaw(driver, stream.handle, launch),
      target: isGpu ? "launch" : undefined
    }))
    const three = launches.find(({ kernel }) => kernel === "three")!
    const raw = makeRaw(driver, stream.handle, three)
    const foreign = () => CudaMemory.enqueue({ reads: [part], writes: [buffer], stream }, raw)
    const operations = [...own, { ...three, name: `${three.name}, by CudaMemory.enqueue`, raw, effect: foreign }]
    const drain = Effect.sync(() => check("cuStreamSynchronize", driver.calls.cuStreamSynchronize(stream.handle)))
    const compared = yield* compare({ operations, peers, prepare: () => drain, warmUps: 6 })
    printCompared("Launches of an empty kernel, ns each (medians of batches)", compared)
    return comparedFigures("Launches of an empty kernel", compared)
  }).pipe(Effect.provideServiceEffect(CudaRuntime, ground.makeRuntime())))
