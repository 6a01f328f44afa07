/**
 * Partitions and growable buffers on a GPU: which multiprocessors run the work, and that nothing blocks the event loop beside a busy kernel.
 */
import { assert, describe, layer } from "@effect/vitest"
import {
  CudaBranch,
  CudaDevice,
  CudaGraph,
  CudaKernel,
  CudaMemory,
  CudaModule,
  CudaParameter,
  CudaPartition,
  CudaProgram,
  CudaStream
} from "effect-cuda"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import { gpu, nativeRig } from "../support/gpu.ts"
import { longestPause } from "../support/pauses.ts"
import { Busy } from "../support/Rig.ts"

const mebi = 2 ** 20
const gibi = 2 ** 30

const busyMillis = 500
/** Longer than any event-loop pause other than a wait for the GPU, in milliseconds: other test files run at the same time. */
const noticed = busyMillis / 2

/** Each block marks the multiprocessor that it runs on, and stays there for some nanoseconds. */
const where = CudaProgram.fromBytes(
  `.version 7.0
.target sm_70
.address_size 64
.visible .entry mark(.param .u64 to, .param .u64 nanos)
{
  .reg .pred %p;
  .reg .u32 %sm, %one;
  .reg .u64 %to, %at, %nanos, %start, %now, %passed;
  ld.param.u64 %to, [to];
  ld.param.u64 %nanos, [nanos];
  mov.u32 %sm, %smid;
  mov.u32 %one, 1;
  mul.wide.u32 %at, %sm, 4;
  add.u64 %at, %to, %at;
  st.global.u32 [%at], %one;
  mov.u64 %start, %globaltimer;
again:
  mov.u64 %now, %globaltimer;
  sub.u64 %passed, %now, %start;
  setp.lt.u64 %p, %passed, %nanos;
  @%p bra again;
  ret;
}`,
  { name: "mark.ptx" }
)

const signature = [CudaParameter.output, CudaParameter.u64] as const

const load = Effect.gen(function*() {
  const module = yield* CudaModule.load(yield* where)
  return yield* CudaKernel.get(module, "mark", signature)
})

type Mark = Effect.Success<typeof load>

const blocks = { grid: 4000, block: 32 }

/** The multiprocessors that work marks. */
const marked =
  <E, R>(enqueue: (to: CudaMemory.DeviceBuffer, stream: CudaStream.CudaStream) => Effect.Effect<unknown, E, R>) =>
  (stream: CudaStream.CudaStream) =>
    Effect.gen(function*() {
      const to = yield* CudaMemory.allocate(4 * 1024)
      yield* CudaMemory.fill(to, 0, stream)
      yield* enqueue(to, stream)
      const words = new Uint32Array(1024)
      yield* CudaMemory.download(words, to, stream)
      return new Set(Array.from(words.keys()).filter((index) => words[index] === 1))
    })

const marksOf = (mark: Mark) => marked((to, stream) => CudaKernel.launch(mark, blocks, [to, 20_000], stream))

describe.skipIf(gpu === undefined)("on a GPU", () => {
  layer(nativeRig.layer, { excludeTestServices: true })("partitions", (it) => {
    it.effect("run their work on their own multiprocessors", () =>
      Effect.gen(function*() {
        const mark = yield* load
        const total = yield* CudaDevice.attribute("multiprocessorCount")
        const [one, other] = yield* CudaPartition.split([16, "rest"])
        const ofOne = yield* marksOf(mark)(yield* CudaStream.make({ partition: one }))
        const ofOther = yield* marksOf(mark)(yield* CudaStream.make({ partition: other }))
        const ofAll = yield* marksOf(mark)(yield* CudaStream.make())
        assert.deepStrictEqual([ofOne.size, ofOther.size, ofAll.size], [
          one.multiprocessors,
          other.multiprocessors,
          total
        ])
        assert.isTrue([...ofOne].every((index) => !ofOther.has(index)))
      }).pipe(Effect.scoped))

    it.effect("keep branches, and the kernels of graphs on any stream", () =>
      Effect.gen(function*() {
        const mark = yield* load
        const [one] = yield* CudaPartition.split([16, "rest"])
        const stream = yield* CudaStream.make()
        const expected = yield* marksOf(mark)(yield* CudaStream.make({ partition: one }))
        const launch = (to: CudaMemory.DeviceBuffer) => CudaKernel.launch(mark, blocks, [to, 20_000])
        const inBranches = yield* marked((to) => CudaBranch.all([launch(to), launch(to)]))(yield* CudaStream.current())
          .pipe(
            CudaPartition.within(one)
          )
        assert.isAtMost(inBranches.size, one.multiprocessors)
        const inGraph = yield* marked((to, on) =>
          Effect.gen(function*() {
            const graph = yield* CudaGraph.record(launch(to)).pipe(CudaPartition.within(one))
            yield* CudaGraph.launch(yield* CudaGraph.instantiate(graph), on)
          })
        )(stream)
        assert.deepStrictEqual([...inGraph], [...expected])
      }).pipe(Effect.scoped))

    it.effect("do not wait for work of another partition", () =>
      Effect.gen(function*() {
        const mark = yield* load
        const [one, other] = yield* CudaPartition.split([16, "rest"])
        const [small, large] = [
          yield* CudaStream.make({ partition: one }),
          yield* CudaStream.make({ partition: other })
        ]
        const to = yield* CudaMemory.allocate(4096)
        yield* CudaKernel.launch(mark, { grid: other.multiprocessors * 32 * 5, block: 32 }, [to, 100_000_000], large)
        yield* CudaKernel.launch(mark, { grid: 8, block: 32 }, [to, 20_000], small)
        yield* CudaStream.synchronize(small)
        assert.isFalse(yield* CudaStream.query(large))
      }).pipe(Effect.scoped))

    it.effect("are made without blocking the event loop beside a busy kernel", () =>
      Effect.gen(function*() {
        const busy = yield* Busy
        const stream = yield* CudaStream.make()
        yield* busy.enqueue(stream, busyMillis)
        const longest = yield* longestPause(CudaPartition.make({ multiprocessors: 40 }))
        assert.isTrue(yield* CudaStream.query(stream))
        assert.isBelow(longest, noticed)
      }).pipe(Effect.scoped))
  })
})

describe.skipIf(gpu === undefined)("on a GPU", () => {
  layer(nativeRig.layer, { excludeTestServices: true })("growable buffers", (it) => {
    it.effect("grow and end beside a busy kernel without waiting for it, or blocking the event loop", () =>
      Effect.gen(function*() {
        const busy = yield* Busy
        const stream = yield* CudaStream.make()
        yield* busy.enqueue(stream, 5 * busyMillis) // other tests use the GPU meanwhile
        const longest = yield* longestPause(Effect.scoped(Effect.gen(function*() {
          const buffer = yield* CudaMemory.growable({ maxBytes: 64 * gibi })
          yield* CudaMemory.grow(buffer, 4 * gibi)
          yield* CudaMemory.shrink(buffer, 128 * mebi)
        })))
        assert.isFalse(yield* CudaStream.query(stream))
        assert.isBelow(longest, noticed)
        yield* CudaStream.synchronize(stream)
      }).pipe(Effect.scoped))

    it.effect("give their memory back to the device", () =>
      Effect.gen(function*() {
        const { total } = yield* CudaDevice.memoryInfo()
        // Together more than the device has.
        const third = Math.floor(total / 3)
        for (let round = 0; round < 4; round++) {
          yield* Effect.scoped(CudaMemory.growable({ maxBytes: total, initial: third }))
          const buffer = yield* CudaMemory.growable({ maxBytes: total, initial: third })
          yield* CudaMemory.shrink(buffer, 0)
        }
      }).pipe(Effect.scoped), 30_000)

    it.effect("hold what kernels write across their pieces, while they grow", () =>
      Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const buffer = yield* CudaMemory.growable({ maxBytes: gibi, initial: 6 * mebi })
        const growing = yield* Effect.forkChild(CudaMemory.grow(buffer, gibi))
        yield* CudaMemory.fill32(CudaMemory.slice(buffer, 0, 6 * mebi), 0x01020304, stream)
        yield* Fiber.join(growing)
        yield* CudaMemory.fill32(CudaMemory.slice(buffer, 6 * mebi, 200 * mebi), 0x05060708, stream)
        const words = new Uint32Array(206 * mebi / 4)
        yield* CudaMemory.download(words, CudaMemory.slice(buffer, 0, 206 * mebi), stream)
        const edge = 6 * mebi / 4
        assert.isTrue(words.subarray(0, edge).every((word) => word === 0x01020304))
        assert.isTrue(words.subarray(edge).every((word) => word === 0x05060708))
      }).pipe(Effect.scoped))
  })
})
