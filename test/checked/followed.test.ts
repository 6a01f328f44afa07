/**
 * What an exploration of orders follows: each work by itself, also work that repeats an earlier one, which a checker alone lets pass.
 */
import { assert, describe, it } from "@effect/vitest"
import type { CudaError, CudaRuntime } from "effect-cuda"
import { CudaEvent, CudaKernel, CudaMemory, CudaModule, CudaParameter, CudaStream, SimulatedRuntime } from "effect-cuda"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { runWith } from "../../src/layers/exploration/orders/run.ts"
import { program as image } from "../support/kernels.ts"

const write = SimulatedRuntime.kernel({ parameters: [CudaParameter.output], run: () => {} })

type Program = Effect.Effect<unknown, CudaError.CudaError, CudaRuntime.CudaRuntime | Scope.Scope>

/** The races of a program that runs as it does in an exploration after its first run, by the works' names. */
const pairsOf = (program: Program) =>
  Effect.map(
    runWith(
      {
        program,
        runtime: SimulatedRuntime.layer({ kernels: { write } }),
        deadline: Duration.minutes(1),
        patience: 1e7,
        project: (value) => value,
        comparesBytes: false
      },
      // Nothing is held, but the lines of the program are not looked at.
      { holds: [] },
      100
    ),
    ({ pairs, ran }) => ({
      pairs: pairs.map(({ first, second }) => `${first} ${second}`),
      labels: ran.filter(({ work }) => work.startsWith("16:")).map(({ label }) => label)
    })
  )

const setUp = Effect.gen(function*() {
  const [one, two] = [yield* CudaStream.make(), yield* CudaStream.make()]
  const [buffer, source] = [yield* CudaMemory.allocate(64), yield* CudaMemory.allocate(64)]
  const kernel = yield* CudaKernel.get(yield* CudaModule.load(yield* image), "write", [CudaParameter.output])
  return { one, two, buffer, source, kernel }
})

type Ground = Effect.Success<typeof setUp>

const repeated: Readonly<Record<string, (ground: Ground) => Effect.Effect<void, CudaError.CudaError>>> = {
  "CudaMemory.fill": ({ buffer, one }) => CudaMemory.fill(buffer, 1, one),
  "CudaMemory.copy": ({ buffer, one, source }) => CudaMemory.copy(buffer, source, one),
  "CudaKernel.launch of write": ({ buffer, kernel, one }) =>
    CudaKernel.launch(kernel, { grid: 1, block: 1 }, [buffer], one)
}

describe("work that repeats an earlier one", () => {
  for (const [label, work] of Object.entries(repeated)) {
    it.effect(`is followed: ${label}`, () =>
      Effect.gen(function*() {
        const found = yield* pairsOf(Effect.gen(function*() {
          const ground = yield* setUp
          for (let count = 0; count < 3; count++) yield* work(ground)
          yield* CudaMemory.fill(ground.buffer, 2, ground.two)
        }))
        assert.deepStrictEqual(found, {
          pairs: ["16:1 17:1", "16:2 17:1", "16:3 17:1"],
          labels: [label, label, label]
        })
      }))

    it.effect(`is no race if others wait for it: ${label}`, () =>
      Effect.gen(function*() {
        const { pairs } = yield* pairsOf(Effect.gen(function*() {
          const ground = yield* setUp
          const event = yield* CudaEvent.make()
          for (let count = 0; count < 4; count++) {
            if (count === 2) yield* CudaEvent.record(event, ground.one)
            yield* work(ground)
          }
          yield* CudaStream.waitEvent(ground.two, event)
          yield* CudaMemory.fill(ground.buffer, 2, ground.two)
        }))
        assert.deepStrictEqual(pairs, ["16:3 17:1", "16:4 17:1"])
      }))
  }
})
