/**
 * Events in the runtime service.
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
 * An event of a runtime.
 *
 * @category models
 * @since 0.1.0
 */
export interface EventRef {
  readonly handle: EventHandle
  readonly device: number
  /** `CUevent_flags`: 1 blocking sync, 2 timing off, 4 interprocess. */
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
  /** `cuEventCreate`. */
  readonly eventCreate: (device: number, flags: number) => Effect.Effect<EventRef, CudaError>
  /** `cuEventDestroy`, once nothing waits for the event any more. */
  readonly eventDestroy: (event: EventRef) => Effect.Effect<void, CudaError>
  /** `cuEventRecord`. */
  readonly eventRecord: (event: EventRef, stream: StreamRef) => Effect.Effect<void, CudaError>
  /** `cuEventQuery`. */
  readonly eventQuery: (event: EventRef) => Effect.Effect<boolean, CudaError>
  /** Waits for the record that is current at the call. */
  readonly eventSynchronize: (event: EventRef) => Effect.Effect<void, CudaError>
  /** `cuEventElapsedTime`, in milliseconds. */
  readonly eventElapsedTime: (start: EventRef, end: EventRef) => Effect.Effect<number, CudaError>
  /** `cuIpcGetEventHandle`: 64 bytes. */
  readonly eventIpcHandle: (event: EventRef) => Effect.Effect<Uint8Array<ArrayBuffer>, CudaError>
  /** `cuIpcOpenEventHandle`. */
  readonly eventFromIpcHandle: (device: number, handle: Uint8Array) => Effect.Effect<EventRef, CudaError>
}
