/**
 * What launching a kernel costs, as `support/compare.ts` says: as Effects of the library, as raw koffi calls, in C, and with the
 * Python peers cuda.core and CuPy where they are installed. The kernels do nothing, and have no arguments, three, or 32.
 *
 * The raw calls are given arguments that were written before, C and the others write theirs for each launch. With the argument
 * "stub" the driver is one whose calls return at once.
 */
import * as Effect from "effect/Effect"
import koffi from "koffi"
import { CudaRuntime } from "../src/layers/CudaRuntime.ts"
import { compare, comparedFigures, printCompared } from "./support/compare.ts"
import type { Operation } from "./support/compare.ts"
import { check } from "./support/driver.ts"
import type { Driver } from "./support/driver.ts"
import { makeLaunches } from "./support/launches.ts"
import type { Launch } from "./support/launches.ts"
import { startPeers } from "./support/peer.ts"
import { runOnDriver } from "./support/run.ts"

/** A kernel past the library, with a launch of arguments that stay the same. */
const makeRaw = (driver: Driver, stream: number, { kernel, words }: Launch): () => void => {
  const handle = driver.getFunction(kernel)
  const slots = BigUint64Array.from(words, BigInt)
  const start = Number(koffi.address(slots.buffer))
  const table = BigUint64Array.from(words, (_, index) => BigInt(start + 8 * index))
  return () => {
    const status = driver.calls.cuLaunchKernel(handle, 1, 1, 1, 1, 1, 1, 0, stream, table, null)
    // The table points into the slots, which live as long as this function.
    if (status !== 0) throw new Error(`cuLaunchKernel answered ${status}, with ${slots.length} arguments`)
  }
}

await runOnDriver("launch", (ground) =>
  Effect.gen(function*() {
    const { driver, isGpu } = ground
    const peers = yield* startPeers(ground)
    const { launches, stream } = yield* makeLaunches
    const operations = launches.map((launch): Operation => ({
      ...launch,
      raw: makeRaw(driver, stream.handle, launch),
      target: isGpu ? "launch" : undefined
    }))
    const drain = Effect.sync(() => check("cuStreamSynchronize", driver.calls.cuStreamSynchronize(stream.handle)))
    const compared = yield* compare({ operations, peers, prepare: () => drain })
    printCompared("Launches of an empty kernel, ns each (medians of batches)", compared)
    return comparedFigures("Launches of an empty kernel", compared)
  }).pipe(Effect.provideServiceEffect(CudaRuntime, ground.makeRuntime())))
