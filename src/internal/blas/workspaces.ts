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

interface Workspace {
  readonly buffer: CudaMemory.DeviceBuffer
  readonly scope: Scope.Closeable
}

/** The workspaces of a service. */
export class Workspaces {
  readonly #runtime: CudaRuntimeService
  readonly #scope: Scope.Scope
  readonly #byStream = new Map<StreamRef, Workspace>()
  constructor(runtime: CudaRuntimeService, scope: Scope.Scope) {
    this.#runtime = runtime
    this.#scope = scope
  }

  /** The workspace of a stream, if it is large enough. Products of one stream run one after another, so they share it. */
  on(stream: StreamRef, byteLength: number): CudaMemory.DeviceBuffer | undefined {
    const buffer = this.#byStream.get(stream)?.buffer
    return buffer !== undefined && buffer.byteLength >= byteLength ? buffer : undefined
  }

  /** Makes a workspace for a stream, and releases the smaller one before it and those of streams that are gone. */
  readonly make = (stream: StreamRef, byteLength: number): Effect.Effect<CudaMemory.DeviceBuffer, CudaError> =>
    Effect.uninterruptible(
      Effect.flatMap(
        Scope.fork(this.#scope),
        (scope) =>
          allocate(this.#runtime, stream.deviceIndex, byteLength, {}, scope).pipe(
            Effect.onError(() => Scope.close(scope, Exit.void)),
            Effect.tap((buffer) => this.#replace(stream, { buffer, scope }))
          )
      )
    )

  #replace(stream: StreamRef, made: Workspace): Effect.Effect<void> {
    const gone: Array<Workspace> = []
    for (const [other, workspace] of this.#byStream) {
      if (other !== stream && other.state === "live") continue
      gone.push(workspace)
      this.#byStream.delete(other)
    }
    this.#byStream.set(stream, made)
    return Effect.forEach(gone, ({ scope }) => Scope.close(scope, Exit.void), { discard: true })
  }
}

/** Allocates memory that lives as long as a scope, outside of recordings. */
export const allocate = (
  runtime: CudaRuntimeService,
  device: number,
  byteLength: number,
  options: { readonly ordered?: boolean },
  scope: Scope.Scope
): Effect.Effect<CudaMemory.DeviceBuffer, CudaError> =>
  CudaMemory.allocate(byteLength, { device, ordered: false, ...options }).pipe(
    Effect.provideService(CudaRuntime, runtime),
    Effect.provideService(Scope.Scope, scope)
  )
