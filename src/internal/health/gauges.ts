/**
 * The gauges of a device, named as OpenTelemetry's conventions for hardware name them where they do.
 */
import * as Metric from "effect/Metric"
import type { DeviceProperties } from "../../layers/CudaRuntime.ts"
import type { HealthSample } from "../../layers/Health.ts"

/** A gauge, and its value in a sample: undefined if the device does not offer it. */
export interface DeviceGauge {
  readonly gauge: Metric.Gauge<number>
  readonly valueOf: (sample: HealthSample) => number | undefined
}

/** The reasons that are no setting and no rest: something holds the device back. */
const slowdowns = [
  "swPowerCap",
  "hwSlowdown",
  "swThermalSlowdown",
  "hwThermalSlowdown",
  "hwPowerBrakeSlowdown"
] as const

const megahertz = 1e6

export const deviceGauges = ({ name, uuid }: DeviceProperties): ReadonlyArray<DeviceGauge> => {
  const make = (
    metric: string,
    unit: string,
    description: string,
    valueOf: DeviceGauge["valueOf"],
    more: Readonly<Record<string, string>> = {}
  ): DeviceGauge => {
    const attributes = { "hw.id": uuid, "hw.name": name, "hw.type": "gpu", unit, ...more }
    return { gauge: Metric.gauge(metric, { description, attributes }), valueOf }
  }
  return [
    make("hw.gpu.utilization", "1", "Fraction of time with a kernel running", (sample) => sample.utilization?.gpu),
    make(
      "hw.gpu.memory.controller.utilization",
      "1",
      "Fraction of time with memory read or written",
      (sample) => sample.utilization?.memory
    ),
    make(
      "hw.gpu.memory.utilization",
      "1",
      "Fraction of memory in use",
      ({ memory }) => memory && memory.used / memory.total
    ),
    make("hw.gpu.memory.usage", "By", "Memory in use", (sample) => sample.memory?.used),
    make("hw.gpu.memory.limit", "By", "Size of the memory", (sample) => sample.memory?.total),
    make("hw.temperature", "Cel", "Temperature of the GPU", (sample) => sample.temperature),
    make("hw.power", "W", "Power drawn", (sample) => sample.power),
    make("hw.gpu.power.limit", "W", "Power that may be drawn", (sample) => sample.powerLimit),
    ...(["sm", "memory"] as const).map((clock) =>
      make("hw.gpu.clock.frequency", "Hz", "Current clock", ({ clocks }) => inHertz(clocks[clock]), {
        "hw.gpu.clock": clock
      })
    ),
    ...(["corrected", "uncorrected"] as const).map((kind) =>
      make("hw.gpu.ecc.errors", "{error}", "Memory errors since the driver was loaded", ({ ecc }) => ecc?.[kind], {
        "error.type": kind
      })
    ),
    ...slowdowns.map((reason) =>
      make(
        "hw.gpu.throttled",
        "1",
        "Whether something holds the clocks back",
        ({ throttleReasons }) => throttleReasons && Number(throttleReasons.includes(reason)),
        { "hw.gpu.throttle.reason": reason }
      )
    )
  ]
}

const inHertz = (clock: number | undefined): number | undefined => clock === undefined ? undefined : clock * megahertz
