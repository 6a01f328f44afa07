/**
 * The cost of single operations, and of record, wait and fill as a fixed sequence: as Effects of the library, as raw
 * koffi calls, in a plain C loop, and with the Python peers cuda.core, CuPy and PyTorch if they are installed. See
 * `support/compare.ts` for the method.
 *
 * The unfinished query is of an event behind a kernel of 20 ms. With the argument "stub", the driver's calls return
 * immediately, which leaves the overhead of calling it.
 */
import * as Effect from "effect/Effect"
import type { CudaError } from "../src/CudaError.ts"
import { CudaRuntime } from "../src/layers/CudaRuntime.ts"
import { compare, comparedFigures, printCompared } from "./support/compare.ts"
import type { Comparison, Operation } from "./support/compare.ts"
import { check } from "./support/driver.ts"
import type { Driver } from "./support/driver.ts"
import { startPeers } from "./support/peer.ts"
import { runOnDriver } from "./support/run.ts"
import { makeOperations, makeRawCalls, makeSequences, makeSubjects, withRawCalls } from "./support/subjects.ts"
import type { Subjects } from "./support/subjects.ts"

const busyMillis = 20

const makePrepare =
  (driver: Driver, { event, other, stream }: Subjects) => (busy: boolean): Effect.Effect<void, CudaError> =>
    Effect.sync(() => {
      const { calls } = driver
      for (const { handle } of [stream, other]) check("cuStreamSynchronize", calls.cuStreamSynchronize(handle))
      if (busy) driver.spin(stream.handle, busyMillis)
      check("cuEventRecord", calls.cuEventRecord(event.handle, stream.handle))
      if (!busy) check("cuStreamSynchronize", calls.cuStreamSynchronize(stream.handle))
    })

await runOnDriver("operations", (ground) =>
  Effect.gen(function*() {
    const { driver, isGpu } = ground
    const peers = yield* startPeers(ground)
    const subjects = yield* makeSubjects
    const raw = makeRawCalls(driver, subjects)
    const prepare = makePrepare(driver, subjects)
    const measure = (operations: ReadonlyArray<Operation>, target: Operation["target"]) => {
      const comparison: Comparison = {
        operations: withRawCalls(operations, raw, isGpu ? target : undefined),
        peers,
        prepare,
        inContext: driver.inContext,
        // What is measured is a program that has run for a while, whose code is compiled.
        warmUps: 6
      }
      return compare(comparison)
    }
    const single = yield* measure(makeOperations(subjects), "operation")
    printCompared("Operations, ns each (medians of batches)", single)
    const sequences = yield* measure(makeSequences(subjects), undefined)
    printCompared("Record, wait and fill 4 KiB in a row, ns (medians of batches)", sequences)
    return [
      ...comparedFigures("Operations", single),
      ...comparedFigures("Record, wait and fill in a row", sequences)
    ]
  }).pipe(Effect.provideServiceEffect(CudaRuntime, ground.makeRuntime())))
