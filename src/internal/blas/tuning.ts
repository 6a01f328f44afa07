/**
 * Chooses the fastest of several algorithms by timing them on the device.
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type { CudaError } from "../../CudaError.ts"
import * as CudaEvent from "../../CudaEvent.ts"
import * as CudaMemory from "../../CudaMemory.ts"
import * as CudaStream from "../../CudaStream.ts"
import { CudaRuntime } from "../../layers/CudaRuntime.ts"
import type { Algorithm } from "./descriptors.ts"
import type { Operands } from "./operands.ts"
import { enqueue } from "./plan.ts"
import type { PlanRef } from "./plan.ts"

/** Rounds over all algorithms, and products in a row per round. */
const rounds = 3
const repeats = 10

/** The values do not matter much, but the power that zeros save does. */
const pattern = 0x3c

const never = () => Effect.succeed(Infinity)

/** Sets the fastest algorithm. Those that fail are left out. */
export const tune = (plan: PlanRef, algorithms: ReadonlyArray<Algorithm>): Effect.Effect<void, CudaError> =>
  Effect.gen(function*() {
    const { deviceIndex: device } = plan
    const stream = yield* CudaStream.make({ device })
    const operands = yield* allocateOperands(plan, stream)
    yield* Effect.addFinalizer(() => plan.shared.workspaces.release(stream.ref))
    const [start, end] = [
      yield* CudaEvent.make({ device, timing: true }),
      yield* CudaEvent.make({ device, timing: true })
    ]
    const time = Effect.gen(function*() {
      yield* CudaEvent.record(start, stream)
      for (let index = 0; index < repeats; index++) yield* enqueue(plan, operands, stream.ref)
      yield* CudaEvent.record(end, stream)
      yield* CudaEvent.synchronize(end)
      return Duration.toMillis(yield* CudaEvent.elapsedTime(start, end))
    })
    const best = algorithms.map(() => Infinity)
    for (let round = 0; round < rounds; round++) {
      for (const [index, algorithm] of algorithms.entries()) {
        plan.algorithm = algorithm
        const millis = yield* Effect.catchReasons(time, "CudaError", { LibraryFailed: never, OutOfMemory: never })
        best[index] = Math.min(best[index]!, millis)
      }
    }
    plan.algorithm = algorithms[best.indexOf(Math.min(...best))]!
  }).pipe(Effect.scoped, Effect.provideService(CudaRuntime, plan.shared.runtime))

const allocateOperands = Effect.fnUntraced(function*(plan: PlanRef, stream: CudaStream.CudaStream) {
  const { a, auxiliary, b, bias, c, d } = plan.problem
  const memory = Effect.fnUntraced(function*(byteLength: number) {
    const buffer = yield* CudaMemory.allocate(byteLength, { device: plan.deviceIndex })
    yield* CudaMemory.fill(buffer, pattern, stream)
    return buffer
  })
  const operands: Operands = {
    a: yield* memory(a.byteLength),
    b: yield* memory(b.byteLength),
    c: yield* memory(c.byteLength),
    d: yield* memory(d.byteLength),
    bias: bias === undefined ? undefined : yield* memory(bias.byteLength),
    auxiliary: auxiliary === undefined ? undefined : yield* memory(auxiliary.byteLength)
  }
  return operands
})
