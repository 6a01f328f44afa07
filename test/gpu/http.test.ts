/**
 * The example HTTP service on a GPU, with its kernel compiled by NVRTC. Every score must match the CPU's.
 */
import "../support/deepStack.ts"
import { assert, describe, it } from "@effect/vitest"
import { CudaRuntime, NativeRuntime } from "effect-cuda"
import * as Effect from "effect/Effect"
import { handle } from "../../examples/http/Api.ts"
import { Scorer } from "../../examples/http/Scorer.ts"
import type { Model } from "../../examples/http/Scorer.ts"
import { serve } from "../../examples/http/Server.ts"
import { missing } from "../support/nvrtc.ts"

const width = 256

const model: Model = {
  weights: Float32Array.from({ length: width }, (_, index) => Math.sin(index) / 16),
  bias: -0.5
}

const rowOf = (index: number): ReadonlyArray<number> =>
  Array.from({ length: width }, (_, column) => Math.cos(index * 7 + column * 3))

const expected = (row: ReadonlyArray<number>): number =>
  1 / (1 + Math.exp(-row.reduce((sum, feature, column) => sum + feature * model.weights[column]!, model.bias)))

const answer = (url: string, init: RequestInit = {}) =>
  Effect.tryPromise(async (signal) => {
    const response = await fetch(url, { signal, ...init })
    const body: unknown = await response.json()
    return { status: response.status, body: Object(body) }
  })

const score = (url: string, features: ReadonlyArray<number>) =>
  answer(`${url}/score`, { method: "POST", body: JSON.stringify({ features }) })

const requests = 400

const served = Effect.gen(function*() {
  const url = yield* serve(handle, { port: 0 })
  const rows = Array.from({ length: requests }, (_, index) => rowOf(index))
  const answers = yield* Effect.forEach(rows, (row) => score(url, row), { concurrency: "unbounded" })
  for (const [index, { body, status }] of answers.entries()) {
    assert.strictEqual(status, 200)
    assert.closeTo(body.score, expected(rows[index]!), 1e-5)
  }
  const { body } = yield* answer(`${url}/health`)
  assert.strictEqual(body.runtime, "native")
  assert.strictEqual(body.requests, requests)
  assert.isBelow(body.batches, requests)
}).pipe(Effect.scoped, Effect.provide(Scorer.layer({ model })))

describe.skipIf(missing !== undefined)("the HTTP service on a GPU", () => {
  it.live("scores a few hundred concurrent requests like the CPU, and leaves nothing behind", () =>
    Effect.gen(function*() {
      yield* served
      const { liveResources } = yield* CudaRuntime.CudaRuntime
      const { deviceBuffers, hostBuffers, modules, waits } = yield* liveResources
      assert.deepStrictEqual([deviceBuffers, hostBuffers, modules, waits], [0, 0, 0, 0])
    }).pipe(Effect.provide(NativeRuntime.layer())))
})
