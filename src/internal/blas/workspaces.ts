/**
 * Memory in which algorithms work: for each stream one that its products share, and for each plan one for recorded graphs.
 */
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Scope from "effect/Scope"
import type { CudaError } from "../../CudaError.ts"
import * as CudaMemory from "../../CudaMemory.ts"
import { CudaRuntime } from "../../layers/CudaRuntime.ts"
import type { CudaRuntimeService, StreamRef } from "../../layers/CudaRuntime.ts"
import { named } from "../handles.ts"
import { multiplying } from "./operands.ts"

/** How many streams of other code have a workspace. Those that are gone look like the others. */
const mostForeign = 16

/** A workspace that was made, and how it is released before its scope. */
interface Made {
  readonly buffer: CudaMemory.DeviceBuffer
  readonly release: Effect.Effect<void>
}

/** The workspaces of a service. */
export class Workspaces {
  readonly #runtime: CudaRuntimeService
  readonly #scope: Scope.Scope
  readonly #byStream = new Map<StreamRef, Made>()
  constructor(runtime: CudaRuntimeService, scope: Scope.Scope) {
    this.#runtime = runtime
    this.#scope = scope
  }

  /** Whether the service was released, or is about to be. */
  get isClosed(): boolean {
    return this.#scope.state._tag === "Closed"
  }

  /** The workspace of a stream, if it is large enough. Products of one stream run one after another, so they share it. */
  on(stream: StreamRef, byteLength: number): CudaMemory.DeviceBuffer | undefined {
    const buffer = this.#byStream.get(stream)?.buffer
    return buffer !== undefined && buffer.byteLength >= byteLength && isUsable(buffer) ? buffer : undefined
  }

  /**
   * Makes a workspace for a stream, and releases the smaller one before it and those of streams that are gone. A product that was prepared
   * with one of these makes another one.
   */
  make(stream: StreamRef, byteLength: number): Effect.Effect<void, CudaError> {
    return allocate(this.#runtime, stream.deviceIndex, byteLength, {}, this.#scope, (made) =>
      // Another fiber may have made one meanwhile.
      this.on(stream, byteLength) === undefined ? this.#replace(stream, made) : made.release)
  }

  /** Releases the workspace of a stream. */
  #release(stream: StreamRef): Effect.Effect<void> {
    const known = this.#byStream.get(stream)
    this.#byStream.delete(stream)
    return known?.release ?? Effect.void
  }

  #replace(stream: StreamRef, made: Made): Effect.Effect<void> {
    const streams = Array.from(this.#byStream.keys())
    const gone = streams.filter((other) => other === stream || other.state !== "live")
    const foreign = streams.filter((other) => other.origin === "foreign" && !gone.includes(other))
    if (stream.origin === "foreign") gone.push(...foreign.slice(0, Math.max(foreign.length + 1 - mostForeign, 0)))
    const releases = gone.map((other) => this.#release(other))
    this.#byStream.set(stream, made)
    return Effect.forEach(releases, (release) => release, { discard: true })
  }
}

export const isUsable = (buffer: CudaMemory.DeviceBuffer): boolean => buffer.ref.state === "live"

/**
 * Allocates memory that lives as long as a scope, outside of recordings, and passes it on. Interruption ends the wait for memory, and comes
 * before it was passed on or not at all.
 */
export const allocate = (
  runtime: CudaRuntimeService,
  device: number,
  byteLength: number,
  options: { readonly ordered?: boolean },
  outer: Scope.Scope,
  use: (made: Made) => Effect.Effect<void>
): Effect.Effect<void, CudaError> =>
  Effect.uninterruptibleMask((restore) =>
    Effect.flatMap(Scope.fork(outer), (scope) => {
      const release = Scope.close(scope, Exit.void)
      return restore(CudaMemory.allocate(byteLength, { device, ordered: false, ...options })).pipe(
        Effect.provideService(CudaRuntime, runtime),
        Effect.provideService(Scope.Scope, scope),
        named(multiplying),
        Effect.onError(() => release),
        Effect.flatMap((buffer) => use({ buffer, release }))
      )
    })
  )
