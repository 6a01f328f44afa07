/**
 * Chooses the fastest of several algorithms by timing them on the device.
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { CudaError } from "../../CudaError.ts"
import * as CudaEvent from "../../CudaEvent.ts"
import * as CudaGraph from "../../CudaGraph.ts"
import * as CudaMemory from "../../CudaMemory.ts"
import * as CudaStream from "../../CudaStream.ts"
import { CudaRuntime } from "../../layers/CudaRuntime.ts"
import type { Algorithm } from "./descriptors.ts"
import type { Operands } from "./operands.ts"
import { enqueue, PlanRef } from "./plan.ts"

/** How often an algorithm is timed, and products in a row at a time. */
const rounds = 5
const repeats = 10

/** The values do not matter much, but the power that zeros save does. */
const pattern = 0x3c

/** What all timings use. */
interface Bench {
  readonly stream: CudaStream.CudaStream
  readonly operands: Operands
  readonly start: CudaEvent.TimedEvent
  readonly end: CudaEvent.TimedEvent
}

/** Sets the fastest algorithm. Those that fail are left out. */
export const tune = (plan: PlanRef, algorithms: ReadonlyArray<Algorithm>): Effect.Effect<void, CudaError> =>
  Effect.gen(function*() {
    const bench = yield* makeBench(plan)
    const times: Array<number> = []
    for (const algorithm of algorithms) times.push(yield* time(plan, algorithm, bench))
    plan.algorithm = algorithms[times.indexOf(Math.min(...times))]!
  }).pipe(Effect.scoped, Effect.provideService(CudaRuntime, plan.shared.runtime))

const makeBench = Effect.fnUntraced(function*(plan: PlanRef) {
  const { deviceIndex: device } = plan
  const stream = yield* CudaStream.make({ device })
  const bench: Bench = {
    stream,
    operands: yield* allocateOperands(plan, stream),
    start: yield* CudaEvent.make({ device, timing: true }),
    end: yield* CudaEvent.make({ device, timing: true })
  }
  return bench
})

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

const never = () => Effect.succeed(Infinity)

/** Milliseconds of some products. They are a graph, since enqueueing may take longer than multiplying. */
const time = (plan: PlanRef, algorithm: Algorithm, bench: Bench): Effect.Effect<number, CudaError, CudaRuntime> =>
  Effect.gen(function*() {
    const exec = yield* record(plan, algorithm, bench)
    let best = Infinity
    // The first launch loads the kernel, and is not counted.
    for (let round = -1; round < rounds; round++) {
      const millis = yield* launch(exec, bench)
      if (round >= 0) best = Math.min(best, millis)
    }
    return best
  }).pipe(Effect.scoped, Effect.catchReasons("CudaError", { LibraryFailed: never, OutOfMemory: never }))

/** With a plan of its own, whose workspace is released with the scope. */
const record = (
  { deviceIndex, handle, native, problem, shared }: PlanRef,
  algorithm: Algorithm,
  { operands }: Bench
): Effect.Effect<CudaGraph.CudaGraphExec, CudaError, CudaRuntime | Scope.Scope> =>
  Effect.gen(function*() {
    const plan = new PlanRef(shared, handle, problem, native, algorithm, yield* Effect.scope)
    const products = Effect.gen(function*() {
      const stream = yield* CudaStream.current(deviceIndex)
      for (let index = 0; index < repeats; index++) yield* enqueue(plan, operands, stream.ref)
    })
    return yield* CudaGraph.instantiate(yield* CudaGraph.record(products, { device: deviceIndex }))
  })

const launch = Effect.fnUntraced(function*(exec: CudaGraph.CudaGraphExec, { end, start, stream }: Bench) {
  yield* CudaEvent.record(start, stream)
  yield* CudaGraph.launch(exec, stream)
  yield* CudaEvent.record(end, stream)
  yield* CudaEvent.synchronize(end)
  return Duration.toMillis(yield* CudaEvent.elapsedTime(start, end))
})
