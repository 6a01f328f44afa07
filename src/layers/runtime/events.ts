/**
 * Events, in the runtime service.
 *
 * @since 0.1.0
 */
import type * as Effect from "effect/Effect"
import type { CUevent } from "../../cuda/handles.ts"
import type { CudaError } from "../../CudaError.ts"
import type { ResourceState } from "./resources.ts"
import type { StreamRef } from "./streams.ts"

/**
 * A `CUevent` as a number.
 *
 * @category models
 * @since 0.1.0
 */
export type EventHandle = CUevent

/**
 * A reference to an event.
 *
 * @category models
 * @since 0.1.0
 */
export interface EventRef {
  readonly handle: EventHandle
  readonly deviceIndex: number
  /** `CUevent_flags`: 1 is blocking sync, 2 disables timing, 4 is interprocess. */
  readonly flags: number
  readonly state: ResourceState
}

/**
 * Operations on events.
 *
 * @category models
 * @since 0.1.0
 */
export interface EventOperations {
  /** Creates an event (`cuEventCreate`). */
  readonly eventCreate: (deviceIndex: number, flags: number) => Effect.Effect<EventRef, CudaError>
  /** Destroys an event (`cuEventDestroy`) once nothing waits for it any longer. */
  readonly eventDestroy: (event: EventRef) => Effect.Effect<void, CudaError>
  /** Records an event on a stream (`cuEventRecord`). */
  readonly eventRecord: (event: EventRef, stream: StreamRef) => Effect.Effect<void, CudaError>
  /** Whether the current record has finished (`cuEventQuery`). */
  readonly eventQuery: (event: EventRef) => Effect.Effect<boolean, CudaError>
  /** Waits for the record that is current when the wait begins. */
  readonly eventSynchronize: (event: EventRef) => Effect.Effect<void, CudaError>
  /** Milliseconds between two events (`cuEventElapsedTime`). */
  readonly eventElapsedTime: (start: EventRef, end: EventRef) => Effect.Effect<number, CudaError>
  /** Reads the 64-byte handle of an interprocess event (`cuIpcGetEventHandle`). */
  readonly eventIpcHandle: (event: EventRef) => Effect.Effect<Uint8Array<ArrayBuffer>, CudaError>
  /** Opens an event of another process (`cuIpcOpenEventHandle`). */
  readonly eventFromIpcHandle: (deviceIndex: number, handle: Uint8Array) => Effect.Effect<EventRef, CudaError>
  /** Wraps an event of other code, which counts as recorded (`cuEventQuery`). It is never destroyed. */
  readonly eventFromHandle: (
    deviceIndex: number,
    handle: number,
    flags: number,
    keeps?: unknown
  ) => Effect.Effect<EventRef, CudaError>
}
