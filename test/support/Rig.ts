/**
 * What the contract suite needs beyond a runtime's layer: a way to keep a stream busy, and the number of devices before the
 * tests are declared.
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
  readonly layer: Layer.Layer<CudaRuntime | Busy, CudaError>
}

/** Enqueues work that takes the device about this many milliseconds. */
export class Busy extends Context.Service<Busy, {
  readonly enqueue: (stream: CudaStream, millis: number) => Effect.Effect<void>
}>()("effect-cuda/test/Busy") {}
