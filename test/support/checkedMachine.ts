/**
 * Machines on which races fail.
 */
import * as CheckedRuntime from "effect-cuda/CheckedRuntime"
import type { CudaRuntime } from "effect-cuda/CudaRuntime"
import * as Layer from "effect/Layer"

/** The same machine, checked: operations that race fail with `RaceDetected`, and so does the host taking bytes too early. */
export const checkedMachine = <A, E, R>(machine: Layer.Layer<A | CudaRuntime, E, R>) =>
  Layer.provideMerge(CheckedRuntime.layer({ mode: "fail" }), machine)
