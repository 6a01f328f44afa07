/**
 * A layer around any runtime that waits after every operation until the GPU has done it, so that a fault is the failure of the operation
 * that caused it, with its line in the source. What `CUDA_LAUNCH_BLOCKING` does for C, without blocking the thread.
 *
 * Depends on the runtime's interface and on its shared foundation.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import { annotations, CudaError } from "../CudaError.ts"
import { printWhere } from "./checked/explain.ts"
import { lineOf } from "./checked/Watcher.ts"
import { CudaRuntime } from "./CudaRuntime.ts"
import type { CudaRuntimeService, MemoryAccess, StreamRef } from "./CudaRuntime.ts"
import { around } from "./runtime/operations.ts"
import type { Operation, OperationCall } from "./runtime/operations.ts"
import { enqueuedOf, streamAttributes, streamOf, subjectOf } from "./shared/described.ts"
import type { Enqueued } from "./shared/described.ts"

/**
 * Options for debugging.
 *
 * @category models
 * @since 0.1.0
 */
export interface DebugOptions {
  /** Whether to find the line of each call, which takes some ten microseconds. Default: true. */
  readonly stacks?: boolean | undefined
  /** Whether to log the operation behind a fault, at level error. Default: true. */
  readonly log?: boolean | undefined
}

/**
 * Wraps a runtime for debugging. The result has the identity of the inner runtime.
 *
 * **Example** (Debugging part of a program)
 *
 * ```ts
 * import { CudaRuntime, DebugRuntime } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * const debugged = <A, E, R>(program: Effect.Effect<A, E, R>) =>
 *   Effect.flatMap(CudaRuntime.CudaRuntime, (runtime) =>
 *     Effect.provideService(program, CudaRuntime.CudaRuntime, DebugRuntime.make(runtime, { log: false })))
 * ```
 *
 * @see {@link layer} for what it does
 * @category constructors
 * @since 0.1.0
 */
export const make = (runtime: CudaRuntimeService, options: DebugOptions = {}): CudaRuntimeService =>
  around(runtime, (operation, call) => {
    const enqueued = enqueuedOf(operation.member) ?? (operation.member === "memoryEnd" ? access : undefined)
    return enqueued === undefined ? call : synchronous(runtime, operation, enqueued, call, options)
  })

/**
 * Wraps the runtime of a layer, so that every operation that enqueues work waits until the GPU has done it.
 *
 * **Details**
 *
 * These are copies, fills, prefetches, launches of kernels and graphs, calls of libraries, and work of other native code
 * (`CudaMemory.enqueue`, `CudaMemory.access`). If the wait fails, so does the operation, and the failure names it with its kernel or its
 * function, and the line of the call or the span around it. It is also logged, annotated with the operation, the stream and the device.
 * The fiber waits; other fibers run on. Operations of a recording run when the graph does, so a fault in a graph is that of its launch.
 *
 * Its cost is the concurrency of the GPU: use it to find a fault, not in production.
 *
 * **Gotchas**
 *
 * Programs that enqueue work which waits for something that the same fiber does later, such as a kernel that spins on pinned memory, wait
 * forever. Work that other code enqueues without telling the runtime is found by the next operation.
 *
 * **Example** (Which launch is it?)
 *
 * ```ts
 * import { DebugRuntime, NativeRuntime } from "effect-cuda"
 * import * as Layer from "effect/Layer"
 *
 * const gpu = NativeRuntime.layer()
 * const runtime = process.env["GPU_DEBUG"] === undefined ? gpu : DebugRuntime.layer().pipe(Layer.provide(gpu))
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (options: DebugOptions = {}): Layer.Layer<CudaRuntime, never, CudaRuntime> =>
  Layer.effect(CudaRuntime, Effect.map(CudaRuntime, (runtime) => make(runtime, options)))

/** The end of a period in which other code used memory on a stream. */
const access: Enqueued = { stream: -1, attributes: () => ({}) }

const streamOfCall = (enqueued: Enqueued, args: ReadonlyArray<unknown>): StreamRef | undefined =>
  enqueued === access ? (args[0] as MemoryAccess | undefined)?.stream : streamOf(enqueued, args)

const synchronous = (
  runtime: CudaRuntimeService,
  operation: Operation,
  enqueued: Enqueued,
  call: OperationCall,
  { log = true, stacks = true }: DebugOptions
): OperationCall => {
  const debugged: OperationCall = (...args) => {
    const line = stacks ? lineOf(debugged) : undefined
    return Effect.flatMap(call(...args), (result) => {
      const stream = streamOfCall(enqueued, args)
      if (stream === undefined || stream.isRecording || stream.state !== "live") return Effect.succeed(result)
      const isDone = Effect.as(runtime.streamSynchronize(stream), result)
      return Effect.catch(isDone, (error) => blame(error, { operation, enqueued, args, line, stream, log }))
    })
  }
  return debugged
}

interface Suspect {
  readonly operation: Operation
  readonly enqueued: Enqueued
  readonly args: ReadonlyArray<unknown>
  readonly line: ReturnType<typeof lineOf> | undefined
  readonly stream: StreamRef
  readonly log: boolean
}

/** Fails with a fault as the failure of the operation behind it. What follows from an earlier fault stays as it is. */
const blame = (error: CudaError, suspect: Suspect): Effect.Effect<never, CudaError> => {
  if (error.origin !== undefined) return Effect.fail(error)
  const { args, enqueued, line, log, operation, stream } = suspect
  const subject = subjectOf(enqueued, args)
  const where = printWhere(Fiber.getCurrent()?.cache.stackFrame)
  const places = [printWhere(line), where].filter((place) => place !== undefined)
  const detail = [error.detail, places.length === 0 ? undefined : `Enqueued at ${places.join(", in ")}.`]
  const blamed = new CudaError({
    ...error,
    operation: operation.name,
    call: operation.call,
    subject: subject === undefined ? String(stream) : `${subject}, ${String(stream)}`,
    deviceIndex: stream.deviceIndex,
    detail: detail.filter((part) => part !== undefined).join(" ") || undefined
  })
  const failed = Effect.fail(blamed)
  if (!log) return failed
  const logged = Effect.annotateLogs(Effect.logError(blamed.message), {
    ...annotations(blamed),
    ...streamAttributes(stream)
  })
  return Effect.andThen(logged, failed)
}
