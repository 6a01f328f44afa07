/**
 * Modules and kernels on a busy GPU, for which the JS thread must not block. The faulting kernel runs last, because
 * afterwards the process cannot use the GPU.
 */
import { assert, describe, layer } from "@effect/vitest"
import { CudaKernel, CudaMemory, CudaModule, CudaParameter, CudaProgram, CudaRuntime, CudaStream } from "effect-cuda"
import * as Effect from "effect/Effect"
import { failsWith, refuses } from "../support/assertions.ts"
import { gpu, nativeRig } from "../support/gpu.ts"
import { program, signatures } from "../support/kernels.ts"
import { longestPause } from "../support/pauses.ts"
import { Busy } from "../support/Rig.ts"

const one = { grid: 1, block: 1 }

const busyMillis = 500
/**
 * Longer than any event-loop pause other than a wait for the GPU, in milliseconds: other test files use the GPU and the CPU
 * at the same time.
 */
const noticed = busyMillis / 2

/** A kernel whose threads need so many registers that a multiprocessor does not have enough for 1,024 of them. */
const hungry = (() => {
  const registers = Array.from({ length: 220 }, (_, index) => `%r${index + 1}`)
  return CudaProgram.fromBytes(
    `.version 7.0
.target sm_70
.address_size 64
.visible .entry hungry(.param .u64 to)
{
  .reg .u64 %to;
  .reg .u32 %r<${registers.length + 1}>;
  ld.param.u64 %to, [to];
${registers.map((name, index) => `  ld.volatile.global.u32 ${name}, [%to+${4 * index}];`).join("\n")}
  bar.sync 0;
${registers.map((name, index) => `  st.volatile.global.u32 [%to+${4 * index}], ${name};`).join("\n")}
  ret;
}`,
    { name: "hungry.ptx" }
  )
})()

const loaded = (idleTimeout: number) => Effect.flatMap(program, (made) => CudaModule.load(made, { idleTimeout }))

describe.skipIf(gpu === undefined)("on a GPU", () => {
  layer(nativeRig.layer, { excludeTestServices: true })("kernels on a busy GPU", (it) => {
    it.effect("load without waiting for it, resolve when it is idle, and unload later", () =>
      Effect.gen(function*() {
        const busy = yield* Busy
        const runtime = yield* CudaRuntime.CudaRuntime
        const stream = yield* CudaStream.make()
        const to = yield* CudaMemory.allocate(4)
        // The driver's one-time setup is done before.
        yield* Effect.scoped(Effect.flatMap(loaded(0), (module) => CudaKernel.get(module, "put", signatures.put)))
        const start = performance.now()
        yield* busy.enqueue(stream, busyMillis)
        const longest = yield* longestPause(
          Effect.scoped(Effect.gen(function*() {
            const module = yield* loaded(Infinity)
            assert.isBelow(performance.now() - start, busyMillis)
            const put = yield* CudaKernel.get(module, "put", signatures.put)
            assert.isAtLeast(performance.now() - start, busyMillis - 1)
            yield* busy.enqueue(stream, busyMillis)
            yield* CudaKernel.launch(put, one, [to, 7], stream)
          }))
        )
        assert.isBelow(longest, noticed)
        assert.isFalse(yield* CudaStream.query(stream))
        assert.strictEqual((yield* runtime.liveResources).modules, 0)
        const words = new Uint32Array(1)
        yield* CudaMemory.download(words, to, stream)
        assert.strictEqual(words[0], 7)
      }))

    it.effect("a block that needs more registers than there are is refused before the driver is called", () =>
      Effect.gen(function*() {
        const kernel = yield* CudaKernel.get(yield* CudaModule.load(yield* hungry), "hungry", [CudaParameter.output])
        const stream = yield* CudaStream.make()
        const to = yield* CudaMemory.allocate(4 * 220)
        const launch = (block: number) => CudaKernel.launch(kernel, { grid: 1, block }, [to], stream)
        const most = yield* CudaKernel.attribute(kernel, "maxThreadsPerBlock")
        assert.isBelow(most, 512)
        yield* refuses(launch(most + 1), "block")
        yield* launch(most)
        yield* CudaStream.synchronize(stream)
      }))

    it.effect("a faulting kernel fails every later operation with its reason, and its scope closes", () =>
      Effect.gen(function*() {
        const runtime = yield* CudaRuntime.CudaRuntime
        const inner = Effect.gen(function*() {
          const module = yield* loaded(0)
          const outside = yield* CudaKernel.get(module, "outside", signatures.outside)
          const put = yield* CudaKernel.get(module, "put", signatures.put)
          const stream = yield* CudaStream.make()
          const to = yield* CudaMemory.allocate(4)
          yield* CudaKernel.launch(outside, one, [], stream)
          yield* failsWith(CudaStream.synchronize(stream), "IllegalAddress")
          const later = yield* Effect.flip(CudaKernel.launch(put, one, [to, 1], stream))
          assert.strictEqual(later.reason._tag, "IllegalAddress")
          assert.strictEqual(later.origin?.operation, "CudaStream.synchronize")
        })
        yield* Effect.scoped(inner)
        const live = yield* runtime.liveResources
        assert.isTrue(Object.values(live).every((count) => count === 0), JSON.stringify(live))
      }))
  })
})
