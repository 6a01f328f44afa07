/**
 * Processes share memory on a GPU: two of Node.js, one of which is killed, and one of PyTorch. The child runs from its TypeScript source,
 * which needs Node.js 22.18 or later, and uses the built package.
 */
import { assert, describe, layer } from "@effect/vitest"
import { CudaInterprocess, CudaMemory, CudaMemoryPool, CudaStream } from "effect-cuda"
import type { MemoryToken, PoolToken, TorchStorage } from "effect-cuda/CudaInterprocess"
import type { DeviceBuffer } from "effect-cuda/CudaMemory"
import * as Effect from "effect/Effect"
import { fork, spawn, spawnSync } from "node:child_process"
import type { ChildProcess } from "node:child_process"
import { existsSync } from "node:fs"
import { fileURLToPath } from "node:url"
import { failsWith, leavesNothing } from "../support/assertions.ts"
import { gpu, nativeRig } from "../support/gpu.ts"
import { Busy } from "../support/Rig.ts"

const pathOf = (name: string) => fileURLToPath(new URL(name, import.meta.url))
const canRun = gpu !== undefined && "typescript" in process.features && existsSync(pathOf("../../dist/index.js"))
const size = 2 ** 20

/** A child process that is killed when the scope closes, with a descriptor of this one as its number 4. */
const childWith = (descriptor?: number) =>
  Effect.acquireRelease(
    Effect.sync(() =>
      fork(pathOf("./sharedMemory.child.ts"), [], {
        stdio: ["ignore", "inherit", "inherit", "ipc", ...(descriptor === undefined ? [] : [descriptor])]
      })
    ),
    (child) => Effect.andThen(Effect.sync(() => child.kill("SIGKILL")), CudaInterprocess.exitOf(child))
  )

/** Sends a message and waits for the answer. */
const ask = <Answer>(child: ChildProcess, message: object) =>
  Effect.callback<Answer>((resume) => {
    child.once("message", (answer) => resume(Effect.sync(() => answer as Answer)))
    child.send(message)
  })

const bytesOf = (buffer: DeviceBuffer, stream: CudaStream.CudaStream) =>
  Effect.suspend(() => {
    const bytes = new Uint8Array(buffer.byteLength)
    return Effect.as(CudaMemory.download(bytes, buffer, stream), bytes)
  })

/** Memory of a shareable pool and memory outside of pools, each with a child that can open it. */
const shared = {
  pool: Effect.gen(function*() {
    const pool = yield* CudaMemoryPool.make({ shareable: true })
    const { descriptor, token } = yield* CudaInterprocess.sharePool(pool)
    return { buffer: yield* CudaMemory.allocate(size, { pool }), pool: token, child: yield* childWith(descriptor) }
  }),
  allocation: Effect.gen(function*() {
    const pool: PoolToken | undefined = undefined
    return { buffer: yield* CudaInterprocess.allocate(size), pool, child: yield* childWith() }
  })
}

describe.skipIf(!canRun)("on a GPU", () => {
  layer(nativeRig.layer, { excludeTestServices: true })("memory shared with another process", (it) => {
    for (const kind of ["pool", "allocation"] as const) {
      it.effect(
        `is lent after the work of its owner, and comes back after that of the child (${kind})`,
        () =>
          leavesNothing(Effect.gen(function*() {
            const stream = yield* CudaStream.make()
            const { buffer, child, pool } = yield* shared[kind]
            yield* (yield* Busy).enqueue(stream, 2000)
            yield* CudaMemory.fill(buffer, 3, stream)
            const answer = yield* CudaInterprocess.lend(
              CudaMemory.slice(buffer, 1000, 500),
              (memory) => ask<{ readonly first: number }>(child, { role: "fill", memory, pool }),
              { stream, gone: CudaInterprocess.exitOf(child) }
            )
            assert.strictEqual(answer.first, 3)
            const expected = new Uint8Array(size).fill(3).fill(9, 1000, 1500)
            assert.deepStrictEqual(yield* bytesOf(buffer, stream), expected)
          })),
        30_000
      )

      it.effect(
        `is intact when the child is killed while it works on it (${kind})`,
        () =>
          leavesNothing(Effect.gen(function*() {
            const stream = yield* CudaStream.make()
            const { buffer, child, pool } = yield* shared[kind]
            yield* CudaMemory.fill(buffer, 3, stream)
            const lent = CudaInterprocess.lend(
              buffer,
              (memory) =>
                Effect.andThen(
                  ask(child, { role: "hold", memory, pool }),
                  Effect.andThen(Effect.sync(() => child.kill("SIGKILL")), Effect.never)
                ),
              { stream, gone: CudaInterprocess.exitOf(child) }
            )
            yield* failsWith(lent, "NeverFinishes")
            assert.deepStrictEqual(yield* bytesOf(buffer, stream), new Uint8Array(size).fill(3))
          })),
        30_000
      )
    }

    it.effect(
      "is found through the child's descriptor, and stays when the child is killed",
      () =>
        leavesNothing(Effect.gen(function*() {
          const [stream, child] = [yield* CudaStream.make(), yield* childWith()]
          const theirs = yield* ask<{
            readonly descriptor: number
            readonly pool: PoolToken
            readonly pooled: MemoryToken
            readonly single: MemoryToken
          }>(child, { role: "share" })
          const taken = yield* CudaInterprocess.takeDescriptor(child.pid!, theirs.descriptor)
          const pool = yield* CudaInterprocess.openPool(theirs.pool, taken)
          const buffers = [
            yield* CudaInterprocess.open(theirs.pooled, { pool }),
            yield* CudaInterprocess.open(theirs.pooled, { pool }),
            yield* CudaInterprocess.open(theirs.single)
          ]
          const fives = new Uint8Array(64).fill(5)
          for (const buffer of buffers) assert.deepStrictEqual(yield* bytesOf(buffer, stream), fives)
          yield* failsWith(CudaInterprocess.open({ ...theirs.single, byteLength: 65 }), "InvalidArgument")
          child.kill("SIGKILL")
          yield* CudaInterprocess.exitOf(child)
          for (const buffer of buffers) assert.deepStrictEqual(yield* bytesOf(buffer, stream), fives)
        })),
      30_000
    )

    it.effect("is not waited for when the child that lends it is killed", () =>
      leavesNothing(Effect.gen(function*() {
        const child = yield* childWith()
        const token = yield* ask<MemoryToken>(child, { role: "lend" })
        const opening = Effect.scoped(CudaInterprocess.open(token, { gone: CudaInterprocess.exitOf(child) }))
        const killing = Effect.delay(Effect.sync(() => child.kill("SIGKILL")), 100)
        const [reason] = yield* Effect.all([failsWith(opening, "NeverFinishes"), killing], { concurrency: 2 })
        assert.match(reason.because, /has ended/)
      })), 30_000)
  })
})

const hasTorch = canRun && spawnSync("python3", ["-c", "import torch; torch.cuda.init()"]).status === 0

/** PyTorch, in a process that is killed when the scope closes. Lines go in and out. */
const torchWith = (role: "share" | "open") =>
  Effect.acquireRelease(
    Effect.sync(() => spawn("python3", [pathOf("./sharedMemory.py"), role], { stdio: ["pipe", "pipe", "inherit"] })),
    (child) => Effect.andThen(Effect.sync(() => child.kill("SIGKILL")), CudaInterprocess.exitOf(child))
  )

type Torch = Effect.Success<ReturnType<typeof torchWith>>

const nextLine = (child: Torch) =>
  Effect.callback<string>((resume) => {
    let text = ""
    const onData = (chunk: Buffer) => {
      text += chunk.toString()
      if (!text.includes("\n")) return
      child.stdout.off("data", onData)
      resume(Effect.succeed(text))
    }
    child.stdout.on("data", onData)
  })

describe.skipIf(!hasTorch)("on a GPU", () => {
  layer(nativeRig.layer, { excludeTestServices: true })("memory shared with PyTorch", (it) => {
    it.effect("is a tensor there and a buffer here", () =>
      leavesNothing(Effect.gen(function*() {
        const [stream, child] = [yield* CudaStream.make(), yield* torchWith("share")]
        const tensor: TorchStorage = JSON.parse(yield* nextLine(child))
        const token = yield* CudaInterprocess.fromTorch(tensor)
        const gone = CudaInterprocess.exitOf(child)
        yield* Effect.scoped(Effect.gen(function*() {
          const buffer = yield* CudaInterprocess.open(token, { gone })
          assert.strictEqual(buffer.byteLength, 4000)
          const numbers = new Float32Array(1000)
          yield* CudaMemory.download(numbers, buffer, stream)
          assert.deepStrictEqual(numbers, Float32Array.from({ length: 1000 }, (_, index) => index + 5))
          yield* CudaMemory.upload(CudaMemory.slice(buffer, 0, 8), Float32Array.of(1, 2), stream)
        }))
        child.stdin.write("closed\n")
        assert.deepStrictEqual(JSON.parse(yield* nextLine(child)), [1, 2, 7, 8])
      })), 60_000)

    it.effect("is a buffer here and a tensor there", () =>
      leavesNothing(Effect.gen(function*() {
        const [stream, child] = [yield* CudaStream.make(), yield* torchWith("open")]
        const buffer = yield* CudaInterprocess.allocate(4000)
        yield* CudaMemory.upload(buffer, new Float32Array(1000).fill(3), stream)
        const first = yield* CudaInterprocess.lend(
          CudaMemory.slice(buffer, 400),
          (token) =>
            Effect.suspend(() => {
              child.stdin.write(`${JSON.stringify(token)}\n`)
              return nextLine(child)
            }),
          { stream, gone: CudaInterprocess.exitOf(child) }
        )
        assert.deepStrictEqual(JSON.parse(first), [3, 3, 3, 3])
        const numbers = new Float32Array(1000)
        yield* CudaMemory.download(numbers, buffer, stream)
        assert.deepStrictEqual(numbers, new Float32Array(1000).fill(6).fill(3, 0, 100))
      })), 60_000)
  })
})
