/**
 * Profilers on the driver.
 */
import { statuses } from "../../cuda/status.ts"
import type { ProfilerBackend } from "../shared/profiler.ts"
import type { Driver } from "./Driver.ts"

export class NativeProfiler implements ProfilerBackend {
  readonly #driver: Driver

  constructor(driver: Driver) {
    this.#driver = driver
  }

  start(index: number): number {
    const { cuProfilerStart: start } = this.#driver.calls
    return this.#inContext(index, "cuProfilerStart", start)
  }

  stop(index: number): number {
    const { cuProfilerStop: stop } = this.#driver.calls
    return this.#inContext(index, "cuProfilerStop", stop)
  }

  #inContext(index: number, name: string, call: (() => number) | undefined): number {
    if (call === undefined) return this.#driver.answer(name, statuses.NotSupported.code)
    return this.#driver.inContextOf(index, name, () => call())
  }
}
