/**
 * A library after a faulting kernel: its failures have the origin. In its own file, because afterwards the process cannot use any device.
 */
import { assert, describe, layer } from "@effect/vitest"
import { CudaLibrary, CudaStream } from "effect-cuda"
import * as Effect from "effect/Effect"
import { cublas, made, matrices } from "../support/cublas.ts"
import { launchFault, nativeRig } from "../support/gpu.ts"

describe.skipIf(!nativeRig.hasBlas)("on a GPU", () => {
  layer(nativeRig.layer, { excludeTestServices: true })("cuBLAS after a fault", (it) => {
    it.effect("fails with the origin, whatever its status, and its handle is released", () =>
      Effect.gen(function*() {
        const library = yield* CudaLibrary.load(cublas)
        yield* Effect.scoped(Effect.gen(function*() {
          const handle = yield* CudaLibrary.handle(library, made)
          const stream = yield* CudaStream.make()
          const { c } = yield* CudaStream.withStream(matrices(8), stream)
          yield* launchFault(stream)
          // Native code finds the fault first: nothing of this library has waited for it.
          yield* Effect.sleep("200 millis")
          const call = CudaLibrary.call(library, "cublasSscal_v2", [handle, 64, Float32Array.of(2), c, 1], stream)
          const error = yield* Effect.flip(call)
          yield* Effect.logInfo(error.message)
          assert.isDefined(error.origin)
          const late = yield* Effect.flip(CudaStream.synchronize(stream))
          assert.isTrue(late.isSticky)
        }))
      }), 30_000)
  })
})
