/**
 * Profilers of simulated devices: there are none, so the calls only answer as the driver does.
 */
import type { ProfilerBackend } from "../shared/profiler.ts"
import type { SimulatedDriver } from "./Driver.ts"

export class SimulatedProfiler implements ProfilerBackend {
  readonly #driver: SimulatedDriver

  constructor(driver: SimulatedDriver) {
    this.#driver = driver
  }

  start(deviceIndex: number): number {
    return this.#driver.begin("cuProfilerStart", this.#driver.device(deviceIndex))
  }

  stop(deviceIndex: number): number {
    return this.#driver.begin("cuProfilerStop", this.#driver.device(deviceIndex))
  }
}
