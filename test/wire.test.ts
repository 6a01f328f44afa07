/**
 * `CudaError` between a client and a server whose messages are bytes of HTTP: of an RPC, and of an HTTP API.
 */
import { assert, describe, it } from "@effect/vitest"
import { CudaError, CudaMemory, SimulatedRuntime } from "effect-cuda"
import * as CudaSchema from "effect-cuda/CudaSchema"
import * as Effect from "effect/Effect"
import * as HttpApi from "effect/http-api/HttpApi"
import * as HttpApiBuilder from "effect/http-api/HttpApiBuilder"
import * as HttpApiClient from "effect/http-api/HttpApiClient"
import * as HttpApiEndpoint from "effect/http-api/HttpApiEndpoint"
import * as HttpApiGroup from "effect/http-api/HttpApiGroup"
import * as FetchHttpClient from "effect/http/FetchHttpClient"
import * as HttpRouter from "effect/http/HttpRouter"
import * as HttpServer from "effect/http/HttpServer"
import * as Layer from "effect/Layer"
import * as Rpc from "effect/rpc/Rpc"
import * as RpcClient from "effect/rpc/RpcClient"
import * as RpcGroup from "effect/rpc/RpcGroup"
import * as RpcSerialization from "effect/rpc/RpcSerialization"
import * as RpcServer from "effect/rpc/RpcServer"
import * as Schema from "effect/Schema"

const cause = new RangeError("index 9", { cause: new Error("a bit flipped") })

/** Fails as the runtime does, or with a failure that has a cause. */
const allocate = (bytes: number) =>
  bytes > 0 ? Effect.asVoid(Effect.scoped(CudaMemory.allocate(bytes))) : Effect.fail(
    new CudaError.CudaError({
      operation: "CudaKernel.launch",
      call: "cuLaunchKernel",
      deviceIndex: 1,
      reason: CudaError.reasonFromStatus(700),
      cause
    })
  )

interface Handler {
  readonly handler: (request: Request) => Promise<Response>
  readonly dispose: () => Promise<void>
}

/** A client whose requests end at a handler in this process. `texts` gets the bodies that came back. */
const clientOf = (handle: () => Handler, texts: Array<string>) =>
  Effect.map(
    Effect.acquireRelease(Effect.sync(handle), ({ dispose }) => Effect.promise(dispose)),
    ({ handler }) =>
      FetchHttpClient.layer.pipe(Layer.provideMerge(Layer.succeed(FetchHttpClient.Fetch, async (input, init) => {
        const response = await handler(new Request(input, init))
        texts.push(await response.clone().text())
        return response
      })))
  )

const assertArrived = (error: unknown, sender: CudaError.CudaError) => {
  assert.instanceOf(error, CudaError.CudaError)
  assert.strictEqual(error.message, sender.message)
  assert.deepStrictEqual(error.reason, sender.reason)
  assert.strictEqual(error.isSticky, sender.isSticky)
  return error
}

/** Calls twice: with the failure of a runtime, and with the one that has a cause. */
const check = (call: (bytes: number) => Effect.Effect<void, unknown>, texts: ReadonlyArray<string>) =>
  Effect.gen(function*() {
    yield* call(64)
    const runtime = Effect.provide(Effect.flip(allocate(2 ** 50)), SimulatedRuntime.layer())
    const outOfMemory = assertArrived(yield* Effect.flip(call(2 ** 50)), yield* runtime)
    assert.strictEqual(outOfMemory.memory?.requested, 2 ** 50)
    const sender = yield* Effect.provide(Effect.flip(allocate(0)), SimulatedRuntime.layer())
    const arrived = assertArrived(yield* Effect.flip(call(0)), sender)
    assert.instanceOf(arrived.cause, Error)
    assert.deepStrictEqual([arrived.cause.name, arrived.cause.message], ["RangeError", "index 9"])
    assert.instanceOf(arrived.cause.cause, Error)
    assert.strictEqual(arrived.cause.cause.message, "a bit flipped")
    assert.isTrue(texts.some((text) => text.includes("IllegalAddress")), "the failures were text in between")
  })

describe("CudaError over HTTP", () => {
  it.live("is the error of an RPC", () =>
    Effect.gen(function*() {
      const group = RpcGroup.make(
        Rpc.make("allocate", { payload: { bytes: Schema.Number }, error: CudaSchema.CudaError })
      )
      const handlers = group.toLayer({ allocate: ({ bytes }) => allocate(bytes) })
      const app = RpcServer.layerHttp({ group, path: "/rpc", protocol: "http" }).pipe(
        Layer.provide(Layer.provide(handlers, SimulatedRuntime.layer())),
        Layer.provide([RpcSerialization.layerNdjson, HttpServer.layerServices])
      )
      const texts: Array<string> = []
      const http = yield* clientOf(() => HttpRouter.toWebHandler(app, { disableLogger: true }), texts)
      const protocol = RpcClient.layerProtocolHttp({ url: "http://gpu.test/rpc" }).pipe(
        Layer.provide([http, RpcSerialization.layerNdjson])
      )
      const context = yield* Layer.build(protocol)
      const client = yield* Effect.provide(RpcClient.make(group), context)
      yield* check((bytes) => client.allocate({ bytes }), texts)
    }).pipe(Effect.scoped))

  it.live("is the error of an HTTP API", () =>
    Effect.gen(function*() {
      const api = HttpApi.make("gpu").add(
        HttpApiGroup.make("memory").add(
          HttpApiEndpoint.post("allocate", "/allocate", {
            payload: Schema.Struct({ bytes: Schema.Number }),
            error: CudaSchema.CudaError
          })
        )
      )
      const memory = HttpApiBuilder.group(
        api,
        "memory",
        (handlers) => handlers.handle("allocate", ({ payload }) => allocate(payload.bytes))
      )
      const app = HttpApiBuilder.layer(api).pipe(
        Layer.provide(memory),
        HttpRouter.provideRequest(SimulatedRuntime.layer()),
        Layer.provide(HttpServer.layerServices)
      )
      const texts: Array<string> = []
      const http = yield* clientOf(() => HttpRouter.toWebHandler(app, { disableLogger: true }), texts)
      const context = yield* Layer.build(http)
      const client = yield* Effect.provide(HttpApiClient.make(api, { baseUrl: "http://gpu.test" }), context)
      yield* check((bytes) => client.memory.allocate({ payload: { bytes } }), texts)
    }).pipe(Effect.scoped))
})
