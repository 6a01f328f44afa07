/**
 * cuBLAS through its description: handles per stream, ordered ones, recordings, failures and several devices. Skipped where there is no cuBLAS.
 */
import { assert, describe, layer } from "@effect/vitest"
import { CudaGraph, CudaLibrary, CudaMemory, CudaStream } from "effect-cuda"
import type { DeviceBuffer } from "effect-cuda/CudaMemory"
import * as Effect from "effect/Effect"
import { failsWith, leavesNothing } from "../support/assertions.ts"
import { cublas, made, matrices } from "../support/cublas.ts"
import { nativeRig } from "../support/gpu.ts"
import { Busy } from "../support/Rig.ts"

const size = 64
const [one, zero] = [Float32Array.of(1), Float32Array.of(0)]

type Handle = CudaLibrary.LibraryHandle<"cublas"> | CudaLibrary.StreamHandles<"cublas">
type Memory = Effect.Success<ReturnType<typeof matrices>>
type Library = Effect.Success<ReturnType<typeof load>>

const load = () => CudaLibrary.load(cublas)

const multiply = (library: Library, handle: Handle, { a, b, c }: Memory, stream?: CudaStream.CudaStream) =>
  CudaLibrary.call(
    library,
    "cublasSgemm_v2",
    [handle, 0, 0, size, size, size, one, a, size, b, size, zero, c, size],
    stream
  )

const holds = Effect.fnUntraced(function*(buffer: DeviceBuffer, value: number, stream?: CudaStream.CudaStream) {
  const found = new Float32Array(size * size)
  yield* CudaMemory.download(found, buffer, stream)
  assert.deepStrictEqual(found, new Float32Array(size * size).fill(value))
})

describe.skipIf(!nativeRig.hasBlas)("on a GPU", () => {
  layer(nativeRig.layer, { excludeTestServices: true })("cuBLAS", (it) => {
    it.effect(
      "multiplies on each stream with its own handle, and in a graph with another",
      () =>
        leavesNothing(Effect.gen(function*() {
          const library = yield* load()
          const handles = yield* CudaLibrary.handle(library, { ...made, perStream: true })
          const memory = yield* Effect.forEach([0, 1, 2], () => matrices(size))
          const streams = yield* Effect.forEach([0, 1], () => CudaStream.make())
          yield* (yield* Busy).enqueue(streams[0]!, 20)
          for (const [index, stream] of streams.entries()) yield* multiply(library, handles, memory[index]!, stream)
          for (const [index, stream] of streams.entries()) yield* holds(memory[index]!.c, size, stream)
          const graph = yield* CudaGraph.record(multiply(library, handles, memory[2]!))
          const exec = yield* CudaGraph.instantiate(graph)
          yield* CudaGraph.launch(exec, streams[1])
          yield* CudaGraph.launch(exec, streams[0])
          yield* holds(memory[2]!.c, size, streams[0])
        })),
      60_000
    )

    it.effect("keeps the order of calls with an ordered handle", () =>
      leavesNothing(Effect.gen(function*() {
        const library = yield* load()
        const handle = yield* CudaLibrary.handle(library, { ...made, ordered: true })
        const { c, ...operands } = yield* matrices(size)
        const [left, right] = [yield* CudaStream.make(), yield* CudaStream.make()]
        yield* multiply(library, handle, { c, ...operands }, left)
        yield* (yield* Busy).enqueue(left, 20)
        // Only the order of the handle puts the second call after the first.
        yield* CudaLibrary.call(library, "cublasSscal_v2", [handle, size * size, Float32Array.of(2), c, 1], left)
        yield* CudaLibrary.call(library, "cublasSscal_v2", [handle, size * size, Float32Array.of(0.5), c, 1], right)
        yield* holds(c, size, right)
      })), 60_000)

    it.effect("fails with its own status", () =>
      leavesNothing(Effect.gen(function*() {
        const library = yield* load()
        const handle = yield* CudaLibrary.handle(library, made)
        const { a, b, c } = yield* matrices(size)
        const call = CudaLibrary.call(
          library,
          "cublasSgemm_v2",
          [handle, 0, 0, size, size, size, one, a, 1, b, size, zero, c, size]
        )
        const { code, name } = yield* failsWith(call, "LibraryFailed")
        assert.deepStrictEqual([code, name], [7, "CUBLAS_STATUS_INVALID_VALUE"])
        yield* multiply(library, handle, { a, b, c })
        yield* holds(c, size)
      })), 60_000)

    it.effect.skipIf(nativeRig.deviceCount < 2)(
      "runs on the device of its handle, which is destroyed off the JS thread",
      () =>
        leavesNothing(Effect.gen(function*() {
          const library = yield* load()
          yield* Effect.forEach([0, 1, 1], (device) =>
            Effect.gen(function*() {
              const handle = yield* CudaLibrary.handle(library, { ...made, device })
              const stream = yield* CudaStream.make({ device })
              const memory = yield* CudaStream.withStream(matrices(size, device), stream)
              yield* multiply(library, handle, memory, stream)
              yield* holds(memory.c, size, stream)
            }).pipe(Effect.scoped))
        })),
      60_000
    )
  })
})
