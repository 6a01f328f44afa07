/**
 * The HTTP service: real requests on a simulated GPU, and the whole program as a process.
 */
import { assert, describe, it } from "@effect/vitest"
import { CudaRuntime, SimulatedRuntime } from "effect-cuda"
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
import { afterAll, beforeAll } from "vitest"
import { handle } from "../../examples/http/Api.ts"
import * as Kernel from "../../examples/http/Kernel.ts"
import { Scorer } from "../../examples/http/Scorer.ts"
import type { Model, Options as ScorerOptions } from "../../examples/http/Scorer.ts"
import { serve } from "../../examples/http/Server.ts"
import type { Options as ServerOptions } from "../../examples/http/Server.ts"
import { nothingHeld } from "../support/assertions.ts"
import { checkedMachine } from "../support/checkedMachine.ts"
import { compile } from "./compiled.ts"
import type { Compiled } from "./compiled.ts"

const model: Model = { weights: Float32Array.of(0.5, -0.25, 1), bias: 0.125 }

const expected = (features: ReadonlyArray<number>): number =>
  1 / (1 + Math.exp(-features.reduce((sum, feature, index) => sum + feature * model.weights[index]!, model.bias)))

/** A machine whose kernel takes a time that the test can change, and on which races fail. */
const machineWith = (cost: () => Duration.Input = () => "50 micros") =>
  checkedMachine(SimulatedRuntime.layer({
    kernels: { [Kernel.name]: { ...Kernel.simulated[Kernel.name], cost } },
    recordTimeline: true
  }))

interface Options {
  readonly scorer?: Partial<ScorerOptions> | undefined
  readonly server?: Partial<ServerOptions> | undefined
}

/** Starts the service for the lifetime of the scope. */
const start = ({ scorer, server }: Options = {}) =>
  Effect.gen(function*() {
    const services = yield* Layer.build(Scorer.layer({ model, ...scorer }))
    return yield* Effect.provideContext(serve(handle, { port: 0, ...server }), services)
  })

const request = (url: string, init: RequestInit = {}) =>
  Effect.tryPromise(async (signal) => {
    const response = await fetch(url, { signal, ...init })
    const { headers, status } = response
    const body: unknown = await response.json()
    return { status, headers, body }
  })

const score = (url: string, features: unknown) =>
  request(`${url}/score`, { method: "POST", body: JSON.stringify({ features }) })

const healthOf = (url: string) => request(`${url}/health`)

const launches = Effect.gen(function*() {
  const control = yield* SimulatedRuntime.SimulatedControl
  return (yield* control.timeline).filter(({ kind }) => kind === "work")
})

type Answer = Effect.Success<ReturnType<typeof request>>

const isProblem = ({ body, headers, status }: Answer, expected: number, detail: RegExp): void => {
  assert.strictEqual(status, expected)
  assert.strictEqual(headers.get("content-type"), "application/problem+json")
  assert.propertyVal(body, "status", expected)
  assert.match(String(Object(body).detail), detail)
}

const isScore = ({ body, status }: Answer, features: ReadonlyArray<number>): void => {
  assert.strictEqual(status, 200)
  assert.closeTo(Number(Object(body).score), expected(features), 1e-6)
}

/** Collects log lines, including those of the machine's release. */
const logTo = (logged: Array<string>) => {
  const logger = Logger.make(({ logLevel, message }) => {
    logged.push(`${logLevel} ${[message].flat().join(" ")}`)
  })
  return Effect.provideService(Logger.CurrentLoggers, new Set([logger]))
}

const three = [1, 2, 3]

describe("the service", () => {
  it.live("scores", () =>
    Effect.gen(function*() {
      const url = yield* start()
      const rows = Array.from({ length: 150 }, (_, index) => [index / 50, -index / 30, 0.5])
      const answers = yield* Effect.forEach(rows, (row) => score(url, row), { concurrency: "unbounded" })
      for (const [index, answer] of answers.entries()) isScore(answer, rows[index]!)
      assert.isBelow((yield* launches).length, rows.length)
    }).pipe(Effect.scoped, Effect.provide(machineWith())))

  it.live("batches concurrent requests into one launch of a fixed size", () =>
    Effect.gen(function*() {
      const url = yield* start({ scorer: { maxBatch: 10, window: "5 seconds" } })
      yield* Effect.replicateEffect(score(url, three), 30, { concurrency: "unbounded" })
      assert.strictEqual((yield* launches).length, 3)
      assert.deepStrictEqual((yield* healthOf(url)).body, {
        status: "healthy",
        runtime: "simulated",
        device: "Simulated GPU",
        batches: 3,
        requests: 30,
        meanBatchSize: 10
      })
    }).pipe(Effect.scoped, Effect.provide(machineWith())))

  it.live("runs a partial batch when its deadline passes", () =>
    Effect.gen(function*() {
      const url = yield* start({ scorer: { window: "1 millis" } })
      isScore(yield* score(url, three), three)
      isScore(yield* score(url, [0, 0, 0]), [0, 0, 0])
      assert.strictEqual((yield* launches).length, 2)
    }).pipe(Effect.scoped, Effect.provide(machineWith())))

  it.live("has at most as many batches in flight as slots", () =>
    Effect.gen(function*() {
      const url = yield* start({ scorer: { maxBatch: 1, slots: 2 } })
      yield* Effect.replicateEffect(score(url, three), 3, { concurrency: "unbounded" })
      const [first, second, third] = yield* launches
      assert.isBelow(second!.start, first!.end)
      assert.isAtLeast(third!.start, first!.end)
    }).pipe(Effect.scoped, Effect.provide(machineWith(() => "100 millis"))))
})

describe("a service that cannot start", () => {
  it.live("reports that its port is taken", () =>
    Effect.gen(function*() {
      const { port } = new URL(yield* start())
      const failure = yield* Effect.flip(start({ server: { port: Number(port) } }))
      assert.strictEqual(failure._tag, "ListenFailed")
      assert.match(failure.message, /^cannot listen: .*EADDRINUSE/)
    }).pipe(Effect.scoped, Effect.provide(machineWith())))

  it.live("reports that the GPU is out of memory", () =>
    Effect.gen(function*() {
      const failure = yield* Effect.flip(start({ scorer: { slots: 2 } }))
      assert.match(failure.message, /CUDA_ERROR_OUT_OF_MEMORY/)
    }).pipe(Effect.provide(SimulatedRuntime.layer({ devices: [{ memory: 2000 }], kernels: Kernel.simulated }))))
})

describe("a request that cannot be answered", () => {
  it.live.each<[string, unknown, RegExp]>([
    ["invalid JSON", "{", /JSON/],
    ["no features", "{}", /features/],
    ["a value that is not a list", "{\"features\": 1}", /features/],
    ["a value that is not a number", "{\"features\": [1, 2, \"3\"]}", /number/],
    ["numbers that are too large", "{\"features\": [1, 2, 1e7]}", /1000000/],
    ["fewer features", "{\"features\": [1, 2]}", /^2 features; expected 3$/],
    ["more features", "{\"features\": [1, 2, 3, 4]}", /^4 features; expected 3$/]
  ])("is rejected for %s", ([, body, detail]) =>
    Effect.gen(function*() {
      const url = yield* start()
      isProblem(yield* request(`${url}/score`, { method: "POST", body: String(body) }), 400, detail)
    }).pipe(Effect.scoped, Effect.provide(machineWith())))

  it.live("is rejected for a body that is too large, whether or not its size is known in advance", () =>
    Effect.gen(function*() {
      const url = `${yield* start({ server: { maxBodyBytes: 1000 } })}/score`
      const method = "POST"
      const body = "x".repeat(200_000)
      isProblem(yield* request(url, { method, body }), 413, /^the body is larger than 1000 bytes$/)
      const chunked: RequestInit = { method, body: new Blob([body]).stream(), duplex: "half" }
      isProblem(yield* request(url, chunked), 413, /^the body is larger than 1000 bytes$/)
      isProblem(yield* request(url, { method, body: "x".repeat(1000) }), 400, /JSON/)
    }).pipe(Effect.scoped, Effect.provide(machineWith())))

  it.live("is rejected for an unknown route or method", () =>
    Effect.gen(function*() {
      const url = yield* start()
      isProblem(yield* request(`${url}/other`), 404, /\/other$/)
      const wrong = yield* request(`${url}/score?quick`)
      isProblem(wrong, 405, /POST$/)
      assert.strictEqual(wrong.headers.get("allow"), "POST")
    }).pipe(Effect.scoped, Effect.provide(machineWith())))

  it.live("is rejected at once when too many requests wait", () =>
    Effect.gen(function*() {
      const url = yield* start({ scorer: { maxWaiting: 2 } })
      const answers = yield* Effect.replicateEffect(score(url, three), 3, { concurrency: "unbounded" })
      const refused = answers.filter(({ status }) => status !== 200)
      assert.strictEqual(refused.length, 1)
      isProblem(refused[0]!, 503, /^2 requests are already waiting$/)
      assert.strictEqual(refused[0]!.headers.get("retry-after"), "1")
      isScore(yield* score(url, three), three)
    }).pipe(Effect.scoped, Effect.provide(machineWith(() => "400 millis"))))

  it.live("is retryable when the GPU is out of memory", () =>
    Effect.gen(function*() {
      const url = yield* start()
      const control = yield* SimulatedRuntime.SimulatedControl
      yield* control.failNext("CudaGraph.launch", "OutOfMemory")
      const refused = yield* score(url, three)
      isProblem(refused, 503, /short of resources/)
      assert.strictEqual(refused.headers.get("retry-after"), "1")
      isScore(yield* score(url, three), three)
    }).pipe(Effect.scoped, Effect.provide(machineWith())))

  it.live("is retryable when there was no memory to replace that of a failed batch", () =>
    Effect.gen(function*() {
      const url = yield* start({ scorer: { slots: 1 } })
      const control = yield* SimulatedRuntime.SimulatedControl
      yield* control.failNext("CudaGraph.launch", "OutOfMemory")
      yield* control.failNext("CudaMemory.allocateHost", "OutOfMemory", 2)
      isProblem(yield* score(url, three), 503, /short of resources/)
      isProblem(yield* score(url, three), 503, /short of resources/)
      isScore(yield* score(url, three), three)
    }).pipe(Effect.scoped, Effect.provide(machineWith())))

  it.live("times out, and its GPU work does not affect later requests", () => {
    let cost: Duration.Input = "600 millis"
    return Effect.gen(function*() {
      const url = yield* start({ scorer: { slots: 1, timeout: "200 millis" } })
      isProblem(yield* score(url, three), 504, /took too long/)
      cost = "50 micros"
      isScore(yield* score(url, [3, 2, 1]), [3, 2, 1])
    }).pipe(Effect.scoped, Effect.provide(machineWith(() => cost)))
  })

  it.live("returns only a log reference when the GPU fails otherwise", () => {
    const logged: Array<string> = []
    return Effect.gen(function*() {
      const url = yield* start()
      const control = yield* SimulatedRuntime.SimulatedControl
      yield* control.failNext("CudaGraph.launch", "InvalidValue")
      isProblem(yield* score(url, three), 500, /^internal error [-0-9a-f]{36}$/)
      assert.strictEqual(logged.length, 1)
      assert.match(logged[0]!, /^Error A request failed.*CUDA_ERROR_INVALID_VALUE/)
      isScore(yield* score(url, three), three)
    }).pipe(Effect.scoped, Effect.provide(machineWith()), logTo(logged))
  })

  it.live("is answered even on a defect of the service", () =>
    Effect.gen(function*() {
      const broken = Scorer.of({ score: () => Effect.die(new Error("wrong")), health: Effect.die(new Error("wrong")) })
      const url = yield* Effect.provideService(serve(handle, { port: 0 }), Scorer, broken)
      isProblem(yield* score(url, three), 500, /^internal error/)
      isProblem(yield* healthOf(url), 500, /^internal error/)
    }).pipe(logTo([])))
})

describe("a lost GPU", () => {
  const losses = (logged: ReadonlyArray<string>) => logged.filter((line) => line.startsWith("Fatal The GPU is lost"))

  it.live("makes the service unhealthy, even without requests", () => {
    const logged: Array<string> = []
    return Effect.gen(function*() {
      const url = yield* start()
      const control = yield* SimulatedRuntime.SimulatedControl
      assert.strictEqual((yield* healthOf(url)).status, 200)
      yield* control.lose(0, "EccUncorrectable")
      for (const { body, status } of [yield* healthOf(url), yield* healthOf(url)]) {
        assert.strictEqual(status, 503)
        assert.deepStrictEqual(body, { status: "unhealthy", problem: "EccUncorrectable" })
      }
      assert.strictEqual(losses(logged).length, 1)
    }).pipe(Effect.scoped, Effect.provide(machineWith()), logTo(logged))
  })

  it.live("is reported to every request, and once in the log", () => {
    const logged: Array<string> = []
    return Effect.gen(function*() {
      const url = yield* start({ scorer: { window: "20 millis" } })
      const control = yield* SimulatedRuntime.SimulatedControl
      yield* control.failNext("CudaGraph.launch", "IllegalAddress")
      const answers = yield* Effect.replicateEffect(score(url, three), 5, { concurrency: "unbounded" })
      for (const answer of [...answers, yield* score(url, three)]) isProblem(answer, 503, /^the GPU is lost$/)
      assert.strictEqual(losses(logged).length, 1)
      assert.strictEqual((yield* healthOf(url)).status, 503)
    }).pipe(Effect.scoped, Effect.provide(machineWith()), logTo(logged))
  })
})

describe("a client that leaves", () => {
  it.live("cancels its request", () =>
    Effect.gen(function*() {
      const url = yield* start({ scorer: { maxWaiting: 1, maxBatch: 2, window: "300 millis" } })
      assert.isTrue(Option.isNone(yield* Effect.timeoutOption(score(url, three), "100 millis")))
      // The server notices a moment later.
      const answer = yield* Effect.repeat(score(url, three), {
        until: ({ status }) => status === 200,
        schedule: Schedule.spaced("5 millis")
      })
      isScore(answer, three)
      assert.propertyVal((yield* healthOf(url)).body, "requests", 1)
    }).pipe(Effect.scoped, Effect.provide(machineWith())))
})

describe("the end of the service", () => {
  it.live("answers requests in flight and releases everything", () =>
    Effect.gen(function*() {
      const scope = yield* Scope.make()
      const machine = yield* Layer.build(machineWith(() => "200 millis")).pipe(Scope.provide(scope))
      const { liveResources } = Context.get(machine, CudaRuntime.CudaRuntime)
      const { pendingOperations } = Context.get(machine, SimulatedRuntime.SimulatedControl)
      const own = yield* Scope.fork(scope)
      const url = yield* start().pipe(Effect.provideContext(machine), Scope.provide(own))
      const fiber = yield* Effect.forkChild(score(url, three))
      yield* Effect.repeat(pendingOperations, {
        until: (pending) => pending > 0,
        schedule: Schedule.spaced("1 millis")
      })
      yield* Scope.close(own, Exit.void)
      const answer = yield* Fiber.join(fiber)
      isScore(answer, three)
      assert.strictEqual(answer.headers.get("connection"), "close")
      assert.strictEqual((yield* Effect.flip(healthOf(url)))._tag, "UnknownError")
      // Pooled streams belong to the runtime.
      assert.deepStrictEqual({ ...yield* liveResources, streams: 0 }, nothingHeld)
      yield* Scope.close(scope, Exit.void)
      assert.deepStrictEqual(yield* liveResources, nothingHeld)
    }))

  it.live("does not wait forever", () =>
    Effect.gen(function*() {
      const own = yield* Scope.make()
      const forever = Scorer.of({ score: () => Effect.never, health: Effect.never })
      const url = yield* serve(handle, { port: 0, grace: "50 millis" }).pipe(
        Effect.provideService(Scorer, forever),
        Scope.provide(own)
      )
      const fiber = yield* Effect.forkChild(score(url, three))
      yield* Effect.sleep("100 millis")
      yield* Effect.timeout(Scope.close(own, Exit.void), "2 seconds")
      assert.isTrue(Exit.isFailure(yield* Fiber.await(fiber)))
    }))
})

describe("the program", () => {
  let examples: Compiled
  beforeAll(() => {
    process.env["PORT"] = "0"
    examples = compile()
    delete process.env["PORT"]
  }, 60_000)
  afterAll(() => examples?.remove())

  it.live("serves until told to stop", () =>
    Effect.gen(function*() {
      const running = examples.start("http")
      const listening = yield* Deferred.make<string>()
      let out = ""
      running.stdout?.on("data", (text) => {
        out += String(text)
        const url = /Listening on (\S+)/.exec(out)?.[1]
        if (url !== undefined) Deferred.doneUnsafe(listening, Effect.succeed(url))
      })
      const url = yield* Effect.timeout(Deferred.await(listening), "10 seconds")
      const answer = yield* score(url, Array(256).fill(0))
      assert.closeTo(Number(Object(answer.body).score), 1 / (1 + Math.exp(-0.25)), 1e-6)
      const ended = once(running, "exit")
      running.kill("SIGTERM")
      assert.deepStrictEqual(yield* Effect.promise(() => ended), [0, null])
      assert.match(out, /SIGTERM: finishing requests in progress/)
    }))
})
