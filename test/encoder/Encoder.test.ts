/**
 * The service: real requests on a simulated GPU, and the whole program as a process.
 */
import { assert, describe, it } from "@effect/vitest"
import { CudaBlas, CudaRuntime, SimulatedRuntime } from "effect-cuda"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Option from "effect/Option"
import * as Schedule from "effect/Schedule"
import * as Scope from "effect/Scope"
import { once } from "node:events"
import { mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { afterAll, beforeAll } from "vitest"
import { handle } from "../../examples/encoder/Api.ts"
import { Stopped } from "../../examples/encoder/Batcher.ts"
import { configs } from "../../examples/encoder/Config.ts"
import { Empty, Encoder, Overloaded, Stuck, TimedOut, TooLong } from "../../examples/encoder/Encoder.ts"
import type { Options } from "../../examples/encoder/Encoder.ts"
import { kernels } from "../../examples/encoder/SimulatedKernels.ts"
import * as Weights from "../../examples/encoder/Weights.ts"
import { serve } from "../../examples/http/Server.ts"
import { compile } from "../demo/compiled.ts"
import type { Compiled } from "../demo/compiled.ts"
import { nothingHeld } from "../support/assertions.ts"
import { checkedMachine } from "../support/checkedMachine.ts"
import { agrees, options as weights, sequence } from "./model.ts"

const home = mkdtempSync(join(tmpdir(), "effect-cuda-encoder-"))
const path = join(home, "model.safetensors")
beforeAll(() => Effect.runPromise(Weights.write(path, configs.tiny, weights)))
afterAll(() => rmSync(home, { recursive: true, force: true }))

/** A machine on which a batch takes a time that the test can change, and on which races fail. */
const machineWith = (cost: () => Duration.Input = () => "50 micros", memory = 2 ** 34) =>
  checkedMachine(
    SimulatedRuntime.layer({ devices: [{ memory }], kernels: { ...kernels, pool: { ...kernels.pool, cost } } })
  )

/** Starts the service for the lifetime of the scope, with a timeout that no busy machine reaches. */
const start = (options: Partial<Options> = {}) =>
  Effect.map(
    Layer.build(
      Layer.provide(Encoder.layer({ path, timeout: "1 minute", warmUp: false, ...options }), CudaBlas.layer())
    ),
    (services) => Context.get(services, Encoder)
  )

/** Waits until a batch is on the GPU. */
const untilRunning = (encoder: Encoder["Service"]) =>
  Effect.repeat(encoder.health, {
    until: ({ inFlight }) => inFlight > 0,
    schedule: Schedule.spaced("1 millis")
  })

/** Collects log lines, including those of the machine's release. */
const logTo = (logged: Array<string>) => {
  const logger = Logger.make(({ logLevel, message }) => {
    logged.push(`${logLevel} ${[message].flat().join(" ")}`)
  })
  return Effect.provideService(Logger.CurrentLoggers, new Set([logger]))
}

const ids = sequence(5, 1)

describe("the encoder", () => {
  it.live("embeds concurrent sequences of all lengths", () =>
    Effect.gen(function*() {
      const encoder = yield* start({ lengths: [64, 16, 32], maxBatch: 4 })
      const sequences = Array.from({ length: 12 }, (_, index) => sequence(1 + ((index * 29) % 64), index))
      const embeddings = yield* Effect.forEach(sequences, encoder.encode, { concurrency: "unbounded" })
      for (const [index, embedding] of embeddings.entries()) agrees(embedding, sequences[index]!)
      const { batches, requests } = yield* encoder.health
      assert.strictEqual(requests, 12)
      assert.isBelow(batches, 9)
    }).pipe(Effect.scoped, Effect.provide(machineWith())))

  it.live("batches by length", () =>
    Effect.gen(function*() {
      const encoder = yield* start({ lengths: [32, 64], maxBatch: 4, window: "5 seconds" })
      const sequences = [3, 60, 32, 33, 1, 64, 20, 40].map((length) => sequence(length, length))
      yield* Effect.forEach(sequences, encoder.encode, { concurrency: "unbounded" })
      assert.deepStrictEqual(yield* encoder.health, {
        runtime: "simulated",
        device: "Simulated GPU",
        waiting: 0,
        inFlight: 0,
        batches: 2,
        requests: 8,
        meanBatchSize: 4
      })
    }).pipe(Effect.scoped, Effect.provide(machineWith())))

  it.live("takes any list of ids", () =>
    Effect.gen(function*() {
      const encoder = yield* start()
      agrees(yield* encoder.encode([1, 2, 3]), Int32Array.of(1, 2, 3))
      agrees(yield* encoder.encode(Uint8Array.of(1, 2, 3)), Int32Array.of(1, 2, 3))
      agrees(yield* encoder.encode([-1, 2, 1000]), Int32Array.of(0, 2, 255))
    }).pipe(Effect.scoped, Effect.provide(machineWith())))

  it.live("has at most as many batches in flight as slots", () =>
    Effect.gen(function*() {
      const encoder = yield* start({ maxBatch: 1, slots: 2, window: 0, lengths: [32], warmUp: true })
      const fiber = yield* Effect.forkChild(
        Effect.replicateEffect(encoder.encode(ids), 3, { concurrency: "unbounded" })
      )
      const found = yield* Effect.repeat(encoder.health, {
        until: ({ inFlight }) => inFlight === 2,
        schedule: Schedule.spaced("1 millis")
      })
      assert.strictEqual(found.waiting, 1)
      yield* Fiber.join(fiber)
    }).pipe(Effect.scoped, Effect.provide(machineWith(() => "1 second"))))

  it.live("records the sizes of batches at the start, or when they are needed", () =>
    Effect.gen(function*() {
      const { liveResources } = yield* CudaRuntime.CudaRuntime
      yield* Effect.scoped(Effect.gen(function*() {
        const encoder = yield* start({ lengths: [32, 64], maxBatch: 6, slots: 2, warmUp: true })
        assert.strictEqual((yield* liveResources).graphs, 2 * 4 * 2)
        agrees(yield* encoder.encode(ids), ids)
        assert.strictEqual((yield* liveResources).graphs, 2 * 4 * 2)
      }))
      const encoder = yield* start({ lengths: [32, 64], maxBatch: 6, slots: 1 })
      assert.strictEqual((yield* liveResources).graphs, 0)
      agrees(yield* encoder.encode(ids), ids)
      assert.strictEqual((yield* liveResources).graphs, 1)
    }).pipe(Effect.scoped, Effect.provide(machineWith())))
})

describe("an encoder that cannot start", () => {
  it.live("names its file", () =>
    Effect.gen(function*() {
      const missing = join(home, "missing")
      assert.strictEqual((yield* Effect.flip(start({ path: missing }))).message, `${missing}: no such file`)
      const other = join(home, "other")
      writeFileSync(other, "no tensors here")
      assert.match((yield* Effect.flip(start({ path: other }))).message, /other: a header of \d+ bytes is too large/)
    }).pipe(Effect.scoped, Effect.provide(machineWith())))

  it.live.each([[[]], [[0]], [[1.5]], [[32, 65]], [[NaN]]])(
    "refuses the lengths %j",
    ([lengths]) =>
      Effect.gen(function*() {
        const failure = yield* Effect.flip(start({ lengths: lengths! }))
        assert.strictEqual(failure._tag, "WrongLengths")
        assert.match(failure.message, /; expected integers from 1 to 64$/)
      }).pipe(Effect.scoped, Effect.provide(machineWith()))
  )

  it.live("reports that the GPU is out of memory", () =>
    Effect.gen(function*() {
      const failure = yield* Effect.flip(Effect.scoped(start()))
      assert.match(failure.message, /CUDA_ERROR_OUT_OF_MEMORY/)
      const { liveResources } = yield* CudaRuntime.CudaRuntime
      assert.deepStrictEqual({ ...yield* liveResources, streams: 0 }, nothingHeld)
    }).pipe(Effect.scoped, Effect.provide(machineWith(undefined, 3e6))))
})

describe("a sequence that cannot be embedded", () => {
  it.live("is refused if it is empty or too long", () =>
    Effect.gen(function*() {
      const encoder = yield* start()
      assert.instanceOf(yield* Effect.flip(encoder.encode([])), Empty)
      const failure = yield* Effect.flip(encoder.encode(sequence(65, 1)))
      assert.instanceOf(failure, TooLong)
      assert.strictEqual(failure.message, "the text has 65 tokens; at most 64 are possible")
    }).pipe(Effect.scoped, Effect.provide(machineWith())))

  it.live("is refused at once when too many requests wait", () =>
    Effect.gen(function*() {
      const encoder = yield* start({ maxWaiting: 2 })
      const problem = Effect.match(encoder.encode(ids), { onFailure: (failure) => [failure], onSuccess: () => [] })
      const problems = yield* Effect.replicateEffect(problem, 3, { concurrency: "unbounded" })
      assert.deepStrictEqual(problems.flat(), [new Overloaded({ maxWaiting: 2 })])
      agrees(yield* encoder.encode(ids), ids)
    }).pipe(Effect.scoped, Effect.provide(machineWith(() => "200 millis"))))

  it.live("times out, on the GPU and before it, and does not disturb later requests", () => {
    let cost: Duration.Input = "500 millis"
    return Effect.gen(function*() {
      const encoder = yield* start({ lengths: [8], maxBatch: 1, slots: 1, timeout: "150 millis" })
      const failures = yield* Effect.replicateEffect(Effect.flip(encoder.encode(ids)), 2, { concurrency: "unbounded" })
      for (const failure of failures) assert.instanceOf(failure, TimedOut)
      cost = "50 micros"
      yield* Effect.sleep("400 millis")
      agrees(yield* encoder.encode(ids), ids)
      // The one that timed out before its batch was never on the GPU.
      assert.strictEqual((yield* encoder.health).requests, 2)
    }).pipe(Effect.scoped, Effect.provide(machineWith(() => cost)))
  })

  it.live("does not reach the GPU if its caller leaves", () =>
    Effect.gen(function*() {
      const encoder = yield* start({ maxWaiting: 1, window: "100 millis" })
      assert.isTrue(Option.isNone(yield* Effect.timeoutOption(encoder.encode(ids), "20 millis")))
      agrees(yield* encoder.encode(ids), ids)
      assert.strictEqual((yield* encoder.health).requests, 1)
    }).pipe(Effect.scoped, Effect.provide(machineWith())))

  it.live("fails when the GPU is out of memory, and the next one has new memory", () =>
    Effect.gen(function*() {
      const encoder = yield* start({ slots: 1 })
      const control = yield* SimulatedRuntime.SimulatedControl
      yield* control.failNext("CudaGraph.launch", "OutOfMemory")
      yield* control.failNext("CudaMemory.allocateHost", "OutOfMemory", 2)
      for (const _ of [1, 2]) {
        const failure = yield* Effect.flip(encoder.encode(ids))
        assert.isTrue(failure._tag === "CudaError" && failure.isRetryable)
      }
      agrees(yield* encoder.encode(ids), ids)
    }).pipe(Effect.scoped, Effect.provide(machineWith())))
})

describe("the GPU", () => {
  it.live("is unhealthy while it does not finish a batch", () =>
    Effect.gen(function*() {
      const encoder = yield* start({ timeout: "50 millis" })
      assert.instanceOf(yield* Effect.flip(encoder.encode(ids)), TimedOut)
      yield* Effect.sleep("20 millis")
      assert.instanceOf(yield* Effect.flip(encoder.health), Stuck)
      yield* Effect.retry(encoder.health, Schedule.spaced("20 millis"))
    }).pipe(Effect.scoped, Effect.provide(machineWith(() => "500 millis"))))

  it.live("if lost, fails requests in flight, later ones and the health, and is logged once", () => {
    const logged: Array<string> = []
    return Effect.gen(function*() {
      const encoder = yield* start({ maxBatch: 2, slots: 2 })
      const fiber = yield* Effect.forkChild(
        Effect.replicateEffect(Effect.flip(encoder.encode(ids)), 6, { concurrency: "unbounded" })
      )
      yield* untilRunning(encoder)
      const control = yield* SimulatedRuntime.SimulatedControl
      yield* control.lose(0, "EccUncorrectable")
      const later = yield* Effect.flip(encoder.encode(ids))
      for (const failure of [...yield* Fiber.join(fiber), later, yield* Effect.flip(encoder.health)]) {
        assert.isTrue(failure._tag === "CudaError" && failure.isSticky)
      }
      assert.strictEqual(logged.filter((line) => line.startsWith("Fatal The GPU is lost")).length, 1)
    }).pipe(Effect.scoped, Effect.provide(machineWith(() => "1 second")), logTo(logged))
  })
})

describe("the end of the encoder", () => {
  it.live("finishes batches in flight, refuses what waits, and releases everything", () =>
    Effect.gen(function*() {
      const scope = yield* Scope.make()
      const encoder = yield* Scope.provide(start({ maxBatch: 1, slots: 1, window: 0, warmUp: true }), scope)
      const running = yield* Effect.forkChild(encoder.encode(ids))
      yield* untilRunning(encoder)
      const waiting = yield* Effect.forkChild(encoder.encode(ids))
      yield* Effect.sleep("10 millis")
      yield* Scope.close(scope, Exit.void)
      agrees(yield* Fiber.join(running), ids)
      assert.instanceOf(yield* Effect.flip(Fiber.join(waiting)), Stopped)
      assert.instanceOf(yield* Effect.flip(encoder.encode(ids)), Stopped)
      const { liveResources } = yield* CudaRuntime.CudaRuntime
      // Pooled streams belong to the runtime.
      assert.deepStrictEqual({ ...yield* liveResources, streams: 0 }, nothingHeld)
    }).pipe(Effect.scoped, Effect.provide(machineWith(() => "1 second"))))
})

const request = (url: string, init: RequestInit = {}) =>
  Effect.tryPromise(async (signal) => {
    const response = await fetch(url, { signal, ...init })
    const body: unknown = await response.json()
    return { status: response.status, headers: response.headers, body: Object(body) }
  })

const embed = (url: string, body: string) => request(`${url}/embed`, { method: "POST", body })

const bytes = (text: string) => Int32Array.from(new TextEncoder().encode(text))

describe("the API", () => {
  /** Starts an HTTP server for the lifetime of the scope. */
  const served = (options: Partial<Options> = {}) =>
    Effect.flatMap(start(options), (encoder) => Effect.provideService(serve(handle, { port: 0 }), Encoder, encoder))

  const textOf = (text: string) => JSON.stringify({ text })

  it.live("embeds texts", () =>
    Effect.gen(function*() {
      const url = yield* served()
      const texts = ["hello", "wörld", "a", "twice as long as the shortest batch is"]
      const answers = yield* Effect.forEach(texts, (text) => embed(url, textOf(text)), { concurrency: "unbounded" })
      for (const [index, { body, status }] of answers.entries()) {
        assert.strictEqual(status, 200)
        agrees(Float32Array.from(body.embedding), bytes(texts[index]!))
      }
      const { body } = yield* request(`${url}/health`)
      assert.strictEqual(body.status, "healthy")
      assert.strictEqual(body.requests, 4)
    }).pipe(Effect.scoped, Effect.provide(machineWith())))

  it.live.each<[string, string, RegExp]>([
    ["invalid JSON", "{", /JSON/],
    ["no text", "{}", /text/],
    ["a text that is not one", "{\"text\": 1}", /string/],
    ["an empty text", textOf(""), /^the text is empty$/],
    ["a text that is too long", textOf("ü".repeat(33)), /^the text has 66 tokens; at most 64 are possible$/]
  ])("rejects %s", ([, body, detail]) =>
    Effect.gen(function*() {
      const answer = yield* embed(yield* served(), body)
      assert.strictEqual(answer.status, 400)
      assert.strictEqual(answer.headers.get("content-type"), "application/problem+json")
      assert.match(answer.body.detail, detail)
    }).pipe(Effect.scoped, Effect.provide(machineWith())))

  it.live("rejects unknown routes and methods", () =>
    Effect.gen(function*() {
      const url = yield* served()
      assert.strictEqual((yield* request(`${url}/other`)).status, 404)
      assert.strictEqual((yield* request(`${url}/embed`)).headers.get("allow"), "POST")
    }).pipe(Effect.scoped, Effect.provide(machineWith())))

  it.live("says when to try again", () =>
    Effect.gen(function*() {
      const url = yield* served({ maxWaiting: 1 })
      const answers = yield* Effect.replicateEffect(embed(url, textOf("x")), 2, { concurrency: "unbounded" })
      const refused = answers.find(({ status }) => status !== 200)!
      assert.strictEqual(refused.status, 503)
      assert.strictEqual(refused.headers.get("retry-after"), "1")
      assert.match(refused.body.detail, /^1 request is already waiting$/)
    }).pipe(Effect.scoped, Effect.provide(machineWith(() => "200 millis"))))

  it.live("reports a timeout, and a GPU that is stuck", () =>
    Effect.gen(function*() {
      const url = yield* served({ timeout: "50 millis" })
      const { body, status } = yield* embed(url, textOf("x"))
      assert.deepStrictEqual([status, body.detail], [504, "the request took too long"])
      yield* Effect.sleep("20 millis")
      const health = yield* request(`${url}/health`)
      assert.deepStrictEqual([health.status, health.body], [503, { status: "unhealthy", problem: "Stuck" }])
    }).pipe(Effect.scoped, Effect.provide(machineWith(() => "500 millis"))))

  it.live("reports a lost GPU", () =>
    Effect.gen(function*() {
      const url = yield* served()
      const control = yield* SimulatedRuntime.SimulatedControl
      yield* control.failNext("CudaGraph.launch", "IllegalAddress")
      const { body, status } = yield* embed(url, textOf("x"))
      assert.deepStrictEqual([status, body.detail], [503, "the GPU is lost"])
      const health = yield* request(`${url}/health`)
      assert.deepStrictEqual([health.status, health.body], [503, { status: "unhealthy", problem: "IllegalAddress" }])
    }).pipe(Effect.scoped, Effect.provide(machineWith()), logTo([])))

  it.live("finishes requests in progress when it ends", () =>
    Effect.gen(function*() {
      const scope = yield* Scope.make()
      const encoder = yield* Scope.provide(start(), scope)
      const url = yield* serve(handle, { port: 0 }).pipe(
        Effect.provideService(Encoder, encoder),
        Scope.provide(scope)
      )
      const fiber = yield* Effect.forkChild(embed(url, textOf("x")))
      yield* untilRunning(encoder)
      yield* Scope.close(scope, Exit.void)
      const { body, status } = yield* Fiber.join(fiber)
      assert.strictEqual(status, 200)
      agrees(Float32Array.from(body.embedding), bytes("x"))
    }).pipe(Effect.scoped, Effect.provide(machineWith(() => "200 millis"))))
})

describe("the program", () => {
  let examples: Compiled
  beforeAll(() => {
    process.env["PORT"] = "0"
    examples = compile()
    delete process.env["PORT"]
  }, 60_000)
  afterAll(() => examples?.remove())

  it.live("serves a tiny model until told to stop", () =>
    Effect.gen(function*() {
      const running = examples.start("encoder")
      const listening = yield* Deferred.make<string>()
      let out = ""
      running.stdout?.on("data", (text) => {
        out += String(text)
        const url = /Listening on (\S+)/.exec(out)?.[1]
        if (url !== undefined) Deferred.doneUnsafe(listening, Effect.succeed(url))
      })
      const url = yield* Effect.timeout(Deferred.await(listening), "10 seconds")
      const { body } = yield* embed(url, JSON.stringify({ text: "hello" }))
      assert.strictEqual(body.embedding.length, configs.tiny.hidden)
      const ended = once(running, "exit")
      running.kill("SIGTERM")
      assert.deepStrictEqual(yield* Effect.promise(() => ended), [0, null])
      assert.match(out, /random weights of the tiny shape/)
      assert.match(out, /SIGTERM: finishing requests in progress/)
    }))
})
