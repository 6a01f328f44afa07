/**
 * The overhead of issuing collectives: `CudaNccl.run`, and the same calls of NCCL through koffi without the library. On the stub driver, with
 * an NCCL whose calls return immediately. See `support/compare.ts` for the method.
 */
import * as Effect from "effect/Effect"
import koffi from "koffi"
import * as CudaMemory from "../src/CudaMemory.ts"
import * as CudaNccl from "../src/CudaNccl.ts"
import * as CudaStream from "../src/CudaStream.ts"
import { CommunicatorImpl } from "../src/internal/nccl/communicator.ts"
import { CudaRuntime } from "../src/layers/CudaRuntime.ts"
import { compare, comparedFigures, printCompared } from "./support/compare.ts"
import type { Operation } from "./support/compare.ts"
import { runOnStub } from "./support/run.ts"
import { buildStubNccl } from "./support/stub.ts"

const bytes = 8
const [f32, sum] = [7, 0]
const count = 2000

const makeRank = (device: number, ordered: boolean) =>
  Effect.gen(function*() {
    const stream = yield* CudaStream.make({ device })
    return { stream, buffer: yield* CudaMemory.allocate(bytes, { device, ordered }) }
  })

type Rank = Effect.Success<ReturnType<typeof makeRank>>

const bind = (path: string) => {
  const library = koffi.load(path)
  const [handle, int] = ["uintptr_t", "int"]
  return {
    groupStart: library.func("ncclGroupStart", int, []),
    groupEnd: library.func("ncclGroupEnd", int, []),
    allReduce: library.func("ncclAllReduce", int, [handle, handle, "size_t", int, int, handle, handle])
  }
}

const handleOf = (communicator: CudaNccl.Communicator): number =>
  communicator instanceof CommunicatorImpl ? communicator.ref.direct!.handle! : 0

const makeOperations = (path: string) =>
  Effect.gen(function*() {
    const ranks = [yield* makeRank(0, false), yield* makeRank(1, false)] as const
    const ordered = [yield* makeRank(0, true), yield* makeRank(1, true)] as const
    const communicators = yield* CudaNccl.local([0, 1])
    const [first, second] = [communicators[0]!, communicators[1]!]
    const reduce = (communicator: CudaNccl.Communicator, { buffer, stream }: Rank) =>
      CudaNccl.allReduce(communicator, { from: buffer, type: "f32" }, stream)
    const made = [reduce(first, ranks[0]), reduce(second, ranks[1])] as const
    const { allReduce, groupEnd, groupStart } = bind(path)
    const handles = [handleOf(first), handleOf(second)] as const
    const one = (rank: 0 | 1) => {
      const { buffer: { ref: { address } }, stream: { ref: { handle } } } = ranks[rank]
      return allReduce(address, address, bytes / 4, f32, sum, handles[rank], handle)
    }
    const alone = () => void one(0)
    const together = () => {
      groupStart()
      one(0)
      one(1)
      groupEnd()
    }
    const ofTwo = { peer: "group", count, raw: together }
    const operations: ReadonlyArray<Operation> = [
      { name: "one rank, made once", peer: "one", count, raw: alone, effect: () => CudaNccl.run(made[0]) },
      {
        name: "one rank, made each time",
        peer: "one",
        count,
        raw: alone,
        effect: () => CudaNccl.run(reduce(first, ranks[0]))
      },
      { ...ofTwo, name: "two ranks, made once", effect: () => CudaNccl.run(...made) },
      {
        ...ofTwo,
        name: "two ranks, made each time",
        effect: () => CudaNccl.run(reduce(first, ranks[0]), reduce(second, ranks[1]))
      },
      {
        ...ofTwo,
        name: "two ranks, ordered buffers",
        effect: () => CudaNccl.run(reduce(first, ordered[0]), reduce(second, ordered[1]))
      }
    ]
    return operations
  })

await runOnStub("collectives", 2, (ground) =>
  Effect.gen(function*() {
    const nccl = buildStubNccl()
    if ("problem" in nccl) return yield* Effect.die(nccl.problem)
    const operations = yield* Effect.provide(makeOperations(nccl.path), CudaNccl.layer({ path: nccl.path }))
    const compared = yield* compare({
      operations,
      peers: [],
      prepare: () => Effect.void,
      inContext: ground.driver.inContext
    })
    printCompared("Collectives that return immediately, ns each (medians of batches)", compared)
    return comparedFigures("Collectives that return immediately", compared)
  }).pipe(Effect.provideServiceEffect(CudaRuntime, ground.makeRuntime())))
