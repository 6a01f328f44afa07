/**
 * The second process of the benchmark of collectives, with rank 1 on device 1. "join TOKEN" joins a communicator. "reduce BYTES COUNT" and
 * "wait BYTES COUNT" reduce as `peers/nccl.c` does, and answer with nanoseconds. "end" leaves the communicator.
 */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { createInterface } from "node:readline"
import * as CudaMemory from "../../src/CudaMemory.ts"
import * as CudaNccl from "../../src/CudaNccl.ts"
import * as CudaStream from "../../src/CudaStream.ts"
import * as NativeRuntime from "../../src/layers/NativeRuntime.ts"
import { reduceOn } from "../support/reduce.ts"

const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]()
const read = Effect.promise(() => lines.next()).pipe(
  Effect.map(({ done, value }) => done === true ? undefined : String(value).split(" "))
)
const answer = (value: number) => Effect.sync(() => console.log(value))

const program = Effect.gen(function*() {
  const stream = yield* CudaStream.make({ device: 1 })
  const buffer = yield* CudaMemory.allocate(8, { device: 1 })
  yield* CudaMemory.fill(buffer, 0, stream)
  const [, token = ""] = (yield* read) ?? []
  const communicator = yield* CudaNccl.join({ id: token, rank: 1, size: 2, device: 1 })
  yield* answer(0)
  const reduce = reduceOn([{ communicator, buffer, stream }])
  while (true) {
    const words = yield* read
    if (words === undefined) return
    if (words[0] === "end") return yield* answer(0)
    const [how, bytes, count] = words
    yield* answer(yield* reduce(how === "wait" ? "wait" : "reduce", Number(bytes), Number(count)))
  }
})

await Effect.runPromise(
  program.pipe(Effect.scoped, Effect.provide(Layer.provideMerge(CudaNccl.layer(), NativeRuntime.layer())))
)
