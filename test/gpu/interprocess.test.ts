/**
 * Two processes share an event on a GPU. The child runs from its TypeScript source, which needs Node.js 22.18 or later, and
 * uses the built package.
 */
import { assert, describe, layer } from "@effect/vitest"
import { CudaEvent, CudaStream } from "effect-cuda"
import * as Effect from "effect/Effect"
import { execFile } from "node:child_process"
import { existsSync } from "node:fs"
import { fileURLToPath } from "node:url"
import { failsWith } from "../support/assertions.ts"
import { gpu, nativeRig } from "../support/gpu.ts"
import { Busy } from "../support/Rig.ts"

const child = fileURLToPath(new URL("./interprocess.child.ts", import.meta.url))
const built = fileURLToPath(new URL("../../dist/index.js", import.meta.url))
const canRun = gpu !== undefined && "typescript" in process.features && existsSync(built)

interface ChildResult {
  readonly before: ReadonlyArray<boolean>
  readonly after: boolean
  readonly at: number
  readonly interprocess: boolean
}

const runChild = (handle: Uint8Array): Effect.Effect<ChildResult> =>
  Effect.callback((resume) => {
    const args = [child, Buffer.from(handle).toString("hex")]
    execFile(process.execPath, args, (error, out, errors) => {
      resume(error === null ? Effect.sync(() => JSON.parse(out)) : Effect.die(new Error(`${error.message}\n${errors}`)))
    })
  })

describe.skipIf(!canRun)("on a GPU", () => {
  layer(nativeRig.layer, { excludeTestServices: true })("an interprocess event", (it) => {
    it.effect("can be waited for in another process, on a stream and in a fiber", () =>
      Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const event = yield* CudaEvent.make({ interprocess: true })
        yield* (yield* Busy).enqueue(stream, 4000)
        yield* CudaEvent.record(event, stream)
        const ours = Effect.map(CudaEvent.synchronize(event), () => Date.now())
        const [at, theirs] = yield* Effect.all([ours, runChild(yield* CudaEvent.ipcHandle(event))], {
          concurrency: "unbounded"
        })
        assert.deepStrictEqual(theirs.before, [false, false])
        assert.isTrue(theirs.after)
        assert.isTrue(theirs.interprocess)
        assert.closeTo(theirs.at, at, 150)
      }))

    it.effect("cannot be opened by the process that created it", () =>
      Effect.gen(function*() {
        const event = yield* CudaEvent.make({ interprocess: true })
        const handle = yield* CudaEvent.ipcHandle(event)
        const error = yield* Effect.flip(CudaEvent.fromIpcHandle(handle))
        assert.strictEqual(error.operation, "CudaEvent.fromIpcHandle")
        yield* failsWith(CudaEvent.fromIpcHandle(handle), error.reason._tag)
        assert.isFalse(error.isSticky)
      }))
  })
})
