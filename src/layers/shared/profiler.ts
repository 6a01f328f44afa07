/**
 * Profilers: the shared operations, and the backend functions they use.
 */
import * as Effect from "effect/Effect"
import { success } from "../../cuda/status.ts"
import type { ProfilerOperations } from "../runtime/profiler.ts"
import type { Core } from "./Core.ts"

export interface ProfilerBackend {
  readonly start: (deviceIndex: number) => number
  readonly stop: (deviceIndex: number) => number
}

export const profilerOperations = (core: Core): ProfilerOperations => {
  const on = (operation: string, device: number, call: (deviceIndex: number) => number) =>
    core.onDevice(operation, device, () => {
      const status = call(device)
      return status === success ? Effect.void : core.failOn(operation, status, device, `device ${device}`)
    })
  return {
    profilerStart: (device) => on("CudaProfiler.capture", device, (index) => core.backend.profiler.start(index)),
    profilerStop: (device) => on("CudaProfiler.endCapture", device, (index) => core.backend.profiler.stop(index))
  }
}
