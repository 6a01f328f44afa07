/**
 * The messages of refused arguments: they name the range and the buffer, count in words, and suggest what to do.
 */
import { assert, describe, it } from "@effect/vitest"
import type { CudaError } from "effect-cuda/CudaError"
import * as CudaKernel from "effect-cuda/CudaKernel"
import * as CudaMemory from "effect-cuda/CudaMemory"
import * as CudaModule from "effect-cuda/CudaModule"
import * as CudaStream from "effect-cuda/CudaStream"
import * as Effect from "effect/Effect"
import { program, signatures } from "../support/kernels.ts"
import { openStub } from "../support/stubDriver.ts"
import { tracing } from "../support/tracing.ts"

const stub = openStub()
const { opened } = tracing(stub)

/** The message of an effect that must fail. */
const messageOf = <R>(effect: Effect.Effect<unknown, CudaError, R>): Effect.Effect<string, never, R> =>
  Effect.map(Effect.flip(Effect.andThen(effect, Effect.die(new Error("it succeeded")))), ({ message }) => message)

describe("a message", () => {
  it.live("names the range and the buffer of a copy", () =>
    opened(() =>
      Effect.gen(function*() {
        const [to, from] = yield* Effect.all([CudaMemory.allocate(16), CudaMemory.allocate(64)])
        const at = (offset: number, byteLength: number) =>
          messageOf(CudaMemory.copy(CudaMemory.slice(to, offset, byteLength), CudaMemory.slice(from, 0, 10)))
        assert.strictEqual(
          yield* at(10, 10),
          "CudaMemory.copy: destination.byteLength is 10; expected at most 6: " +
            "bytes 10 to 20 do not fit in a buffer of 16 bytes."
        )
        assert.strictEqual(
          yield* at(10, -1),
          "CudaMemory.copy: destination.byteLength is -1; expected an integer from 0 to 6, " +
            "for a range at offset 10 of a buffer of 16 bytes."
        )
        assert.strictEqual(
          yield* at(17, 0),
          "CudaMemory.copy: destination.offset is 17; expected an integer from 0 to 16, the size of the buffer."
        )
      })
    ))

  it.live("suggests slices for buffers of different size", () =>
    opened(() =>
      Effect.gen(function*() {
        const [to, from] = yield* Effect.all([CudaMemory.allocate(16), CudaMemory.allocate(64)])
        assert.strictEqual(
          yield* messageOf(CudaMemory.copy(to, from)),
          "CudaMemory.copy: source.byteLength is 64; expected 16, the size of the destination: " +
            "use CudaMemory.slice to copy part of a buffer."
        )
      })
    ))

  it.live("counts in words, and quotes strings only", () =>
    opened(() =>
      Effect.gen(function*() {
        const module = yield* CudaModule.load(yield* program)
        const put = yield* CudaKernel.get(module, "put", signatures.put)
        const stream = yield* CudaStream.make()
        const to = yield* CudaMemory.allocate(1)
        const launched = (...values: ReadonlyArray<unknown>) =>
          messageOf(put.runtime.kernelLaunch(put.ref, { grid: 1, block: 1 }, values, stream.ref))
        assert.match(yield* launched(to), /: arguments is 1 value; expected 2 values, one per parameter\.$/)
        assert.match(
          yield* launched(to, 1.5),
          /: arguments\[1\] is 1\.5; expected an integer from 0 to \d+ \(u32\)\.$/
        )
        assert.match(yield* launched(to, "1"), /: arguments\[1\] is "1"; expected/)
        assert.match(
          yield* messageOf(CudaKernel.get(module, "put", signatures.sizes)),
          /: parameters is 1 kind; expected 2 kinds, as kernel put declares\.$/
        )
        assert.include(String(to.ref), "buffer of 1 byte at 0x")
      })
    ))
})
