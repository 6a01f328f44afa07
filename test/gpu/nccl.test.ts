/**
 * Communicators of two processes with a GPU each. The children run from their TypeScript source, which needs Node.js 22.18 or later, and
 * use the built package.
 */
import { assert, describe, layer } from "@effect/vitest"
import { CudaNccl, CudaStream } from "effect-cuda"
import * as Effect from "effect/Effect"
import { execFile } from "node:child_process"
import { existsSync } from "node:fs"
import { fileURLToPath } from "node:url"
import { leavesNothing } from "../support/assertions.ts"
import { gpu, nativeRig } from "../support/gpu.ts"

const child = fileURLToPath(new URL("./nccl.child.ts", import.meta.url))
const built = fileURLToPath(new URL("../../dist/CudaNccl.js", import.meta.url))
const canRun = nativeRig.hasNccl && (gpu?.deviceCount ?? 0) >= 2 && "typescript" in process.features &&
  existsSync(built)

/** Runs a rank in a process of its own. Returns what it prints; nothing if it was killed. */
const runRank = (token: string, rank: number, mode: "reduce" | "kill"): Effect.Effect<string> =>
  Effect.callback((resume) => {
    const running = execFile(process.execPath, [child, token, String(rank), mode], (error, out, errors) => {
      if (error === null || error.signal === "SIGKILL") return resume(Effect.succeed(out))
      resume(Effect.die(new Error(`${error.message}\n${errors}`)))
    })
    return Effect.sync(() => running.kill())
  })

const runBoth = (mode: "reduce" | "kill") =>
  Effect.gen(function*() {
    const token = CudaNccl.toToken(yield* CudaNccl.uniqueId)
    return yield* Effect.all([runRank(token, 0, mode), runRank(token, 1, mode)], { concurrency: "unbounded" })
  }).pipe(Effect.provide(CudaNccl.layer()))

describe.skipIf(!canRun)("on a GPU", () => {
  layer(nativeRig.layer, { excludeTestServices: true })("two processes with a rank each", (it) => {
    it.effect("reduce", () =>
      Effect.map(runBoth("reduce"), (results) => {
        const expected = { failed: "", first: 6, last: 6, handles: 0 }
        assert.deepStrictEqual(results.map((text): unknown => JSON.parse(text)), [expected, expected])
      }), 60_000)

    it.effect(
      "go on when one is killed: the other fails in its time, and leaves nothing",
      () =>
        Effect.map(runBoth("kill"), ([first, second]) => {
          assert.deepStrictEqual(JSON.parse(first), { failed: "TimedOut", first: 0, last: 0, handles: 0 })
          assert.strictEqual(second, "")
        }),
      60_000
    )
  })
})

describe.skipIf(!nativeRig.hasNccl || (gpu?.deviceCount ?? 0) < 2)("on a GPU", () => {
  layer(nativeRig.layer, { excludeTestServices: true })("the event loop", (it) => {
    it.effect("goes on while a communicator is made and destroyed", () =>
      leavesNothing(
        Effect.gen(function*() {
          yield* CudaStream.make({ device: 0 })
          yield* CudaStream.make({ device: 1 })
          let worst = 0
          let last = performance.now()
          const timer = setInterval(() => {
            worst = Math.max(worst, performance.now() - last)
            last = performance.now()
          }, 1)
          yield* Effect.scoped(CudaNccl.local([0, 1]))
          clearInterval(timer)
          assert.isBelow(worst, 200)
        }).pipe(Effect.provide(CudaNccl.layer()))
      ), 30_000)
  })
})
