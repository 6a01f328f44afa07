/**
 * What the contract suite needs beyond a runtime's layer: ways to keep a stream busy and to enqueue work by native code, and the number
 * of devices before the tests are declared.
 */
import type { CudaError } from "effect-cuda/CudaError"
import type { CudaRuntime } from "effect-cuda/CudaRuntime"
import type { CudaStream } from "effect-cuda/CudaStream"
import * as Context from "effect/Context"
import type * as Effect from "effect/Effect"
import type * as Layer from "effect/Layer"

export interface Rig {
  readonly name: string
  readonly deviceCount: number
  /** Whether there is a cuBLASLt to multiply with. */
  readonly hasBlas: boolean
  /** Whether there is an NCCL to communicate with. */
  readonly hasNccl: boolean
  readonly layer: Layer.Layer<CudaRuntime | Busy | NativeCode, CudaError>
}

/** Enqueues work that takes the device about this many milliseconds. */
export class Busy extends Context.Service<Busy, {
  readonly enqueue: (stream: CudaStream, millis: number) => Effect.Effect<void>
}>()("effect-cuda/test/Busy") {}

/** Native code that is not part of the library. Simulated devices never run it. */
export class NativeCode extends Context.Service<NativeCode, {
  /** Fills device memory, on a stream given by its handle. Returns the driver's status. */
  readonly fill: (stream: number, address: number, value: number, byteLength: number) => number
  /** Allocates device memory in the order of a stream. Returns the driver's status. */
  readonly allocate: (stream: number, byteLength: number) => number
}>()("effect-cuda/test/NativeCode") {}
