/**
 * HTTP on `node:http` for a handler that is an Effect: one fiber per request, interrupted if its client disconnects,
 * and a graceful shutdown. `@effect/platform-node` has a more complete server, for newer versions of Node.js.
 */
import * as Data from "effect/Data"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as FiberSet from "effect/FiberSet"
import type * as Scope from "effect/Scope"
import { createServer } from "node:http"
import type { IncomingMessage, Server, ServerResponse } from "node:http"
import type { AddressInfo } from "node:net"

/** The part of a request that handlers need. */
export interface Call {
  readonly method: string
  readonly path: string
  /** Reads the body, up to the limit. */
  readonly body: Effect.Effect<string, BodyTooLarge>
}

/** A response, with a JSON `body`. */
export interface Reply {
  readonly status: number
  readonly body: unknown
  readonly headers?: Readonly<Record<string, string>> | undefined
}

export interface Options {
  /** 0 for any free port. */
  readonly port: number
  readonly host?: string | undefined
  readonly maxBodyBytes?: number | undefined
  /** How long requests in progress may continue when the server closes. */
  readonly grace?: Duration.Input | undefined
}

/** The body is larger than the limit. */
export class BodyTooLarge extends Data.TaggedError("BodyTooLarge")<{ readonly maxBodyBytes: number }> {
  override get message(): string {
    return `the body is larger than ${this.maxBodyBytes} bytes`
  }
}

/** The server cannot listen on the port. */
export class ListenFailed extends Data.TaggedError("ListenFailed")<{ readonly cause: Error }> {
  override readonly message = `cannot listen: ${this.cause.message}`
}

/**
 * Serves requests in a scope, and returns the server's address. Closing the scope refuses new connections, waits for
 * requests in progress, and closes the connections of those that exceed `grace`.
 */
export const serve = <R>(
  handle: (call: Call) => Effect.Effect<Reply, never, R>,
  { grace = "10 seconds", host = "127.0.0.1", maxBodyBytes = 64 * 1024, port }: Options
): Effect.Effect<string, ListenFailed, R | Scope.Scope> =>
  Effect.gen(function*() {
    const run = yield* FiberSet.makeRuntime<R>()
    const server = createServer({ requestTimeout: 30_000 }, (request, response) => {
      const reply = Effect.suspend(() => handle(callOf(request, maxBodyBytes)))
      const fiber = run(Effect.map(reply, (reply) => send(server, response, reply)))
      // After the response was sent, the fiber has ended and this has no effect.
      response.once("close", () => fiber.interruptUnsafe())
      fiber.addObserver(() => {
        if (!response.headersSent) response.destroy()
      })
    })
    const address = yield* Effect.acquireRelease(
      listen(server, port, host),
      () => close(server, Duration.fromInputUnsafe(grace))
    )
    return `http://${address.family === "IPv6" ? `[${address.address}]` : address.address}:${address.port}`
  })

const listen = (server: Server, port: number, host: string): Effect.Effect<AddressInfo, ListenFailed> =>
  Effect.callback((resume) => {
    server.once("error", (cause) => resume(new ListenFailed({ cause })))
    server.listen(port, host, () => {
      const address = server.address()
      if (address !== null && typeof address === "object") resume(Effect.succeed(address))
    })
  })

const close = (server: Server, grace: Duration.Duration): Effect.Effect<void> =>
  Effect.callback((resume) => {
    // This also ends the close. An Effect timeout would have to interrupt it, but a release cannot be interrupted.
    const cut = setTimeout(() => server.closeAllConnections(), Duration.toMillis(grace))
    server.close(() => {
      clearTimeout(cut)
      resume(Effect.void)
    })
  })

const callOf = (request: IncomingMessage, maxBodyBytes: number): Call => ({
  method: request.method ?? "GET",
  path: (request.url ?? "/").split("?")[0]!,
  body: readBody(request, maxBodyBytes)
})

const send = (server: Server, response: ServerResponse, { body, headers, status }: Reply): void => {
  // A closing server waits for its connections, so this response is the last one on this connection.
  if (!server.listening) response.setHeader("connection", "close")
  const text = JSON.stringify(body)
  response.writeHead(status, {
    "content-type": "application/json",
    "content-length": Buffer.byteLength(text),
    ...headers
  })
  response.end(text)
}

const readBody = (request: IncomingMessage, maxBodyBytes: number): Effect.Effect<string, BodyTooLarge> =>
  Effect.callback((resume) => {
    const tooLarge = new BodyTooLarge({ maxBodyBytes })
    if (Number(request.headers["content-length"] ?? 0) > maxBodyBytes) return resume(tooLarge)
    const chunks: Array<Buffer> = []
    let byteLength = 0
    const take = (chunk: Buffer) => {
      byteLength += chunk.byteLength
      if (byteLength <= maxBodyBytes) return chunks.push(chunk)
      // The rest is read and discarded, so that the client gets to read the response.
      stop()
      return resume(tooLarge)
    }
    const end = () => resume(Effect.succeed(Buffer.concat(chunks).toString()))
    const stop = () => request.off("data", take).off("end", end)
    request.on("data", take).on("end", end)
    return Effect.sync(stop)
  })
