/**
 * Memory of other processes, where no device is needed: tokens of PyTorch, ends of child processes, and types.
 */
import { assert, describe, it } from "@effect/vitest"
import * as CudaInterprocess from "effect-cuda/CudaInterprocess"
import type { MemoryToken, TorchStorage } from "effect-cuda/CudaInterprocess"
import type { DeviceBuffer } from "effect-cuda/CudaMemory"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import { fork } from "node:child_process"
import { EventEmitter } from "node:events"
import { refuses } from "./support/assertions.ts"
import { started } from "./support/fibers.ts"

describe("a token of PyTorch", () => {
  const raw = Uint8Array.from({ length: 64 }, (_, index) => index)
  const tagged = Uint8Array.of(2, 99, ...raw)
  const storage: TorchStorage = { handle: tagged, size: 4000, offset: 4096 }
  const handle = Buffer.from(raw).toString("base64")

  it.effect("is one of an allocation, with the bytes after the tag", () =>
    Effect.gen(function*() {
      const expected: MemoryToken = {
        _tag: "effect-cuda/MemoryToken",
        kind: "allocation",
        handle,
        offset: 4096,
        byteLength: 4000
      }
      const event = Buffer.from(raw).toString("base64")
      assert.deepStrictEqual(yield* CudaInterprocess.fromTorch(storage), expected)
      assert.deepStrictEqual(yield* CudaInterprocess.fromTorch({ ...storage, handle: raw }), expected)
      const text = Buffer.from(tagged).toString("base64")
      assert.deepStrictEqual(yield* CudaInterprocess.fromTorch({ ...storage, handle: text, event }), {
        ...expected,
        ready: event
      })
      assert.deepStrictEqual(yield* CudaInterprocess.fromTorch({ ...storage, event: raw }), {
        ...expected,
        ready: event
      })
    }))

  it.effect("is not made of memory that PyTorch shares in other ways", () =>
    Effect.gen(function*() {
      const expandable = Uint8Array.of(2, "e".charCodeAt(0), ...raw)
      for (const wrong of [expandable, raw.subarray(1), new Uint8Array(0), "", undefined as never, 5 as never]) {
        yield* refuses(CudaInterprocess.fromTorch({ ...storage, handle: wrong }), "handle")
      }
    }))
})

describe("the end of a child process", () => {
  it.live("is waited for, also when it is over", () =>
    Effect.gen(function*() {
      const child = fork("-", [], { execArgv: ["-e", ""], stdio: "ignore" })
      yield* CudaInterprocess.exitOf(child)
      yield* CudaInterprocess.exitOf(child)
      assert.strictEqual(child.listenerCount("exit"), 0)
      const none = Object.assign(new EventEmitter(), { pid: undefined, exitCode: null, signalCode: null })
      yield* CudaInterprocess.exitOf(none)
    }))

  it.live("can be waited for without leaving a listener", () =>
    Effect.gen(function*() {
      const child = Object.assign(new EventEmitter(), { pid: 1, exitCode: null, signalCode: null })
      const fiber = yield* started(CudaInterprocess.exitOf(child))
      assert.strictEqual(child.listenerCount("exit"), 1)
      yield* Fiber.interrupt(fiber)
      assert.strictEqual(child.listenerCount("exit"), 0)
    }))
})

describe("types", () => {
  it("keep the result, the failure and the requirements of a loan", () => {
    const use = (token: MemoryToken) => token.byteLength > 0 ? Effect.succeed(5) : Effect.fail("theirs" as const)
    const first = (buffer: DeviceBuffer) => CudaInterprocess.lend(buffer, use)
    const last = (buffer: DeviceBuffer) => buffer.pipe(CudaInterprocess.lend(use, { gone: Effect.void }))
    const results: ReadonlyArray<(buffer: DeviceBuffer) => Effect.Effect<number, unknown>> = [first, last]
    assert.lengthOf(results, 2)
    // @ts-expect-error a pinned buffer cannot be shared
    const host = (buffer: import("effect-cuda/CudaMemory").HostBuffer) => CudaInterprocess.share(buffer)
    assert.isFunction(host)
  })
})
